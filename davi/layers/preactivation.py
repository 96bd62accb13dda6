r"""The parts of residual classifiers with activations in front of convolutions.

A *branch* is batch norm, ReLU and a convolution, two or three times. In a *bottleneck* kernels are 1x1, 3x3 and 1x1,
and what lies between them is a quarter as wide as the output. The stride is that of the first convolution.

References:
    Identity Mappings in Deep Residual Networks, K. He, X. Zhang, S. Ren, J. Sun, ECCV 2016,
    https://arxiv.org/abs/1603.05027
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.biased_batch_norm import BiasedBatchNorm2d
from davi.layers.context_attention import ContextAttentionOptions
from davi.layers.same_padding import SameConv2d, pad_same

NARROWING = 4
"""How many times narrower a bottleneck is inside than its output."""
Stem = Literal["3x3", "7x7"]
"""The first layer: a 3x3 convolution; or one of 7x7 and stride 2, and the maximum over 3x3 pixels at stride 2."""


@dataclass(frozen=True)
class ResidualStages:
    """Options of residual classifiers.

    Arguments:
        units: of each stage. From the second stage on, the first unit halves the resolution.
        widths: channels of the stem, and of each stage; bottlenecks give four times as many.
        bottleneck: whether units are bottlenecks.
        stem: the first layer: ``3x3``; or ``7x7`` with stride 2, followed by a maximum over 3x3 at stride 2.
        norm_momentum: share of a batch in the running statistics of batch norms.
        mean, std: of each channel, with which images are standardized, where 1 is the highest level; those of the
            training images when not given.
        depth_attention: reading from the outputs of earlier parts; none in the papers.
    """

    units: tuple[int, ...] = (5, 5, 5)
    widths: tuple[int, ...] = (16, 16, 32, 64)
    bottleneck: bool = False
    stem: Stem = "3x3"
    norm_momentum: float = 0.01
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    depth_attention: ContextAttentionOptions = field(default_factory=ContextAttentionOptions)

    def __post_init__(self) -> None:
        if not self.units or min(self.units) < 1:
            raise ValueError(f"units: got {list(self.units)}, expected at least 1 for each stage")
        if len(self.widths) != len(self.units) + 1 or min(self.widths) < 1:
            expected = f"{len(self.units) + 1} positive numbers: one for the stem and one for each stage"
            raise ValueError(f"widths: got {list(self.widths)}, expected {expected}")
        if not self.bottleneck and list(self.widths) != sorted(self.widths):
            expected = "no width below the one before it: shortcuts add channels"
            raise ValueError(f"widths: got {list(self.widths)}, expected {expected}")
        if not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum: got {self.norm_momentum}, expected above 0, at most 1")

    @property
    def last_width(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1] * (NARROWING if self.bottleneck else 1)

    def each(self) -> Iterator[Place]:
        """The places of all units, from the bottom."""
        for first, count in zip(self.firsts(), self.units, strict=True):
            yield first
            for number in range(1, count):
                yield Place(first.stage, number, first.outputs, first.outputs, 1)

    def firsts(self) -> Iterator[Place]:
        """The places of the first unit of each stage."""
        inputs = self.widths[0]
        for stage, width in enumerate(self.widths[1:]):
            outputs = width * (NARROWING if self.bottleneck else 1)
            yield Place(stage, 0, inputs, outputs, 2 if stage else 1)
            inputs = outputs


class Place(NamedTuple):
    """Where a unit stands, and what it does to its input.

    Arguments:
        stage, number: from 0.
        inputs, outputs: channels.
        stride: 1, or 2 where the resolution is halved.
    """

    stage: int
    number: int
    inputs: int
    outputs: int
    stride: int


def branch(inputs: int, outputs: int, stride: int = 1, bottleneck: bool = False, activated: bool = False) -> nn.Module:
    """What a unit adds (module docstring).

    Arguments:
        inputs, outputs: channels.
        stride: of the first convolution.
        bottleneck: whether it is one.
        activated: whether the input has been activated before, so that it begins with the convolution.
    """
    inner = outputs // NARROWING if bottleneck else outputs
    widths = [inputs, inner, inner, outputs] if bottleneck else [inputs, outputs, outputs]
    kernels = (1, 3, 1) if bottleneck else (3, 3)
    parts: list[nn.Module] = []
    for i, kernel in enumerate(kernels):
        if i or not activated:
            parts += [BiasedBatchNorm2d(widths[i]), nn.ReLU()]
        parts.append(SameConv2d(widths[i], widths[i + 1], kernel, 1 if i else stride))
    return nn.Sequential(*parts)


def shortcut(inputs: int, outputs: int, stride: int = 1, bottleneck: bool = False) -> nn.Module:
    """Past the branch: the identity where nothing changes; else a 1x1 convolution past a bottleneck, and
    :class:`PaddedShortcut` past two 3x3 convolutions."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if bottleneck:
        return SameConv2d(inputs, outputs, 1, stride)
    return PaddedShortcut(outputs - inputs, stride)


@final
class PaddedShortcut(nn.Module):
    """Means over squares of pixels, and channels of zeros, half of them before the others and half behind.

    Squares are cut off at the edge of maps of odd sizes.

    Arguments:
        channels: how many are added.
        stride: pixels along an edge of a square.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.sides = (channels // 2, channels - channels // 2)
        self.stride = stride

    def extra_repr(self) -> str:
        return f"zeros={self.sides}, stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return F.pad(x, (0, 0, 0, 0, *self.sides)) if any(self.sides) else x


@final
class StemLayer(nn.Module):
    """Convolution, batch norm, ReLU, and a maximum over 3x3 pixels where the kernel is 7x7.

    Arguments:
        channels: of the images.
        width: channels of the output.
        kind: the kernel.
    """

    def __init__(self, channels: int, width: int, kind: Stem) -> None:
        super().__init__()
        large = kind == "7x7"
        self.conv = SameConv2d(channels, width, 7 if large else 3, 2 if large else 1)
        self.norm = BiasedBatchNorm2d(width)
        self.pool = large

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        # After the ReLU no value is below the zeros of the padding.
        return F.max_pool2d(pad_same(y, 3, 2), 3, 2) if self.pool else y


@final
class LogitsOfMeans(nn.Module):
    r"""Batch norm, ReLU, the mean over all pixels, and a linear layer: a number for each class, ``[B, classes]``.

    The initial matrix is uniform in :math:`\pm\sqrt{3 / \text{width}}`, biases are 0.

    Arguments:
        width: channels of the input.
        classes: how many.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = BiasedBatchNorm2d(width)
        self.linear = nn.Linear(width, classes)
        nn.init.uniform_(self.linear.weight, -((3.0 / width) ** 0.5), (3.0 / width) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(F.relu(self.norm(x)).mean((2, 3)))
        return logits
