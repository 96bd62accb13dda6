"""Normal, Bernoulli and categorical distributions against quadrature, closed forms and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from davi.distributions import Bernoulli, Categorical, Distribution, Normal, bounded_normal
from davi.distributions.base import standard_gumbel_like
from davi.distributions.normal import bound_log_scale

IDENTITY = 1e-12  # float64 on both sides: a few roundings of numbers of order one


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(count: int) -> list[Normal]:
    """Random Normals [3, 2, 4], float64, standard deviations over two orders of magnitude."""
    shape = (3, 2, 4)
    return [
        Normal(torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64).exp())
        for _ in range(count)
    ]


def reference(normal: Normal) -> torch.distributions.Normal:
    return torch.distributions.Normal(normal.mean, normal.scale)


def test_normal_log_prob_is_that_of_torch() -> None:
    (p,) = normals(1)
    x = 3 * torch.randn(p.shape, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob_map(x), reference(p).log_prob(x), rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(p.log_prob(x), reference(p).log_prob(x).sum((1, 2)), rtol=IDENTITY, atol=IDENTITY)


def test_kl_and_its_gradients_are_those_of_torch() -> None:
    q, p = normals(2)
    leaves = [q.mean, q.scale, p.mean, p.scale]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = torch.distributions.kl_divergence(reference(q), reference(p))
    torch.testing.assert_close(q.closed_kl_map(p), expected, rtol=IDENTITY, atol=IDENTITY)
    ours = torch.autograd.grad(q.kl(p).sum(), leaves)
    theirs = torch.autograd.grad(expected.sum(), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=IDENTITY)
    assert q.kl(p).shape == (3,)
    assert torch.equal(q.kl(q), torch.zeros(3, dtype=torch.float64))


def test_kl_is_the_integral() -> None:
    q, p = normals(2)
    # The trapezoidal rule converges faster than any power for a Gaussian; 12 deviations leave out e^-72.
    t = torch.linspace(-12.0, 12.0, 2001, dtype=torch.float64).view(-1, 1, 1, 1)
    z = q.mean + q.scale * t
    integrand = q.log_prob_map(z).exp() * (q.log_prob_map(z) - p.log_prob_map(z))
    integral = torch.trapezoid(integrand * q.scale, t.squeeze(), dim=0)
    torch.testing.assert_close(q.closed_kl_map(p), integral, rtol=1e-9, atol=1e-9)


def test_kl_broadcasts_a_prior_of_batch_one() -> None:
    (q,) = normals(1)
    p = Normal(torch.zeros(1, 2, 4, dtype=torch.float64), torch.ones(1, 2, 4, dtype=torch.float64))
    assert torch.equal(q.kl(p), q.kl(p.expand(3)))
    assert p.expand(3).shape == (3, 2, 4)
    assert p.expand(1) is p


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_normal_samples_have_mean_and_deviation(temperature: float) -> None:
    n = 40_000
    p = Normal(torch.full((n, 1), -2.0), torch.full((n, 1), 3.0))
    z = p.sample(generator(), temperature).double()
    scale = 3.0 * temperature
    assert abs(z.mean().item() + 2.0) < 4 * scale / math.sqrt(n)  # four standard errors
    assert abs(z.std().item() - scale) < 4 * scale / math.sqrt(2 * n)
    assert torch.equal(z, p.sample(generator(), temperature).double())
    assert not torch.equal(z, p.sample(generator(1), temperature).double())


def test_normal_draw_at_temperature_zero_is_the_mode_and_draws_are_differentiable() -> None:
    mean, scale = torch.randn(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    p = Normal(mean, scale)
    assert torch.equal(p.sample(temperature=0.0), p.mode())
    z = p.sample(generator())
    grad_mean, grad_scale = torch.autograd.grad(z.sum(), [mean, scale])
    assert torch.equal(grad_mean, torch.ones(2, 3))
    torch.testing.assert_close(grad_scale, (z - mean).detach())  # the noise, since the scale is 1


def test_half_precision_outputs_are_measured_in_float32() -> None:
    raw = torch.randn(2, 3, 4, 4).bfloat16()
    distributions: list[Distribution] = [bounded_normal(raw, raw), Bernoulli(raw), Categorical(raw.unsqueeze(2))]
    for distribution in distributions:
        x = torch.zeros(2, 1 if isinstance(distribution, Categorical) else 3, 4, 4, dtype=torch.long)
        assert distribution.log_prob(x).dtype == torch.float32


def test_symmetric_bound_is_a_tanh() -> None:
    raw = torch.tensor([-1e4, -10.0, 0.0, 3.0, 10.0, 1e4], dtype=torch.float64)
    expected = 5 * torch.tensor([-1.0, -math.tanh(1), 0.0, math.tanh(0.3), math.tanh(1), 1.0], dtype=torch.float64)
    torch.testing.assert_close(bound_log_scale(raw, -5.0, 5.0), expected, rtol=IDENTITY, atol=IDENTITY)
    # c tanh(x / 2c) for another interval
    assert bound_log_scale(torch.tensor(2.0).double(), -2.0, 2.0).item() == pytest.approx(2 * math.tanh(0.5), rel=1e-12)


def test_asymmetric_bound_is_a_smoothstep_with_zero_gradient_outside() -> None:
    raw = torch.tensor([-7.0, -1.0, 0.0, 2.0, 3.5, 5.0, 9.0], dtype=torch.float64, requires_grad=True)
    bounded = bound_log_scale(raw, -1.0, 5.0)
    # t = 0, 0, 1/6, 1/2, 3/4, 1, 1; 3 t^2 - 2 t^3 = 0, 0, 2/27, 1/2, 27/32, 1, 1
    expected = torch.tensor([-1, -1, -1 + 6 * 2 / 27, 2, -1 + 6 * 27 / 32, 5, 5], dtype=torch.float64)
    torch.testing.assert_close(bounded, expected, rtol=IDENTITY, atol=IDENTITY)
    (slope,) = torch.autograd.grad(bounded.sum(), raw)
    # the slope is 6 t (1 - t): exactly zero outside, not merely small
    expected_slope = torch.tensor([0, 0, 5 / 6, 3 / 2, 9 / 8, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(slope, expected_slope, rtol=IDENTITY, atol=IDENTITY)
    assert slope[0] == 0
    assert slope[-1] == 0


def test_bounded_normal_values() -> None:
    raw = torch.tensor([[-1e6, -4.0, 0.0, 10.0, 1e6]], dtype=torch.float64)
    p = bounded_normal(raw, raw)
    mean = 5 * torch.tensor([[-1.0, -math.tanh(0.4), 0.0, math.tanh(1), 1.0]], dtype=torch.float64)
    torch.testing.assert_close(p.mean, mean, rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(p.scale, mean.exp() + 0.01, rtol=IDENTITY, atol=IDENTITY)  # the same squashing
    assert p.scale.min() > 0.01


def test_zero_outputs_under_unequal_bounds() -> None:
    """A prior bounded to (-1, 5) and a posterior to (-5, 5) differ at raw zero (published values, 3 digits)."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    prior, posterior = bounded_normal(zero, zero, -1.0, 5.0), bounded_normal(zero, zero)
    assert prior.scale.item() == pytest.approx(math.exp(-5 / 9) + 0.01, rel=1e-12)
    assert prior.scale.item() == pytest.approx(0.584, abs=5e-4)
    assert posterior.scale.item() == pytest.approx(1.01, rel=1e-12)
    assert posterior.kl(prior).item() == pytest.approx(0.449, abs=5e-4)


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^log-scale bounds: got 5.0 to -1.0, expected the lower one first$"):
        bounded_normal(torch.zeros(1), torch.zeros(1), 5.0, -1.0)


