r"""Pre-activation residual blocks that keep, halve or double the resolution.

A *node* is batch norm -> [non-local block] -> swish -> 3x3 convolution -> [squeeze-excite]; a *block* is
:math:`\mathrm{shortcut}(x) + 0.1\,\mathrm{node}_n(\ldots\mathrm{node}_1(x))`; a *cell* is an optional stem convolution
followed by blocks.

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.checkpointed import Checkpointed
from davi.layers.convolution import SqueezeExcite, WeightNormConv2d
from davi.layers.nonlocal_block import NonLocalBlock
from davi.layers.reversible import ReversibleStack

Rescale = Literal[-2, 0, 2]
"""What a block does to the resolution: halve, keep, double."""


@dataclass(frozen=True)
class NodeOptions:
    """What the nodes of a cell contain.

    Arguments:
        key_channels: width of the keys of a non-local block before the activation; 0: none.
        subsample: keys and values of the non-local block on half the grid.
        squeeze_excite: gate the channels after the convolution.
    """

    key_channels: int = 0
    subsample: bool = False
    squeeze_excite: bool = False

    def nonlocal_block(self, channels: int, bias: bool = True) -> NonLocalBlock | None:
        if not self.key_channels:
            return None
        return NonLocalBlock(channels, self.key_channels, bias, self.subsample)


@final
class Node(nn.Module):
    """Batch norm, [non-local block], swish, 3x3 convolution, [squeeze-excite]."""

    def __init__(self, in_channels: int, out_channels: int, options: NodeOptions, stride: int = 1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels, eps=1e-5, momentum=0.1)
        self.attention = options.nonlocal_block(in_channels)
        self.conv = WeightNormConv2d(in_channels, out_channels, 3, stride)
        self.squeeze_excite = SqueezeExcite(out_channels) if options.squeeze_excite else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        if self.attention is not None:
            x = self.attention(x)
        x = self.conv(F.silu(x))
        return x if self.squeeze_excite is None else self.squeeze_excite(x)


@final
class FactorizedReduce(nn.Module):
    """Halve the resolution: swish, then a 1x1 convolution on each of the four pixel offsets, concatenated.

    Arguments:
        in_channels, out_channels: widths.
        conv: makes a convolution of input width, output width and kernel size.
    """

    OFFSETS = ((0, 0), (1, 1), (0, 1), (1, 0))

    def __init__(
        self, in_channels: int, out_channels: int, conv: Callable[[int, int, int], nn.Module] = WeightNormConv2d
    ) -> None:
        super().__init__()
        if out_channels < 4:
            raise ValueError(f"out_channels: got {out_channels}, expected at least 4: one for each pixel offset")
        quarter = out_channels // 4
        widths = [quarter, quarter, quarter, out_channels - 3 * quarter]
        self.convs = nn.ModuleList([conv(in_channels, width, 1) for width in widths])

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        pairs = zip(self.OFFSETS, self.convs, strict=True)
        return torch.cat([conv(x[:, :, row::2, column::2]) for (row, column), conv in pairs], 1)


@final
class Upsample(nn.Module):
    """Double the resolution: bilinear with aligned corners, [non-local block without biases], 1x1 without bias."""

    def __init__(self, in_channels: int, out_channels: int, options: NodeOptions) -> None:
        super().__init__()
        self.attention = options.nonlocal_block(in_channels, bias=False)
        self.conv = WeightNormConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv(x if self.attention is None else self.attention(x))


@final
class ResidualBlock(Checkpointed):
    """Shortcut plus a tenth of the nodes' output.

    Arguments:
        in_channels, out_channels: widths; equal when the resolution is kept.
        rescale: -2 halves, 0 keeps, 2 doubles the resolution.
        nodes: how many nodes.
        options: what a node contains.
    """

    def __init__(
        self, in_channels: int, out_channels: int, rescale: int = 0, nodes: int = 2, options: NodeOptions | None = None
    ) -> None:
        super().__init__()
        options = options or NodeOptions()
        if rescale == 0 and in_channels != out_channels:
            raise ValueError(f"out_channels: got {out_channels}, expected {in_channels}: the shortcut is the identity")
        self.rescale = rescale
        self.shortcut: nn.Module = nn.Identity()
        if rescale == -2:
            self.shortcut = FactorizedReduce(in_channels, out_channels)
        elif rescale == 2:
            self.shortcut = Upsample(in_channels, out_channels, options)
        first = Node(in_channels, out_channels, options, stride=2 if rescale == -2 else 1)
        rest = [Node(out_channels, out_channels, options) for _ in range(nodes - 1)]
        self.nodes = nn.Sequential(first, *rest)

    def compute(self, x: Tensor) -> Tensor:
        inner = F.interpolate(x, scale_factor=2, mode="nearest") if self.rescale == 2 else x
        out: Tensor = torch.add(self.shortcut(x), self.nodes(inner), alpha=0.1)
        return out


@final
class NodeBranch(nn.Module):
    """What a residual block that keeps the resolution adds to its input, by itself."""

    def __init__(self, channels: int, nodes: int, options: NodeOptions) -> None:
        super().__init__()
        self.nodes = nn.Sequential(*[Node(channels, channels, options) for _ in range(nodes)])

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * self.nodes(x)


def widths_along(width: int, rescales: Sequence[int]) -> list[int]:
    """Widths before, between and after blocks: halving the resolution doubles the width and the other way round."""
    factor = {-2: 2.0, 0: 1.0, 2: 0.5}
    return list(accumulate(rescales, lambda channels, rescale: int(channels * factor[rescale]), initial=width))


@final
class ResidualCell(nn.Module):
    """An optional 3x3 stem and a row of residual blocks.

    Arguments:
        widths: channels before the first block and after each block; one more entry than ``rescales``.
        rescales: what each block does to the resolution.
        nodes: nodes per block.
        options: what a node contains.
        stem_channels: if given, a 3x3 convolution from that many channels comes first.
        reversible: blocks that keep the resolution become reversible stacks, one for each row of them.
    """

    def __init__(
        self,
        widths: Sequence[int],
        rescales: Sequence[int],
        nodes: int = 2,
        options: NodeOptions | None = None,
        stem_channels: int | None = None,
        reversible: bool = False,
    ) -> None:
        super().__init__()
        options = options or NodeOptions()
        self.stem = None if stem_channels is None else WeightNormConv2d(stem_channels, widths[0], 3)
        blocks: list[nn.Module] = []
        for sizes, alike in groupby(zip(widths[:-1], widths[1:], rescales, strict=True)):
            if reversible and sizes[2] == 0:
                branch = partial(NodeBranch, nodes=nodes, options=options)
                blocks.append(ReversibleStack(sizes[0], len(list(alike)), branch))
            else:
                blocks += [ResidualBlock(*each, nodes, options) for each in alike]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.stem is not None:
            x = self.stem(x)
        out: Tensor = self.blocks(x)
        return out


@final
class Merge(nn.Module):
    """1x1 convolution of a context and its latent, optionally followed by a non-local block."""

    def __init__(self, in_channels: int, out_channels: int, options: NodeOptions) -> None:
        super().__init__()
        self.conv = WeightNormConv2d(in_channels, out_channels, 1)
        self.attention = options.nonlocal_block(out_channels)

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        x: Tensor = self.conv(torch.cat([context.expand(z.shape[0], -1, -1, -1), z.to(context.dtype)], 1))
        return x if self.attention is None else self.attention(x)
