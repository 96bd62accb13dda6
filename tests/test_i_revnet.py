"""i-RevNet: what is published about its size, exact inverses, and gradients that equal plain differentiation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from davi.errors import OptionError
from davi.models import IRevNet
from davi.models.i_revnet import IRevNetConfig, Kernels

INJECTIVE = IRevNetConfig(blocks=(3, 1, 3), strides=(1, 2, 1), channels=(4, 16, 20), dropout=0.0)
"""Appends channels twice: to 3 of 8, and to 32 of 40."""
BIJECTIVE = IRevNetConfig(blocks=(1, 3), strides=(1, 2), channels=(6, 24), squeeze=2, dropout=0.0)
NARROW = IRevNetConfig(blocks=(3, 5), strides=(1, 2), channels=(4, 16), kernels="1-3-1", dropout=0.0)
STRIDED = IRevNetConfig(blocks=(2,), strides=(2,), channels=(24,), squeeze=2, dropout=0.0)
ALL = pytest.mark.parametrize(
    "config", [INJECTIVE, BIJECTIVE, NARROW, STRIDED], ids=["injective", "bijective", "1-3-1", "strided"]
)
SHAPE = (3, 8, 12)


def network(config: IRevNetConfig, shape: tuple[int, int, int] = SHAPE) -> IRevNet:
    """With running statistics, gains and offsets that are not those of the beginning."""
    model = IRevNet(shape, 256, config, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features)
            module.running_var = 0.4 + torch.rand(module.num_features)
            nn.init.normal_(module.weight, 1.0, 0.25)
            nn.init.normal_(module.bias, 0.0, 0.25)
    return model.eval()


def images(n: int = 4, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randint(256, (n, *shape), dtype=torch.uint8)


@pytest.mark.parametrize(("classes", "count"), [(10, 6_274_826), (100, 6_320_996)], ids=["cifar10", "cifar100"])
def test_the_network_of_cifar_has_the_published_number_of_parameters(classes: int, count: int) -> None:
    with torch.device("meta"):
        model = IRevNet((3, 32, 32), 256, IRevNetConfig(), classes)
    assert sum(x.numel() for x in model.parameters()) == count
    assert not model.bijective


@pytest.mark.parametrize(("kernels", "count"), [("3-3-3", 125_120_356), ("1-3-1", 29_201_092)])
def test_the_bijective_network_of_imagenet_with_either_kernels(kernels: Kernels, count: int) -> None:
    config = IRevNetConfig((6, 16, 72, 6), (2, 2, 2, 2), (24, 96, 384, 1536), squeeze=2, dropout=0.0, kernels="3-3-3")
    with torch.device("meta"):
        model = IRevNet((3, 224, 224), 256, dataclasses.replace(config, kernels=kernels), 1000)
    assert sum(x.numel() for x in model.parameters()) == count
    assert model.bijective
    assert model.shape_at(100) == (3072, 7, 7)


@ALL
def test_the_inverse_of_every_depth_is_the_image(config: IRevNetConfig) -> None:
    model, x = network(config).double(), images()
    standardized = torch.randn(4, *SHAPE, dtype=torch.float64)
    depths = model.depths_of(standardized)
    assert len(depths) == sum(config.blocks) + 1
    assert [tuple(h.shape[1:]) for h in depths] == [model.shape_at(depth) for depth in range(len(depths))]
    for depth, h in enumerate(depths):
        assert (model.invert_standardized(h, depth) - standardized).abs().max() < 1e-10
    assert (model.represent(standardized) - depths[-1]).abs().max() < 1e-12
    assert (model.logits(x) - model.classify(model.at_depths(x)[-1])).abs().max() < 1e-12


@ALL
def test_integer_images_come_back_exactly_after_rounding(config: IRevNetConfig) -> None:
    model, x = network(config), images(16)
    model.initialize(x)
    with torch.no_grad():
        for depth, h in enumerate(model.at_depths(x)):
            assert torch.equal(model.invert(h, depth).round().to(torch.uint8), x)
        assert torch.equal(model.invert(model.represent(model.standardize(x))).round().to(torch.uint8), x)


def test_an_arbitrary_point_comes_back_only_where_the_network_is_bijective() -> None:
    for config in (INJECTIVE, BIJECTIVE):
        model = network(config).double()
        point = torch.randn(2, *model.shape_at(sum(config.blocks)), dtype=torch.float64)
        back = model.represent(model.invert_standardized(point))
        assert ((back - point).abs().max() < 1e-9) == model.bijective == (config is BIJECTIVE)


def test_norms_that_have_seen_zeros_alone_do_not_spoil_the_inverse() -> None:
    """After training, running variances in front of the first block are nearly zero."""
    model, x = network(dataclasses.replace(INJECTIVE, bottleneck=1)), images(16)
    model.initialize(x)
    for module in model.rows[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.zero_()
            module.running_var.zero_()
            nn.init.ones_(module.bias)  # so that rectifiers let through what there is
    with torch.no_grad():
        h = model.represent(model.standardize(x))
        standardized = model.standardize(x)
        errors = [
            float((model.invert_standardized(h, restore_zeros=restored) - standardized).abs().max())
            for restored in (True, False)
        ]
        assert torch.equal(model.invert(h).round().to(torch.uint8), x)
    assert errors[0] < 1e-4
    assert errors[1] > 10.0 * errors[0]


def gradients(model: IRevNet, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.train().zero_grad()
    nn.functional.cross_entropy(model.classify(model.represent(x)), y).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert x.grad is not None
    return {"input": x.grad, **{name: g for name, g in found.items() if g is not None}}


@ALL
def test_gradients_and_statistics_are_those_of_plain_differentiation(config: IRevNetConfig) -> None:
    results = []
    for recompute in (True, False):
        torch.manual_seed(0)
        model = network(dataclasses.replace(config, recompute=recompute, dropout=0.2)).double()
        x = torch.randn(4, *SHAPE, dtype=torch.float64, requires_grad=True)
        found = gradients(model, x, torch.tensor([0, 1, 2, 3]))
        assert set(found) == {"input", *dict(model.named_parameters())}
        results.append(found | dict(model.named_buffers()))
    for name, x in results[1].items():
        assert torch.allclose(results[0][name], x, rtol=1e-10, atol=1e-10), name


def test_the_first_convolution_of_an_injective_network_sees_zeros_alone() -> None:
    torch.manual_seed(0)
    config = IRevNetConfig((2, 1), (1, 2), (4, 16), dropout=0.1)
    model = network(config)
    found = gradients(model, torch.randn(4, *SHAPE, requires_grad=True), torch.tensor([0, 1, 2, 3]))
    silent = {name for name, x in found.items() if not x.any()}
    first = "rows.0.blocks.steps.0.function"
    # Zeros have no variance: what a norm makes of them is its offset, and the first offset is the same for all pixels.
    assert f"{first}.0.weight" in silent
    assert all(name.startswith(first) for name in silent)


def test_the_layers_of_a_block_and_the_last_norm_are_those_of_the_program() -> None:
    model = IRevNet(SHAPE, 256, dataclasses.replace(INJECTIVE, dropout=0.1), 5)
    kinds = [[type(layer).__name__ for layer in step.function.children()] for _, step, _ in model._steps()]
    inner = ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Dropout", "BatchNorm2d", "ReLU", "Conv2d"]
    assert kinds == [inner] + [["BatchNorm2d", "ReLU", *inner]] * 6
    assert model.norm.momentum == 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": (4, 16)}, "channels: got 2 numbers, expected 3: one for each stage"),
        ({"blocks": ()}, "blocks: got no stage"),
        ({"strides": (1, 0, 1)}, r"strides: got \[1, 0, 1\], expected numbers from 1"),
        ({"bottleneck": 5}, "bottleneck: got 5, expected at most 4"),
        ({"squeeze": 0}, "squeeze: got 0, expected at least 1"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected 0 to below 1"),
        ({"channels": (4, 17, 20)}, "channels: got 17 in stage 2, expected 16"),
        ({"channels": (4, 16, 15)}, "channels: got 15 in stage 3, expected at least 16"),
        ({"strides": (2, 1, 1)}, "strides: got 2 in stage 1, expected 1: the 3 channels before it have no halves"),
        ({"strides": (1, 2, 8)}, "strides: got 16 in all, with squeeze, expected numbers that divide images of 8 x 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, OptionError), match=said):
        IRevNet(SHAPE, 256, dataclasses.replace(INJECTIVE, **changes), 5)


def test_a_point_of_another_depth_is_refused() -> None:
    model = network(INJECTIVE)
    with pytest.raises(ValueError, match="depth: got 8, expected 0 to 7"):
        model.invert(torch.zeros(1, 3, 8, 12), 8)
    with pytest.raises(ValueError, match=r"h: got shape \(1, 3, 8, 12\), expected \[B, 40, 4, 6\] at depth 7"):
        model.invert(torch.zeros(1, 3, 8, 12))


def test_depths_of_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: got shape \(4, 3, 9, 8\), expected \[B, "):
        network(INJECTIVE).at_depths(images(shape=(3, 9, 8)))