def test_bernoulli_is_that_of_torch() -> None:
    logits = 5 * torch.randn(4, 2, 3, 3, dtype=torch.float64)
    x = torch.randint(2, (4, 2, 3, 3))
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x.double())
    p = Bernoulli(logits)
    torch.testing.assert_close(p.log_prob_map(x), expected, rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(p.log_prob(x), expected.sum((1, 2, 3)), rtol=IDENTITY, atol=IDENTITY)
    total = p.log_prob_map(torch.zeros_like(x)).exp() + p.log_prob_map(torch.ones_like(x)).exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=IDENTITY, atol=IDENTITY)


def test_bernoulli_is_finite_where_probabilities_underflow() -> None:
    logits = torch.tensor([-1e4, -200.0, 200.0, 1e4]).view(1, 1, 1, 4).requires_grad_()
    x = torch.tensor([1, 1, 0, 0]).view(1, 1, 1, 4)
    log_p = Bernoulli(logits).log_prob_map(x)
    assert log_p.flatten().tolist() == [-1e4, -200.0, -200.0, -1e4]
    (grad,) = torch.autograd.grad(log_p.sum(), logits)
    assert grad.flatten().tolist() == [1.0, 1.0, -1.0, -1.0]


def chi_square(draws: Tensor, probabilities: Tensor) -> float:
    """Probability, if the draws followed ``probabilities``, of counts at least this far from them."""
    expected = probabilities.double() * len(draws)
    counts = torch.bincount(draws, minlength=len(probabilities)).double()
    statistic = ((counts - expected).square() / expected).sum().item()
    return float(chi2.sf(statistic, len(probabilities) - 1))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_bernoulli_samples(temperature: float) -> None:
    draws = Bernoulli(torch.full((1, 1, 100, 100), -1.0)).sample(generator(), temperature)
    p = 1 / (1 + math.exp(1 / temperature))
    assert chi_square(draws.flatten(), torch.tensor([1 - p, p])) > 1e-4
    assert draws.dtype == torch.long


