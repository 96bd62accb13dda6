r"""PixelCNN: one stack of masked convolutions, and what it does not see.

.. math:: p(x \mid y) = \prod_{r, c} \prod_{k=1}^{C} p(x_{r,c,k} \mid x_{<(r,c)}, x_{r,c,<k}, y)

with pixels in the order in which one reads and the channels of a pixel in order. The first layer is a 7x7 convolution
with a mask of type A; residual blocks follow, whose 3x3 convolution has one of type B,

.. math:: h_0 = W_A * x, \qquad h_l = h_{l-1} + P_l\, r(U_l * r(D_l\, r(h_{l-1})) + t_l), \qquad r(z) = \max(z, 0)

with 1x1 convolutions :math:`D_l` (2 F to F channels) and :math:`P_l` (F to 2 F), and t linear in the class and in the
features of the pixel, if there are some. Two 1x1 layers give the parameters.

**The blind spot.** A masked kernel looks up and to the sides, but in its own row only to the left. So each row that a
path through the layers climbs brings it to the right by at most one pixel (three in the first layer): with a first
kernel of k columns, pixel (r, c) never depends on

.. math:: (r - j, c + d), \qquad j \ge 1, \quad d > j - 1 + (k - 1) / 2

however many layers there are. :mod:`davi.models.gated_pixelcnn` sees them.

References:
    Pixel Recurrent Neural Networks, A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, ICML 2016,
    https://arxiv.org/abs/1601.06759
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from davi.layers.causal import Canvas, CausalNetwork, PixelKernel, Progress, Window
from davi.layers.masked import MaskedConv2d, degrees
from davi.layers.pixel_head import LikelihoodConfig
from davi.model import CausalModel

SOFTMAX = 256
"""The most levels for which a pixel is categorical, if the likelihood has no family of its own."""


@dataclass(frozen=True)
class PixelCNNConfig:
    """Options of :class:`PixelCNN`.

    Arguments:
        width: F, channels of the 3x3 convolutions; between the blocks there are 2 F.
        blocks: residual blocks.
        kernel: of the blocks; odd.
        first_kernel: of the first layer; odd, at least 3.
        head_width: channels between the two output layers.
        likelihood: family and options of a pixel's distribution. Without a family it is Bernoulli at two levels,
            categorical up to 256, a logistic mixture beyond.
    """

    width: int = 16
    blocks: int = 7
    kernel: int = 3
    first_kernel: int = 7
    head_width: int = 32
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        for name in ("width", "blocks", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name, least in (("kernel", 1), ("first_kernel", 3)):
            if getattr(self, name) < least or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected an odd number, at least {least}")


@final
class MaskedBlock(nn.Module):
    """A residual block (module docstring).

    Arguments:
        config: the options.
        wide: degrees of its 2 F channels.
        narrow: degrees of the F channels inside.
        classes: number of classes; 0: none.
        features: channels of the features; 0: none.
    """

    def __init__(self, config: PixelCNNConfig, wide: Tensor, narrow: Tensor, classes: int, features: int) -> None:
        super().__init__()
        self.down = MaskedConv2d(wide, narrow, 1, mask_type="B")
        self.spatial = MaskedConv2d(narrow, narrow, config.kernel, mask_type="B")
        self.up = MaskedConv2d(narrow, wide, 1, mask_type="B")
        self.labels = nn.Embedding(classes, len(narrow)) if classes else None
        self.features = nn.Conv2d(features, len(narrow), 1) if features else None
        for layer, gain in ((self.down, 1.0), (self.spatial, 1.0), (self.up, config.blocks**-0.5)):
            nn.init.kaiming_normal_(layer.conv.weight, nonlinearity="relu")
            with torch.no_grad():
                layer.conv.weight.mul_(gain)  # so that the sum of all blocks is of the size of one
        for given in (self.labels, self.features):
            for parameter in () if given is None else given.parameters():
                nn.init.zeros_(parameter)

    def given(self, features: Tensor | None, y: Tensor | None) -> Tensor | None:
        """t of the module docstring, ``[B, F, H or 1, W or 1]``; None: 0."""
        found: Tensor | None = None if self.features is None else self.features(features)
        if self.labels is not None and y is not None:
            rows = self.labels(y.long())[..., None, None]
            found = rows if found is None else found + rows
        return found

    def forward(self, h: Tensor, features: Tensor | None, y: Tensor | None) -> Tensor:
        inside = self.spatial(self.down(h.relu()).relu())
        given = self.given(features, y)
        inside = inside if given is None else inside + given.to(inside.dtype)
        out: Tensor = h + self.up(inside.relu())
        return out


def at_a_pixel(layer: MaskedConv2d) -> PixelKernel:
    """A masked convolution for one pixel at a time: its rows up to the pixel's own."""
    weight = layer.conv.weight * layer.mask.to(layer.conv.weight.dtype)
    return PixelKernel(weight[:, :, : weight.shape[2] // 2 + 1], layer.conv.bias)


@final
class MaskedProgress(Progress):
    """What is known of images that are drawn: what every convolution sees.

    Arguments:
        network: whose images they are.
        n: images.
        features, y: as :meth:`PixelCNNNetwork.forward` takes them.
    """

    def __init__(self, network: PixelCNNNetwork, n: int, features: Tensor | None, y: Tensor | None) -> None:
        super().__init__(network.shape, network.parts)
        like = next(network.parameters())
        blocks = [block for block in network.residual if isinstance(block, MaskedBlock)]
        self.given = [block.given(features, y) for block in blocks]
        self.first, *self.spatial = (at_a_pixel(layer) for layer in (network.first, *(b.spatial for b in blocks)))
        self.around = [(at_a_pixel(block.down), at_a_pixel(block.up)) for block in blocks]
        self.head = [at_a_pixel(layer) for layer in (network.hidden, network.last)]
        self.image, *self.inside = (self._canvas(kernel, n, like) for kernel in (self.first, *self.spatial))

    def _canvas(self, kernel: PixelKernel, n: int, like: Tensor) -> Canvas:
        """What a convolution sees, with the zeros around it."""
        rows, columns = kernel.size
        channels = len(kernel.matrix) // (rows * columns)
        beside = columns // 2
        return Canvas(n, channels, *self.shape[1:], like, top=rows - 1, left=beside, right=beside)

    def at_the_pixel(self, kernel: PixelKernel, canvas: Canvas) -> Tensor:
        """A convolution at the pixel asked for."""
        rows, columns = kernel.size
        return kernel(canvas.window(self.row - rows + 1, self.column - columns // 2, rows, columns))

    def next_pixel(self) -> Tensor:
        """The parameters of the pixel, ``[B, P]``."""
        h = self.at_the_pixel(self.first, self.image)
        for number, (down, up) in enumerate(self.around):
            self.inside[number].put(self.row, self.column, down(h.relu()).relu())
            inside, given = self.at_the_pixel(self.spatial[number], self.inside[number]), self.given[number]
            if given is not None:
                whole = given.shape[2:] == (1, 1)
                inside = inside + given[:, :, 0 if whole else self.row, 0 if whole else self.column]
            h = h + up(inside.relu())
        hidden, last = self.head
        return last(hidden(h.relu()).relu())


@final
class PixelCNNNetwork(CausalNetwork[MaskedProgress]):
    """The stack and the output layers (module docstring)."""

    name = "pixelcnn"
    Config = PixelCNNConfig
    config: PixelCNNConfig

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        config: PixelCNNConfig,
        classes: int = 0,
        features: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__(shape, levels, config, classes, features, embedding)
        channels = shape[0]
        self.head = self.make_head(SOFTMAX)
        self.parts = 1 if self.head.likelihood.family == "logistic_mixture" else channels
        wide, narrow, between = (degrees(n, self.parts) for n in (2 * config.width, config.width, config.head_width))
        self.first = MaskedConv2d(degrees(self.inputs, self.parts), wide, config.first_kernel, mask_type="A")
        self.residual = nn.ModuleList(
            MaskedBlock(config, wide, narrow, classes, features) for _ in range(config.blocks)
        )
        self.hidden = MaskedConv2d(wide, between, 1, mask_type="B")
        self.last = MaskedConv2d(between, torch.arange(self.head.inputs) % self.parts, 1, mask_type="B")
        for layer in (self.first, self.hidden, self.last):
            nn.init.kaiming_normal_(layer.conv.weight, nonlinearity="relu")

    def forward(self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        h = self.first(self.scaled(x))
        for block in self.residual:
            h = block(h, features, y)
        raw: Tensor = self.last(self.hidden(h.relu()).relu())
        return raw

    @property
    def window(self) -> Window:
        """Every masked convolution reaches half a kernel further."""
        reach = self.config.first_kernel // 2 + self.config.blocks * (self.config.kernel // 2)
        return Window(reach, reach)

    def compilable(self) -> Iterable[nn.Module]:
        return self.residual.children()

    def start(self, n: int, features: Tensor | None = None, y: Tensor | None = None) -> MaskedProgress:
        return MaskedProgress(self, n, features, y)

    def advance(self, state: MaskedProgress, x: Tensor) -> Tensor:
        if state.part == 0 and state.pixel:  # its last channel was not known when it was its turn
            row, column = divmod(state.pixel - 1, self.shape[2])
            state.image.put(row, column, self.scaled(x[:, :, row, column]))
        state.image.put(state.row, state.column, self.scaled(x[:, :, state.row, state.column]))
        raw = state.next_pixel()
        state.step()
        return raw[..., None, None]


@final
class PixelCNN(CausalModel):
    """PixelCNN (module docstring).

    Arguments:
        shape, levels, config, classes: as every :class:`~davi.model.CausalModel` takes them.
    """

    name = "pixelcnn"
    Config = PixelCNNConfig
    config: PixelCNNConfig
    Causal = PixelCNNNetwork
