r"""A network that says what it expects of every pixel from the pixels before it.

Pixels come in the order in which one reads: row by row from the top left. The network computes the parameters of all
conditionals :math:`p(x_i \mid x_1, \dots, x_{i-1})` in one pass, and it is asked for in three places: as a model of
images, as the likelihood of a hierarchy, given that one's features of every pixel, and as a prior over a grid of
integers. These may be *codes*, whose order means nothing: then the network sees not numbers but learned vectors, and
each of them is categorical.

Drawing an image needs one answer after the other, each a pixel further. A pass for each of them would cost as much as
scoring an image; but all that a pass computes for earlier pixels stays what it was. :meth:`CausalNetwork.start` makes
room for it, :meth:`CausalNetwork.advance` adds one pixel, whose cost does not depend on the size of the image as long
as there is no attention.

References:
    Pixel Recurrent Neural Networks, A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, ICML 2016,
    https://arxiv.org/abs/1601.06759

    Fast Generation for Convolutional Autoregressive Models, P. Ramachandran et al., ICLR workshop 2017,
    https://arxiv.org/abs/1704.06001 (rows and pixels that are computed once)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.causal_options import CONFIGS
from davi.layers.code_vectors import CodeVectors
from davi.layers.masked import MaskedConv2d, degrees
from davi.layers.pixel_head import PixelHead


class Progress:
    """How far the drawing of an image has come: the part that is asked for next.

    Arguments:
        shape: (C, H, W).
        parts: answers for each pixel (:attr:`CausalNetwork.parts`).
    """

    def __init__(self, shape: tuple[int, int, int], parts: int) -> None:
        self.shape, self.parts = shape, parts
        self.pixel, self.part = 0, 0

    @property
    def row(self) -> int:
        """Of the pixel asked for next."""
        return self.pixel // self.shape[2]

    @property
    def column(self) -> int:
        """Of the pixel asked for next."""
        return self.pixel % self.shape[2]

    def step(self) -> None:
        """To the next part of the pixel, or to the next pixel."""
        self.part = (self.part + 1) % self.parts
        self.pixel += self.part == 0


State = TypeVar("State", bound=Progress)


class Window(NamedTuple):
    """A bound on the receptive field of a pixel: what lies outside has no influence on its parameters.

    Arguments:
        above: rows above the pixel's own.
        beside: columns on each side, in those rows; in the pixel's own row, on the left only.
    """

    above: int
    beside: int


class CausalNetwork(nn.Module, ABC, Generic[State]):
    """Parameters of every pixel given the pixels before it (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options, an instance of :attr:`Config`.
        classes: number of classes; 0: no labels.
        features: channels of what each pixel is told beside earlier pixels, ``[B, features, H, W]``; 0: nothing. They
            need not be causal: they are known before the first pixel.
        embedding: length of the vectors by which the network sees codes; 0: it sees numbers.

    Raises:
        OptionError: a ``ValueError``, if the likelihood of the options does not fit the images.
    """

    name: ClassVar[str]
    """The name recipes use, that of the model made of it."""
    Config: ClassVar[type]
    """The dataclass of the options; it has the section ``likelihood``."""
    config: Any
    """An instance of it."""
    head: PixelHead
    """Reads the parameters of a pixel as its distribution."""
    parts: int
    """Sequential draws per pixel: 1 if its channels are drawn at once, from a joint distribution; C if the network
    looks at the earlier channels of the pixel itself."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        config: Any,
        classes: int = 0,
        features: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.levels, self.config = shape, levels, config
        self.classes, self.features = classes, features
        self.vectors = CodeVectors(shape[0], levels, embedding) if embedding else None

    @abstractmethod
    def forward(self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The parameters of all pixels in one pass, ``[B, P, H, W]``, for the pixel head.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
            features: ``[B, features, H, W]``, if the network has been built for some.
            y: classes, ``[B]``, if the network has some.
        """

    @abstractmethod
    def start(self, n: int, features: Tensor | None = None, y: Tensor | None = None) -> State:
        """Get ready for ``n`` images, before their first pixel. Weights that change afterwards play no part."""

    @abstractmethod
    def advance(self, state: State, x: Tensor) -> Tensor:
        """The parameters of the next part, ``[B, P, 1, 1]``: what :meth:`forward` says there, up to rounding.

        Arguments:
            state: of :meth:`start`; it moves on by one part.
            x: integer images, ``[B, C, H, W]``, right in all parts before the next one. Others are not looked at.
        """

    @property
    def window(self) -> Window | None:
        """What a pixel sees of earlier ones; None: there is no bound but the image's edges."""
        return None

    images_wanted: int = 0
    """How many images its data-dependent initialization takes; 0: it has none."""

    def initialize(
        self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None, kept: Container[str] = ()
    ) -> None:
        """Set the weights that follow from images, in place, before the first training step. Here there are none.

        Arguments:
            x, features, y: as for :meth:`forward`.
            kept: names of weights of the network that stay as they are.
        """

    def compilable(self) -> Iterable[nn.Module]:
        """Blocks that may be compiled one by one and whose activations may be recomputed in the backward pass."""
        return ()

    @property
    def inputs(self) -> int:
        """Numbers by which the network sees a pixel: C, or of codes C times as many as a vector has. The same number
        for each channel, one channel after the other."""
        return self.shape[0] * (1 if self.vectors is None else self.vectors.dims)

    @final
    def make_head(self, softmax: int = 32) -> PixelHead:
        """The pixel head that the options ask for; it reads codes as categorical.

        Arguments:
            softmax: the most levels for which a pixel that is no code is categorical, if the options do not say it.
        """
        likelihood, codes = self.config.likelihood, self.vectors is not None
        likelihood = likelihood if codes else likelihood.following(self.levels, softmax)
        return PixelHead(likelihood, self.shape[0], self.levels, codes)

    @final
    def scaled(self, x: Tensor) -> Tensor:
        """Integers ``[B, C, ...]`` as the network sees them, ``[B, inputs, ...]``: from -1 to 1 in the type of its
        weights, or the vectors of codes."""
        if self.vectors is not None:
            seen: Tensor = self.vectors(x)
            return seen
        weight = next(self.parameters())
        return x.to(weight.dtype).mul(2.0 / (self.levels - 1)).sub(1.0)


def refuse_batch_norm(network: nn.Module) -> None:
    """Refuse a causal network in which a batch norm would leak.

    Raises:
        ValueError: if there is one: its statistics are taken over all pixels, so that every pixel would be told of
            those after it, and what is stated for an image would depend on the others of its batch.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name}: got {type(module).__name__}, expected no batch norm in a causal network: "
                "its statistics tell each pixel of later ones"
            )


NETWORKS: dict[str, type[CausalNetwork[Any]]] = {}
"""Every causal network by the name that recipes use."""


def register(network: type[CausalNetwork[Any]]) -> None:
    """Let the likelihoods of hierarchies use a network by its name."""
    NETWORKS[network.name], CONFIGS[network.name] = network, network.Config


@final
class Canvas:
    """A feature map that is filled as an image is drawn, with room for the zeros around it.

    Stored ``[B, top + H, left + W + right, channels]``, so that what a convolution sees at a pixel is nearly one piece.

    Arguments:
        n: images.
        channels, height, width: of the map.
        like: a tensor of the type and on the device wanted.
        top, left, right: rows and columns of zeros.
    """

    def __init__(
        self, n: int, channels: int, height: int, width: int, like: Tensor, top: int = 0, left: int = 0, right: int = 0
    ) -> None:
        self.top, self.left = top, left
        self.values = like.new_zeros(n, top + height, left + width + right, channels)
        self._inside = slice(left, left + width)

    def window(self, row: int, column: int, rows: int, columns: int) -> Tensor:
        """Values of the window whose upper left corner is at a pixel of the map, which may lie in the zeros (negative
        numbers), ``[B, rows * columns * channels]``."""
        r, c = self.top + row, self.left + column
        return self.values[:, r : r + rows, c : c + columns].flatten(1)

    def rows(self, row: int, rows: int) -> Tensor:
        """Whole rows from ``row`` on, with the zeros beside them, ``[B, channels, rows, left + W + right]``."""
        return self.values[:, self.top + row : self.top + row + rows].permute(0, 3, 1, 2)

    def at(self, row: int, column: int) -> Tensor:
        """The values of a pixel, ``[B, channels]``."""
        return self.values[:, self.top + row, self.left + column]

    def put(self, row: int, column: int, values: Tensor) -> None:
        """Set a pixel, ``[B, channels]``."""
        self.values[:, self.top + row, self.left + column] = values

    def put_row(self, row: int, values: Tensor) -> None:
        """Set a row, ``[B, channels, 1, W]``."""
        self.values[:, self.top + row, self._inside] = values[:, :, 0].transpose(1, 2)


@final
class PixelKernel:
    """A convolution at a single position: what :class:`Canvas` shows there, times a matrix.

    Arguments:
        weight: kernels, ``[out, in, k, k]``.
        bias: ``[out]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.size = (weight.shape[2], weight.shape[3])
        self.matrix = weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # [k * k * in, out]
        self.bias = bias

    def __call__(self, window: Tensor) -> Tensor:
        """``[B, k * k * in]`` -> ``[B, out]``."""
        return window @ self.matrix if self.bias is None else torch.addmm(self.bias, window, self.matrix)


@final
class WithinPixel(nn.Module):
    r"""The last layers of a network whose features know whole earlier pixels only, for channels one after the other:

    .. math:: h_c = \mathrm{elu}(V_c f + U_c x_{<c}), \qquad \mathrm{parameters}_c = W_c h_{\le c}

    at every pixel, with f the features and x the channels of the pixel itself.

    Arguments:
        features: channels of f.
        channels: C.
        outputs: parameters, those of channel c at the places c, c + C, c + 2 C, ... as
            :class:`~davi.layers.PixelHead` has them for Bernoulli and categorical pixels.
        inputs: numbers by which the pixel is seen, the same number for each channel.
        width: hidden units of a channel.
    """

    def __init__(self, features: int, channels: int, outputs: int, inputs: int, width: int = 64) -> None:
        super().__init__()
        hidden = degrees(channels * width, channels)
        self.features = nn.Conv2d(features, channels * width, 1)
        self.pixel = MaskedConv2d(degrees(inputs, channels), hidden, 1, mask_type="A")
        self.last = MaskedConv2d(hidden, torch.arange(outputs) % channels, 1, mask_type="B")

    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        """f ``[B, features, H, W]`` and pixels x as they are seen, ``[B, inputs, H, W]`` -> ``[B, outputs, H, W]``."""
        raw: Tensor = self.last(F.elu(self.features(f) + self.pixel(x)))
        return raw
