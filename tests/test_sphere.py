"""Distributions of unit vectors, against Bessel functions, quadrature and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from contract import seeded
from scipy import special, stats
from torch import Tensor

from davi.distributions import Normal, UniformSphere, VonMisesFisher
from davi.distributions.sphere import direction, divergence_from_uniform, log_area, moments


def unit(*values: float) -> Tensor:
    return direction(torch.tensor([values], dtype=torch.float64))


def some_direction(variables: int) -> Tensor:
    return direction(torch.randn(1, variables, generator=seeded(), dtype=torch.float64))


def sphere_of_three(points: int = 60) -> tuple[Tensor, Tensor]:
    """Points and weights of a quadrature over the sphere in three dimensions, by Gauss in the height."""
    heights, weights = map(torch.as_tensor, special.roots_legendre(points))
    angles = torch.arange(2 * points, dtype=torch.float64) * (math.pi / points)
    height, angle = heights.repeat_interleave(2 * points), angles.repeat(points)
    width = (1.0 - height.square()).sqrt()
    return torch.stack([width * angle.cos(), width * angle.sin(), height], 1), weights.repeat_interleave(
        2 * points
    ) * math.pi / points


def by_bessel(variables: int, kappa: float) -> float:
    """The divergence with exponentially scaled Bessel functions, where these do not underflow."""
    order = variables / 2 - 1
    log_bessel = math.log(special.ive(order, kappa)) + kappa
    ratio = special.ive(order + 1, kappa) / special.ive(order, kappa)
    log_constant = order * math.log(kappa) - (order + 1) * math.log(2 * math.pi) - log_bessel
    return float(kappa * ratio + log_constant + log_area(variables))


@pytest.mark.parametrize(("variables", "kappa", "nats"), [(3, 10.0, 1.9957323168), (50, 80.0, 19.5152079329)])
def test_known_divergences(variables: int, kappa: float, nats: float) -> None:
    found = divergence_from_uniform(variables, kappa)
    assert found == pytest.approx(nats, abs=5e-11)
    # A published program takes Bessel functions of orders d/2 + 1 and d/2, which are those of dimension d + 2.
    assert found != pytest.approx(by_bessel(variables + 2, kappa), abs=0.05)


def test_the_divergence_of_dimension_plus_two_is_another_number() -> None:
    assert divergence_from_uniform(52, 80.0) == pytest.approx(19.58471, abs=5e-6)
    assert divergence_from_uniform(5, 10.0) == pytest.approx(2.41618, abs=5e-6)


@pytest.mark.parametrize("variables", [2, 3, 4, 7, 50, 101])
@pytest.mark.parametrize("kappa", [0.5, 3.0, 40.0, 1e3, 1e5])
def test_divergences_agree_with_bessel_functions(variables: int, kappa: float) -> None:
    # 1e-8: differences of numbers as large as kappa, which the oracle takes.
    assert divergence_from_uniform(variables, kappa) == pytest.approx(by_bessel(variables, kappa), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("variables", [2, 3, 1000, 10**6])
def test_without_concentration_nothing_is_left(variables: int) -> None:
    assert divergence_from_uniform(variables, 0.0) == 0.0
    for kappa in (1e-8, 1e-3, 0.1):  # where scaled Bessel functions of high orders are zero
        expected = kappa**2 / (2 * variables)
        assert divergence_from_uniform(variables, kappa) == pytest.approx(expected, rel=2 * kappa**2 + 1e-9)


def test_much_concentration_is_a_normal_of_the_tangent_plane() -> None:
    """m - 1 variables with variance 1 / kappa, whose entropy is known; the rest vanishes as 1 / kappa."""
    for variables in (3, 50):
        kappa = 1e6
        free = variables - 1
        expected = log_area(variables) - 0.5 * free * math.log(2 * math.pi * math.e / kappa)
        assert divergence_from_uniform(variables, kappa) == pytest.approx(expected, abs=free**2 / kappa)


def test_densities_integrate_to_one() -> None:
    points, weights = sphere_of_three()
    for latent in (VonMisesFisher(unit(0.3, -1.0, 0.5), 7.0), UniformSphere(unit(1.0, 0.0, 0.0))):
        density = latent.expand(len(points)).log_prob(points).exp()
        assert float((weights * density).sum()) == pytest.approx(1.0, abs=1e-9)
    angles = torch.arange(400, dtype=torch.float64) * (math.pi / 200)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    density = VonMisesFisher(unit(1.0, 2.0), 5.0).expand(400).log_prob(circle).exp()
    assert float(density.sum() * math.pi / 200) == pytest.approx(1.0, abs=1e-12)


def test_maps_are_equal_shares_of_the_vector() -> None:
    mu = direction(torch.randn(2, 3, 2, 2, generator=seeded(), dtype=torch.float64))
    q = VonMisesFisher(mu, 20.0)
    z = q.sample(seeded())
    for found in (q.log_prob_map(z), q.kl_map(UniformSphere(mu), z)[0], UniformSphere(mu).log_prob_map(z)):
        assert found.shape == mu.shape
        assert torch.equal(found, found[:, :1, :1, :1].expand_as(found))
    dot = (mu * z).flatten(1).sum(1)
    expected = 20.0 * dot - moments(12, 20.0).log_mean - log_area(12)
    torch.testing.assert_close(q.log_prob(z), expected)
    pairs = torch.stack([VonMisesFisher(one, 20.0).expand(2).log_prob(z) for one in mu.split(1)], 1)
    torch.testing.assert_close(q.log_prob_pairs(z), pairs)


def test_the_closed_form_is_the_mean_over_draws() -> None:
    n = 20_000
    for variables, kappa in ((2, 3.0), (3, 10.0), (50, 80.0)):
        q = VonMisesFisher(some_direction(variables).expand(n, -1), kappa)
        z = q.sample(seeded())
        estimate = q.log_prob(z) - UniformSphere(z).log_prob(z)
        closed, known = q.kl_map(UniformSphere(z[:1]).expand(n), z)
        assert known
        assert float(closed[0].sum()) == pytest.approx(divergence_from_uniform(variables, kappa), rel=1e-12)
        assert abs(float(estimate.mean() - closed[0].sum())) < 4 * float(estimate.std()) / n**0.5
    drawn, known = q.kl_map(Normal(torch.zeros_like(z), torch.ones_like(z)), z)
    assert not known
    assert torch.equal(drawn, q.log_prob_map(z) - Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob_map(z))


@pytest.mark.parametrize(("variables", "kappa"), [(2, 0.5), (3, 10.0), (10, 3.0), (40, 200.0), (1000, 0.1)])
def test_draws_have_the_distribution_of_the_cosine(variables: int, kappa: float) -> None:
    """Kolmogorov and Smirnov's test against the distribution function by the trapezoid rule."""
    mu = some_direction(variables)
    z = VonMisesFisher(mu.expand(3000, -1), kappa).sample(seeded())
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3000, dtype=torch.float64))
    # In the angle, whose density has no pole.
    angle = torch.linspace(0.0, math.pi, 20_001, dtype=torch.float64)
    log_density = kappa * angle.cos() + torch.xlogy(torch.tensor(variables - 2.0), angle.sin())
    table = torch.cumulative_trapezoid((log_density - log_density.max()).exp(), angle)
    table = torch.cat([torch.zeros(1, dtype=torch.float64), table / table[-1]])
    found = (z @ mu[0]).clamp(-1.0, 1.0).acos()
    place = found / math.pi * 20_000
    left = place.long().clamp_max(19_999)
    uniform = torch.lerp(table[left], table[left + 1], place - left)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    if variables == 10:  # what is orthogonal to the mean direction lies evenly around it
        across = z - (z @ mu[0])[:, None] * mu
        assert float(across.mean(0).norm()) < 5 / 3000**0.5
        covariance = across.T @ across
        values = torch.linalg.eigvalsh(covariance)
        assert float(values[0].abs()) < 1e-9
        assert float(values[-1] / values[1]) < 1.25


