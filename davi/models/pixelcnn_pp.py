r"""PixelCNN++: an exact likelihood of images from shifted convolutions at several scales.

With the pixels in the order in which one reads, each pixel with all its channels,

.. math:: \log p(x) = \sum_i \log p(x_i \mid x_1, \dots, x_{i-1})

Two streams of feature maps know the pixels before i: u those of all rows above, ul also those to the left in the same
row. Both go down to a half and a quarter of the size and up again, with shortcuts between maps of the same size, in
gated residual blocks of shifted convolutions (:mod:`davi.layers.shifted`). Of three channels the distribution is a
mixture of discretized logistics whose means of green and blue depend on the channels before them.

Sizes that the scales do not divide are padded at the bottom and on the right, and cropped at the end: no pixel depends
on what comes after it, so to all of them the padding is like the zeros around an image.

Drawing computes each row of u, and each pixel of ul, once: at a half of the size in every second row and column only.

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications,
    T. Salimans, A. Karpathy, X. Chen, D. P. Kingma, ICLR 2017, https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.causal import Canvas, CausalNetwork, PixelKernel, Progress, WithinPixel
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.shifted import (
    NONLINEARITIES,
    GatedResnet,
    Nonlinearity,
    Shift,
    ShiftedConv2d,
    ShiftedDeconv2d,
    initializing,
    pointwise,
    shift_down,
    shift_right,
)
from davi.layers.shifted_steps import DeconvSteps, GatedSteps, steps
from davi.model.causal import CausalModel


@final
@dataclass(frozen=True)
class PixelCNNPPConfig:
    """Options of PixelCNN++. The defaults are those of the paper for CIFAR-10.

    Arguments:
        width: channels F of the feature maps.
        blocks: gated blocks R of a stream at each scale, on the way down; on the way up one more, but for the smallest.
        scales: how many sizes there are, each half of the one before.
        nonlinearity: ``concat_elu``, ``elu`` or ``relu``.
        dropout: share of the hidden units of a block that is dropped in training.
        init_images: how many images the initial weights follow from; 0: none.
        likelihood: of a pixel given the network's outputs; without a family it follows the levels: Bernoulli at 2,
            categorical up to 32, then the logistic mixture.

    Raises:
        ValueError: if a number is out of range, or the form of the likelihood neither exact nor the authors'.
    """

    width: int = 160
    blocks: int = 5
    scales: int = 3
    nonlinearity: Nonlinearity = "concat_elu"
    dropout: float = 0.5
    init_images: int = 16
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    def __post_init__(self) -> None:
        if self.likelihood.form != "openai":  # that of the authors' program
            self.likelihood.check_exact()
        for name, least in (("width", 1), ("blocks", 1), ("scales", 1), ("init_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 to less than 1")
        if self.nonlinearity not in NONLINEARITIES:
            raise ValueError(f"nonlinearity: got {self.nonlinearity}, expected one of {', '.join(NONLINEARITIES)}")


Pair = tuple[Tensor, Tensor]
"""Feature maps of u and ul."""
SHIFTS: tuple[Shift, Shift] = ("down", "down_right")
"""Of their convolutions."""


Layer = TypeVar("Layer", ShiftedConv2d, ShiftedDeconv2d)


@final
class Resample(nn.Module, Generic[Layer]):
    """A convolution of each stream to half the size, or a transposed one to twice the size.

    Arguments:
        u, ul: the layers of the streams.
    """

    def __init__(self, u: Layer, ul: Layer) -> None:
        super().__init__()
        self.u: Layer = u
        self.ul: Layer = ul

    def forward(self, u: Tensor, ul: Tensor) -> Pair:
        return self.u(u), self.ul(ul)


def _halve(width: int) -> Resample[ShiftedConv2d]:
    return Resample(*(ShiftedConv2d(width, width, shift, stride=2) for shift in SHIFTS))


def _double(width: int) -> Resample[ShiftedDeconv2d]:
    return Resample(*(ShiftedDeconv2d(width, width, shift) for shift in SHIFTS))


@final
class Block(nn.Module):
    """A gated block of each stream; that of ul sees what that of u has just computed.

    Arguments:
        config: options of the network.
        classes: number of classes.
        features: channels of the features.
        skips: whether the block takes the maps of an earlier one of the same size.
    """

    def __init__(self, config: PixelCNNPPConfig, classes: int, features: int, skips: bool) -> None:
        super().__init__()
        width = config.width

        def gated(shift: Shift, shortcut: int) -> GatedResnet:
            return GatedResnet(
                width,
                shift,
                shortcut=shortcut,
                nonlinearity=config.nonlinearity,
                dropout=config.dropout,
                classes=classes,
                features=features,
            )

        self.u = gated("down", width if skips else 0)
        self.ul = gated("down_right", 2 * width if skips else width)

    def forward(self, maps: Pair, skip: Pair | None, features: Tensor | None, y: Tensor | None) -> Pair:
        u = self.u(maps[0], None if skip is None else skip[0], features, y)
        return u, self.ul(maps[1], u if skip is None else torch.cat([u, skip[1]], 1), features, y)


@final
class Scale(nn.Module):
    """All that happens at one size, and at the smaller ones in between. Layers are made in the order of the authors'.

    Arguments:
        config: options of the network.
        classes: number of classes.
        features: channels of the features.
        level: how often the size has been halved.
    """

    def __init__(self, config: PixelCNNPPConfig, classes: int, features: int, level: int = 0) -> None:
        super().__init__()
        deeper = level + 1 < config.scales
        self.down = nn.ModuleList(Block(config, classes, features, False) for _ in range(config.blocks))
        self.reduce = _halve(config.width) if deeper else None
        self.inner = Scale(config, classes, features, level + 1) if deeper else None
        self.expand = _double(config.width) if deeper else None
        self.up = nn.ModuleList(Block(config, classes, features, True) for _ in range(config.blocks + deeper))

    def forward(self, u: Tensor, ul: Tensor, features: Tensor | None, y: Tensor | None) -> Pair:
        maps = (u, ul)
        skips = [maps]
        for block in self.down:
            maps = block(maps, None, features, y)
            skips.append(maps)
        if self.reduce is None or self.inner is None or self.expand is None:
            skips.pop()  # where the way up begins
        else:
            maps = self.inner(*self.reduce(*maps), None if features is None else F.avg_pool2d(features, 2), y)
            maps = self.expand(*maps)
        for block in self.up:
            maps = block(maps, skips.pop(), features, y)
        return maps


def _blocks(modules: nn.ModuleList) -> list[Block]:
    return [module for module in modules if isinstance(module, Block)]


class _BlockSteps:
    """A :class:`Block` while an image is drawn; ``above`` is the current row of its u, ``[B, F, 1, W]``."""

    def __init__(self, block: Block, n: int, width: int, features: Tensor | None, y: Tensor | None) -> None:
        self.u = GatedSteps(block.u, n, width, features, y)
        self.ul = GatedSteps(block.ul, n, width, features, y)
        self.above = block.u.conv1.v.new_zeros(0)

    def row(self, row: int, u: Tensor, skip: Tensor | None = None) -> Tensor:
        self.above = self.u(row, 0, u, skip)
        return self.above

    def pixel(self, row: int, column: int, ul: Tensor, skip: Tensor | None = None) -> Tensor:
        u = self.above[:, :, 0, column]
        return self.ul(row, column, ul, u if skip is None else torch.cat([u, skip], 1))


class _ScaleSteps:
    """A :class:`Scale` while an image is drawn: rows of u, then pixels of ul."""

    def __init__(self, scale: Scale, n: int, width: int, features: Tensor | None, y: Tensor | None) -> None:
        self.down = [_BlockSteps(block, n, width, features, y) for block in _blocks(scale.down)]
        self.up = [_BlockSteps(block, n, width, features, y) for block in _blocks(scale.up)]
        self.inner: _ScaleSteps | None = None
        if scale.reduce is not None and scale.inner is not None and scale.expand is not None:
            pooled = None if features is None else F.avg_pool2d(features, 2)
            self.reduce_u = steps(scale.reduce.u, n, width, True)
            self.reduce_ul = steps(scale.reduce.ul, n, width, False)
            self.inner = _ScaleSteps(scale.inner, n, width // 2, pooled, y)
            self.expand_u = DeconvSteps(scale.expand.u, n, width)
            self.expand_ul = DeconvSteps(scale.expand.ul, n, width)

    def row(self, row: int, u: Tensor) -> Tensor:
        """A row of u, ``[B, F, 1, W]``."""
        skips = [u]
        for block in self.down:
            u = block.row(row, u)
            skips.append(u)
        if self.inner is None:
            skips.pop()
        else:
            self.reduce_u.put(row, 0, u)
            if row % 2 == 0:
                self.expand_u.put(0, self.inner.row(row // 2, self.reduce_u.read(0)))
            u = self.expand_u.read(row, 0)
        for block in self.up:
            u = block.row(row, u, skips.pop())
        return u

    def pixel(self, row: int, column: int, ul: Tensor) -> Tensor:
        """A pixel of ul, ``[B, F]``, once its row of u is there."""
        skips = [ul]
        for block in self.down:
            ul = block.pixel(row, column, ul)
            skips.append(ul)
        if self.inner is None:
            skips.pop()
        else:
            self.reduce_ul.put(row, column, ul)
            if row % 2 == 0 and column % 2 == 0:
                half = self.reduce_ul.read(column)
                self.expand_ul.put(column // 2, self.inner.pixel(row // 2, column // 2, half))
            ul = self.expand_ul.read(row, column)
        for block in self.up:
            ul = block.pixel(row, column, ul, skips.pop())
        return ul


@final
class Drawing(Progress):
    """What is remembered of images that are being drawn."""

    def __init__(
        self, network: PixelCNNPPNetwork, n: int, features: Tensor | None = None, y: Tensor | None = None
    ) -> None:
        super().__init__(network.shape, network.parts)
        _, height, width = network.shape
        padded = width + network.padding[1]
        like = network.u.v
        self.seen = Canvas(n, network.inputs + 1, height, padded, like, top=1, left=1, right=1)
        self.scales = _ScaleSteps(network.scales, n, padded, features, y)
        self.u, self.above = network.u.kernels(), network.above.kernels()
        self.before = PixelKernel(network.before.kernels(), network.before.b)
        self.above_row = like.new_zeros(n, network.config.width, 1, padded)  # what the row above says to ul
        self.last = like.new_zeros(0)  # features of the current pixel, [B, F, 1, 1]
        output = network.output
        self.output = None if output is None else PixelKernel(output.kernels(), output.b)


@final
class PixelCNNPPNetwork(CausalNetwork[Drawing]):
    """The network of PixelCNN++ (module docstring). Arguments: as :class:`~davi.layers.causal.CausalNetwork`."""

    name = "pixelcnn_pp"
    Config = PixelCNNPPConfig
    config: PixelCNNPPConfig

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        config: PixelCNNPPConfig,
        classes: int = 0,
        features: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__(shape, levels, config, classes, features, embedding)
        channels, height, width = shape
        self.images_wanted = config.init_images
        self.head = self.make_head()
        within = channels > 1 and self.head.likelihood.family != "logistic_mixture"
        self.parts = channels if within else 1
        multiple = 2 ** (config.scales - 1)
        self.padding = (-height % multiple, -width % multiple)  # rows at the bottom, columns on the right
        self.u = ShiftedConv2d(self.inputs + 1, config.width, "down")
        self.above = ShiftedConv2d(self.inputs + 1, config.width, "down", (1, 3))
        self.before = ShiftedConv2d(self.inputs + 1, config.width, "down_right", (2, 1))
        self.scales = Scale(config, classes, features)
        outputs = self.head.inputs
        self.output = None if within else pointwise(config.width, outputs)
        self.within = WithinPixel(config.width, channels, outputs, self.inputs) if within else None

    def forward(self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        _, height, width = self.shape
        pixels = self.scaled(x).contiguous(memory_format=torch.channels_last)
        seen = self._padded(torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1))
        u = shift_down(self.u(seen))
        ul = shift_down(self.above(seen)) + shift_right(self.before(seen))
        _, ul = self.scales(u, ul, None if features is None else self._padded(features), y)
        return self._outputs(ul[:, :, :height, :width], pixels)

    def compilable(self) -> Iterable[nn.Module]:
        """The gated blocks."""
        return (module for module in self.modules() if isinstance(module, GatedResnet))

    @torch.no_grad()
    def initialize(
        self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None, kept: Container[str] = ()
    ) -> None:
        with initializing(self, kept):
            self(x, features, y)

    def _padded(self, x: Tensor) -> Tensor:
        bottom, right = self.padding
        return F.pad(x, (0, right, 0, bottom)) if bottom or right else x

    def _outputs(self, ul: Tensor, pixels: Tensor) -> Tensor:
        f = F.elu(ul)
        raw: Tensor
        if self.within is not None:
            raw = self.within(f, pixels)
        else:
            assert self.output is not None
            raw = self.output(f)
        return raw

    def start(self, n: int, features: Tensor | None = None, y: Tensor | None = None) -> Drawing:
        return Drawing(self, n, None if features is None else self._padded(features), y)

    def advance(self, state: Drawing, x: Tensor) -> Tensor:
        row, column = state.row, state.column
        if state.part == 0:
            state.last = self._features(state, x, row, column)[:, :, None, None]
        state.step()
        if state.output is not None:
            return state.output(F.elu(state.last[:, :, 0, 0]))[..., None, None]
        return self._outputs(state.last, self.scaled(x[:, :, row : row + 1, column : column + 1]))

    def _features(self, state: Drawing, x: Tensor, row: int, column: int) -> Tensor:
        """ul of a pixel, ``[B, F]``; at the beginning of a row that row of u, too."""
        if state.pixel:
            last = divmod(state.pixel - 1, self.shape[2])
            pixels = self.scaled(x[:, :, last[0], last[1]])
            state.seen.put(*last, torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1))
        if column == 0:
            state.scales.row(row, self._row(state, row))
        ul = state.above_row[:, :, 0, column]
        if column:
            ul = ul + state.before(state.seen.window(row - 1, column - 1, 2, 1))
        return state.scales.pixel(row, column, ul)

    def _row(self, state: Drawing, row: int) -> Tensor:
        """The first row of u, ``[B, F, 1, W]``; and what the row above says to ul."""
        if row == 0:  # zeros enter, not biases
            return state.above_row
        state.above_row = F.conv2d(state.seen.rows(row - 1, 1), state.above, self.above.b)
        return F.conv2d(state.seen.rows(row - 2, 2), state.u, self.u.b)


@final
class PixelCNNPP(CausalModel):
    """PixelCNN++ (module docstring). Arguments: as :class:`~davi.model.causal.CausalModel`."""

    name = "pixelcnn_pp"
    Config = PixelCNNPPConfig
    Causal = PixelCNNPPNetwork
    config: PixelCNNPPConfig
    causal: PixelCNNPPNetwork
