r"""PixelSNAIL: gated residual blocks, and attention of every pixel to all pixels before it.

.. math:: p(x) = \prod_i p(x_i \mid x_1, \dots, x_{i-1})

over the pixels in the order in which one reads. One stream of features u, of width F, runs at full resolution. At pixel
(r, c) it begins with what two convolutions of the image see above and to the left,

.. math:: u = (K_1 * x)_{r-1,\, c-1 \dots c+1} + (K_2 * x)_{r-1 \dots r,\, c-1}

A block is a few gated residual blocks of 2x2 convolutions (:class:`~davi.layers.shifted.GatedResnet`), which reach
nearby pixels, and an attention, which reaches all:

.. math:: (k_j, v_j) = \mathrm{content}(x_j, u_j, g_j), \qquad q_i = \mathrm{query}(u_i, g_i), \qquad
          o_i = \sum_{j < i} a_{ij} v_j, \qquad u \leftarrow \mathrm{out}(u, o)

with the weights a of :mod:`davi.layers.causal_attention` and networks that look at each pixel alone. The background g
says where a pixel is: its row and its column, as (r - H/2) / H and (c - W/2) / W, each as often as the image has
channels. Content at a pixel may see the pixel itself, since only later ones read it. The last features give the
parameters of the pixel by a layer on elu(u).

The structure is that of the published CIFAR-10 and ImageNet models (the authors' ``h12_noup_smallkey``).

References:
    PixelSNAIL: An Improved Autoregressive Generative Model, X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel, ICML 2018,
    https://arxiv.org/abs/1712.09763
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.causal import Canvas, CausalNetwork, PixelKernel, Progress, WithinPixel
from davi.layers.causal_attention import SpatialAttentive, attend_from, causal_attention, weights_from
from davi.layers.checkpointed import Checkpointed
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.shifted import (
    GatedResnet,
    Nonlinearity,
    ShiftedConv2d,
    initializing,
    pointwise,
    shift_down,
    shift_right,
)
from davi.layers.shifted_steps import GatedSteps
from davi.model import CausalModel

_EPSILON = 1e-8
"""Beside the variance in the initialization of the convolutions from images; of layers on single pixels 1e-10."""


@dataclass(frozen=True)
class PixelSNAILConfig:
    """Options of :class:`PixelSNAIL`.

    Arguments:
        blocks: each with an attention.
        resnets: gated residual blocks before each attention.
        width: channels F of the stream.
        key_width: width of queries and keys; that of values is F // 2.
        nonlinearity: elu, concat_elu or relu.
        dropout: share of hidden values set to zero in training.
        init_images: from how many images the initial lengths and biases are found.
        likelihood: the family of a pixel; by default it follows the levels.
    """

    blocks: int = 12
    resnets: int = 4
    width: int = 256
    key_width: int = 16
    nonlinearity: Nonlinearity = "elu"
    dropout: float = 0.0
    init_images: int = 8
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    def __post_init__(self) -> None:
        if self.likelihood.form != "openai":  # that of the authors' program
            self.likelihood.check_exact()
        for name, least in (("blocks", 1), ("resnets", 0), ("width", 2), ("key_width", 1), ("init_images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 to below 1")


class Attending(NamedTuple):
    """What an attention works on: the stream ``[B, F, H, W]``; queries, keys and values of all pixels, ``[B, H * W,
    width]``."""

    u: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


@final
class SnailBlock(Checkpointed):
    """Gated residual blocks, then an attention (module docstring).

    Arguments:
        config: of the network.
        channels: C of the images.
        inputs: numbers by which the network sees a pixel.
        classes, features: of the network.
    """

    def __init__(self, config: PixelSNAILConfig, channels: int, inputs: int, classes: int, features: int) -> None:
        super().__init__()
        width = config.width
        self.key_width = config.key_width

        def resnet(width: int, kernel: tuple[int, int], shortcut: int = 0) -> GatedResnet:
            return GatedResnet(
                width,
                "down_right",
                kernel,
                shortcut=shortcut,
                nonlinearity=config.nonlinearity,
                dropout=config.dropout,
                classes=classes,
                features=features,
                epsilon=_EPSILON if kernel == (2, 2) else 1e-10,
            )

        self.resnets = nn.ModuleList(resnet(width, (2, 2)) for _ in range(config.resnets))
        self.content = resnet(width + inputs + 2 * channels, (1, 1))
        self.key_value = pointwise(width + inputs + 2 * channels, config.key_width + width // 2)
        self.ask = resnet(width + 2 * channels, (1, 1))
        self.query = pointwise(width + 2 * channels, config.key_width)
        self.out = resnet(width, (1, 1), width // 2)

    def attend(
        self, u: Tensor, x: Tensor, background: Tensor, features: Tensor | None = None, y: Tensor | None = None
    ) -> Attending:
        """The block up to its attention. The arguments are those of :meth:`compute`."""
        for resnet in self.resnets:
            u = resnet(u, None, features, y)
        content = self.content(torch.cat([x, u, background], 1), None, features, y)
        key, value = _in_line(self.key_value(content)).tensor_split([self.key_width], -1)
        asked = self.ask(torch.cat([u, background], 1), None, features, y)
        return Attending(u, _in_line(self.query(asked)), key, value)

    def compute(
        self, u: Tensor, x: Tensor, background: Tensor, features: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The stream after the block, ``[B, F, H, W]``.

        Arguments:
            u: the stream.
            x: images as the network sees them, ``[B, inputs, H, W]``.
            background: ``[B, 2 C, H, W]``.
            features: ``[B, features, H, W]``.
            y: classes, ``[B]``.
        """
        u, query, key, value = self.attend(u, x, background, features, y)
        read = causal_attention(query, key, value).mT.unflatten(2, u.shape[2:])
        out: Tensor = self.out(u, read, features, y)
        return out


