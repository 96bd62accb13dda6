"""Logistic variables: a density that integrates to one, and draws that have it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import logistic

from davi.distributions import Logistic
from davi.evidence import Kind


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some() -> Logistic:
    """[3, 2, 4], float64, scales over two orders of magnitude."""
    mean, raw = torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=seeded())
    return Logistic(mean, raw.exp())


def test_the_density_is_that_of_scipy() -> None:
    p = some()
    x = 3 * torch.randn(p.shape, dtype=torch.float64, generator=seeded(1))
    expected = torch.tensor(logistic.logpdf(x.numpy(), p.mean.numpy(), p.scale.numpy()))
    torch.testing.assert_close(p.log_prob_map(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.log_prob(x), expected.sum((1, 2)), rtol=1e-12, atol=1e-12)
    assert p.kind is Kind.EXACT


def test_the_standard_density_is_a_sum_of_softplus() -> None:
    h = torch.linspace(-30.0, 30.0, 61, dtype=torch.float64)
    p = Logistic(torch.zeros_like(h)[:, None], torch.ones_like(h)[:, None])
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(p.log_prob(h[:, None]), -softplus(h) - softplus(-h), rtol=1e-14, atol=0.0)


def test_the_density_integrates_to_one() -> None:
    """The trapezoidal rule converges faster than any power; 60 scales leave out 2 e^-60."""
    p = some()
    t = torch.linspace(-60.0, 60.0, 4001, dtype=torch.float64).view(-1, 1, 1, 1)
    density = p.log_prob_map(p.mean + p.scale * t).exp() * p.scale
    integral = torch.trapezoid(density, t.squeeze(), dim=0)
    torch.testing.assert_close(integral, torch.ones_like(integral), rtol=0.0, atol=1e-12)


def test_far_out_nothing_overflows() -> None:
    p = Logistic(torch.zeros(1, 2), torch.ones(1, 2))
    x = torch.tensor([[-1e4, 1e30]], requires_grad=True)
    log_p = p.log_prob_map(x)
    assert log_p.tolist() == [[-1e4, pytest.approx(-1e30)]]
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    assert slope.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_their_distribution(temperature: float) -> None:
    """Of the distribution function of draws: the largest distance from the exact one, and the standard deviation."""
    n = 40_000
    p = Logistic(torch.full((n, 1), -2.0), torch.full((n, 1), 3.0))
    z = p.sample(seeded(), temperature).double().flatten()
    cdf = torch.sigmoid((z.sort().values + 2.0) / (3.0 * temperature))
    steps = torch.arange(1, n + 1) / n
    assert float((cdf - steps).abs().max()) < 1.95 / math.sqrt(n)  # Kolmogorov: once in a thousand seeds
    deviation = 3.0 * temperature * math.pi / math.sqrt(3.0)
    assert float(z.std()) == pytest.approx(deviation, abs=5 * deviation * math.sqrt(3.2 / 4 / n))  # kurtosis 4.2
    assert torch.equal(z, p.sample(seeded(), temperature).double().flatten())
    assert torch.equal(p.sample(temperature=0.0), p.mode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_finite_at_both_ends(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """The smallest and the largest number that torch draws."""
    largest = 1.0 - torch.finfo(dtype).eps / 2.0
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.tensor([[0.0, largest]], dtype=dtype))
    z = Logistic(torch.zeros(1, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype)).sample()
    assert bool(z.isfinite().all())
    assert float(z[0, 0]) == pytest.approx(math.log(torch.finfo(dtype).eps / 2.0), rel=1e-6)
    assert float(z[0, 1]) == pytest.approx(-float(z[0, 0]), rel=0.1)


def test_given_noise_makes_the_draw() -> None:
    """The place of the noise in the Normal distribution is that of the draw in the logistic one."""
    p = some()
    n = torch.randn(p.shape, dtype=torch.float64, generator=seeded(2))
    z = p.sample_with(lambda like: n)
    torch.testing.assert_close(((z - p.mean) / p.scale).sigmoid(), torch.special.ndtr(n), rtol=1e-12, atol=0.0)
    assert torch.equal(p.sample_with(torch.zeros_like), p.center())


def test_shapes_and_gradients() -> None:
    mean, scale = torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    p = Logistic(mean, scale)
    assert p.expand(1) is p
    assert p.expand(4).shape == p.expand(4).sample().shape == (4, 3)
    z = p.sample(seeded())
    slopes = torch.autograd.grad(z.sum(), [mean, scale])
    torch.testing.assert_close(slopes, (torch.ones(1, 3), z.detach()))
    half = Logistic(torch.zeros(1, 3).bfloat16(), torch.ones(1, 3).bfloat16())
    assert half.log_prob(torch.zeros(1, 3)).dtype == torch.float32
