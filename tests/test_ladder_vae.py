"""The Ladder VAE: the merge is a product of densities, and its limits are the right ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import davi
from davi.distributions import Distribution, Latent, Normal
from davi.layers import LikelihoodConfig
from davi.model import Choose, Hierarchy
from davi.models import LadderVAE
from davi.models.ladder_vae import DenseRung, LadderVAEConfig, merged


def normal(mean: float, scale: float) -> Normal:
    return Normal(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[scale]], dtype=torch.float64))


def small(**options: Any) -> LadderVAE:
    torch.manual_seed(0)
    config = LadderVAEConfig(**{"latents": (3, 2), "hidden": (6, 5), **options})
    return LadderVAE((1, 4, 4), 2, config).double()


@torch.no_grad()
def test_a_heads_second_output_is_the_variance_before_its_softplus() -> None:
    """At the initial bias of 1, where nothing else arrives: log(1 + e) and the 1e-8 added to every variance."""
    model = small()
    for head in model.measure:
        assert isinstance(head.weight, Tensor)
        torch.nn.init.zeros_(head.weight)
    for measured, _ in model.eval().encode(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)):
        variance = torch.full_like(measured.scale, math.log1p(math.e) + 1e-8)
        torch.testing.assert_close(measured.scale.square(), variance, rtol=1e-12, atol=0.0)
        assert not measured.mean.any()


def test_the_merge_is_the_normalized_product_of_the_densities() -> None:
    """log q - log p_hat - log p is the same number everywhere, and precisions add up."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 50, 1, generator=generator, dtype=torch.float64)
    scales = torch.randn(2, 50, 1, generator=generator, dtype=torch.float64).exp()
    first, second = Normal(means[0], scales[0]), Normal(means[1], scales[1])
    q = merged(first, second)
    x = torch.linspace(-3.0, 3.0, 41, dtype=torch.float64)[None].expand(50, -1)
    rest = q.log_prob_map(x) - first.log_prob_map(x) - second.log_prob_map(x)
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), rtol=1e-9, atol=1e-9)
    # The constant is minus the logarithm of the product's integral, a Normal density of the difference of the means.
    integral = Normal(means[1], scales.square().sum(0).sqrt()).log_prob_map(means[0])
    torch.testing.assert_close(-rest[:, :1], integral, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(q.scale**-2, (scales**-2).sum(0), rtol=1e-12, atol=0.0)
    swapped = merged(second, first)
    torch.testing.assert_close(q.mean, swapped.mean, rtol=1e-12, atol=1e-12)
    assert torch.equal(q.scale, swapped.scale)


def test_a_measurement_that_says_nothing_leaves_the_prior_at_no_cost() -> None:
    prior = normal(0.7, 0.3)
    for scale in (1e20, 1e150):
        q = merged(normal(5.0, scale), prior)
        assert q.scale.item() == prior.scale.item()
        assert q.kl(prior).item() == pytest.approx(0.0, abs=1e-30)
    q = merged(normal(5.0, math.inf), prior)
    assert (q.mean.item(), q.scale.item(), q.kl(prior).item()) == (prior.mean.item(), prior.scale.item(), 0.0)


def test_a_perfect_measurement_is_believed() -> None:
    prior = normal(0.7, 0.3)
    for scale in (1e-9, 1e-150, 0.0):
        q = merged(normal(5.0, scale), prior)
        assert q.mean.item() == pytest.approx(5.0, abs=1e-15)
        assert q.scale.item() == scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_overflows_at_extremes(dtype: torch.dtype) -> None:
    """Squares and reciprocals of most of these standard deviations are no numbers of float32."""
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    values = torch.tensor([tiny, 1e-30, 1e-4, 1.0, 1e4, 1e30, huge], dtype=dtype)
    pairs = torch.cartesian_prod(values, values).requires_grad_()
    means = torch.tensor([[-2.0, 3.0]], dtype=dtype).repeat(len(pairs), 1).requires_grad_()
    q = merged(Normal(means[:, :1], pairs[:, :1]), Normal(means[:, 1:], pairs[:, 1:]))
    assert bool(((q.mean >= -2.0) & (q.mean <= 3.0)).all())
    assert bool(((q.scale > 0) & (q.scale <= pairs.min(1, keepdim=True).values)).all())
    kept = ((pairs > 1e-5) & (pairs < 1e5)).all(1)
    (q.mean[kept].sum() + q.scale[kept].log().sum()).backward()
    for gradient in (pairs.grad, means.grad):
        assert gradient is not None
        assert bool(gradient.isfinite().all())


def test_gradients_of_the_merge() -> None:
    values = torch.tensor([[0.3, 0.8], [-0.4, 1.7], [1.1, 0.2]], dtype=torch.float64, requires_grad=True)

    def both(x: Tensor) -> Tensor:
        q = merged(Normal(x[:, :1], x[:, 1:]), Normal(torch.ones_like(x[:, :1]), torch.full_like(x[:, :1], 0.7)))
        return torch.cat([q.mean, q.scale], 1)

    assert torch.autograd.gradcheck(both, values)


class Chain(Hierarchy):
    """p(z_2) = N(0, 1), p(z_1 | z_2) = N(a z_2, s^2), p(x | z_1) = N(b z_1, t^2), with exact measurements.

    What x says of z_1 alone is N(x / b, (t / b)^2); the posterior of z_2 follows from x = a b z_2 + noise.
    """

    name, num_layers = "chain", 2
    a, b, s, t = 0.8, -1.3, 0.6, 0.4

    def __init__(self) -> None:
        super().__init__((1, 1, 1), 2, None)
        self.spread = (self.b * self.s) ** 2 + self.t**2  # variance of x given z_2

    def log_p(self, x: Tensor) -> Tensor:
        scale = math.sqrt((self.a * self.b) ** 2 + self.spread)
        return Normal(torch.zeros_like(x), torch.full_like(x, scale)).log_prob(x)

    def encode(self, x: Tensor) -> list[Normal]:
        said = Normal(x / self.b, torch.full_like(x, self.t / abs(self.b)))
        precision = 1.0 + (self.a * self.b) ** 2 / self.spread
        top = Normal(self.a * self.b * x / self.spread / precision, torch.full_like(x, precision**-0.5))
        return [top, said]

    def top_down(self, choose: Choose, context: list[Normal] | None = None) -> Distribution:
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        z = choose(0, Normal(0.0 * one, one), None if context is None else context[0])
        prior = Normal(self.a * z, torch.full_like(z, self.s))
        z = choose(1, prior, None if context is None else merged(context[1], prior))
        return Normal(self.b * z, torch.full_like(z, self.t))


def bound_at(chain: Chain, x: Tensor, noise: Iterator[float]) -> Tensor:
    """Reconstruction minus divergences when the latents are drawn with this noise, ``[B]``."""
    total = torch.zeros(len(x), dtype=torch.float64)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal total
        assert isinstance(prior, Normal)
        assert isinstance(posterior, Normal)
        total = total - posterior.kl(prior)
        return posterior.mean + posterior.scale * next(noise)

    return chain.top_down(choose, chain.encode(x)).log_prob(x) + total


def test_with_exact_measurements_the_bound_of_a_linear_chain_is_log_p() -> None:
    chain = Chain()
    x = torch.tensor([-1.7, 0.2, 0.9], dtype=torch.float64).view(3, 1, 1, 1)
    evidence = chain.evidence(x, torch.Generator().manual_seed(0))
    assert evidence.log_weight is not None
    # The posterior is exact, so every single weight is p(x).
    torch.testing.assert_close(evidence.log_weight, chain.log_p(x), rtol=1e-12, atol=1e-12)
    # The bound is the mean over draws: quadratic in both, so five Gauss-Hermite nodes are more than enough.
    points, weights = np.polynomial.hermite_e.hermegauss(5)
    nodes, masses = points.tolist(), (weights / weights.sum()).tolist()
    total = torch.zeros(3, dtype=torch.float64)
    for first, mass in zip(nodes, masses, strict=True):
        for second, other in zip(nodes, masses, strict=True):
            total += mass * other * bound_at(chain, x, iter((first, second)))
    torch.testing.assert_close(total, chain.log_p(x), rtol=1e-12, atol=1e-12)


def steps_of(model: LadderVAE, x: Tensor) -> list[tuple[Normal, Normal]]:
    """Prior and posterior of each layer, with draws from the posteriors."""
    found: list[tuple[Normal, Normal]] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert isinstance(prior, Normal)
        assert isinstance(posterior, Normal)
        found.append((prior, posterior))
        return posterior.sample(torch.Generator().manual_seed(layer))

    with torch.no_grad():
        model.top_down(choose, model.encode(x))
    return found


@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_posteriors_are_the_merge_with_the_generative_prior_by_default(network: str) -> None:
    model, x = small(network=network).eval(), torch.randint(2, (3, 1, 4, 4))
    with torch.no_grad():
        measured = model.encode(x)
    steps = steps_of(model, x)
    assert torch.equal(steps[0][1].mean, measured[0].normal.mean)
    expected = merged(measured[1].normal, steps[1][0])
    assert torch.equal(steps[1][1].mean, expected.mean)
    assert torch.equal(steps[1][1].scale, expected.scale)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_without_sharing_the_posterior_has_a_top_down_network_of_its_own() -> None:
    model, x = small(share_top_down=False).eval(), torch.randint(2, (3, 1, 4, 4))
    assert count(model) - count(small()) == count(model.down)
    before = steps_of(model, x)[1]
    with torch.no_grad():
        for parameter in model.down.parameters():
            parameter.add_(0.1)
    after = steps_of(model, x)[1]
    assert torch.equal(before[1].mean, after[1].mean)
    assert not torch.equal(before[0].mean, after[0].mean)


def test_one_layer_is_a_plain_vae() -> None:
    model = small(latents=(3,), hidden=(6,)).eval()
    evidence = model.evidence(torch.randint(2, (2, 1, 4, 4)))
    assert list(evidence.terms) == ["reconstruction", "kl/00"]


@pytest.mark.parametrize(("shape", "levels"), [((3, 5, 7), 256), ((1, 9, 2), 4), ((4, 8, 8), 16)])
@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_any_size(network: Any, shape: tuple[int, int, int], levels: int) -> None:
    config = LadderVAEConfig(
        network=network, latents=(2, 2), hidden=(4, 4), depth=1, likelihood=LikelihoodConfig("logistic_mixture", 5)
    )
    model = LadderVAE(shape, levels, config).eval()
    x = torch.randint(levels, (2, *shape))
    assert bool(model.evidence(x).log_px.isfinite().all())
    assert model.sample(2, temperature=[1.0, 0.5]).shape == x.shape


def test_sampler_and_density_have_one_variance_even_where_the_softplus_vanishes() -> None:
    model, x = small().eval(), torch.randint(2, (4, 1, 4, 4))
    with torch.no_grad():
        for head in model.measure:
            assert isinstance(head, torch.nn.Conv2d)
            assert head.bias is not None
            head.bias[-2:].fill_(-1e4)
    for _, q in steps_of(model, x):
        z = q.sample(torch.Generator().manual_seed(0))
        noise = torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(0), dtype=q.mean.dtype)
        expected = -0.5 * noise.square() - q.scale.log() - 0.5 * math.log(2 * math.pi)
        assert bool(expected.isfinite().all())
        # 1e-6: z - mean has lost four of float64's sixteen digits where the standard deviation is 1e-4.
        torch.testing.assert_close(q.log_prob_map(z), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": ()}, "latents: got"),
        ({"latents": (3, 0)}, "latents: got"),
        ({"hidden": (3,)}, "hidden: got 1 widths, expected one for each of 2 layers"),
        ({"depth": 0}, "depth: got 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LadderVAEConfig(**{"latents": (3, 2), "hidden": (6, 5), **options})


def test_the_papers_ladder() -> None:
    with torch.device("meta"):
        model = davi.build("ladder_vae_mnist")
    assert isinstance(model, LadderVAE)
    linears = [rung.layers[0] for rung in model.up if isinstance(rung, DenseRung)]
    shapes = [tuple(linear.weight.shape) for linear in linears if isinstance(linear, torch.nn.Linear)]
    assert shapes == [(512, 784), (256, 512), (128, 256), (64, 128), (32, 64)]
    assert model.config.latents == (64, 32, 16, 8, 4)
    assert model.config.share_top_down
