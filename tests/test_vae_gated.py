"""The gated network of the Sylvester flows paper: its parameters as published, with and without flows, its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from davi import recipes
from davi.config import parse
from davi.layers.gated import GatedConv2d, GatedDoubling, GatedSpread
from davi.models import VAE
from davi.models.vae import GatedNormal, VAEConfig
from davi.training.schedule import Schedule

ORTHOGONAL, HOUSEHOLDER, TRIANGULAR = (f"sylvester_{name}" for name in ("orthogonal", "householder", "triangular"))


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [
        (None, 3_067_105),
        ({"name": "planar", "steps": 4}, 3_199_717),
        ({"name": "planar", "steps": 8}, 3_332_329),
        ({"name": "planar", "steps": 16}, 3_597_553),
        ({"name": ORTHOGONAL, "steps": 4, "vectors": 8}, 3_683_905),
        ({"name": ORTHOGONAL, "steps": 16, "vectors": 8}, 5_534_305),
        ({"name": ORTHOGONAL, "steps": 16, "vectors": 16}, 8_527_841),
        ({"name": ORTHOGONAL, "steps": 16, "vectors": 32}, 16_093_921),
        ({"name": HOUSEHOLDER, "steps": 4, "reflections": 8}, 8_001_505),
        ({"name": HOUSEHOLDER, "steps": 8, "reflections": 8}, 12_935_905),
        ({"name": HOUSEHOLDER, "steps": 16, "reflections": 8}, 22_804_705),
        ({"name": TRIANGULAR, "steps": 4}, 7_475_169),
        ({"name": TRIANGULAR, "steps": 8}, 11_883_233),
        ({"name": TRIANGULAR, "steps": 16}, 20_699_361),
        ({"name": "iaf", "steps": 4, "width": 320, "form": "sylvester"}, 3_807_777),
        ({"name": "iaf", "steps": 8, "width": 320, "form": "sylvester"}, 4_466_209),
        ({"name": "iaf", "steps": 16, "width": 320, "form": "sylvester"}, 5_783_073),
        ({"name": "iaf", "steps": 16, "width": 1280, "form": "sylvester"}, 33_585_633),
    ],
)
def test_parameters_are_those_of_the_authors_program(flow: dict[str, Any] | None, parameters: int) -> None:
    config = parse(VAEConfig, {"network": "gated", "latents": [64], "hidden": [32], "posterior_flow": flow}, "test")
    with torch.device("meta"):
        model = VAE((1, 28, 28), 2, config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def convolutions(module: nn.Module) -> list[tuple[int, ...]]:
    """Inputs, outputs, size and stride of every kernel."""
    found = [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d))]
    return [(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in found]


def test_the_papers_networks() -> None:
    """Every gated convolution has two outputs for each that the paper counts."""
    with torch.device("meta"):
        model = VAE((1, 28, 28), 2, VAEConfig("gated", (64,), (32,)))
    (inference,) = model.inference
    encoder = [(1, 64, 5, 1), (32, 64, 5, 2), (32, 128, 5, 1), (64, 128, 5, 2), (64, 128, 5, 1), (64, 512, 7, 1)]
    assert convolutions(inference) == [*encoder, (256, 64, 1, 1), (256, 64, 1, 1)]
    doubled = [(64, 64, 5, 2), (32, 64, 5, 1), (32, 64, 5, 2), (32, 64, 5, 1)]
    assert convolutions(model.output) == [(64, 128, 7, 1), (64, 128, 5, 1), *doubled, (32, 1, 1, 1)]


@pytest.mark.parametrize("layer", [GatedConv2d(3, 4), GatedConv2d(3, 4, stride=2), GatedDoubling(3, 4)])
def test_value_times_gate(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 6, 8)
    conv = layer.conv
    assert isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d))
    value, gate = conv(x)[:, :4], conv(x)[:, 4:]
    torch.testing.assert_close(layer(x), value * gate.sigmoid(), rtol=1e-6, atol=1e-6)
    height, width = layer(x).shape[2:]
    factor = 2 if isinstance(layer, GatedDoubling) else 1 / conv.stride[0]
    assert (height, width) == (6 * factor, 8 * factor)


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        (lambda: GatedConv2d(32, 64), (24, 24)),
        (lambda: GatedDoubling(32, 64), (12, 12)),
        (lambda: GatedSpread(32, 64, (3, 5)), (1, 1)),
    ],
)
def test_layers_begin_with_the_mean_square_of_what_they_are_given(layer: Any, grid: tuple[int, int]) -> None:
    found = layer()(torch.randn(64, 32, *grid))
    inner = found[..., 2:-2, 2:-2] if grid != (1, 1) else found  # at the edges there are zeros
    assert inner.square().mean().item() == pytest.approx(1.0, rel=0.15)  # 64 random kernels: 10% within two deviations


def test_variances_are_a_softplus() -> None:
    model = VAE((1, 8, 8), 2, VAEConfig("gated", (3,), (2,)))
    (inference,) = model.inference
    assert isinstance(inference, GatedNormal)
    normal, features = inference(torch.rand(4, 1, 8, 8))
    assert tuple(features.shape) == (4, 16, 1, 1)
    torch.testing.assert_close(normal.scale.square(), F.softplus(inference.raw_variance(features)))
    torch.testing.assert_close(normal.mean, inference.mean(features))


def test_the_papers_settings() -> None:
    """The weight of the divergences is 1/100 in the first pass, 1 from the hundredth."""
    names = [name for name in recipes.names() if name.startswith("sylvester_mnist_") and not name.endswith("_small")]
    assert len(names) == 6
    for name in names:
        config = recipes.load(name).training
        assert config is not None
        weights = [config.objective.kl_weight(500 * epoch, epoch, 0.0) for epoch in (0, 1, 98, 99, 100)]
        assert weights == pytest.approx([0.01, 0.02, 0.99, 1.0, 1.0], rel=1e-12)
        assert [Schedule(config, 500).learning_rate(step, 0.0) for step in (0, 999_999)] == [5e-4, 5e-4]
        assert (config.optimizer.name, config.optimizer.eps, config.batch_size) == ("adamax", 1e-7, 100)
