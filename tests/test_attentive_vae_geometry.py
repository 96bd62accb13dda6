"""The Deep Attentive VAE for images of any shape, and for the options that change its structure."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from davi.layers import DepthAttention, LikelihoodConfig
from davi.layers.depth_attention import DepthWiseAttention
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig, SpatialAttention

SMALL: dict[str, Any] = {
    "layers": (2,),
    "latent_channels": 2,
    "width": 4,
    "preprocess": (0, -2),
    "postprocess": (2, 0),
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "nodes": 1,
    "generative_attention": DepthWiseAttention(4),
    "inference_attention": DepthWiseAttention(4),
    "likelihood": LikelihoodConfig("logistic_mixture", 2),
}
EVERYWHERE = SpatialAttention(2, 2, 2, 2, 2, 2)
NO_HALVING: dict[str, Any] = {"preprocess": (0,), "postprocess": (0,)}
TWO_HALVINGS: dict[str, Any] = {"preprocess": (-2, -2), "postprocess": (2, 2)}


def build(shape: tuple[int, int, int] = (1, 4, 4), levels: int = 17, **options: Any) -> AttentiveVAE:
    return AttentiveVAE(shape, levels, AttentiveVAEConfig(**{**SMALL, **options})).eval()


CASES: list[tuple[tuple[int, int, int], int, dict[str, Any], list[tuple[int, int]]]] = [
    # shape, levels, options, grids of the latents from the top
    ((1, 4, 4), 17, NO_HALVING, [(4, 4)] * 2),
    ((1, 4, 4), 17, {}, [(2, 2)] * 2),
    ((1, 4, 4), 17, TWO_HALVINGS, [(1, 1)] * 2),
    ((2, 6, 4), 256, {"layers": (1,)}, [(3, 2)]),
    ((3, 5, 9), 256, {}, [(3, 5)] * 2),
    ((3, 5, 9), 256, TWO_HALVINGS, [(2, 3)] * 2),
    ((1, 2, 2), 65536, {"layers": (1, 2, 2)}, [(1, 1), (2, 2), (2, 2), (4, 4), (4, 4)]),
    ((2, 7, 12), 17, {"layers": (2, 3)}, [(2, 3)] * 2 + [(4, 6)] * 3),
    ((4, 4, 4), 256, {"layers": (1, 2, 2), **NO_HALVING}, [(1, 1), (2, 2), (2, 2), (4, 4), (4, 4)]),
    ((1, 4, 4), 2, {"likelihood": LikelihoodConfig("bernoulli"), "pad": 2}, [(4, 4)] * 2),
    ((3, 1, 1), 2, {"likelihood": LikelihoodConfig("bernoulli"), **NO_HALVING}, [(1, 1)] * 2),
    ((3, 3, 5), 4, {"likelihood": LikelihoodConfig("categorical")}, [(2, 3)] * 2),
    ((1, 4, 4), 17, {"squeeze_excite": True, "nodes": 2}, [(2, 2)] * 2),
    (
        (1, 8, 8),
        17,
        {"spatial_attention": EVERYWHERE, "layers": (1, 2)},
        [(2, 2), (4, 4), (4, 4)],
    ),
    ((1, 4, 4), 17, {"generative_attention": DepthWiseAttention(0), "layers": (2, 2)}, [(1, 1)] * 2 + [(2, 2)] * 2),
    ((1, 4, 4), 17, {"inference_attention": DepthWiseAttention(0), "layers": (2, 2)}, [(1, 1)] * 2 + [(2, 2)] * 2),
    (
        (1, 4, 4),
        17,
        {"generative_attention": DepthWiseAttention(0), "inference_attention": DepthWiseAttention(0)},
        [(2, 2)] * 2,
    ),
]


@pytest.mark.parametrize(("shape", "levels", "options", "grids"), CASES)
def test_every_geometry_is_measured_drawn_and_trained(
    shape: tuple[int, int, int], levels: int, options: dict[str, Any], grids: list[tuple[int, int]]
) -> None:
    model = build(shape, levels, **options)
    x = torch.randint(levels, (2, *shape))
    model.train()
    evidence = model.evidence(x)
    assert len(evidence.terms) == 1 + len(grids)
    assert all(term.shape == (2,) and term.isfinite().all() for term in evidence.terms.values())
    evidence.log_px.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    model.eval()
    latents = model.latents(x)
    assert [tuple(z.shape) for z in latents] == [(2, 2, *grid) for grid in grids]
    assert model.num_layers == len(grids)
    for drawn in (
        model.sample(3),
        model.sample(3, temperature=0.7),
        model.reconstruct(x),
        model.decode(latents).mode(),
    ):
        assert tuple(drawn.shape[1:]) == shape
        assert drawn.dtype == torch.long
        assert drawn.min() >= 0
        assert drawn.max() < levels
    assert torch.equal(model.reconstruct(x), model.decode(latents).mode())
    assert model.dims == shape[0] * shape[1] * shape[2]


@pytest.mark.parametrize(
    ("generative", "inference", "names"),
    [
        (0, 0, []),
        (4, 0, ["generative.0.attention", "generative.1.attention"]),
        (0, 4, ["inference.0.attention", "inference.1.attention", "inference.2.attention"]),
    ],
)
def test_either_attention_alone(generative: int, inference: int, names: list[str]) -> None:
    model = build(
        layers=(3,),
        generative_attention=DepthWiseAttention(generative),
        inference_attention=DepthWiseAttention(inference),
    )
    found = [name for name, module in model.named_modules() if isinstance(module, DepthAttention)]
    assert sorted(found) == names
    assert any("gate" in name for name, _ in model.named_parameters()) == bool(names)


def test_attention_reaches_across_scales() -> None:
    """The prior of a layer on the fine grid reads the coarse top layer's latents through the attention itself."""
    model = build((1, 8, 8), layers=(2, 2)).double()
    latents = model.latents(torch.randint(17, (2, 1, 8, 8)))
    seen: list[tuple[int, ...]] = []
    reads = [m for name, m in model.named_modules() if name == "generative.2.attention"]
    reads[0].register_forward_hook(
        lambda module, inputs, out: seen.extend(tuple(map(int, v.shape[2:])) for v in inputs[2])
    )
    model.decode(latents)
    assert seen == [(4, 4)] * 3  # the maps of two coarse layers, enlarged, and one of this grid