def test_draws_of_large_concentrations_are_unit_vectors_in_float32() -> None:
    q = VonMisesFisher(some_direction(50).float().expand(4000, -1), 1e6)
    z = q.sample(seeded())
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4000))
    square = (z - q.mu).double().square().sum(1)  # about (m - 1) / kappa
    assert float(square.mean()) == pytest.approx(49e-6, rel=0.02)
    estimate = q.log_prob(z) - UniformSphere(z).log_prob(z)
    assert float(estimate.mean()) == pytest.approx(divergence_from_uniform(50, 1e6), abs=0.5)


def test_gradients_of_expectations_in_three_dimensions() -> None:
    """Finite differences of a quadrature; also where the mean direction is an axis that reflections start from."""
    points, weights = sphere_of_three()
    slope = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return (z @ slope).sin() + 2.0 * z[:, 0] * z[:, 1].square()

    def expectation(raw: Tensor, kappa: float) -> float:
        q = VonMisesFisher(direction(raw).expand(len(points), 3), kappa)
        return float((weights * q.log_prob(points).exp() * f(points)).sum())

    n, step = 20_000, 1e-4
    for raw in (torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.4, -1.5, 0.7]])):
        for kappa in (0.7, 6.0):
            raw = raw.double().requires_grad_()
            each = raw.expand(n, 3)
            z = VonMisesFisher(direction(each), kappa).sample(seeded())
            (found,) = torch.autograd.grad(f(z).sum(), each)
            error = found.std(0) / n**0.5
            for i in range(3):
                offset = torch.zeros(1, 3, dtype=torch.float64)
                offset[0, i] = step
                above, below = (expectation(raw.detach() + sign * offset, kappa) for sign in (1, -1))
                expected = (above - below) / (2 * step)
                assert abs(float(found[:, i].mean()) - expected) < 4 * float(error[i]) + 1e-6


