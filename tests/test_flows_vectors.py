"""What single steps of posterior flows are: reflections, orthonormal matrices, determinants by identities, roots; and
how near a posterior comes to a known one. Everything is in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from davi.distributions import Latent, Normal
from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.householder import HouseholderConfig, HouseholderFlow, Reflection
from davi.flows.iaf import IAFConfig
from davi.flows.orthogonal import nearest_orthonormal, product_of_reflections, published_orthonormal
from davi.flows.planar import PlanarConfig, PlanarStep
from davi.flows.sylvester import (
    SylvesterHouseholderConfig,
    SylvesterOrthogonalConfig,
    SylvesterStep,
    SylvesterTriangularConfig,
)
from davi.flows.vectors import solve_tanh
from davi.posteriors import FlowPosterior


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def matrix_of(reflection: Reflection) -> Tensor:
    """``[C, C]`` of the first vector."""
    return reflection.forward(torch.eye(reflection.v.shape[-1], dtype=torch.float64)[:, None])[0][:, 0].T


@pytest.mark.parametrize("length", [1e-100, 1.0, 1e100])
def test_a_reflection_is_orthogonal_with_determinant_minus_one(length: float) -> None:
    h = matrix_of(Reflection(length * noise(1, 1, 4)))
    close(h.T @ h, torch.eye(4, dtype=torch.float64))
    close(torch.linalg.det(h), torch.tensor(-1.0, dtype=torch.float64))


def test_without_a_direction_it_reflects_the_first_axis() -> None:
    v = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    h = matrix_of(Reflection(v))
    close(h, torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)))
    h.sum().backward()
    assert v.grad is not None
    assert bool(v.grad.isfinite().all())


def test_the_householder_flow_makes_a_normal_with_full_covariance() -> None:
    """log q is that of N(H mu, H diag(sigma^2) H^T); and that is the covariance of the draws."""
    posterior = FlowPosterior(3, 4, HouseholderConfig(steps=2)).double()
    assert isinstance(posterior.flow, HouseholderFlow)
    mean, scale, features = noise(1, 3, 1, 1), noise(1, 3, 1, 1).exp(), noise(1, 4, 1, 1)
    first, second = (matrix_of(step) for step in posterior.flow.vector_steps(features[:, None, :, 0, 0]))
    h = second @ first
    covariance = h @ torch.diag(scale.flatten() ** 2) @ h.T
    expected = torch.distributions.MultivariateNormal(h @ mean.flatten(), covariance)
    one = Normal(mean, scale)
    q = posterior(one.expand(100_000), features)
    z = q.sample()
    close(q.log_prob(z), expected.log_prob(z.flatten(1)))
    elsewhere = noise(5, 3, 1, 1)
    close(posterior(one, features).log_prob(elsewhere), expected.log_prob(elsewhere.flatten(1)))
    # Standard errors of covariances of 100,000 draws are below largest variance * sqrt(2 / 100,000).
    error = 5 * float(scale.max()) ** 2 * math.sqrt(2 / 100_000)
    close(torch.cov(z.detach().flatten(1).T), covariance.detach(), error)


@pytest.mark.parametrize("shape", [(4, 4), (5, 2), (3, 1)])
def test_the_nearest_orthonormal_matrix_is_the_polar_factor(shape: tuple[int, int]) -> None:
    a = noise(6, *shape) * torch.logspace(-30, 30, 6, dtype=torch.float64)[:, None, None]
    q = nearest_orthonormal(a)
    left, _, right = torch.linalg.svd(a, full_matrices=False)
    close(q.mT @ q, torch.eye(shape[1], dtype=torch.float64).expand(6, -1, -1), 1e-14)
    close(q, left @ right, 1e-12)
    assert torch.equal(nearest_orthonormal(a[2:3]), q[2:3])  # whatever else is in the batch


@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_its_gradient_is_that_of_the_polar_factor(shape: tuple[int, int]) -> None:
    a = noise(2, *shape).requires_grad_()
    assert torch.autograd.gradcheck(nearest_orthonormal, (a,))


def test_matrices_that_are_nearly_or_all_zero() -> None:
    rank_one = noise(4, 1) @ noise(1, 2)
    twice = noise(4, 1).expand(4, 2)
    for a in (torch.zeros(4, 2, dtype=torch.float64), rank_one, twice, 1e-200 * noise(4, 2)):
        a = a.clone().requires_grad_()
        q = nearest_orthonormal(a)
        close(q.T @ q, torch.eye(2, dtype=torch.float64), 1e-12)
        (gradient,) = torch.autograd.grad(q.sum(), a)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(("columns", "enough"), [(2, 1e-6), (4, 1e-5)])
def test_the_published_rule_stops_when_the_worst_matrix_is_good_enough(columns: int, enough: float) -> None:
    a = noise(50, 4, columns)
    q = published_orthonormal(a)
    error = torch.linalg.matrix_norm(q.mT @ q - torch.eye(columns, dtype=torch.float64))
    assert float(error.max()) <= enough
    assert float(error.max()) > 1e-13  # another iteration would have squared it
    worst = int(error.argmax())
    easiest = int(error.argmin())
    assert torch.equal(published_orthonormal(a[worst : worst + 1]), q[worst : worst + 1])
    assert not torch.equal(published_orthonormal(a[easiest : easiest + 1]), q[easiest : easiest + 1])


def test_a_product_of_reflections_begins_with_the_first() -> None:
    v = noise(3, 4)
    expected = torch.eye(4, dtype=torch.float64)
    for own in v:
        expected = (torch.eye(4, dtype=torch.float64) - 2 * torch.outer(own, own) / own.dot(own)) @ expected
    close(product_of_reflections(v), expected)


def test_the_determinant_of_a_sylvester_step_is_one_of_its_small_matrix() -> None:
    """det(I_C + Q R1 diag(h') R2 Q^T) = det(I_M + diag(h') R2 R1) = the product of its diagonal."""
    q, r1, r2, b = nearest_orthonormal(noise(5, 2)), noise(2, 2).triu(), noise(2, 2).triu(), noise(2)
    r1.diagonal().tanh_()
    r2.diagonal().tanh_()
    z = noise(1, 1, 5)
    _, log_det = SylvesterStep(q, r1, r2, b).forward(z)
    slope = torch.diag((r2 @ q.T @ z[0, 0] + b).cosh() ** -2)
    large = torch.eye(5, dtype=torch.float64) + q @ r1 @ slope @ r2 @ q.T
    small = torch.eye(2, dtype=torch.float64) + slope @ r2 @ r1
    close(log_det[0, 0], torch.linalg.det(large).log())
    close(log_det[0, 0], torch.linalg.det(small).log())


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_the_direction_of_a_planar_step_is_brought_to_where_it_can_be_inverted(length: float) -> None:
    """w.u_hat = -1 + log(1 + exp(w.u)), for w of any length: what is added to u is divided by the length squared."""
    w, u = noise(1, 1, 3), 4 * noise(1, 1, 3)
    w = length * w / w.norm()
    step = PlanarStep(u, w, noise(1, 1))
    product = (w * u).sum()
    close((w * step.u_hat).sum(), torch.log1p(product.exp()) - 1)
    close((step.u_hat - u) / w, ((torch.log1p(product.exp()) - 1 - product) / length**2).expand(1, 1, 3), 1e-10)


def test_a_planar_step_that_looks_nowhere_is_a_shift() -> None:
    u, w, b, z = noise(1, 1, 3), torch.zeros(1, 1, 3, dtype=torch.float64), noise(1, 1), noise(1, 1, 3)
    moved, log_det = PlanarStep(u, w, b).forward(z)
    close(moved, z + u * b.tanh())
    close(log_det, torch.zeros(1, 1, dtype=torch.float64))


def test_roots_are_found_even_where_the_function_is_nearly_flat() -> None:
    a, q, s = 3 * noise(1000), 3 * noise(1000), noise(1000)
    product = torch.linspace(-1 + 1e-9, 20.0, 1000, dtype=torch.float64)
    p = product / q
    t = a + p * (q * a + s).tanh()
    found = solve_tanh(p, q, s, t)
    close(found + p * (q * found + s).tanh(), t, 1e-13)
    steep = product > -0.99
    close(found[steep], a[steep], 1e-10)
    assert torch.equal(solve_tanh(p[:1], q[:1], s[:1], t[:1]), found[:1])  # whatever else is in the batch


def test_gradients_of_roots_are_those_of_the_implicit_function() -> None:
    p, q, s, t = (noise(3).requires_grad_() for _ in range(4))
    assert torch.autograd.gradcheck(lambda p, q, s, t: solve_tanh(p.tanh(), q.tanh(), s, t), (p, q, s, t))


LOADINGS = torch.tensor([[1.0, 0.0], [0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
SHIFT = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
OBSERVED = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
LOG_EVIDENCE, MEAN_FIELD_GAP = -6.7405706680, 6.7889e-4
"""Of z ~ N(0, I), x ~ N(W z + b, I / 4) at x = (1, 0, -1)."""


def joint(z: Tensor) -> Tensor:
    """log p(x, z), ``[n, 2] -> [n]``."""
    residual = OBSERVED - z @ LOADINGS.T - SHIFT
    prior = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    return prior - 2.0 * residual.square().sum(1) - 1.5 * math.log(2 * math.pi / 4)


def nodes(points: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights of the standard normal in the plane, ``[n, 2]`` and ``[n]``."""
    import numpy

    at, weight = (torch.from_numpy(x) for x in numpy.polynomial.hermite_e.hermegauss(points))
    weight = weight / weight.sum()
    return torch.cartesian_prod(at, at), torch.outer(weight, weight).flatten()


