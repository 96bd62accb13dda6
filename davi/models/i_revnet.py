r"""i-RevNet: a classifier that loses nothing of the image until its last linear layer.

The state of a block is two halves of the channels. With :math:`\psi` the space-to-depth of the block's stride (of the
identity for stride 1) and F a small convolutional network,

.. math:: (x_1, x_2) \mapsto (\psi x_2,\; \psi x_1 + F(x_2)), \qquad
          (y_1, y_2) \mapsto (\psi^{-1}(y_2 - F(\psi^{-1} y_1)),\; \psi^{-1} y_1)

is the block and its inverse. Where a stage with stride 1 is wider than what comes before it, zero channels are
appended first, and dropped again on the way back. Without any such stage the network is **bijective**: its
representations have as many numbers as an image. With one it is **injective**: every image comes back from its
representation, but most points of that space are no image's, and the inverse of such a point leads to another point.
The inverse sets appended channels to zero again, which takes rounding errors away.

The last representation, normalized and rectified, is averaged over space; a linear layer gives the logits.

References:
    i-RevNet: Deep Invertible Networks, J.-H. Jacobsen, A. Smeulders, E. Oyallon, ICLR 2018,
    https://arxiv.org/abs/1802.07088
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.errors import OptionError
from davi.layers.reversible import AdditiveStep, Reversible
from davi.layers.space_to_depth import depth_to_space, space_to_depth
from davi.layers.standardize import Standardize
from davi.model import Classifier, DataInitialized, Inverting

Kernels = Literal["1-3-1", "3-3-3"]
"""Sizes of the three kernels of F."""


@dataclass(frozen=True)
class IRevNetConfig:
    """Options of :class:`IRevNet`.

    Arguments:
        blocks: of each stage.
        strides: of the first block of each stage.
        channels: of each half, in each stage; with a stride s the channels of a half before it, times s * s.
        squeeze: side of the squares of pixels that become one pixel at the beginning; 1: none.
        bottleneck: the channels of a half are divided by this within F, and rounded down.
        kernels: sizes of the kernels of F.
        dropout: share of what is set to zero before the last normalization of F.
        mean, std: of each channel, in units of the whole range, by which images are standardized; None: those of
            training images.
        recompute: activations are computed again in the backward pass instead of kept.
    """

    blocks: tuple[int, ...] = (18, 18, 18)
    strides: tuple[int, ...] = (1, 2, 2)
    channels: tuple[int, ...] = (16, 64, 256)
    squeeze: int = 1
    bottleneck: int = 4
    kernels: Kernels = "3-3-3"
    dropout: float = 0.1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    recompute: bool = True

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks: got no stage, expected at least one")
        for name, values in (("blocks", self.blocks), ("strides", self.strides), ("channels", self.channels)):
            if len(values) != len(self.blocks):
                raise ValueError(f"{name}: got {len(values)} numbers, expected {len(self.blocks)}: one for each stage")
            if min(values) < 1:
                raise ValueError(f"{name}: got {list(values)}, expected numbers from 1")
        for name, value in (("squeeze", self.squeeze), ("bottleneck", self.bottleneck)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        if min(self.channels) < self.bottleneck:
            expected = f"at most {min(self.channels)}, the channels of the narrowest half"
            raise ValueError(f"bottleneck: got {self.bottleneck}, expected {expected}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 to below 1")


_SIZES: dict[Kernels, tuple[int, int, int]] = {"3-3-3": (3, 3, 3), "1-3-1": (1, 3, 1)}


def _function(inputs: int, outputs: int, stride: int, config: IRevNetConfig, first: bool) -> nn.Sequential:
    """F: three convolutions, each after a batch norm and a rectifier; the very first block of a network begins with
    its convolution. The first convolution has the stride, or that of 3x3 where the first sees single pixels."""
    inner = outputs // config.bottleneck
    sizes = _SIZES[config.kernels]
    strides = (stride, 1, 1) if sizes[0] > 1 else (1, stride, 1)
    before = [] if first else [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *before,
        _conv(inputs, inner, sizes[0], strides[0]),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        _conv(inner, inner, sizes[1], strides[1]),
        nn.Dropout(config.dropout),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        _conv(inner, outputs, sizes[2], strides[2]),
    )


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


@final
class Row(nn.Module):
    """Zero channels are appended, and blocks follow.

    Arguments:
        blocks: at least one.
        padding: channels to append, of both halves together.
    """

    def __init__(self, blocks: Reversible, padding: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.padding = padding

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat(self.blocks(*self.halves(h)), 1)

    def halves(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What the first block is given, ``[B, C, H, W]`` each."""
        first, second = F.pad(h, (0, 0, 0, 0, 0, self.padding)).chunk(2, 1)
        return first, second

    def with_zeros(self, second: Tensor) -> Tensor:
        """The second half in front of the first block, with zeros again where they were appended."""
        appended = min(self.padding, second.shape[1])
        return F.pad(second[:, : second.shape[1] - appended], (0, 0, 0, 0, 0, appended))

    def without_padding(self, h: Tensor) -> Tensor:
        return h[:, : h.shape[1] - self.padding]