def _in_line(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, H * W, C]``: no copy for channels_last tensors."""
    return x.flatten(2).mT


@final
class PixelSNAILNetwork(CausalNetwork["SnailProgress"]):
    """The conditionals of PixelSNAIL (module docstring).

    Arguments are those of :class:`~davi.layers.causal.CausalNetwork`.
    """

    name = "pixelsnail"
    Config = PixelSNAILConfig
    config: PixelSNAILConfig

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        config: PixelSNAILConfig,
        classes: int = 0,
        features: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__(shape, levels, config, classes, features, embedding)
        self.images_wanted = config.init_images
        channels, width = shape[0], config.width
        self.head = self.make_head()
        self.parts = 1 if channels == 1 or self.head.likelihood.family == "logistic_mixture" else channels
        self.above = ShiftedConv2d(self.inputs + 1, width, "down", (1, 3), epsilon=_EPSILON)
        self.beside = ShiftedConv2d(self.inputs + 1, width, "down_right", (2, 1), epsilon=_EPSILON)
        self.blocks = nn.ModuleList(
            SnailBlock(config, channels, self.inputs, classes, features) for _ in range(config.blocks)
        )
        self.output: nn.Module
        if self.parts == 1:
            last = pointwise(width, self.head.inputs)
            nn.init.constant_(last.g, 0.3)  # pixels are nearly even until images have set it
            self.output = last
        else:
            self.output = WithinPixel(width, channels, self.head.inputs, self.inputs)

    def compilable(self) -> Iterable[nn.Module]:
        return self.blocks

    @torch.no_grad()
    def initialize(
        self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None, kept: Container[str] = ()
    ) -> None:
        with initializing(self, kept):
            self(x, features, y)

    def background(self, like: Tensor) -> Tensor:
        """Where every pixel is, ``[B, 2 C, H, W]`` (module docstring)."""
        channels, height, width = self.shape
        rows = (torch.arange(height, device=like.device, dtype=like.dtype) - height / 2) / height
        columns = (torch.arange(width, device=like.device, dtype=like.dtype) - width / 2) / width
        grid = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
        return grid.repeat_interleave(channels, 0).expand(len(like), -1, -1, -1)

    def first(self, x: Tensor) -> Tensor:
        """The stream before the first block, of scaled images ``[B, C, H, W]``."""
        marked = _with_ones(x)
        return shift_down(self.above(marked)) + shift_right(self.beside(marked))

    def last(self, u: Tensor, x: Tensor) -> Tensor:
        """The parameters, of the stream and of scaled images."""
        raw: Tensor = self.output(F.elu(u)) if self.parts == 1 else self.output(F.elu(u), x)
        return raw

    def forward(self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        x = self.scaled(x).contiguous(memory_format=torch.channels_last)
        background = self.background(x).contiguous(memory_format=torch.channels_last)
        u = self.first(x)
        for block in self.blocks:
            u = block(u, x, background, features, y)
        return self.last(u, x)

    def attention_maps(self, x: Tensor, pixel: int, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The weights with which one pixel reads from all others, ``[B, blocks, H, W]``.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
            pixel: its place in the order of the pixels.
            features: ``[B, features, H, W]``.
            y: classes, ``[B]``.
        """
        x = self.scaled(x)
        background, u, maps = self.background(x), self.first(x), []
        later = u[0, 0].numel() - pixel
        for block in self.blocks:
            assert isinstance(block, SnailBlock)
            found = block.attend(u, x, background, features, y)
            weights = weights_from(found.query[:, pixel], found.key[:, :pixel])
            maps.append(F.pad(weights, (0, later)).unflatten(1, u.shape[2:]))
            u = block(u, x, background, features, y)
        return torch.stack(maps, 1)

    @torch.no_grad()
    def start(self, n: int, features: Tensor | None = None, y: Tensor | None = None) -> SnailProgress:
        return SnailProgress(self, n, features, y)

    @torch.no_grad()
    def advance(self, state: SnailProgress, x: Tensor) -> Tensor:
        row, column = state.row, state.column
        if state.part == 0:
            if state.pixel:
                state.learn(x)
            state.u = state.features_of(row, column)
        if state.last is not None:
            raw = state.last(F.elu(state.u))[..., None, None]
        else:
            raw = self.last(state.u[..., None, None], self.scaled(x[:, :, row : row + 1, column : column + 1]))
        state.step()
        return raw


