"""Inverse autoregressive flows: what depends on what, and that densities stay densities.

Everything is in float64. 1e-9 is what products of a few hundred rounded numbers leave of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from davi.distributions import Normal, TransformedNormal
from davi.flows import InverseAutoregressiveFlow, InverseAutoregressiveStep

TOLERANCE = 1e-9
WIDTH = 12


def shaken(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """In float64, with weights that leave nothing at its neutral value."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module.double()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def jacobian(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """d outputs / d inputs of one image, ``[d, d]``."""
    found = torch.autograd.functional.jacobian(function, z)
    assert isinstance(found, Tensor)
    return found.reshape(z.numel(), z.numel())


def seen(shape: tuple[int, int, int], reverse: bool) -> Tensor:
    """Which variables see which, ``[d, d]`` booleans ``[later, earlier]``: those before them in the raster order of
    pixels and the order of channels, but for a blind spot: 3x3 kernels come one column to the right with each row up.
    """
    found = torch.zeros(*shape, *shape, dtype=torch.bool)
    for (c, i, j), (k, m, n) in itertools.product(itertools.product(*map(range, shape)), repeat=2):
        found[c, i, j, k, m, n] = n - j <= i - m if m < i else m == i and (n < j or (n == j and k < c))
    if reverse:
        found = found.flip(0, 1, 2, 3, 4, 5)
    return found.reshape(math.prod(shape), -1)


SHAPES = [(1, 1, 1), (2, 1, 1), (6, 1, 1), (1, 2, 3), (3, 1, 2), (2, 3, 3)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_jacobian_of_a_step_is_triangular_and_full(shape: tuple[int, int, int], reverse: bool) -> None:
    """Nothing depends on later variables, and what should be seen is: three 3x3 convolutions span these grids."""
    kernel = 1 if shape[1:] == (1, 1) else 3
    step = shaken(InverseAutoregressiveStep(shape[0], 24, kernel_size=kernel, reverse=reverse))
    context = noise(1, 24, *shape[1:])
    found = jacobian(lambda x: step(x, context)[0], noise(1, *shape)) != 0
    assert torch.equal(found, seen(shape, reverse) | torch.eye(math.prod(shape), dtype=torch.bool))


@pytest.mark.parametrize(("bias", "expected"), [(2.0, -0.126928), (1.0, -0.313262)])
def test_initial_log_determinant(bias: float, expected: float) -> None:
    """With zero last weights every gate is sigmoid(bias): log sigmoid(2) = -0.126928, log sigmoid(1) = -0.313262."""
    steps, shape = 3, (2, 4, 5)
    flow = InverseAutoregressiveFlow(steps, shape[0], WIDTH, gate_bias=bias).double()
    z = noise(2, *shape)
    after, log_det = flow(z, noise(2, WIDTH, *shape[1:]))
    exact = -math.log1p(math.exp(-bias))
    assert exact == pytest.approx(expected, abs=5e-7)  # the six digits given
    torch.testing.assert_close(log_det, torch.full_like(z, steps * exact), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(after, z * math.exp(steps * exact), rtol=1e-12, atol=0.0)


def test_two_steps_let_every_variable_depend_on_every_other() -> None:
    """One step looks back only; the second has the opposite order. In the same order two would still look back only."""
    shape = (3, 2, 2)
    flow = shaken(InverseAutoregressiveFlow(2, shape[0], 24))
    context = noise(1, 24, *shape[1:])
    assert bool((jacobian(lambda z: flow(z, context)[0], noise(1, *shape)) != 0).all())


def test_context_has_influence_everywhere() -> None:
    """Also on the first variable, which depends on no other."""
    step = shaken(InverseAutoregressiveStep(3, WIDTH, kernel_size=1))
    context = noise(1, WIDTH, 1, 1).requires_grad_()
    moved, log_gates = step(noise(1, 3, 1, 1), context)
    for outputs in (moved, log_gates):
        for variable in outputs.flatten():
            (gradient,) = torch.autograd.grad(variable, context, retain_graph=True)
            assert bool(gradient.any())


def test_saturated_gates_stay_finite() -> None:
    """log sigmoid(-2000) is -2000, although sigmoid(-2000) is no positive number any more."""
    step = InverseAutoregressiveStep(1, 1, kernel_size=1)
    with torch.no_grad():
        assert step.last.conv.bias is not None
        step.last.conv.bias[1] = -2000.0
        z, log_gates = step(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert float(log_gates) == -2000.0
    assert bool(z.isfinite())


@torch.no_grad()
def test_a_density_in_the_plane_integrates_to_one() -> None:
    """Inverted on a grid of points of the plane: exp(log q) there is a density. The midpoint rule on +-12, where
    nothing is left, converges as fast as the density is smooth; 1e-6 is far above its error with 300 points."""
    flow = shaken(InverseAutoregressiveFlow(2, 2, WIDTH, kernel_size=1))
    context = noise(1, WIDTH, 1, 1)
    edge, points = 12.0, 300
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) * (2 * edge / points) - edge
    plane = torch.cartesian_prod(axis, axis)[:, :, None, None]
    z0, _ = flow.inverse(plane, context)
    moved, log_det = flow(z0, context)
    torch.testing.assert_close(moved, plane, rtol=TOLERANCE, atol=TOLERANCE)
    base = Normal(
        torch.full((1, 2, 1, 1), 0.3, dtype=torch.float64), torch.full((1, 2, 1, 1), 0.7, dtype=torch.float64)
    )
    density = (base.log_prob_map(z0) - log_det).flatten(1).sum(1).exp()
    assert float(density.sum()) * (2 * edge / points) ** 2 == pytest.approx(1.0, abs=1e-6)


def test_as_a_posterior_it_scores_its_draws() -> None:
    """The density of a draw by the change of variables, with autograd's determinant."""
    flow = shaken(InverseAutoregressiveFlow(2, 3, WIDTH, kernel_size=1))
    context = noise(1, WIDTH, 1, 1)
    drawn: list[Tensor] = []

    def transform(z: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(z)
        moved, log_det = flow(z, context)
        return moved, log_det

    base = Normal(noise(1, 3, 1, 1), noise(1, 3, 1, 1).exp())
    posterior = TransformedNormal(base, transform)
    z = posterior.sample()
    log_det = torch.linalg.slogdet(jacobian(lambda x: flow(x, context)[0], drawn[0])).logabsdet
    expected = base.log_prob(drawn[0]) - log_det
    torch.testing.assert_close(posterior.log_prob(z), expected, rtol=TOLERANCE, atol=TOLERANCE)
