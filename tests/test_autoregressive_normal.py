"""Continuous latents that are predicted one after the other: density, draws, and the divergence of a posterior."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract import seeded, shake
from torch import Tensor

from davi.distributions import AutoregressiveNormal, Normal
from davi.evidence import Kind
from davi.models.pixelvae import LatentPixelCNN, LatentPixelCNNConfig


def network(within_position: bool, channels: int = 2, features: int = 3) -> LatentPixelCNN:
    torch.manual_seed(4)
    config = LatentPixelCNNConfig(width=4, layers=2, first_kernel=3, within_position=within_position)
    return shake(LatentPixelCNN(channels, features, config).double())


def prior(within_position: bool, grid: tuple[int, int] = (2, 3), n: int = 1) -> AutoregressiveNormal:
    made = network(within_position)
    features = torch.randn(1, 3, *grid, generator=seeded(), dtype=torch.float64).expand(n, -1, -1, -1)
    return AutoregressiveNormal(made, features, 2, made.parts)


def chain(slope: float, scale: float) -> Callable[[Tensor, Tensor], Normal]:
    """Every position is the one to its left times a slope, and noise."""
    return lambda z, features: Normal(slope * torch.nn.functional.pad(z, (1, -1)), torch.full_like(z, scale))


@pytest.mark.parametrize("within_position", [False, True])
def test_a_latent_sees_those_before_it_and_no_others(within_position: bool) -> None:
    """The order is that of positions, then of channels; the order in which draws are made."""
    p = prior(within_position, (3, 3))
    z = torch.randn(1, 2, 3, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    found = p.conditionals(z)
    for parameter in (found.mean, found.scale):
        rows = [
            torch.autograd.grad(value, z, retain_graph=True)[0] for value in parameter[0].permute(1, 2, 0).flatten()
        ]
        jacobian = torch.stack([row[0].permute(1, 2, 0).flatten() for row in rows])  # [variable, variable], in order
        size = 1 if within_position else 2
        place = torch.arange(18) // size
        before = place[:, None] > place
        assert not bool(jacobian[~before].any())
        # A 3x3 window of the first layer, and one of the second: all earlier latents of a 3x3 grid.
        assert bool(jacobian[before].all())


@pytest.mark.parametrize("within_position", [False, True])
@torch.no_grad()
def test_a_draw_is_made_of_its_noise(within_position: bool) -> None:
    p = prior(within_position, n=4)
    noise = torch.randn(p.shape, generator=seeded(), dtype=torch.float64)
    z = p.sample_with(lambda like: noise)
    found = p.conditionals(z)
    torch.testing.assert_close((z - found.mean) / found.scale, noise, rtol=1e-12, atol=1e-12)
    expected = Normal(torch.zeros_like(noise), torch.ones_like(noise)).log_prob_map(noise) - found.scale.log()
    torch.testing.assert_close(p.log_prob_map(z), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(p.center(), p.sample(temperature=0.0))
    assert torch.equal(p.sample(seeded()), p.sample(seeded()))
    assert p.kind is Kind.EXACT


@torch.no_grad()
def test_expanded_it_is_the_same_for_all() -> None:
    one = prior(True)
    three = one.expand(3)
    assert three.expand(3) is three
    assert (one.shape, three.shape) == ((1, 2, 2, 3), (3, 2, 2, 3))
    z = three.sample(seeded())
    torch.testing.assert_close(three.log_prob(z)[1:2], one.log_prob(z[1:2]), rtol=1e-12, atol=1e-12)


def test_draws_have_gradients() -> None:
    """With respect to the features, through all that was drawn before: of the last latent by the first features."""
    features = torch.randn(1, 3, 1, 3, dtype=torch.float64, requires_grad=True)
    z = AutoregressiveNormal(network(False), features, 2).sample(seeded())
    (gradient,) = torch.autograd.grad(z[0, 0, 0, 2], features)
    assert bool(gradient[..., 0].any())


@torch.no_grad()
def test_the_divergence_from_a_chain_is_that_of_the_joint_normal() -> None:
    """Where conditionals are linear, the prior is one Normal with a full covariance, and KL(q || p) is known. The mean
    of what is estimated from draws is that number, and there is less noise in it than in log q - log p."""
    slope, scale, n = 0.7, 0.5, 40_000
    mean = torch.tensor([0.4, -0.3, 0.9], dtype=torch.float64)
    deviation = torch.tensor([0.6, 0.2, 0.8], dtype=torch.float64)
    lower = torch.eye(3, dtype=torch.float64) - slope * torch.diag(torch.ones(2, dtype=torch.float64), -1)
    covariance = scale**2 * (lower.inverse() @ lower.inverse().T)
    joint = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
    single = torch.distributions.MultivariateNormal(mean, deviation.square().diag())
    exact = float(torch.distributions.kl_divergence(single, joint))
    p = AutoregressiveNormal(chain(slope, scale), torch.zeros(n, 1, 1, 3, dtype=torch.float64), 1)
    q = Normal(mean.view(1, 1, 1, 3).expand(n, -1, -1, -1), deviation.view(1, 1, 1, 3).expand(n, -1, -1, -1))
    z = q.sample(seeded())
    found, closed = q.kl_map(p, z)
    assert not closed
    assert bool((found >= 0).all())
    estimate, plain = found.flatten(1).sum(1), q.log_prob(z) - p.log_prob(z)
    for values in (estimate, plain):
        assert float(values.mean()) == pytest.approx(exact, abs=4 * float(values.std()) / n**0.5)
    assert float(estimate.std()) < 0.7 * float(plain.std())
    torch.testing.assert_close(p.log_prob(z), joint.log_prob(z.flatten(1)), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_both_estimates_of_a_divergence_agree() -> None:
    """Of a network over a grid with its channels in order, where no closed form is known."""
    n = 20_000
    p = prior(True, (2, 2), n)
    q = Normal(torch.full(p.shape, 0.3, dtype=torch.float64), torch.full(p.shape, 0.7, dtype=torch.float64))
    z = q.sample(seeded())
    estimate, plain = q.kl_map(p, z)[0].flatten(1).sum(1), q.log_prob(z) - p.log_prob(z)
    difference = estimate - plain
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / n**0.5
    assert float(estimate.std()) < float(plain.std())


@torch.no_grad()
def test_without_dependence_it_is_the_normal() -> None:
    """Before training the network adds nothing to what it reads off the features."""
    torch.manual_seed(1)
    made = LatentPixelCNN(2, 3, LatentPixelCNNConfig(width=4)).double()
    features = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    p = AutoregressiveNormal(made, features, 2)
    zero, z = p.conditionals(torch.zeros(p.shape, dtype=torch.float64)), p.sample()
    torch.testing.assert_close(p.log_prob_map(z), zero.log_prob_map(z), rtol=1e-12, atol=1e-12)
