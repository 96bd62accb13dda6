r"""Convolutions that see only what lies above or to the left, with weight normalization, and gated blocks of them.

A *down-shifted* convolution sees its own row and rows above, columns to both sides; a *down-right-shifted* one sees its
own row and rows above, its own column and columns to the left. The zeros lie on top and at the sides, so nothing is
masked. Kernels of output channel o are

.. math:: w_o = g_o \, V_o / \sqrt{\max(\|V_o\|^2, 10^{-12})}

and the bias b is added as it is. From a batch of images, layer after layer, every layer gets the length
:math:`g = s / \sqrt{\mathrm{Var} + \epsilon}` and the bias :math:`b = -g\,\mathrm{mean}` of what it computes with
length one and no bias (:func:`initializing`), so that its outputs have mean 0 and standard deviation s over the batch.

References:
    PixelCNN++, T. Salimans, A. Karpathy, X. Chen, D. P. Kingma, ICLR 2017, https://arxiv.org/abs/1701.05517

    Weight Normalization, T. Salimans, D. P. Kingma, NeurIPS 2016, https://arxiv.org/abs/1602.07868
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.checkpointed import Checkpointed

Shift = Literal["down", "down_right"]
Nonlinearity = Literal["concat_elu", "elu", "relu"]


def concat_elu(x: Tensor) -> Tensor:
    """elu of x and of -x, side by side: twice the channels."""
    return F.elu(torch.cat([x, -x], 1))


NONLINEARITIES: dict[Nonlinearity, tuple[Callable[[Tensor], Tensor], int]] = {
    "concat_elu": (concat_elu, 2),
    "elu": (F.elu, 1),
    "relu": (F.relu, 1),
}
"""Name -> function on ``[B, C, ...]``, and how many channels it makes of each."""


def shift_down(x: Tensor) -> Tensor:
    """Every row moves down by one; zeros enter."""
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x: Tensor) -> Tensor:
    """Every column moves right by one; zeros enter."""
    return F.pad(x, (1, 0))[..., :-1]


class WeightNormalized(nn.Module, ABC):
    """A convolution whose kernels have direction V and length g as separate parameters (module docstring).

    Arguments:
        shape: of V.
        dim: the dimension of V that counts output channels.
        init_scale: s, the standard deviation of the outputs after initialization from images.
        epsilon: beside the variance there.
    """

    initializing: frozenset[str] = frozenset()
    """Which of ``g`` and ``b`` the next pass sets from its input."""

    def __init__(self, shape: tuple[int, ...], dim: int, init_scale: float, epsilon: float) -> None:
        super().__init__()
        self.v = nn.Parameter(0.05 * torch.randn(shape))
        self.g = nn.Parameter(torch.ones(shape[dim]))
        self.b = nn.Parameter(torch.zeros(shape[dim]))
        self.dim, self.init_scale, self.epsilon = dim, init_scale, epsilon

    @abstractmethod
    def convolve(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution, before anything is cropped."""

    def crop(self, y: Tensor) -> Tensor:
        """The part of :meth:`convolve` that is wanted."""
        return y

    def kernels(self, g: Tensor | None = None) -> Tensor:
        """The kernels in use, in the shape of V.

        Arguments:
            g: other lengths than those of the layer.
        """
        shape = [1] * self.v.ndim
        shape[self.dim] = -1
        axes = [d for d in range(self.v.ndim) if d != self.dim]
        # In one order, however V lies in memory, so that saved weights compute the same to the last digit.
        v = self.v.flatten().view(self.v.shape)
        length = v.square().sum(axes).clamp_min(1e-12).sqrt()
        return v * ((self.g if g is None else g) / length).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.initializing:
            self._initialize(x)
        return self.crop(self.convolve(x, self.kernels(), self.b))

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        y = self.convolve(x, self.kernels(torch.ones_like(self.g)), None)
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        g = self.init_scale / (variance + self.epsilon).sqrt()
        if "g" in self.initializing:
            self.g.copy_(g)
        if "b" in self.initializing:
            self.b.copy_(-mean * g)


@contextmanager
def initializing(network: nn.Module, kept: Container[str] = ()) -> Iterator[None]:
    """Within it, a pass of ``network`` sets the lengths and biases of its layers from its inputs, one after the other.

    Arguments:
        network: has :class:`WeightNormalized` layers.
        kept: names of parameters of the network that stay as they are.
    """
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, WeightNormalized)]
    for name, layer in layers:
        layer.initializing = frozenset(own for own in ("g", "b") if f"{name}.{own}" not in kept)
    try:
        yield
    finally:
        for _, layer in layers:
            del layer.initializing


