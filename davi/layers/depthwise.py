r"""Depth-wise convolution, whose gradient is slow on the CPU, with a faster one.

Every channel sees its own k x k neighborhoods and nothing else. The gradient of its kernel is the correlation of its
input with the gradient of its output,

.. math:: \partial_{w_c}(i, j) = \sum_{b, y, x} X_{bc}(y + i, x + j)\, G_{bc}(y, x)

which is a depth-wise convolution again, with the B C maps as channels and the maps of G as kernels. The CPU library has
a fast kernel for that one, but not for the gradient as it is called otherwise: the ratio measured is 2 to 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_AT_ONCE = 250_000
"""Values of input that are correlated in one call; many more no longer fit in a core's cache, and the gain is gone."""


def depthwise_conv2d(x: Tensor, kernels: Tensor) -> Tensor:
    """``F.conv2d`` with stride 1, 'same' padding and as many groups as channels.

    Arguments:
        x: ``[B, C, H, W]``.
        kernels: ``[C, 1, k, k]``, k odd.
    """
    if (
        x.device.type == "cpu"
        and 0 < x.shape[0] * x.shape[2] * x.shape[3] <= _AT_ONCE
        and kernels.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        result: Tensor = _Depthwise.apply(x, kernels)  # type: ignore[no-untyped-call]  # torch ships no annotation
        return result
    return _convolve(x, kernels)


def _convolve(x: Tensor, kernels: Tensor) -> Tensor:
    return F.conv2d(x, kernels, padding=kernels.shape[2] // 2, groups=kernels.shape[0])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernels)
        return _convolve(x, kernels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernels = ctx.saved_tensors
        of_x = _convolve(gradient, kernels.flip(2, 3)) if ctx.needs_input_grad[0] else None
        return of_x, _of_kernels(x, gradient, kernels.shape[2]) if ctx.needs_input_grad[1] else None


def _of_kernels(x: Tensor, gradient: Tensor, size: int) -> Tensor:
    """The gradient of the kernels, ``[C, 1, k, k]``."""
    batch, _channels, height, width = x.shape
    share = _AT_ONCE // (batch * height * width)
    found = []
    for some, out in zip(x.transpose(0, 1).split(share), gradient.transpose(0, 1).split(share), strict=True):
        maps = some.reshape(1, -1, height, width)  # [1, C' B, H, W]
        correlated = F.conv2d(maps, out.reshape(-1, 1, height, width), padding=size // 2, groups=maps.shape[1])
        found.append(correlated.view(-1, batch, size, size).sum(1, keepdim=True))
    return torch.cat(found)  # [C, 1, k, k]
