r"""Gated PixelCNN: every sub-pixel given all before it, with two stacks of convolutions and no blind spot.

.. math:: p(x \mid y) = \prod_{r, c} \prod_{k=1}^{C} p(x_{r,c,k} \mid x_{<(r,c)}, x_{r,c,<k}, y)

with pixels in the order in which one reads and the channels of a pixel in order. The *vertical* stack v sees all rows
above a pixel, the *horizontal* one h the pixels to the left in its row, and what the vertical one has found:

.. math:: a_l = W_l * v_{l-1} + s_l, \qquad v_l = g(a_l)

.. math:: b_l = U_l * h_{l-1} + A_l a_l + t_l, \qquad h_l = h_{l-1} + O_l\, g(b_l), \qquad
          g(z) = \tanh(z_1 / 2) \, \sigma(z_2)

:math:`z = (z_1, z_2)` are the two halves of the channels, and :math:`h_1 = O_1\,g(b_1)`, since :math:`h_0` is the
image; s and t are linear in the class and in the features of the pixel, if there are some. :math:`W_l` has (k + 1) / 2
rows of k columns, the last of them the pixel's own row; :math:`v_0` is the image moved down by a row, so that this row
of it is the one above. :math:`U_l` has one row of (k + 1) / 2 columns, the last of them the pixel's own. Masks of types
A (in the first layer) and B apply there, in :math:`O_l` and in the output layers; rows above are whole, and need none.
A logistic mixture of three channels is a joint distribution, and of other numbers of channels a product: both are given
earlier pixels only.

The halved argument makes one sigmoid serve both halves, :math:`\tanh(z/2) = 2 \sigma(z) - 1`; it is a matter of how
weights are scaled.

References:
    Conditional Image Generation with PixelCNN Decoders, A. van den Oord, N. Kalchbrenner, O. Vinyals, L. Espeholt, A.
    Graves, K. Kavukcuoglu, NeurIPS 2016, https://arxiv.org/abs/1606.05328
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.causal import Canvas, CausalNetwork, PixelKernel, Progress, Window
from davi.layers.masked import MaskType, causal_mask, degrees
from davi.layers.pixel_head import LikelihoodConfig
from davi.model import CausalModel

SOFTMAX = 256
"""The most levels for which a pixel is categorical, if the likelihood has no family of its own."""


@dataclass(frozen=True)
class GatedPixelCNNConfig:
    """Options of :class:`GatedPixelCNN`.

    Arguments:
        width: F, channels of each stack.
        layers: gated layers.
        kernel: k of all layers but the first; odd.
        first_kernel: k of the first layer; odd, at least 3.
        head_width: channels between the two output layers.
        skips: the output layers see the sum of a 1x1 convolution of every :math:`g(b_l)` in place of the last
            :math:`h_l`.
        dropout: share of the values of every :math:`g(b_l)` that training sets to zero.
        likelihood: family and options of a pixel's distribution. Without a family it is Bernoulli at two levels,
            categorical up to 256, a logistic mixture beyond.
    """

    width: int = 32
    layers: int = 6
    kernel: int = 3
    first_kernel: int = 7
    head_width: int = 64
    skips: bool = False
    dropout: float = 0.0
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        for name in ("width", "layers", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name, least in (("kernel", 1), ("first_kernel", 3)):
            if getattr(self, name) < least or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected an odd number, at least {least}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 to below 1")


def gate(z: Tensor, dim: int = 1) -> Tensor:
    """tanh(z_1 / 2) sigmoid(z_2), with z_1 and z_2 the halves of the channels."""
    first, second = z.sigmoid().chunk(2, dim)
    return (2.0 * first - 1.0) * second


@final
class CausalConv2d(nn.Module):
    """A convolution whose last tap in its last row is that of the pixel itself, or has as many columns on both sides.

    Arguments:
        inputs, outputs: degrees of the channels, as in :class:`~davi.layers.MaskedConv2d`.
        rows: of the kernel, the last of them the pixel's own.
        left, right: columns before and after the pixel's own. With some on the right, the pixel's own row must hold
            whole earlier pixels only, and there is no mask.
        mask_type: of the pixel itself; None: no mask.
    """

    mask: Tensor | None

    def __init__(
        self,
        inputs: Tensor,
        outputs: Tensor,
        rows: int = 1,
        left: int = 0,
        right: int = 0,
        mask_type: MaskType | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.left, self.right, self.top = left, right, rows - 1
        self.conv = nn.Conv2d(len(inputs), len(outputs), (rows, left + 1 + right), bias=bias)
        mask = None
        if mask_type is not None:
            own = causal_mask(inputs, outputs, mask_type=mask_type)  # [out, in, 1, 1]
            before = own.new_ones(len(outputs), len(inputs), 1, left)
            mask = torch.cat([before, own], 3)
        self.register_buffer("mask", mask, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The masked kernels, ``[out, in, rows, columns]``."""
        weight: Tensor = self.conv.weight
        return weight if self.mask is None else weight * self.mask.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        padding = (self.left, self.right, self.top, 0)
        return F.conv2d(F.pad(x, padding) if any(padding) else x, self.weight, self.conv.bias)

    def at_a_pixel(self) -> PixelKernel:
        """The same for one pixel at a time."""
        return PixelKernel(self.weight, self.conv.bias)