# --- padding


def test_likelihood_is_that_of_the_real_pixels() -> None:
    model = build((1, 3, 5)).double()
    assert model.padding.padded == (4, 6)
    border = torch.ones(4, 6, dtype=torch.bool)
    border[model.padding.top : model.padding.top + 3, model.padding.left : model.padding.left + 5] = False
    assert border.sum() == 24 - 15
    outputs: list[Tensor] = []
    model.output.register_forward_hook(lambda module, inputs, out: outputs.append(out))
    x = torch.randint(17, (2, 1, 3, 5))
    evidence = model.evidence(x)
    (grad,) = torch.autograd.grad(evidence.log_px.sum(), outputs[0])
    touched = grad.abs().sum((0, 1)) > 0
    assert torch.equal(touched, ~border)
    # Anything may stand in the border of the outputs.
    model.output.register_forward_hook(lambda module, inputs, out: out + 100 * border)
    torch.manual_seed(5)
    changed = model.evidence(x).log_px
    model.output._forward_hooks.popitem()
    torch.manual_seed(5)
    assert torch.equal(changed, model.evidence(x).log_px)


@pytest.mark.parametrize("pad", [None, 0, 2])
def test_padding_changes_the_grids_not_the_image(pad: int | None) -> None:
    model = build((1, 4, 4), pad=pad)
    x = torch.randint(17, (2, 1, 4, 4))
    latents = model.latents(x)
    assert tuple(latents[0].shape[2:]) == ((4, 4) if pad == 2 else (2, 2))
    assert model.decode(latents).log_prob_map(x).shape == (2, 1, 4, 4)
    assert model.dims == 16


def test_padding_is_black() -> None:
    model = build((1, 2, 2), pad=1)
    seen: list[Tensor] = []
    model.preprocess.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.encode(torch.full((1, 1, 2, 2), 16))
    expected = torch.full((4, 4), -1.0)
    expected[1:3, 1:3] = 1.0
    assert torch.equal(seen[0][0, 0], expected)


# --- drawing


