"""The residual ladder with inverse autoregressive flows: that its weights are those of a bound, and its parts."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quadrature import from_the_posterior, from_the_prior
from torch import Generator, Tensor

import davi
from davi import recipes
from davi.distributions import Latent, Normal, TransformedNormal
from davi.layers import LikelihoodConfig
from davi.models.iaf_vae import IAFVAE, IAFVAEConfig

SMALL = IAFVAEConfig(
    layers=(1, 2),
    dense_layers=1,
    latent_channels=2,
    width=4,
    dense_width=5,
    residual_blocks=1,
    flow_steps=2,
    flow_width=4,
    likelihood=LikelihoodConfig("bernoulli"),
)


def build(config: IAFVAEConfig = SMALL, shape: tuple[int, int, int] = (1, 8, 8), shake: float = 0.2) -> IAFVAE:
    """In float64 and eval mode, with weights that leave nothing at its neutral value."""
    model = IAFVAE(shape, 2, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return model.double().eval()


def images(n: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.randint(2, (n, *shape))


def seeded(seed: int = 3) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [0, 2])
def test_posteriors_of_a_walk(steps: int) -> None:
    """Vectors above, then maps, coarse and fine; Normal without a flow, and with one, not."""
    model = build(replace(SMALL, flow_steps=steps))
    found: list[tuple[type, tuple[int, ...]]] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        assert posterior is not None
        found.append((type(posterior), tuple(prior.shape[1:])))
        return posterior.sample()

    model.top_down(choose, model.encode(images(2)))
    kind = TransformedNormal if steps else Normal
    assert found == [(kind, (2, 1, 1)), (kind, (2, 2, 2)), (kind, (2, 4, 4)), (kind, (2, 4, 4))]


@torch.no_grad()
def test_both_ways_share_in_a_posterior() -> None:
    """Its raw parameters are the sum of those that the image and the layers above give; the prior has its own."""
    model = build(replace(SMALL, flow_steps=0))
    x, n = images(2), SMALL.latent_channels

    def top() -> tuple[Normal, Normal]:
        asked: list[tuple[Normal, Normal]] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert isinstance(prior, Normal)
            assert isinstance(posterior, Normal)
            asked.append((prior, posterior))
            return posterior.center()

        model.top_down(choose, model.encode(x))
        return asked[0]

    prior, posterior = top()
    up, down = (
        model.up[0].first.bias,
        model.down_heads[0].first.bias,
    )  # [mean | log-scale | ..], [prior | posterior | ..]
    up[:n] += 0.3
    up[n : 2 * n] += 0.1
    down[2 * n : 3 * n] += 0.4
    down[3 * n : 4 * n] += 0.2
    same, moved = top()
    assert torch.equal(same.center(), prior.mean)
    assert torch.equal(same.scale, prior.scale)
    torch.testing.assert_close(moved.center(), posterior.mean + 0.7, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(moved.scale, posterior.scale * math.exp(0.3), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    ("layers", "channels", "steps"),
    [
        (2, 1, 0),
        (2, 1, 2),  # with one variable a step is affine
        (1, 2, 2),  # with two it is not
    ],
)
def test_weights_have_expectation_p_of_x(layers: int, channels: int, steps: int) -> None:
    """Every image of two pixels. Differences beyond 1e-3 in relative terms would show a missing or doubled density or
    determinant; the integrals themselves agree far better."""
    shape = (1, 1, 2)
    config = IAFVAEConfig(
        layers=(),
        dense_layers=layers,
        latent_channels=channels,
        width=3,
        dense_width=4,
        stem_halvings=0,
        flow_steps=steps,
        flow_width=6,
        likelihood=LikelihoodConfig("bernoulli"),
    )
    model = build(config, shape, shake=0.5)
    total = 0.0
    for pixels in itertools.product((0, 1), repeat=2):
        x = torch.tensor(pixels).view(1, *shape)
        exact = from_the_prior(model, x, variables=2, points=101)
        found = from_the_posterior(model, x, variables=2, points=201, edge=20.0)
        assert found == pytest.approx(exact, rel=1e-3)
        total += exact
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_no_divergence_where_q_is_p(steps: int) -> None:
    """The way up says nothing, the way down gives prior and posterior alike, and all gates are open."""
    model = build(replace(SMALL, flow_steps=steps))
    with torch.no_grad():
        for up, down in zip(model.up, model.down_heads, strict=True):
            latents = 2 * SMALL.latent_channels
            up.first.log_g[:latents] = -math.inf
            up.first.bias[:latents] = 0.0
            for tensor in down.first.parameters():
                tensor[latents : 2 * latents] = tensor[:latents]
        for flow in model.flows:
            for step in flow.steps:
                step.last.conv.weight.zero_()
                step.last.conv.bias[SMALL.latent_channels :] = 1000.0
    evidence = model.evidence(images(3), seeded())
    assert all(not kl.any() for kl in evidence.kl_maps.values())


def test_the_flow_moves_the_draws_and_its_determinant_counts() -> None:
    """At the initial weights a step multiplies with sigmoid(2) and adds 0.126928 to the log density."""
    model = IAFVAE((1, 8, 8), 2, SMALL).double()

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert isinstance(posterior, TransformedNormal)
        z = posterior.sample(seeded(layer))
        z0 = posterior.base.sample(seeded(layer))
        steps = SMALL.flow_steps
        shrunk = 1.0 / (1.0 + math.exp(-2.0))
        torch.testing.assert_close(z, shrunk**steps * z0, rtol=1e-12, atol=1e-12)
        expected = posterior.base.log_prob_map(z0) - steps * math.log(shrunk)
        torch.testing.assert_close(posterior.log_prob_map(z), expected, rtol=1e-12, atol=1e-12)
        return z

    model.top_down(choose, model.encode(images(2)))


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 9, 4)])
@pytest.mark.parametrize("halvings", [0, 2])
def test_any_size_and_number_of_channels(shape: tuple[int, int, int], halvings: int) -> None:
    model = build(replace(SMALL, stem_halvings=halvings), shape)
    assert model.sample(2, generator=seeded()).shape == (2, *shape)
    assert bool(model.evidence(images(2, shape), seeded()).log_px.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize(("output", "log_scale"), [(3.0, 3.0), (-3.0, -3.0), (100.0, 7.0), (-100.0, -7.0)])
def test_log_scales_are_outputs_up_to_a_guard(output: float, log_scale: float) -> None:
    """Of the top prior, which is the same for all images."""
    model, found = build(), []
    bias = model.down_heads[0].first.bias
    assert bias is not None
    model.top.zero_()
    bias[SMALL.latent_channels : 2 * SMALL.latent_channels] = output

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        found.append(prior)
        return prior.mean

    model.top_down(choose)
    torch.testing.assert_close(found[0].scale, torch.full_like(found[0].scale, math.exp(log_scale)), rtol=1e-12, atol=0)


@torch.no_grad()
def test_the_flow_is_told_of_the_image() -> None:
    """Where the way up has no say in the posterior's base, images still differ by the context of the flow."""
    model = build()
    for up in model.up:
        up.first.log_g[: 2 * SMALL.latent_channels] = -math.inf
    x = torch.stack([torch.zeros(1, 8, 8, dtype=torch.int64), torch.ones(1, 8, 8, dtype=torch.int64)])
    bases = [told.posterior for told in model.encode(x)]
    assert all(torch.equal(raw[0], raw[1]) for base in bases for raw in (base.mean, base.log_scale))
    top = model.latents(x)[0]
    assert not torch.allclose(top[0], top[1])


