"""Shifted convolutions while an image is drawn: each new row, or each new pixel, once.

What a layer will look at again is its input in the rows that its kernel spans, no more; kernels are normalized once.
A down-shifted layer works on whole rows, ``[B, C, 1, W]``, a down-right-shifted one on pixels, ``[B, C]``
(:class:`Steps`). So the functions of a gated block, which act on channels, are the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from davi.layers.shifted import GatedResnet, ShiftedConv2d, ShiftedDeconv2d, gate


class Steps(ABC):
    """A shifted convolution whose input becomes known in the order in which one reads.

    Arguments:
        conv: the layer.
        n: images.
        width: columns of the input.
    """

    def __init__(self, conv: ShiftedConv2d, n: int, width: int) -> None:
        rows = conv.top + 1
        self.left, self.width, self.stride = conv.left, width, conv.stride
        self.kernels, self.bias = conv.kernels(), conv.b
        columns = conv.left + width + conv.right
        self.values = conv.v.new_zeros(n, rows, columns, conv.v.shape[1])  # the last of its rows is the current one
        self.row = 0

    @abstractmethod
    def put(self, row: int, column: int, x: Tensor) -> None:
        """The input at a position."""

    @abstractmethod
    def read(self, column: int) -> Tensor:
        """The output there."""

    def __call__(self, row: int, column: int, x: Tensor) -> Tensor:
        self.put(row, column, x)
        return self.read(column)

    def _go_to(self, row: int) -> None:
        if row != self.row:
            self.row = row
            self.values = torch.cat([self.values[:, 1:], torch.zeros_like(self.values[:, :1])], 1)


@final
class RowSteps(Steps):
    """Row by row: inputs ``[B, in, 1, W]``, outputs ``[B, out, 1, W / stride]``. Columns play no part."""

    def put(self, row: int, column: int, x: Tensor) -> None:
        self._go_to(row)
        self.values[:, -1, self.left : self.left + self.width] = x[:, :, 0].transpose(1, 2)

    def read(self, column: int) -> Tensor:
        return F.conv2d(self.values.permute(0, 3, 1, 2), self.kernels, self.bias, self.stride)


@final
class PixelSteps(Steps):
    """Pixel by pixel: inputs ``[B, in]``, outputs ``[B, out]``."""

    def __init__(self, conv: ShiftedConv2d, n: int, width: int) -> None:
        super().__init__(conv, n, width)
        self.columns = self.kernels.shape[3]
        self.matrix = self.kernels.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # [k * k * in, out]

    def put(self, row: int, column: int, x: Tensor) -> None:
        self._go_to(row)
        self.values[:, -1, self.left + column] = x

    def read(self, column: int) -> Tensor:
        return torch.addmm(self.bias, self.values[:, :, column : column + self.columns].flatten(1), self.matrix)


def steps(conv: ShiftedConv2d, n: int, width: int, by_row: bool) -> Steps:
    """The layer row by row, or pixel by pixel."""
    return RowSteps(conv, n, width) if by_row else PixelSteps(conv, n, width)


@final
class DeconvSteps:
    """A transposed convolution: each row, or pixel, of its input makes two rows, or two by two pixels.

    Arguments:
        conv: the layer; the shift says whether it works by rows.
        n: images.
        width: columns of the output.
    """

    def __init__(self, conv: ShiftedDeconv2d, n: int, width: int) -> None:
        self.conv, self.by_row = conv, conv.shift == "down"
        self.kernels = conv.kernels()
        self.values = conv.v.new_zeros(n, conv.v.shape[1], 2, width)

    def put(self, column: int, x: Tensor) -> None:
        """The input ``[B, in, 1, W / 2]`` of a row, or ``[B, in]`` at a column of the input."""
        if self.by_row:
            self.values = self._expand(x)
        else:
            self.values[..., 2 * column : 2 * column + 2] = self._expand(x[:, :, None, None])

    def _expand(self, x: Tensor) -> Tensor:
        return self.conv.crop(self.conv.convolve(x, self.kernels, self.conv.b))

    def read(self, row: int, column: int) -> Tensor:
        """The output at a row, or at a pixel, whose input was the last one or lies above."""
        at = row % 2
        return self.values[:, :, at : at + 1] if self.by_row else self.values[:, :, at, column]


@final
class GatedSteps:
    """A gated block, row by row or pixel by pixel, as its shift says; without dropout.

    Arguments:
        block: the block.
        n: images.
        width: columns of the feature map.
        features: of the pixels, ``[n, features, H, W]``.
        y: classes, ``[n]``.
    """

    def __init__(self, block: GatedResnet, n: int, width: int, features: Tensor | None, y: Tensor | None) -> None:
        self.by_row = block.conv1.shift == "down"
        self.nonlinearity = block.nonlinearity
        self.conv1 = steps(block.conv1, n, width, self.by_row)
        self.shortcut = None if block.shortcut is None else steps(block.shortcut, n, width, self.by_row)
        self.conv2 = steps(block.conv2, n, width, self.by_row)
        self.known = block.condition(features, y)

    def __call__(self, row: int, column: int, x: Tensor, a: Tensor | None = None) -> Tensor:
        """x and a: ``[B, C, 1, W]`` or ``[B, C]``."""
        c = self.conv1(row, column, self.nonlinearity(x))
        if self.shortcut is not None:
            assert a is not None
            c = c + self.shortcut(row, column, self.nonlinearity(a))
        c = self.conv2(row, column, self.nonlinearity(c))
        return gate(x, c if self.known is None else c + self._known(self.known, row, column))

    def _known(self, known: Tensor, row: int, column: int) -> Tensor:
        if known.shape[2] == known.shape[3] == 1:  # classes only: the same everywhere
            row = column = 0
        return known[:, :, row : row + 1] if self.by_row else known[:, :, row, column]