def test_gradients_of_expectations_in_ten_dimensions() -> None:
    r"""Of :math:`E e^{a^T z} = F(|\kappa \mu + a|) / F(\kappa)`, whose derivative is known."""
    n, kappa = 20_000, 5.0
    a = 1.5 * some_direction(10)[0].flip(0)
    mu = some_direction(10).expand(n, 10).clone().requires_grad_()
    z = VonMisesFisher(mu, kappa).sample(seeded())
    value = (z @ a).exp()
    (found,) = torch.autograd.grad(value.sum(), mu)
    value = value.detach()
    total = kappa * mu[0].detach() + a
    length = float(total.norm())
    ratio = math.exp(moments(10, length).log_mean - moments(10, kappa).log_mean)
    assert abs(float(value.mean()) - ratio) < 4 * float(value.std()) / n**0.5
    expected = ratio * moments(10, length).cosine * kappa * total / length
    across = expected - (expected @ mu[0].detach()) * mu[0].detach()  # the gradient along mu has no meaning
    found = found - (found * mu).sum(1, keepdim=True).detach() * mu.detach()
    assert bool(((found.mean(0) - across).abs() < 4 * found.std(0) / n**0.5).all())


def test_a_vector_without_a_direction_can_still_learn_one() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], requires_grad=True)
    found = direction(x)
    assert found.tolist() == [[1.0, 0.0, 0.0], pytest.approx([0.0, 0.6, 0.8])]
    (gradient,) = torch.autograd.grad((found * torch.tensor([1.0, 2.0, 3.0])).sum(), x)
    assert gradient[0].tolist() == [1.0, 2.0, 3.0]
    assert float(gradient[1] @ x[1].detach()) == pytest.approx(0.0, abs=1e-6)


def test_draws_follow_the_generator_and_given_noise() -> None:
    q = VonMisesFisher(some_direction(6).expand(5, -1), 4.0)
    for latent in (q, UniformSphere(q.mu)):
        assert torch.equal(latent.sample(seeded(1)), latent.sample(seeded(1)))
        assert not torch.equal(latent.sample(seeded(1)), latent.sample(seeded(2)))
        generator = seeded(1)
        drawn = latent.sample_with(lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype))  # noqa: B023
        assert torch.equal(drawn, latent.sample(seeded(1)))


def test_what_is_asked_of_every_latent() -> None:
    mu = direction(torch.randn(2, 3, 1, 1, generator=seeded()).bfloat16().float())
    q, p = VonMisesFisher(mu, 4.0), UniformSphere(mu[:1])
    assert torch.equal(q.mode(), mu)
    assert torch.equal(q.center(), mu)
    assert torch.equal(q.sample(seeded(), 0.0), mu)
    torch.testing.assert_close(q.mean, (1 / math.tanh(4.0) - 0.25) * mu)
    assert float(p.mode().norm()) == float(p.center().norm()) == 1.0
    assert p.expand(7).sample(seeded()).shape == (7, 3, 1, 1)
    assert VonMisesFisher(mu[:1], 4.0).expand(4).shape == (4, 3, 1, 1)
    assert torch.equal(q.repeat_images(2).mu, mu[[0, 0, 1, 1]])
    assert UniformSphere(mu).repeat_images(3).shape == (6, 3, 1, 1)
    assert VonMisesFisher(mu.bfloat16(), 4.0).sample(seeded()).dtype == torch.float32
    assert "kappa=4" in repr(q)


@pytest.mark.parametrize("variables", [2, 3])
def test_draws_in_single_precision_have_length_one(variables: int) -> None:
    """In few dimensions noise is often nearly parallel to the mean direction, and rounding must not tilt the rest."""
    mu = some_direction(variables).float().expand(20_000, variables)
    lengths = VonMisesFisher(mu, 1.0).sample(seeded()).double().norm(dim=1)
    assert float((lengths - 1.0).abs().max()) < 1e-6
