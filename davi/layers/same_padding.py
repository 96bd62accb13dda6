r"""Convolutions and pooling with TensorFlow's ``SAME`` padding, for kernels and strides of any size.

A window of k values at stride s gives :math:`\lceil n / s \rceil` outputs of n inputs. The zeros that it needs,

.. math:: p = \max\bigl((\lceil n / s \rceil - 1)\, s + k - n,\; 0\bigr),

are :math:`\lfloor p / 2 \rfloor` before the inputs and the rest behind them: a 3x3 kernel of stride 2 has none before
and one behind where n is even.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Put zeros around maps, ``[B, C, H, W]`` (module docstring)."""
    sides: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        zeros = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [zeros // 2, zeros - zeros // 2]
    return F.pad(x, sides) if any(sides) else x


@final
class SameConv2d(nn.Conv2d):
    r"""A convolution without a bias, with such padding.

    The initial weights are Normal with variance :math:`2 / (k^2\, \text{outputs})`, drawn anew beyond two standard
    deviations.

    Arguments:
        inputs, outputs: channels.
        kernel: k.
        stride: s.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            std = (2.0 / (self.kernel_size[0] ** 2 * self.out_channels)) ** 0.5
            nn.init.trunc_normal_(self.weight, std=std, a=-2.0 * std, b=2.0 * std)

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(padded, self.weight, None, self.stride)