@final
class ShiftedConv2d(WeightNormalized):
    """A down-shifted or down-right-shifted convolution (module docstring). Its output has ceil(n / stride) rows and
    columns; with stride 2, row r reads rows 2r - 1 and 2r.

    Arguments:
        in_channels, out_channels: widths.
        shift: ``down`` or ``down_right``.
        kernel_size: rows and columns; by default (2, 3) or (2, 2). (1, 1) sees the pixel alone.
        stride: 1 or 2.
        init_scale, epsilon: of :class:`WeightNormalized`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shift: Shift,
        kernel_size: tuple[int, int] | None = None,
        stride: int = 1,
        init_scale: float = 1.0,
        epsilon: float = 1e-10,
    ) -> None:
        rows, columns = kernel_size or ((2, 3) if shift == "down" else (2, 2))
        super().__init__((out_channels, in_channels, rows, columns), 0, init_scale, epsilon)
        self.shift, self.stride = shift, stride
        self.top = rows - 1
        self.left = columns - 1 if shift == "down_right" else (columns - 1) // 2
        self.right = 0 if shift == "down_right" else (columns - 1) // 2

    def extra_repr(self) -> str:
        return f"{self.v.shape[1]}, {self.v.shape[0]}, {self.shift}, {tuple(self.v.shape[2:])}, stride={self.stride}"

    def convolve(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        if self.top or self.left:
            x = F.pad(x, (self.left, self.right, self.top, 0))
        return F.conv2d(x, kernels, bias, self.stride)


def pointwise(in_channels: int, out_channels: int, init_scale: float = 1.0) -> ShiftedConv2d:
    """A layer on the channels of each pixel ("network in network")."""
    return ShiftedConv2d(in_channels, out_channels, "down_right", (1, 1), init_scale=init_scale)


@final
class ShiftedDeconv2d(WeightNormalized):
    """A transposed convolution of stride 2, cropped to twice the size, so that rows 2r and 2r + 1 of the output see
    row r of the input; columns likewise, ``down`` with one more to the right or left.

    The moments of the initialization are those of the whole output of 2n + k - 1 rows and columns before the crop, the
    last of which sees nothing: so in the authors' program.

    Arguments:
        in_channels, out_channels: widths.
        shift: ``down``, with kernels of 2x3, or ``down_right``, 2x2.
    """

    def __init__(self, in_channels: int, out_channels: int, shift: Shift) -> None:
        columns = 3 if shift == "down" else 2
        super().__init__((in_channels, out_channels, 2, columns), 1, 1.0, 1e-10)
        self.shift = shift
        self.left = 1 if shift == "down" else 0

    def convolve(self, x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv_transpose2d(x, kernels, bias, 2, output_padding=1)

    def crop(self, y: Tensor) -> Tensor:
        rows, columns = y.shape[2] - 1, y.shape[3] - self.v.shape[3] + 1
        return y[:, :, :rows, self.left : self.left + columns]


@final
class GatedResnet(Checkpointed):
    r"""A gated residual block.

    .. math:: c = f(\mathrm{conv}_1(f(x)) + N f(a)), \quad
        (s, t) = \mathrm{conv}_2(\mathrm{dropout}(c)) + U h, \quad x + s\,\sigma(t)

    with the nonlinearity f, what comes over a shortcut a, and what is known of the image h: its class, features of each
    pixel, or both.

    Arguments:
        width: channels F of x.
        shift: of the convolutions.
        kernel_size: of the convolutions; None: as :class:`ShiftedConv2d` has it. (1, 1): on each pixel alone.
        shortcut: channels of a; 0: there is none.
        nonlinearity: f.
        dropout: share of c that is dropped in training.
        classes: of images; 0: play no part.
        features: channels of the features; 0: there are none.
        epsilon: of the initialization of the convolutions.
    """

    def __init__(
        self,
        width: int,
        shift: Shift,
        kernel_size: tuple[int, int] | None = None,
        *,
        shortcut: int = 0,
        nonlinearity: Nonlinearity = "concat_elu",
        dropout: float = 0.0,
        classes: int = 0,
        features: int = 0,
        epsilon: float = 1e-10,
    ) -> None:
        super().__init__()
        self.nonlinearity, times = NONLINEARITIES[nonlinearity]
        self.conv1 = ShiftedConv2d(times * width, width, shift, kernel_size, epsilon=epsilon)
        self.shortcut = pointwise(times * shortcut, width) if shortcut else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = ShiftedConv2d(times * width, 2 * width, shift, kernel_size, init_scale=0.1, epsilon=epsilon)
        self.labels = nn.Parameter(0.05 * torch.randn(classes, 2 * width)) if classes else None
        self.features = nn.Conv2d(features, 2 * width, 1, bias=False) if features else None
        if self.features is not None:
            nn.init.normal_(self.features.weight, std=0.05)

    def condition(self, features: Tensor | None, y: Tensor | None) -> Tensor | None:
        """U h, ``[B, 2F, H, W]``, or ``[B, 2F, 1, 1]`` without features, or None without either."""
        known = None if self.features is None or features is None else self.features(features)
        if self.labels is None or y is None:
            return known
        label = self.labels[y.long()][:, :, None, None]
        return label if known is None else known + label

    def compute(
        self, x: Tensor, a: Tensor | None = None, features: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """x ``[B, F, H, W]``, a ``[B, shortcut, H, W]``, features ``[B, features, H, W]``, y ``[B]``."""
        c = self.conv1(self.nonlinearity(x))
        if self.shortcut is not None:
            assert a is not None
            c = c + self.shortcut(self.nonlinearity(a))
        c = self.conv2(self.dropout(self.nonlinearity(c)))
        h = self.condition(features, y)
        return gate(x, c if h is None else c + h)


def gate(x: Tensor, c: Tensor) -> Tensor:
    """x + s sigmoid(t), with c = (s, t) on channels."""
    s, t = c.chunk(2, 1)
    return x + s * torch.sigmoid(t)