@final
class IRevNet(Classifier, Inverting, DataInitialized):
    """The classifier (module docstring).

    Raises:
        OptionError: if the strides do not divide the images, or the channels of a stage do not follow from those before
            it.
    """

    name = "i_revnet"
    Config = IRevNetConfig
    config: IRevNetConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: IRevNetConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        _check_size(shape, config)
        self.images_wanted = 0 if config.mean is not None and config.std is not None else 10_000
        self.standardize = Standardize(shape[0], levels, config.mean, config.std)
        self.rows = nn.ModuleList(_rows(shape[0] * config.squeeze**2, config))
        channels = 2 * config.channels[-1]
        self.norm = nn.BatchNorm2d(channels, momentum=0.9)
        self.linear = nn.Linear(channels, classes)

    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        if "standardize.mean" not in kept:
            self.standardize.fit(images)

    def logits(self, x: Tensor) -> Tensor:
        return self.classify(self.represent(self.standardize(x)))

    def represent(self, x: Tensor) -> Tensor:
        """The last representation of standardized images ``[B, C, H, W]``, ``[B, 2 channels, H', W']``."""
        h = space_to_depth(x, self.config.squeeze)
        for row in self.rows:
            h = row(h)
        return h

    def features(self, h: Tensor) -> Tensor:
        """What the linear layer sees of the last representation, before its mean over space."""
        return self.norm(h).relu()

    def classify(self, h: Tensor) -> Tensor:
        """Logits by the last representation, ``[B, classes]``."""
        found: Tensor = self.linear(self.features(h).mean((2, 3)))
        return found

    def at_depths(self, x: Tensor) -> list[Tensor]:
        self.check_shape(x)
        return self.depths_of(self.standardize(x))

    def depths_of(self, x: Tensor) -> list[Tensor]:
        """:meth:`at_depths` of standardized images."""
        h = space_to_depth(x, self.config.squeeze)
        found = [h]
        for row, step, begins in self._steps():
            halves = row.halves(h) if begins else h.chunk(2, 1)
            h = torch.cat(step(*halves), 1)
            found.append(h)
        return found

    def invert(self, h: Tensor, depth: int | None = None) -> Tensor:
        return self.standardize.inverse(self.invert_standardized(h, depth))

    def invert_standardized(self, h: Tensor, depth: int | None = None, restore_zeros: bool = True) -> Tensor:
        """:meth:`invert`, but to standardized images.

        Arguments:
            h, depth: as there.
            restore_zeros: channels that were appended are set to zero before F sees them. In representations of images
                they are zero up to rounding, which batch norms that have seen nothing else would enlarge up to
                :math:`10^5` times. False: as the authors' program inverts, which differs for points that are no
                image's.
        """
        steps = list(self._steps())
        depth = len(steps) if depth is None else depth
        if not 0 <= depth <= len(steps):
            raise ValueError(f"depth: got {depth}, expected 0 to {len(steps)}")
        if tuple(h.shape[1:]) != self.shape_at(depth):
            expected = ", ".join(map(str, self.shape_at(depth)))
            raise ValueError(f"h: got shape {tuple(h.shape)}, expected [B, {expected}] at depth {depth}")
        for row, step, begins in reversed(steps[:depth]):
            first, second = h.chunk(2, 1)
            if begins and row.padding and restore_zeros:
                first = row.with_zeros(first)  # which is the second half in front of the block
            h = torch.cat(step.inverse(first, second), 1)
            if begins:
                h = row.without_padding(h)
        return depth_to_space(h, self.config.squeeze)

    def shape_at(self, depth: int) -> tuple[int, int, int]:
        """(C, H, W) of the representation at a depth, as :meth:`invert` counts them."""
        squeeze = self.config.squeeze
        channels, height, width = self.shape[0] * squeeze**2, self.shape[1] // squeeze, self.shape[2] // squeeze
        for row, step, begins in list(self._steps())[:depth]:
            channels = (channels + row.padding * begins) * step.block**2
            height, width = height // step.block, width // step.block
        return channels, height, width

    def _rows(self) -> Iterator[Row]:
        for row in self.rows:
            assert isinstance(row, Row)
            yield row

    def _steps(self) -> Iterator[tuple[Row, AdditiveStep, bool]]:
        """All blocks, each with its row, and whether it is the first of it."""
        for row in self._rows():
            for number, step in enumerate(row.blocks):
                yield row, step, number == 0

    @property
    def bijective(self) -> bool:
        """Whether the last representation has as many variables as an image."""
        return not any(row.padding for row in self._rows())

    def blocks(self) -> Iterable[nn.Module]:
        """The rows of blocks, and the functions of those that are to keep their activations."""
        return [row.blocks for row in self._rows() if not row.padding] + [
            step.function for row, step, _ in self._steps() if row.padding
        ]


