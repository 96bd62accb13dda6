"""Residual networks: published sizes, and what they compute, written down anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from davi.model import Network
from davi.model.meta import at_most, on_meta
from davi.models.resnet import ResidualUnit, ResNet, ResNetConfig
from davi.models.revnet import RevNet, RevNetConfig

Weights = dict[str, Tensor]


def size(config: ResNetConfig, classes: int) -> int:
    with on_meta():
        return sum(parameter.numel() for parameter in ResNet((3, 32, 32), 256, config, classes).parameters())


@pytest.mark.parametrize(
    ("units", "bottleneck", "ten", "hundred"),
    [(5, False, 464_154, 470_004), (18, False, 1_727_962, 1_733_812), (18, True, 1_703_258, 1_726_388)],
    ids=["ResNet-32", "ResNet-110", "ResNet-164"],
)
def test_published_sizes(units: int, bottleneck: bool, ten: int, hundred: int) -> None:
    config = ResNetConfig(units=(units,) * 3, bottleneck=bottleneck)
    assert (size(config, 10), size(config, 100)) == (ten, hundred)


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    mean, var, gain, bias = (w[f"{name}.{own}"][:, None, None] for own in NORM)
    return ((x - mean) / (var + 1e-3).sqrt() * gain + bias).relu()


NORM = ("running_mean", "running_var", "weight", "bias")


def convolution(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """For sizes that the stride divides: a 3x3 kernel of stride 2 begins at the first pixel."""
    edge = int(kernel.shape[-1] == 3)
    return F.conv2d(F.pad(x, ((edge if stride == 1 else 0), edge) * 2), kernel, stride=stride)


def by_hand(w: Weights, x: Tensor, bottleneck: bool) -> tuple[list[Tensor], Tensor]:
    """Two stages of two units: what is there after the stem and after each unit, and the logits."""
    h = norm(convolution(x / 4.0, w["stem.conv.weight"]), w, "stem.norm")
    depths = [h]
    for unit in range(4):
        place, stride, y = f"units.{unit}.branch", 2 if unit == 2 else 1, h
        for number in range(3 if bottleneck else 2):
            first = 0 if unit == 0 else 2
            if unit or number:
                y = norm(y, w, f"{place}.{first + 3 * number - 2}")
            y = convolution(y, w[f"{place}.{first + 3 * number}.weight"], 1 if number else stride)
        if f"units.{unit}.shortcut.weight" in w:
            h = convolution(h, w[f"units.{unit}.shortcut.weight"], stride)
        elif stride == 2:
            h = h.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
            zeros = torch.zeros_like(h[:, :1])
            h = torch.cat((zeros, h, zeros), 1)
        h = h + y
        depths.append(h)
    logits = norm(h, w, "head.norm").mean((2, 3)) @ w["head.linear.weight"].T + w["head.linear.bias"]
    return depths, logits


@pytest.mark.parametrize("bottleneck", [False, True])
def test_what_it_computes(bottleneck: bool) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(units=(2, 2), widths=(2, 2, 4), bottleneck=bottleneck, mean=(0.0,), std=(1.0,))
    model = ResNet((1, 8, 4), 5, config, 3).double().eval()
    for weight in (*model.parameters(), *(b for b in model.buffers() if b.ndim)):
        weight.data += 0.3 * torch.rand_like(weight)
    model.standardize.mean.zero_()
    model.standardize.std.fill_(1.0)
    x = torch.randint(5, (3, 1, 8, 4))
    depths, logits = by_hand(model.state_dict(), x.double(), bottleneck)
    with torch.no_grad():
        torch.testing.assert_close(model.at_depths(x), depths, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model(x), logits, rtol=1e-12, atol=1e-12)
        assert torch.equal(model.head(model.at_depths(x)[-1]), model(x))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 5, 3), (2, 9, 7)])
def test_images_of_odd_sizes(shape: tuple[int, int, int]) -> None:
    for bottleneck in (False, True):
        model = ResNet(shape, 4, ResNetConfig(units=(1, 1, 1), widths=(2, 2, 4, 6), bottleneck=bottleneck), 3).eval()
        assert model(torch.randint(4, (2, *shape))).shape == (2, 3)


def test_images_are_standardized_by_the_training_images_unless_told_otherwise() -> None:
    images = torch.randint(9, (20, 2, 4, 4))
    model = ResNet((2, 4, 4), 9, ResNetConfig(units=(1,), widths=(2, 2)), 3)
    model.initialize(images)
    values = model.standardize(images)
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(2), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(values.std((0, 2, 3), correction=0), torch.ones(2), rtol=1e-6, atol=0.0)
    assert model.images_wanted > 0
    told = ResNet((2, 4, 4), 9, ResNetConfig(units=(1,), widths=(2, 2), mean=(0.5, 0.5), std=(0.25, 0.5)), 3)
    told.initialize(images)
    assert told.images_wanted == 0
    torch.testing.assert_close(told.standardize(torch.full((1, 2, 1, 1), 8)).flatten(), torch.tensor([2.0, 1.0]))


def test_recomputed_units_give_the_same_gradients() -> None:
    x, gradients = torch.randint(4, (3, 1, 4, 4)), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = ResNet((1, 4, 4), 4, ResNetConfig(units=(2, 1), widths=(2, 2, 4)), 3).double().train()
        for unit in model.units:
            assert isinstance(unit, ResidualUnit)
            unit.recompute = recompute
        model(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()] + list(model.buffers()))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("model", "config"), [(ResNet, ResNetConfig), (RevNet, RevNetConfig)])
def test_absurd_numbers_of_units_are_noticed_at_once(model: Callable[..., Network], config: Callable[..., Any]) -> None:
    """A file may say anything of the units; to list a thousand million of them would take all memory."""
    options = config(units=(2**20,) * 1000, widths=(4,) * 1001)
    with pytest.raises(MemoryError, match="enough"), at_most(30, MemoryError("enough")), on_meta():
        model((1, 8, 8), 4, options, 2)
