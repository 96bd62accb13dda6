"""Every flow that a posterior can be given: T1 its log-determinant, T2 its inverse, T3 its density, T4 its context, T5
its batches; on vectors and on maps. Everything is in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from davi.distributions import Normal, TransformedNormal
from davi.flows.amortized import AmortizedFlow
from davi.flows.iaf import IAFConfig
from davi.flows.posterior import POSTERIOR_FLOWS, make_posterior_flow
from davi.flows.sylvester import SylvesterHouseholderConfig, SylvesterOrthogonalConfig

TOLERANCE = 1e-9
FEATURES = 5
CONFIGS = {name: flow.Config(name, 3) for name, flow in POSTERIOR_FLOWS.items()}
CONFIGS["sylvester_orthogonal"] = SylvesterOrthogonalConfig(steps=3, vectors=2)
CONFIGS["sylvester_householder"] = SylvesterHouseholderConfig(steps=3, reflections=3)
CONFIGS["iaf"] = IAFConfig(steps=3, width=12)
CONFIGS["sylvester_orthogonal, square"] = SylvesterOrthogonalConfig(steps=2, vectors=3)
CONFIGS["sylvester_householder, one reflection"] = SylvesterHouseholderConfig(steps=2, reflections=1)
CONFIGS["iaf, sylvester"] = IAFConfig(steps=4, width=12, gate_bias=1.0, form="sylvester")

every_flow = pytest.mark.parametrize("name", CONFIGS)
every_shape = pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 2)], ids=["vector", "maps"])


def built(name: str, channels: int = 3) -> AmortizedFlow:
    """With weights that leave nothing at its neutral value."""
    config = CONFIGS[name]
    if isinstance(config, SylvesterOrthogonalConfig):
        config = replace(config, vectors=min(channels, config.vectors))
    flow = make_posterior_flow(channels, FEATURES, config).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def inputs(shape: tuple[int, int, int], n: int) -> tuple[Tensor, Tensor]:
    return noise(n, *shape), noise(n, FEATURES, *shape[1:])


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def log_det_of_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(function, x)
    assert isinstance(jacobian, Tensor)
    return torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet


@every_shape
@every_flow
def test_log_determinants_are_those_of_the_jacobians(name: str, shape: tuple[int, int, int]) -> None:
    flow, (x, context) = built(name), inputs(shape, 1)
    y, log_det = flow(x, context)
    assert log_det.shape == x.shape
    close(log_det.sum(), log_det_of_jacobian(lambda x: flow(x, context)[0], x))
    back = flow.inverse(y, context)[1].sum()
    close(back, log_det_of_jacobian(lambda y: flow.inverse(y, context)[0], y))


@every_shape
@every_flow
@torch.no_grad()
def test_the_inverse_undoes_it(name: str, shape: tuple[int, int, int]) -> None:
    flow, (x, context) = built(name), inputs(shape, 4)
    y, log_det = flow(3 * x, context)
    back, log_det_back = flow.inverse(y, context)
    close(back, 3 * x)
    close(log_det_back, -log_det)
    close(flow(flow.inverse(x, context)[0], context)[0], x)  # any point can be reached


@every_flow
@torch.no_grad()
def test_a_density_in_the_plane_integrates_to_one(name: str) -> None:
    """By the midpoint rule on points that nobody drew, around those of 4,000 draws: their density is by the inverse."""
    flow, context = built(name, channels=2), noise(1, FEATURES, 1, 1)
    for parameter in flow.parameters():
        parameter.mul_(0.5)  # no ridges narrower than the grid
    base = Normal(noise(1, 2, 1, 1) / 2, torch.full((1, 2, 1, 1), 0.7, dtype=torch.float64))
    posterior = TransformedNormal(base, partial(flow, context=context), partial(flow.inverse, context=context))
    draws, points = posterior.expand(4000).sample().flatten(1), 250
    low, high = draws.min(0).values, draws.max(0).values
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
    sides = (high - low) / points
    unit = torch.arange(points, dtype=torch.float64) + 0.5
    plane = torch.cartesian_prod(*(low[i] + unit * sides[i] for i in range(2)))[:, :, None, None]
    mass = posterior.log_prob(plane).exp().sum() * sides.prod()
    assert float(mass) == pytest.approx(1.0, abs=1e-4)


@every_flow
def test_draws_are_scored_as_the_inverse_scores_them(name: str) -> None:
    flow, (_, context) = built(name), inputs((3, 2, 2), 2)
    base = Normal(noise(2, 3, 2, 2), noise(2, 3, 2, 2).exp())
    posterior = TransformedNormal(base, partial(flow, context=context), partial(flow.inverse, context=context))
    z = posterior.sample()
    close(posterior.log_prob(z), posterior.log_prob(z.clone()))


@every_shape
@every_flow
def test_the_context_has_influence(name: str, shape: tuple[int, int, int]) -> None:
    """Every feature of every position, on latents and density; but for volumes that are preserved."""
    flow, (x, context) = built(name), inputs(shape, 2)
    context.requires_grad_()
    y, log_det = flow(x, context)
    assert bool((torch.autograd.grad(y.square().sum(), context, retain_graph=True)[0] != 0).all())
    if name != "householder":
        assert bool((torch.autograd.grad(log_det.square().sum(), context)[0] != 0).all())


@every_shape
@every_flow
@torch.no_grad()
def test_images_and_positions_do_not_mix(name: str, shape: tuple[int, int, int]) -> None:
    flow, (x, context) = built(name), inputs(shape, 3)
    for function in (flow.forward, flow.inverse):
        together = function(x, context)
        for i in range(3):
            alone = function(x[i : i + 1], context[i : i + 1])
            corner = function(x[i : i + 1, :, :1, :1], context[i : i + 1, :, :1, :1])
            for both, one, first in zip(together, alone, corner, strict=True):
                close(both[i : i + 1], one, 1e-13)
                close(one[:, :, :1, :1], first, 1e-13)


@every_flow
@torch.no_grad()
def test_one_context_serves_many_draws(name: str) -> None:
    flow, (x, context) = built(name), inputs((3, 2, 2), 4)
    context = context[:1]
    for function in (flow.forward, flow.inverse):
        for one, repeated in zip(function(x, context), function(x, context.expand(4, -1, -1, -1)), strict=True):
            close(one, repeated, 1e-12)


@every_flow
def test_no_context_is_one_of_zeros(name: str) -> None:
    flow, (x, _) = built(name), inputs((3, 2, 2), 2)
    if name.startswith("iaf"):  # adds none, not even a bias
        torch.nn.init.zeros_(flow.context.bias)  # type: ignore[arg-type, union-attr]
    close(flow(x)[0], flow(x, torch.zeros(2, FEATURES, 2, 2, dtype=x.dtype))[0])


@every_flow
def test_under_autocast_the_flow_itself_is_in_float32(name: str) -> None:
    """What comes out of bfloat16 heads is a bijection all the same: the log-determinant is that of the Jacobian."""
    flow = built(name).float()
    x, context = (part.float() for part in inputs((3, 1, 1), 1))
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = flow(x, context)
    assert y.dtype == log_det.dtype == torch.float32
    if not name.startswith("iaf"):  # whose Jacobian goes through the network in bfloat16

        def moved(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                outcome: Tensor = flow(x, context)[0]
            return outcome

        close(log_det.sum(), log_det_of_jacobian(moved, x), 1e-5)


def test_sign_of_a_log_determinant() -> None:
    """y = 2x and y ~ N(0, 1): log p(0) = log N(0) + log 2 = -.225791; with the other sign it would be -1.612086."""

    def halved(z: Tensor) -> tuple[Tensor, Tensor]:
        return z / 2, torch.full_like(z, -math.log(2.0))

    def doubled(x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, torch.full_like(x, math.log(2.0))

    zero = torch.zeros(1, 1, dtype=torch.float64)
    of_x = TransformedNormal(Normal(zero, zero + 1), halved, doubled)  # x = y / 2
    assert float(of_x.log_prob(zero)) == pytest.approx(-0.225791, abs=5e-7)
    assert float(of_x.log_prob(of_x.center())) == pytest.approx(-0.225791, abs=5e-7)


@pytest.mark.parametrize("vectors", [0, 4])
def test_more_vectors_than_channels_are_refused(vectors: int) -> None:
    said = f"posterior_flow.vectors: got {vectors}, expected 1 to 3, the channels of the latents"
    with pytest.raises(ValueError, match=said):
        make_posterior_flow(3, FEATURES, SylvesterOrthogonalConfig(vectors=vectors))


def test_no_reflection_is_refused() -> None:
    with pytest.raises(ValueError, match="reflections: got 0, expected at least 1"):
        SylvesterHouseholderConfig(reflections=0)


@pytest.mark.parametrize("name", ["width", "hidden_layers"])
def test_a_network_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: got 0, expected at least 1$"):
        IAFConfig(**{name: 0})  # type: ignore[arg-type]  # names of the test
