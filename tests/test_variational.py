"""Noise that a flow draws, given the image: its density by quadrature and by Jacobians, and what it gains."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from contract import seeded, shake
from torch import Tensor, nn
from toys.flow import TriangularFlow, TriangularFlowConfig

from davi.distributions import Distribution
from davi.flows import Bijection, Dequantization, Logit, Sequential
from davi.flows.noise import VariationalConfig, dequantization_configs, make_noise
from davi.flows.variational import VariationalNoise
from davi.layers.from_data import SetFromData

SMALL = VariationalConfig(
    steps=2, width=4, blocks=1, heads=1, components=2, context_width=3, context_blocks=1, split="columns"
)
LEVELS = 4


def noise(shape: tuple[int, int, int] = (1, 1, 2), config: VariationalConfig = SMALL) -> VariationalNoise:
    """In float64, with weights that are neutral nowhere."""
    found = make_noise(shape, LEVELS, config)
    assert isinstance(found, VariationalNoise)
    return shake(found).double()


def images(n: int, shape: tuple[int, int, int] = (1, 1, 2)) -> Tensor:
    return torch.randint(LEVELS, (n, *shape), generator=seeded(1))


def test_its_name_in_recipes() -> None:
    assert dequantization_configs()["variational"] is VariationalConfig
    assert "q(u | x)" not in str(VariationalConfig.__doc__)
    for options, message in (
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"components": -1}, "components: got -1, expected at least 0"),
        ({"heads": 3}, "heads: got 3, expected a divisor of the width 32"),
    ):
        with pytest.raises(ValueError, match=message):
            VariationalConfig(**options)


@pytest.mark.parametrize("width", [1, 2])
@torch.no_grad()
def test_densities_integrate_to_one(width: int) -> None:
    """Over two numbers, those of an image of two pixels or of one and what is drawn beside; by the trapezoidal rule in
    logits, whose tails beyond 16 are below 1e-5."""
    model = noise((1, 1, width))
    t = torch.linspace(-16.0, 16.0, 129, dtype=torch.float64)
    u, log_dt = Logit(0.0).inverse(torch.cartesian_prod(t, t).view(-1, 1, 1, 2))
    q = model(torch.full((1, 1, 1, width), LEVELS - 1)).expand(len(u))
    total = (q.log_prob(u) + log_dt.flatten(1).sum(1)).exp().sum() * float(t[1] - t[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("split", ["columns", "checkerboard"])
def test_densities_of_draws_are_those_of_the_jacobian(split: str) -> None:
    shape = (2, 2, 3)
    model = noise(shape, VariationalConfig(**{**vars(SMALL), "split": split}))
    x = images(3, shape)
    q = model(x)
    given = torch.randn(q.shape, dtype=torch.float64, generator=seeded())
    u = q.sample_with(lambda _: given)
    assert u.shape == (3, 2, 2, 4)
    jacobian = torch.autograd.functional.jacobian(lambda e: model(x).sample_with(lambda _: e).sum(0), given)
    dims = given[0].numel()
    log_det = torch.linalg.slogdet(jacobian.view(dims, 3, dims).transpose(0, 1)).logabsdet
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(given).flatten(1).sum(1) - log_det
    torch.testing.assert_close(q.log_prob(u), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.log_prob(u.clone()), expected, rtol=1e-7, atol=1e-7)  # by the inverse


def test_noise_depends_on_the_image() -> None:
    model = noise((1, 4, 4))
    x = images(1, (1, 4, 4)).double()
    h = model.context(torch.cat(model.split.split(x / LEVELS), 1)).detach().requires_grad_()
    e = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=seeded())
    u, log_det = model.flow(e, h)
    (gradient,) = torch.autograd.grad(log_det.sum() + u.sum(), h)
    assert bool((gradient != 0).all())
    first, other = (model(x + level).sample_with(lambda _: e) for level in (0, 1))
    assert bool((first != other).all())


class Ramp(Bijection):
    """The distribution function of p(y) = y / 2 on [0, 2), of each value: it takes y to a uniform number."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.square() / 4.0, (x / 2.0).log()

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = 2.0 * y.sqrt()
        return x, -(x / 2.0).log()


def log_weights(noise: Callable[[Tensor], Distribution] | None, x: Tensor, seed: int = 0) -> Tensor:
    """log p(y) - log q(y | x) under p(y) = y / 2, for two levels."""
    y, log_q, _ = Dequantization(2, 0.0, 2.0, noise)(x, seeded(seed), torch.float64)
    return (Ramp()(y)[1] - log_q).flatten(1).sum(1)


