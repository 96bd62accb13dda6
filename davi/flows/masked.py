r"""Convolutions in which no output sees what comes after it in an order of the variables.

The order is the raster order of the pixels, row by row, and inside a pixel that of whole numbers, the *degrees*, which
every channel has. An output with degree d sees all channels of the pixels before its own; of its own pixel it sees the
channels whose degree is below d (``strict``) or at most d.

A network of such convolutions gives variable c of a pixel a function of the variables before it: the variables have the
degrees 1 .. C, hidden channels have degrees from 0 to C - 1 and see what is at most theirs, and output c sees strictly
smaller ones. Hidden channels of degree 0 see nothing of their own pixel. On maps of one pixel, with 1x1 kernels, this
is the masked autoencoder of dense layers.

References:
    MADE: Masked Autoencoder for Distribution Estimation, M. Germain, K. Gregor, I. Murray, H. Larochelle, ICML 2015,
    https://arxiv.org/abs/1502.03509

    Pixel Recurrent Neural Networks, A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, ICML 2016,
    https://arxiv.org/abs/1601.06759
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def variable_degrees(channels: int) -> list[int]:
    """Degrees of the variables of a pixel: 1 .. ``channels``."""
    return list(range(1, channels + 1))


def hidden_degrees(width: int, channels: int) -> list[int]:
    """Degrees of ``width`` hidden channels: 0 .. ``channels`` - 1 in equal shares, as nearly as possible."""
    return [channel * channels // width for channel in range(width)]


@final
class MaskedConv2d(nn.Module):
    """A convolution with 'same' padding and masked kernels (module docstring).

    Arguments:
        inputs: degrees of the input channels.
        outputs: degrees of the output channels.
        kernel_size: odd.
        strict: an output sees smaller degrees of its own pixel only, not its own degree.
        reverse: the last pixel comes first. Channels come in the order of their degrees all the same.

    Raises:
        ValueError: if the kernel size is even or not positive.

    Example:
        >>> conv = MaskedConv2d([1, 2], [1, 2], 3, strict=True)
        >>> conv.mask[1, 0].int().tolist()  # what the second output sees of the first input
        [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    """

    mask: Tensor

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        kernel_size: int = 3,
        *,
        strict: bool,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
        self.kernel_size = kernel_size
        self.conv = nn.Conv2d(len(inputs), len(outputs), kernel_size)
        mask = _mask(inputs, outputs, kernel_size, strict)
        self.register_buffer("mask", mask.flip(2, 3) if reverse else mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * self.mask.to(self.conv.weight.dtype)
        return F.conv2d(x, weight, self.conv.bias, padding=self.kernel_size // 2)


def _mask(inputs: Sequence[int], outputs: Sequence[int], kernel_size: int, strict: bool) -> Tensor:
    """Which weights may be other than zero, booleans ``[out, in, k, k]``."""
    middle = kernel_size // 2
    before = torch.zeros(kernel_size, kernel_size, dtype=torch.bool)
    before[:middle] = True
    before[middle, :middle] = True
    mask = before.expand(len(outputs), len(inputs), -1, -1).clone()
    own, seen = torch.tensor(outputs)[:, None], torch.tensor(inputs)[None]
    mask[:, :, middle, middle] = own > seen if strict else own >= seen
    return mask