def test_generators_make_draws_repeatable() -> None:
    model = build((3, 4, 4), 256)
    draws = [model.sample(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("layers", [(1,), (2, 2)])
def test_temperature_scales_the_priors_deviations(layers: tuple[int, ...]) -> None:
    model = build((1, 4, 4), layers=layers)

    def sampled(temperature: float) -> list[Tensor]:
        """The latents of a sample: what enters the merges."""
        found: list[Tensor] = []
        merges = [*(layer.merge for layer in model.generative), model.merge]
        hooks = [m.register_forward_pre_hook(lambda module, inputs: found.append(inputs[1])) for m in merges]
        model.sample(500, temperature, torch.Generator().manual_seed(6))
        for hook in hooks:
            hook.remove()
        return found

    warm, cool, cold = sampled(1.0), sampled(0.5), sampled(0.0)
    assert [z.shape for z in warm] == [(500, 2, *z.shape[2:]) for z in warm]
    torch.testing.assert_close(cool[0], 0.5 * warm[0])  # the top prior is a standard normal, the noise the same
    n = warm[0].numel()
    assert abs(warm[0].std() - 1) < 4 / (2 * n) ** 0.5  # four standard errors
    assert not cold[0].any()
    for z in cold:  # every image the same, up to the order of sums
        torch.testing.assert_close(z, z[:1].expand_as(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n", "temperature", "message"),
    [
        (0, 1.0, "n: got 0, expected at least 1 image"),
        (1, -0.5, "temperature: got -0.5, expected a finite number >= 0"),
        (1, float("nan"), "temperature: got nan, expected a finite number >= 0"),
        (1, float("inf"), "temperature: got inf, expected a finite number >= 0"),
    ],
)
def test_impossible_draws_are_refused(n: int, temperature: float, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        build().sample(n, temperature)
    assert str(error.value) == message


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, "layers: got [], expected at least one layer at each scale"),
        ({"layers": (2, 0)}, "layers: got [2, 0], expected at least one layer at each scale"),
        ({"latent_channels": 0}, "latent_channels: got 0, expected at least 1"),
        ({"width": -1}, "width: got -1, expected at least 1"),
        ({"nodes": 0}, "nodes: got 0, expected at least 1"),
        ({"preprocess": ()}, "preprocess: got [], expected one or more of 0 and -2"),
        ({"preprocess": (2,)}, "preprocess: got [2], expected one or more of 0 and -2"),
        ({"postprocess": (0,)}, "postprocess: got [0], expected 0s and 1 times 2"),
        ({"pad": -1}, "pad: got -1, expected at least 0"),
        (
            {"inference_attention": DepthWiseAttention(3)},
            "inference_attention.key_channels: got 3, expected a multiple of 2 "
            "(the width doubles 1 times on the way to the latents)",
        ),
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        AttentiveVAEConfig(**{**SMALL, **options})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("shape", "levels", "options", "message"),
    [
        ((1, 4, 4), 17, {"pad": 1, "layers": (1, 1)}, "pad: got 1, which makes 6x6; expected multiples of 4"),
        ((1, 4, 0), 17, {}, "shape: got (1, 4, 0), expected three positive numbers (channels, height, width)"),
        ((1, 4, 4), 1, {}, "levels: got 1, expected 2 to 65536"),
        ((1, 4, 4), 65537, {}, "levels: got 65537, expected 2 to 65536"),
        (
            (1, 4, 4),
            17,
            {"likelihood": LikelihoodConfig("bernoulli")},
            "likelihood.family: got bernoulli for 17 levels, expected 2 (binarize the data?)",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    shape: tuple[int, int, int], levels: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        build(shape, levels, **options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            TypeError,
            "got torch.float32, expected an integer tensor with values 0 to 16",
        ),
        ([0], TypeError, "got list, expected an integer tensor with values 0 to 16"),
        (torch.zeros(2, 3, 4, 4).long(), ValueError, "got shape (2, 3, 4, 4), expected [B, 1, 4, 4]"),
        (torch.zeros(1, 4, 4).long(), ValueError, "got shape (1, 4, 4), expected [B, 1, 4, 4]"),
        (torch.full((2, 1, 4, 4), 17), ValueError, "got values 17 to 17, expected 0 to 16"),
        (torch.full((2, 1, 4, 4), -1), ValueError, "got values -1 to -1, expected 0 to 16"),
    ],
)
def test_foreign_images_are_refused(x: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        build().evidence(x)
    assert str(error.value) == f"images: {message}"


def test_a_wrong_number_of_latents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^latents: got 1 tensors, expected one for each of 2 layers$"):
        build().decode([torch.zeros(1, 2, 2, 2)])
    with pytest.raises(ValueError, match=r"^latents: got \[1, 2, 4, 2\] for layer 1, expected \[B, 2, 2, 2\]$"):
        build().decode([torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 4, 2)])