class Optimal(Distribution):
    """q(u | 0) = 2 u and q(u | 1) = (1 + u) / 1.5, drawn by their distribution functions."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.double()

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        c = torch.rand(self.x.shape, generator=generator, dtype=torch.float64)
        return torch.where(self.x == 0, c.sqrt(), (1.0 + 3.0 * c).sqrt() - 1.0)

    def log_prob_map(self, x: Tensor) -> Tensor:
        return torch.where(self.x == 0, 2.0 * x, (1.0 + x) / 1.5).log()

    mode = sample


BOTH = torch.tensor([0, 1]).view(2, 1, 1, 1)
LOG_P = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
UNIFORM = torch.tensor([-1.6931471806, -0.3068528194], dtype=torch.float64)
"""Bounds: log(1/2) - 1 and 2 log 2 - 1 - log 2, the means of log(y / 2)."""


def test_bounds_of_a_ramp() -> None:
    n = 100_000
    x = BOTH.repeat(n, 1, 1, 1)
    found = log_weights(None, x).view(n, 2)
    assert bool(((found.mean(0) - UNIFORM).abs() < 5 * found.std(0) / n**0.5).all())
    torch.testing.assert_close(log_weights(Optimal, x).view(n, 2), LOG_P.expand(n, 2), rtol=0.0, atol=1e-9)


def test_learned_noise_gains_on_uniform_noise() -> None:
    """q alone is trained, on all images of two pixels: its bound lies between that of uniform noise and the
    log-probability, and closer to the latter."""
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(2))
    log_p, uniform = LOG_P[pairs].sum(1), UNIFORM[pairs].sum(1)
    torch.manual_seed(0)
    config = VariationalConfig(
        steps=2, width=4, blocks=1, mixing="none", components=4, context_width=4, context_blocks=0
    )
    learned = make_noise((1, 1, 2), 2, config)
    assert isinstance(learned, VariationalNoise)
    optimizer = torch.optim.Adam(learned.parameters(), 0.05)
    x = pairs.view(4, 1, 1, 2)
    for step in range(60):
        optimizer.zero_grad()
        (-log_weights(learned, x.repeat(32, 1, 1, 1), step).mean()).backward()
        optimizer.step()
    n = 5_000
    with torch.no_grad():
        found = log_weights(learned, x.repeat(n, 1, 1, 1), 1000).view(n, 4)
    bound, error = found.mean(0), found.std(0) / n**0.5
    assert bool((bound < log_p + 5 * error).all())
    assert float((bound - 5 * error).mean()) > float(uniform.mean())
    assert float((log_p - bound + 5 * error).mean()) < 0.5 * float((log_p - uniform).mean())
    weights = found.exp()
    assert bool(((weights.mean(0) - log_p.exp()).abs() < 5 * weights.std(0) / n**0.5).all())


def test_initialization_reaches_the_noise() -> None:
    """Every layer that is set from data is, in the order of the program, and those that stay do."""
    torch.manual_seed(0)
    model = TriangularFlow((1, 3, 3), LEVELS, TriangularFlowConfig(dequantization=SMALL))
    x = images(500, (1, 3, 3))
    layers = [name for name, layer in model.named_modules() if isinstance(layer, SetFromData)]
    assert "dequantization.noise.context.first" in layers
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = f"{layers[1]}.bias"
    model.initialize(x, kept=(kept,))
    found = model.dequantization.noise
    assert isinstance(found, VariationalNoise)
    halves = torch.cat(found.split.split(nn.functional.pad(x / LEVELS - 0.5, (0, 1))), 1)
    first = found.context.first(halves).transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.mean(1), torch.zeros(3), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(first.std(1), torch.ones(3), rtol=1e-3, atol=0.0)
    changed = {name.rpartition(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == set(layers) - {layers[1]}


@pytest.mark.parametrize("variational", [False, True])
@torch.no_grad()
def test_probabilities_of_one_pixel_tend_to_one(variational: bool) -> None:
    """Of a flow without mass outside of the range: y is the logistic function of a Normal number."""
    model = TriangularFlow((1, 1, 1), LEVELS, TriangularFlowConfig())
    model.dequantization = Dequantization(LEVELS, noise=noise((1, 1, 1)) if variational else None)
    model.bijection.shift.zero_()
    model.bijection.log_scale.fill_(-0.3)
    model.bijection = Sequential(Logit(0.0), model.bijection)
    n = 10_000
    evidence = model.double().evidence(torch.arange(LEVELS).view(-1, 1, 1, 1).repeat(n, 1, 1, 1), seeded())
    bound = evidence.log_px.view(n, LEVELS)
    weights = bound.exp()
    error = float((weights.var(0) / n).sum().sqrt())
    assert error < 0.05
    assert float(weights.mean(0).sum()) == pytest.approx(1.0, abs=5 * error)
    assert float(bound.mean(0).exp().sum()) < 1.0  # one draw says less


class Narrow(Distribution):
    """Uniform noise within a tenth of the margin from the one end or the other."""

    width = 1e-5

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        u = self.width * torch.rand(self.x.shape, generator=generator)
        return torch.where(self.x == 0, u, 1.0 - u)

    def log_prob_map(self, x: Tensor) -> Tensor:
        return torch.full_like(x, -math.log(self.width))

    mode = sample


def test_noise_at_the_ends_has_its_density() -> None:
    """It keeps away from them, spread as widely as its density says, and never further out than a margin."""
    quantized = Dequantization(256, noise=Narrow)
    x = torch.tensor([0, 255]).repeat(1000).view(-1, 1, 1, 1)
    y, log_q, _ = quantized(x, seeded())
    assert quantized.quantize(y).equal(x)
    lowest = y[x == 0] * 256
    assert float(lowest.min()) > 1e-5
    spread = float(lowest.max() - lowest.min())
    assert spread == pytest.approx(Narrow.width / 2, rel=0.2)
    expected = torch.full_like(log_q, math.log(256) - math.log(Narrow.width / 2))
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=0.0)