def test_bernoulli_mode() -> None:
    p = Bernoulli(torch.tensor([-0.1, 0.1]).view(1, 1, 1, 2))
    assert p.mode().flatten().tolist() == [0, 1]
    torch.testing.assert_close(p.mean(), torch.sigmoid(p.logits))
    assert torch.equal(p.sample(temperature=0.0), p.mode())


def test_categorical_is_that_of_torch() -> None:
    logits = 3 * torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    x = torch.randint(5, (2, 3, 2, 2))
    expected = torch.distributions.Categorical(logits=logits.movedim(1, -1)).log_prob(x)
    p = Categorical(logits)
    torch.testing.assert_close(p.log_prob_map(x), expected, rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(p.log_prob(x), expected.sum((1, 2, 3)), rtol=IDENTITY, atol=IDENTITY)
    assert p.levels == 5
    assert torch.equal(p.mode(), logits.argmax(1))
    by_hand = sum(v * logits.softmax(1)[:, v] for v in range(logits.shape[1]))
    torch.testing.assert_close(p.mean(), by_hand)
    assert torch.equal(p.sample(temperature=0.0), p.mode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gumbel_noise(dtype: torch.dtype) -> None:
    n = 100_000
    noise = standard_gumbel_like(torch.empty(n, dtype=dtype), generator()).double()
    assert noise.isfinite().all()
    euler = 0.5772156649
    variance = math.pi**2 / 6
    # four standard errors; the variance of the squared deviation is (kurtosis - 1) variance^2, kurtosis 5.4
    assert abs(noise.mean().item() - euler) < 4 * math.sqrt(variance / n)
    assert abs(noise.var().item() - variance) < 4 * variance * math.sqrt(4.4 / n)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_categorical_samples(temperature: float) -> None:
    logits = torch.tensor([1.0, -1.0, 0.0, 0.5, -2.0])
    p = Categorical(logits.view(1, 5, 1, 1, 1).expand(1, 5, 1, 100, 100))
    draws = p.sample(generator(), temperature).flatten()
    assert chi_square(draws, (logits / temperature).softmax(0)) > 1e-4
    assert torch.equal(draws, p.sample(generator(), temperature).flatten())


def test_representations_name_the_shape() -> None:
    zeros = torch.zeros(2, 3, 4, 4)
    assert repr(Normal(zeros, zeros + 1)) == "Normal(shape=(2, 3, 4, 4))"
    assert repr(Bernoulli(zeros)) == "Bernoulli(shape=(2, 3, 4, 4))"
    assert repr(Categorical(zeros.unsqueeze(2))) == "Categorical(shape=(2, 3, 1, 4, 4))"