def _with_ones(x: Tensor) -> Tensor:
    """A channel of ones, so that the zeros around an image differ from gray."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


@final
class BlockSteps:
    """A block, one pixel after the other, with the keys and values of the pixels before it.

    Arguments:
        block: the block.
        like: a tensor ``[n, F, H, W]`` of the type and on the device wanted.
        features: ``[n, features, H, W]``.
        y: classes, ``[n]``.
    """

    def __init__(self, block: SnailBlock, like: Tensor, features: Tensor | None, y: Tensor | None) -> None:
        n, pixels, width, outputs = len(like), like[0, 0].numel(), like.shape[3], len(block.key_value.b)

        def steps(resnet: nn.Module) -> GatedSteps:
            assert isinstance(resnet, GatedResnet)
            return GatedSteps(resnet, n, width, features, y)

        self.resnets = [steps(resnet) for resnet in block.resnets]
        self.content, self.ask, self.out = steps(block.content), steps(block.ask), steps(block.out)
        self.key_value = PixelKernel(block.key_value.kernels(), block.key_value.b)
        self.query = PixelKernel(block.query.kernels(), block.query.b)
        self.keys, self.values = like.new_zeros(n, pixels, outputs).tensor_split([block.key_width], -1)
        self.u = like[:, :, 0, 0]

    def learn(self, pixel: int, row: int, column: int, x: Tensor, background: Tensor) -> None:
        """Keep the key and the value of a pixel whose own channels x, ``[n, C]``, are known now."""
        content = self.content(row, column, torch.cat([x, self.u, background], 1))
        key, value = self.key_value(content).tensor_split([self.keys.shape[-1]], -1)
        self.keys[:, pixel], self.values[:, pixel] = key, value

    def __call__(self, pixel: int, row: int, column: int, u: Tensor, background: Tensor) -> Tensor:
        """The stream of the next pixel, ``[n, F]``."""
        for resnet in self.resnets:
            u = resnet(row, column, u)
        self.u = u
        query = self.query(self.ask(row, column, torch.cat([u, background], 1)))
        return self.out(row, column, u, attend_from(query, self.keys[:, :pixel], self.values[:, :pixel]))


@final
class SnailProgress(Progress):
    """How far the drawing of images has come, and what earlier pixels have left.

    Arguments:
        network: the network.
        n: images.
        features: ``[n, features, H, W]``.
        y: classes, ``[n]``.
    """

    def __init__(self, network: PixelSNAILNetwork, n: int, features: Tensor | None, y: Tensor | None) -> None:
        super().__init__(network.shape, network.parts)
        _, height, width = network.shape
        self.scaled = network.scaled
        self.above = PixelKernel(network.above.kernels(), network.above.b)
        self.beside = PixelKernel(network.beside.kernels(), network.beside.b)
        like = network.above.v.new_zeros(1).expand(n, network.config.width, height, width)
        self.image = Canvas(n, network.inputs + 1, height, width, like, top=1, left=1, right=1)
        self.background = network.background(like)
        self.blocks = []
        for block in network.blocks:
            assert isinstance(block, SnailBlock)
            self.blocks.append(BlockSteps(block, like, features, y))
        output = network.output
        self.last = PixelKernel(output.kernels(), output.b) if isinstance(output, ShiftedConv2d) else None
        self.u = like[:, :, 0, 0]
        """The last features of the pixel asked for."""

    def learn(self, x: Tensor) -> None:
        """Take in the pixel before the one that is asked for next, of images ``[n, C, H, W]``."""
        pixel = self.pixel - 1
        row, column = divmod(pixel, self.shape[2])
        seen = self.scaled(x[:, :, row, column])
        self.image.put(row, column, _with_ones(seen))
        for block in self.blocks:
            block.learn(pixel, row, column, seen, self.background[:, :, row, column])

    def features_of(self, row: int, column: int) -> Tensor:
        """The last features of the next pixel, ``[n, F]``."""
        u = torch.zeros_like(self.u)
        if row:
            u = u + self.above(self.image.window(row - 1, column - 1, 1, 3))
        if column:
            u = u + self.beside(self.image.window(row - 1, column - 1, 2, 1))
        for block in self.blocks:
            u = block(self.pixel, row, column, u, self.background[:, :, row, column])
        return u


@final
class PixelSNAIL(CausalModel, SpatialAttentive):
    """PixelSNAIL (module docstring). Arguments are those of :class:`~davi.model.CausalModel`."""

    name = "pixelsnail"
    Config = PixelSNAILConfig
    Causal = PixelSNAILNetwork
    config: PixelSNAILConfig
    causal: PixelSNAILNetwork

    @torch.no_grad()
    def attention_maps(self, x: Tensor, pixel: tuple[int, int], y: Tensor | None = None) -> Tensor:
        self.check_images(x)
        self.check_labels(y, len(x))
        (row, column), (_, height, width) = pixel, self.shape
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"pixel: got {pixel}, expected a row below {height} and a column below {width}")
        return self.causal.attention_maps(x, row * width + column, y=y)
