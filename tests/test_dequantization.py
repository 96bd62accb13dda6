"""From integers to continuous values and back: constants in closed form, bounds against integrals, exact inverses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Generator, Tensor, nn
from toys.flow import TriangularFlow, TriangularFlowConfig

from davi.distributions import Distribution, Normal, TransformedNormal
from davi.evidence import Kind, bits_per_dim
from davi.flows import Dequantization


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Evenly(Distribution):
    """Uniform noise whose draws are the midpoints of equal parts of the interval, in turn along the batch."""

    def __init__(self, x: Tensor, parts: int) -> None:
        u = (torch.arange(parts, dtype=torch.float64) + 0.5) / parts
        self.u = u.repeat(len(x) // parts).view(x.shape)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return self.u

    def log_prob_map(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    mode = sample


def identity_flow(levels: int, low: float, high: float) -> float:
    """Bits per dimension of uniform integers under N(0, 1) on y itself."""
    parts = 1024
    x = torch.arange(levels).repeat_interleave(parts).view(-1, 1, 1, 1)
    dequantization = Dequantization(levels, low, high, lambda x: Evenly(x, parts))
    y, log_q, _ = dequantization(x, dtype=torch.float64)
    log_p = -0.5 * y.square() - 0.5 * math.log(2.0 * math.pi)
    return bits_per_dim(float((log_p - log_q).mean()), 1)


@pytest.mark.parametrize(("levels", "expected"), [(256, 9.385860), (32, 6.385860)])
def test_bits_of_the_identity_flow(levels: int, expected: float) -> None:
    """Centered intervals of length 1 in all: log2 n + (log 2 pi + 1 / 12) / (2 log 2). The midpoints of 1024 parts
    integrate the square to 1e-7."""
    assert identity_flow(levels, -0.5, 0.5) == pytest.approx(expected, abs=6e-7)
    exact = math.log2(levels) + (math.log(2.0 * math.pi) + 1.0 / 12.0) / (2.0 * math.log(2.0))
    assert identity_flow(levels, -0.5, 0.5) == pytest.approx(exact, abs=2e-7)


@pytest.mark.parametrize(("low", "high", "bits"), [(-1.0, 1.0, 7.0), (0.0, 1.0, 8.0), (-0.5, 0.5, 8.0)])
def test_constants_of_the_range(low: float, high: float, bits: float) -> None:
    """[-1, 1] adds log2 128 bits, a range of length 1 adds log2 256, and 255 in its place would be .0056466 less."""
    x = torch.randint(256, (2, 3, 4, 4))
    y, log_q, _ = Dequantization(256, low, high)(x, seeded())
    assert y.shape == log_q.shape == x.shape
    torch.testing.assert_close(log_q / math.log(2.0), torch.full_like(y, bits), rtol=1e-6, atol=0.0)
    assert bool(((low <= y) & (y < high)).all())


def test_noise_is_a_density_up_to_the_ends() -> None:
    """In float32 no two draws have one value in common but by rounding, and 1 / q integrates to the length of what is
    reached: E[1 / q(u)] = 1 - 2 margin, of 10^6 draws within five standard errors."""
    n, levels = 1_000_000, 4096
    y, log_q, _ = Dequantization(levels, 0.0, float(levels))(torch.zeros(n, 1, 1, 1, dtype=torch.long), seeded())
    margin = float(y.min())
    assert 0.9e-3 < margin < 3e-3
    assert float((y == y.min()).float().mean()) < 1e-4
    length = log_q.double().neg().exp()
    error = float(length.std()) / math.sqrt(n)
    assert float(length.mean()) == pytest.approx(1.0 - 2.0 * margin, abs=5.0 * error)


def test_uniform_noise_is_uniform() -> None:
    """Mean and variance of u, within five standard errors of 100,000 draws."""
    x = torch.randint(16, (100_000, 1, 1, 1), generator=seeded(1))
    u = Dequantization(16, 0.0, 16.0)(x, seeded(), dtype=torch.float64).y - x
    n = len(x)
    assert float(u.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * n))
    assert float(u.var()) == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / n))
    y, again = (Dequantization(16)(x, seeded(3)).y for _ in range(2))
    assert torch.equal(y, again)


class Fixed(Distribution):
    """Noise at one place; only where it is drawn matters."""

    def __init__(self, x: Tensor, u: float) -> None:
        self.u = torch.full(x.shape, u, dtype=torch.float64)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return self.u

    def log_prob_map(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    mode = sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 3, 10, 32, 255, 256, 65536])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.5, 0.5), (-1.0, 1.0), (0.05, 0.95), (2.0, 2.7)])
def test_back_to_the_very_integers(levels: int, low: float, high: float, dtype: torch.dtype) -> None:
    """All of them, with the noise anywhere, also where x + u would be rounded to x + 1."""
    x = torch.arange(levels).view(-1, 1, 1, 1)
    places: list[Callable[[Tensor], Distribution] | None] = [None]
    places += [partial(Fixed, u=u) for u in (0.0, 1e-12, 0.5, math.nextafter(1.0, 0.0))]
    for noise in places:
        dequantization = Dequantization(levels, low, high, noise)
        y, *_ = dequantization(x, seeded(), dtype)
        assert y.dtype == dtype
        assert torch.equal(dequantization.quantize(y), x)


def test_what_lies_outside_goes_to_the_ends() -> None:
    ends = Dequantization(8, -1.0, 1.0).quantize(torch.tensor([-5.0, -1.0, 1.0, 7.0]))
    assert ends.tolist() == [0, 0, 7, 7]


class Learned(nn.Module):
    """Noise that depends on the integers: a Normal through the logistic function."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.4, -0.2, 0.9], dtype=torch.float64))

    def forward(self, x: Tensor) -> Distribution:
        a, b, log_scale = self.weights
        base = Normal(a + b * x.double(), log_scale.exp().expand(x.shape))
        return TransformedNormal(
            base, lambda z: (z.sigmoid(), nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z))
        )