def test_recomputed_blocks_have_the_same_gradients() -> None:
    model, x = build().train(), images(4)
    gradients = []
    for recompute in (False, True):
        for block in model.blocks():
            block.recompute = recompute  # type: ignore[assignment]
        model.zero_grad()
        model.evidence(x, seeded()).log_px.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_initialized_from_data_the_outputs_have_the_scale() -> None:
    """The stem's convolution, and its bias that undoes the images' mean; later ones likewise, in order."""
    model, x = build(shake=0.0), images(64)
    model.initialize(x)
    seen: list[Tensor] = []
    for conv in (model.stem[0], model.up[-1].first):
        conv.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    model.evidence(x)
    assert len(seen) == 2
    for outputs in seen:
        std, mean = torch.std_mean(outputs, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(std, torch.full_like(std, 0.1), rtol=1e-9, atol=0.0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (2, 0)}, r"layers: got \[2, 0\], expected at least one layer at each scale"),
        ({"layers": (), "dense_layers": 0}, "layers: got none and no dense_layers"),
        ({"flow_steps": -1}, "flow_steps: got -1, expected at least 0"),
        ({"flow_width": 0}, "flow_width: got 0, expected at least 1"),
        ({"gate_bias": math.inf}, "gate_bias: got inf, expected a finite number"),
        ({"initial_scale": -1.0}, "initial_scale: got -1.0, expected a number above 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)


@pytest.mark.parametrize(
    "name", [name for name in recipes.names() if name.startswith("iaf_vae") and "tiny" not in name]
)
def test_the_page_states_the_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = davi.build(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    page = Path(__file__).parents[1] / "docs" / "models" / "iaf_vae.md"
    assert re.search(rf"^\| `{name}` \|.*\| {count:,} \|$", page.read_text("utf-8"), re.MULTILINE)
