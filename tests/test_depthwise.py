"""The depth-wise convolution with its own gradient, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from davi.layers import depthwise
from davi.layers.depthwise import depthwise_conv2d

SHAPES = [(2, 5, 7, 6, 5), (1, 3, 4, 4, 3), (3, 4, 1, 2, 5), (2, 6, 3, 3, 1)]  # B, C, H, W, k


def both(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[list[Tensor], list[Tensor]]:
    """Output, gradient of the images and of the kernels: ours, and torch's."""
    batch, channels, height, width, size = shape
    x = torch.randn(batch, channels, height, width, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    kernels = torch.randn(channels, 1, size, size, dtype=torch.float64, requires_grad=True)
    found = []
    for y in (depthwise_conv2d(x, kernels), F.conv2d(x, kernels, padding=size // 2, groups=channels)):
        gradient = torch.linspace(-1.0, 1.0, y.numel(), dtype=torch.float64).view_as(y)
        found.append([y, *torch.autograd.grad(y, (x, kernels), gradient)])
    return found[0], found[1]


@pytest.mark.parametrize("at_once", [1, 2, 1000])  # channels in a call
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], layout: torch.memory_format, at_once: int
) -> None:
    monkeypatch.setattr(depthwise, "_AT_ONCE", at_once * shape[0] * shape[2] * shape[3])
    ours, theirs = both(shape, layout)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)  # float64 sums in another order


def test_the_kernels_gradient_does_not_come_from_the_slow_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    own = depthwise._of_kernels
    monkeypatch.setattr(depthwise, "_of_kernels", lambda x, g, size: seen.append(tuple(x.shape)) or own(x, g, size))
    both(SHAPES[0], torch.contiguous_format)
    assert seen == [(2, 5, 7, 6)]
    monkeypatch.setattr(depthwise, "_AT_ONCE", 2 * 7 * 6 - 1)  # not even one channel: nothing would be gained
    both(SHAPES[0], torch.contiguous_format)
    assert len(seen) == 1


def test_no_images() -> None:
    x, kernels = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.randn(3, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, kernels).sum().backward()
    assert kernels.grad is not None
    assert not kernels.grad.any()


def test_only_what_is_asked_for_is_computed() -> None:
    x, kernels = torch.randn(2, 3, 4, 4), torch.randn(3, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, kernels).sum().backward()
    assert x.grad is None
    assert kernels.grad is not None
    fixed = torch.randn(3, 1, 3, 3)
    x.requires_grad_()
    depthwise_conv2d(x, fixed).sum().backward()
    assert x.grad is not None
    assert fixed.grad is None


def test_in_half_precision_it_is_torchs_own() -> None:
    x, kernels = torch.randn(2, 3, 4, 4), torch.randn(3, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, kernels)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert kernels.grad is not None
    assert kernels.grad.dtype == torch.float32