def test_a_learned_noise_gives_a_bound_and_weights_of_the_probability() -> None:
    """One value of four levels under N(0.3, 0.6) on y: exp(log p(y) - log q(y | x)) has the probability of the
    interval as its expectation, within five standard errors, and less than its logarithm as that of its logarithm."""
    learned, n = Learned(), 200_000
    dequantization = Dequantization(4, -1.0, 1.0, learned)
    assert list(dequantization.state_dict()) == ["noise.weights"]
    density = torch.distributions.Normal(0.3, 0.6)
    for level in range(4):
        y, log_q, _ = dequantization(torch.full((n, 1, 1, 1), level), seeded(level), torch.float64)
        low, high = -1.0 + 0.5 * level, -0.5 + 0.5 * level
        assert bool(((y >= low) & (y <= high)).all())
        log_weight = density.log_prob(y) - log_q
        exact = float(density.cdf(torch.tensor(high)) - density.cdf(torch.tensor(low)))
        weight = log_weight.detach().exp()
        assert float(weight.mean()) == pytest.approx(exact, abs=5 * float(weight.std()) / math.sqrt(n))
        assert float(log_weight.detach().mean()) < math.log(exact)
        (gradient,) = torch.autograd.grad(log_weight.mean(), learned.weights)
        assert bool((gradient != 0).all()) or level == 0  # the weight of x is not seen where x is 0
    assert bool(gradient.isfinite().all())


def test_a_flow_is_as_exact_as_its_noise() -> None:
    class Unnormalized(Evenly):
        normalized = False

    class Flow(TriangularFlow):
        def __init__(self, noise: Callable[[Tensor], Distribution]) -> None:
            super().__init__((1, 1, 1), 4, TriangularFlowConfig())
            self.dequantization = Dequantization(4, noise=noise)

    x = torch.zeros(2, 1, 1, 1, dtype=torch.int64)
    kinds = [Flow(partial(noise, parts=2)).double().evidence(x).kind for noise in (Evenly, Unnormalized)]
    assert kinds == [Kind.LOWER_BOUND, Kind.ESTIMATE]


def test_what_cannot_be_is_refused() -> None:
    x = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="levels: got 1, expected at least 2"):
        Dequantization(1)
    for low, high in ((1.0, 1.0), (0.0, -1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=r"high: got the range .*, expected finite numbers, the second one larger"):
            Dequantization(4, low, high)
    with pytest.raises(ValueError, match=r"noise: got 1.5 to 1.5, expected numbers in \[0, 1\)"):
        Dequantization(4, noise=lambda x: Fixed(x, 1.5))(x)
    with pytest.raises(
        ValueError, match=r"dtype: got torch.float16 for 256 levels, expected one of a higher precision"
    ):
        Dequantization(256)(x, dtype=torch.float16)
