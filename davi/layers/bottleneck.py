r"""Bottleneck blocks without normalization.

.. math:: f(h) = C_4\,g\,C_3\,g\,C_2\,g\,C_1\,g(h)

with convolutions C (1x1, two of 3x3, 1x1) and the exact GELU g before each of them.

References:
    Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, R. Child, ICLR 2021,
    https://arxiv.org/abs/2011.10650
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.checkpointed import Checkpointed
from davi.layers.reversible import ReversibleStack


def plain_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the grid, with torch's initial weights and zero biases."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class Sizes(NamedTuple):
    """Widths of a block and the kernel of its inner convolutions."""

    width: int
    middle: int
    kernel: int


@final
class Bottleneck(Checkpointed):
    """The four convolutions of a block, with a GELU before each but the first: callers have applied that one already
    and share its result among blocks.

    Arguments:
        in_channels: of all inputs together.
        sizes: of the block.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, sizes: Sizes, out_channels: int) -> None:
        super().__init__()
        self.c1 = plain_conv(in_channels, sizes.middle, 1)
        self.c2 = plain_conv(sizes.middle, sizes.middle, sizes.kernel)
        self.c3 = plain_conv(sizes.middle, sizes.middle, sizes.kernel)
        self.c4 = plain_conv(sizes.middle, out_channels, 1)

    def compute(self, *activated: Tensor) -> Tensor:
        """Of one map, or of several that stand for their concatenation, which is never made; batches of 1 repeat."""
        if len(activated) == 1:
            h = self.c1(activated[0])
        else:
            weights = self.c1.weight.split([x.shape[1] for x in activated], 1)
            h = F.conv2d(activated[0], weights[0], self.c1.bias)
            for x, weight in zip(activated[1:], weights[1:], strict=True):
                h = h + F.conv2d(x, weight)
        for conv in (self.c2, self.c3, self.c4):
            h = conv(F.gelu(h))
        return h


@final
class Residual(Checkpointed):
    """h + f(h), then average pooling.

    Arguments:
        sizes: of the block.
        depth: number of blocks in the row; the last convolution starts scaled by 1/sqrt(depth).
        pool: factor of the pooling, 1: none.
    """

    def __init__(self, sizes: Sizes, depth: int, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.body = Bottleneck(sizes.width, sizes, sizes.width)
        with torch.no_grad():
            self.body.c4.weight.mul_(math.sqrt(1.0 / depth))

    def compute(self, x: Tensor) -> Tensor:
        x = x + self.body(F.gelu(x))
        return x if self.pool == 1 else F.avg_pool2d(x, self.pool)


@final
class ResidualBranch(nn.Module):
    """f(g(h)), which :class:`Residual` adds to h; the arguments are the same."""

    def __init__(self, sizes: Sizes, depth: int) -> None:
        super().__init__()
        self.body = Bottleneck(sizes.width, sizes, sizes.width)
        with torch.no_grad():
            self.body.c4.weight.mul_(math.sqrt(1.0 / depth))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(F.gelu(x))
        return result


@final
class ReversibleResiduals(nn.Module):
    """Blocks on halves of the channels (:class:`~davi.layers.reversible.ReversibleStack`), then average pooling.

    Arguments:
        sizes: of a block on all channels; those on half of them have half the widths.
        blocks: how many.
        depth, pool: as in :class:`Residual`.

    Raises:
        ValueError: if the width is odd.
    """

    def __init__(self, sizes: Sizes, blocks: int, depth: int, pool: int = 1) -> None:
        super().__init__()
        middle = max(1, sizes.middle // 2)
        self.stack = ReversibleStack(
            sizes.width, blocks, lambda width: ResidualBranch(Sizes(width, middle, sizes.kernel), depth)
        )
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.stack(x)
        return x if self.pool == 1 else F.avg_pool2d(x, self.pool)