@final
class GatedLayer(nn.Module):
    """One layer of both stacks (module docstring).

    Arguments:
        config: the options.
        inputs: degrees of the channels of h: of the image in the first layer, else of h.
        hidden: degrees of the channels of h, ``[F]``.
        first: whether the inputs are those of the image.
        last: whether no other layer follows.
        classes: number of classes; 0: none.
        features: channels of the features; 0: none.
    """

    def __init__(
        self,
        config: GatedPixelCNNConfig,
        inputs: Tensor,
        hidden: Tensor,
        first: bool,
        last: bool,
        classes: int,
        features: int,
    ) -> None:
        super().__init__()
        reach = (config.first_kernel if first else config.kernel) // 2
        halves = torch.cat([hidden, hidden])  # both halves of a gate have the same degrees
        self.first = first
        self.vertical = CausalConv2d(inputs, halves, reach if first else reach + 1, reach, reach)
        self.across = nn.Conv2d(len(halves), len(halves), 1)
        self.horizontal = CausalConv2d(inputs, halves, 1, reach, mask_type="A" if first else "B", bias=False)
        # The last h is not looked at if the output layers see what skips.
        self.output = None if last and config.skips else CausalConv2d(hidden, hidden, mask_type="B")
        self.skip = CausalConv2d(hidden, hidden, mask_type="B") if config.skips else None
        self.dropout = nn.Dropout(config.dropout)
        self.labels = nn.Embedding(classes, 2 * len(halves)) if classes else None
        self.features = nn.Conv2d(features, 2 * len(halves), 1) if features else None
        self._initialize()

    def _initialize(self) -> None:
        """Weights that keep the size of what passes a layer; what is conditioned on plays no part at first."""
        for layer in (self.vertical.conv, self.across, self.horizontal.conv):
            nn.init.normal_(layer.weight, std=(1.0 / layer.weight[0].numel()) ** 0.5)
            with torch.no_grad():
                layer.weight[: len(layer.weight) // 2] *= 2.0  # the gate halves what is given to its tanh
        for given in (self.labels, self.features):
            for parameter in () if given is None else given.parameters():
                nn.init.zeros_(parameter)

    def given(self, features: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """What s and t of the module docstring are beside their biases, ``[B, 2 F, H or 1, W or 1]`` each; None: 0."""
        found = None if self.features is None else self.features(features)
        if self.labels is not None and y is not None:
            rows = self.labels(y.long())[..., None, None]
            found = rows if found is None else found + rows
        return None if found is None else found.chunk(2, 1)

    def forward(
        self, v: Tensor, h: Tensor, features: Tensor | None, y: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both stacks one layer further, and what skips to the output layers."""
        given = self.given(features, y)
        a = self.vertical(v)
        a = a if given is None else a + given[0].to(a.dtype)
        b = self.horizontal(h) + self.across(a)
        b = b if given is None else b + given[1].to(b.dtype)
        passed = self.dropout(gate(b))
        out = passed if self.output is None else self.output(passed)
        return gate(a), out if self.first else h + out, None if self.skip is None else self.skip(passed)


@final
class GatedProgress(Progress):
    """What is known of images that are drawn: a few rows of the vertical stack, one of the horizontal.

    Arguments:
        network: whose images they are.
        n: images.
        features, y: as :meth:`GatedPixelCNNNetwork.forward` takes them.
    """

    def __init__(self, network: GatedPixelCNNNetwork, n: int, features: Tensor | None, y: Tensor | None) -> None:
        super().__init__(network.shape, network.parts)
        width, like = network.shape[2], next(network.parameters())
        self.layers = [layer for layer in network.layers if isinstance(layer, GatedLayer)]
        self.given = [layer.given(features, y) for layer in self.layers]
        self.vertical = [(layer.vertical.weight, layer.vertical.conv.bias) for layer in self.layers]
        self.horizontal = [layer.horizontal.at_a_pixel() for layer in self.layers]
        self.output = [None if layer.output is None else layer.output.at_a_pixel() for layer in self.layers]
        self.skip = [layer.skip.at_a_pixel() for layer in self.layers if layer.skip is not None]
        self.head = [layer.at_a_pixel() for layer in (network.hidden, network.last)]
        self.above = []  # the rows that the next row of each layer's vertical convolution sees, zeros beside them
        self.left = []  # the row that each layer's horizontal convolution sees
        for (kernel, _), layer in zip(self.vertical, self.layers, strict=True):
            channels, rows, columns = kernel.shape[1:]
            self.above.append(like.new_zeros(n, channels, rows, width + columns - 1))
            self.left.append(Canvas(n, channels, 1, width, like, left=layer.horizontal.left))
        self.across: list[Tensor] = []  # what the vertical stack tells each pixel of the row, [B, W, 2 F]

    def next_row(self, row: Tensor) -> None:
        """The vertical stack of a row, given the row of the image above it, ``[B, C, 1, W]``."""
        self.across = []
        for number, layer in enumerate(self.layers):
            beside = layer.vertical.left
            self.above[number] = torch.cat([self.above[number][:, :, 1:], F.pad(row, (beside, beside))], 2)
            a = F.conv2d(self.above[number], *self.vertical[number]) + self._given(number, 0)
            told = layer.across(a) + self._given(number, 1)
            self.across.append(told[:, :, 0].transpose(1, 2))
            row = gate(a)

    def _given(self, number: int, stack: int) -> Tensor | float:
        """What a layer is given in the row, ``[B, 2 F, 1, W or 1]``."""
        given = self.given[number]
        if given is None:
            return 0.0
        return given[stack] if given[stack].shape[2] == 1 else given[stack][:, :, self.row : self.row + 1]

    def next_pixel(self, row: Tensor) -> Tensor:
        """The parameters of the pixel, ``[B, P]``, given its row of the image, ``[B, C, W]``."""
        column, h, skipped = self.column, row[:, :, self.column], torch.zeros(())
        if column and self.part == 0:  # the last channel of the pixel before was not known when it was its turn
            self.left[0].put(0, column - 1, row[:, :, column - 1])
        for number, canvas in enumerate(self.left):
            canvas.put(0, column, h)
            kernel = self.horizontal[number]
            window = canvas.window(0, column - kernel.size[1] + 1, *kernel.size)
            passed = gate(kernel(window) + self.across[number][:, column])
            if self.skip:
                skipped = skipped + self.skip[number](passed)
            output = self.output[number]
            out = passed if output is None else output(passed)
            h = h + out if number else out
        hidden, last = self.head
        return last(hidden((skipped if self.skip else h).relu()).relu())


@final
class GatedPixelCNNNetwork(CausalNetwork[GatedProgress]):
    """The two stacks and the output layers (module docstring)."""

    name = "gated_pixelcnn"
    Config = GatedPixelCNNConfig
    config: GatedPixelCNNConfig

    def __init__(
        self,
        shape: tuple[int, int, int],
        levels: int,
        config: GatedPixelCNNConfig,
        classes: int = 0,
        features: int = 0,
        embedding: int = 0,
    ) -> None:
        super().__init__(shape, levels, config, classes, features, embedding)
        channels = shape[0]
        self.head = self.make_head(SOFTMAX)
        self.parts = 1 if self.head.likelihood.family == "logistic_mixture" else channels
        pixel, hidden = degrees(self.inputs, self.parts), degrees(config.width, self.parts)
        self.layers = nn.ModuleList(
            GatedLayer(
                config, hidden if number else pixel, hidden, number == 0, number == config.layers - 1, classes, features
            )
            for number in range(config.layers)
        )
        between = degrees(config.head_width, self.parts)
        self.hidden = CausalConv2d(hidden, between, mask_type="B")
        self.last = CausalConv2d(between, torch.arange(self.head.inputs) % self.parts, mask_type="B")

    def forward(self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        h = self.scaled(x)
        v = F.pad(h, (0, 0, 1, -1))  # moved down by a row
        skipped = None
        for layer in self.layers:
            v, h, skip = layer(v, h, features, y)
            skipped = skip if skipped is None else skipped + skip
        seen = h if skipped is None else skipped
        raw: Tensor = self.last(self.hidden(seen.relu()).relu())
        return raw

    @property
    def window(self) -> Window:
        """Both stacks reach half a kernel further with each layer, upwards, to the left and to the right."""
        reach = self.config.first_kernel // 2 + (self.config.layers - 1) * (self.config.kernel // 2)
        return Window(reach, reach)

    def compilable(self) -> Iterable[nn.Module]:
        return self.layers.children()

    def start(self, n: int, features: Tensor | None = None, y: Tensor | None = None) -> GatedProgress:
        return GatedProgress(self, n, features, y)

    def advance(self, state: GatedProgress, x: Tensor) -> Tensor:
        rows = self.scaled(x[:, :, max(0, state.row - 1) : state.row + 1])
        if state.column == 0 and state.part == 0:
            state.next_row(rows[:, :, :1] if state.row else torch.zeros_like(rows))
        raw = state.next_pixel(rows[:, :, -1])
        state.step()
        return raw[..., None, None]


@final
class GatedPixelCNN(CausalModel):
    """Gated PixelCNN (module docstring).

    Arguments:
        shape, levels, config, classes: as every :class:`~davi.model.CausalModel` takes them.
    """

    name = "gated_pixelcnn"
    Config = GatedPixelCNNConfig
    config: GatedPixelCNNConfig
    Causal = GatedPixelCNNNetwork