def _check_size(shape: tuple[int, int, int], config: IRevNetConfig) -> None:
    unit = config.squeeze * math.prod(config.strides)
    if shape[1] % unit or shape[2] % unit:
        expected = f"numbers that divide images of {shape[1]} x {shape[2]}"
        raise OptionError("strides", f"got {unit} in all, with squeeze, expected {expected}")


def _rows(channels: int, config: IRevNetConfig) -> Iterator[Row]:
    """The stages of a network that begins with so many channels, of both halves together.

    A block in front of which channels are appended is a row of its own, which keeps its activations: all that F sees
    there may be zeros, and a batch norm of zeros would enlarge rounding errors of re-created ones hundreds of times.
    """
    first = True
    for number, (count, stride, half) in enumerate(zip(config.blocks, config.strides, config.channels, strict=True), 1):
        padding = _padding(channels, number, stride, half)
        steps = []
        for place in range(count):
            factor = stride if place == 0 else 1
            function = _function(half // factor**2, half, factor, config, first)
            steps.append(AdditiveStep(function, factor))
            first = False
        if padding:
            yield Row(_reversible(steps[:1], recompute=False), padding)
            steps = steps[1:]
        if steps:
            yield Row(_reversible(steps, config.recompute), 0)
        channels = 2 * half


def _reversible(steps: list[AdditiveStep], recompute: bool) -> Reversible:
    blocks = Reversible(steps)
    blocks.recompute = recompute
    return blocks


def _padding(channels: int, stage: int, stride: int, half: int) -> int:
    """Channels that are appended at the beginning of a stage, counted from 1."""
    if stride == 1:
        if 2 * half < channels:
            raise OptionError("channels", f"got {half} in stage {stage}, expected at least {-(-channels // 2)}")
        return 2 * half - channels
    if channels % 2:
        expected = f"1: the {channels} channels before it have no halves unless others are appended"
        raise OptionError("strides", f"got {stride} in stage {stage}, expected {expected}")
    if 2 * half != stride**2 * channels:
        raise OptionError("channels", f"got {half} in stage {stage}, expected {stride**2 * channels // 2}")
    return 0