def best_bound(config: PosteriorFlowConfig | None, points: int) -> float:
    """The ELBO of the best posterior of a kind, by a quasi-Newton method, the expectation by quadrature, and that of
    the result by a finer one."""
    coarse, fine = nodes(points), nodes(60)
    flow = None if config is None else FlowPosterior(2, 1, config).double()
    mean, log_scale = (torch.zeros(1, 2, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    features = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    parameters = [mean, log_scale, *([] if flow is None else flow.parameters())]
    optimizer = torch.optim.LBFGS(parameters, max_iter=60, tolerance_change=0.0, line_search_fn="strong_wolfe")

    def loss(at: Tensor, weights: Tensor) -> Tensor:
        base = Normal(mean.expand(len(at), -1, -1, -1), log_scale.exp().expand(len(at), -1, -1, -1))
        q: Latent = base if flow is None else flow(base, features)
        z = q.sample_with(lambda like: at[:, :, None, None])
        return -(weights * (joint(z.flatten(1)) - q.log_prob(z))).sum()

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(*coarse)
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return -float(loss(*fine).detach())


def test_a_diagonal_posterior_stops_at_its_gap() -> None:
    assert best_bound(None, 5) == pytest.approx(LOG_EVIDENCE - MEAN_FIELD_GAP, abs=1e-8)


def test_a_full_covariance_reaches_the_evidence() -> None:
    assert best_bound(HouseholderConfig(steps=1), 5) == pytest.approx(LOG_EVIDENCE, abs=1e-9)


RICHER: list[Callable[[], PosteriorFlowConfig]] = [
    lambda: PlanarConfig(steps=2),
    lambda: SylvesterOrthogonalConfig(steps=2, vectors=2),
    lambda: SylvesterHouseholderConfig(steps=2, reflections=1),
    lambda: SylvesterTriangularConfig(steps=2),
    lambda: IAFConfig(steps=2, width=8),
]


@pytest.mark.parametrize("config", RICHER, ids=lambda make: make().name)
def test_flows_close_most_of_the_gap(config: Callable[[], PosteriorFlowConfig]) -> None:
    """They contain the diagonal posteriors, or nearly, and none is better than the truth (but for the quadrature)."""
    gap = LOG_EVIDENCE - best_bound(config(), 16)
    assert -1e-6 < gap < MEAN_FIELD_GAP / 4  # after 60 steps under a tenth is left, after 200 a thousandth


def test_the_true_posterior_has_constant_weights() -> None:
    """Constructed: the eigenvectors of the posterior's covariance are the columns of a reflection."""
    precision = LOADINGS.T @ LOADINGS / 0.25 + torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ LOADINGS.T @ (OBSERVED - SHIFT) / 0.25
    close(mean, torch.tensor([-0.28328804, -0.41915761], dtype=torch.float64), 1e-8)
    variances, vectors = torch.linalg.eigh(covariance)
    flow = FlowPosterior(2, 1, HouseholderConfig(steps=1)).double()
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert isinstance(flow.flow, HouseholderFlow)
    linear = flow.flow.vectors[0]
    assert isinstance(linear, torch.nn.Linear)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(first - vectors[:, 0])
    (step,) = flow.flow.vector_steps(torch.zeros(1, 1, 1, dtype=torch.float64))
    start = (matrix_of(step).T @ mean)[None, :, None, None]
    base = Normal(start.expand(50, -1, -1, -1), variances.sqrt()[None, :, None, None].expand(50, -1, -1, -1))
    q = flow(base, torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    z = q.sample()
    weights = joint(z.flatten(1)) - q.log_prob(z)
    close(weights, torch.full((50,), LOG_EVIDENCE, dtype=torch.float64), 1e-9)
