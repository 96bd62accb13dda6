r"""The convolutions and residual cells of NVAE.

A cell is :math:`\mathrm{skip}(x) + 0.1\,\mathrm{SE}(f(x))`. In the encoder f is twice batch norm, swish, 3x3
convolution; in the decoder it is an inverted residual: widen the features with a 1x1 convolution, let every channel see
its 5x5 neighborhood on its own (a depth-wise convolution is cheap and has a large receptive field), narrow them again.
Either way can have either of the two (:class:`CellBody`), and for the comparisons of the paper weight normalization in
place of batch norms, and ELU in place of swish.

References:
    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898

    MobileNetV2: Inverted Residuals and Linear Bottlenecks, M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen,
    CVPR 2018, https://arxiv.org/abs/1801.04381
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.checkpointed import Checkpointed
from davi.layers.convolution import SqueezeExcite, with_length
from davi.layers.depthwise import depthwise_conv2d
from davi.layers.residual import FactorizedReduce
from davi.layers.reversible import ReversibleStack

Resize = Literal["keep", "halve", "double"]
"""What a cell does to the resolution. Halving it doubles the width, doubling it halves the width."""

BodyKind = Literal["regular", "separable"]
"""Two 3x3 convolutions, or an inverted residual."""

Normalization = Literal["batch", "weight"]
Activation = Literal["swish", "elu"]

RESIDUAL_SCALE = 0.1
"""Factor on what a cell adds to its input."""


@final
class KernelConv2d(nn.Module):
    r"""A convolution with 'same' padding and, unless told otherwise, weight normalization.

    It is :func:`~davi.layers.convolution.with_length` with a margin of :math:`10^{-5}`; at first
    :math:`g_o = \log(\|v_o\| + 10^{-2})`.

    Arguments:
        in_channels, out_channels: widths.
        kernel_size: odd.
        stride: 1 or 2.
        bias: whether to add a bias.
        groups: of channels that do not see one another.
        weight_norm: without it the kernels are the parameters v themselves.
        mask: which weights there are, ``[out, in / groups, k, k]``, true or false; None: all. The others are 0 in v.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = True,
        groups: int = 1,
        weight_norm: bool = True,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias, groups=groups)
        self.stride, self.padding, self.groups = stride, kernel_size // 2, groups
        self.depthwise = groups == in_channels == out_channels and stride == 1 and not bias
        self.v = plain.weight
        self.bias = plain.bias
        self.mask: Tensor | None
        self.register_buffer("mask", mask, persistent=False)
        self.log_g = nn.Parameter(torch.empty(out_channels)) if weight_norm else None
        self.reset_length()

    def extra_repr(self) -> str:
        (out_channels, per_group), size = self.v.shape[:2], self.v.shape[2]
        return f"{per_group * self.groups}, {out_channels}, kernel_size={size}, stride={self.stride}"

    @torch.no_grad()
    def reset_length(self, factor: float = 1.0) -> None:
        """Set g so that the kernels have (nearly) the length of v, times ``factor``."""
        if self.log_g is not None and not self.v.is_meta:
            self.log_g.copy_(torch.log(factor * (self._masked().flatten(1).norm(dim=1) + 1e-2)))

    def kernels(self) -> Tensor:
        """The kernels in use, ``[out, in / groups, k, k]``."""
        v = self._masked()
        return v if self.log_g is None else with_length(v, self.log_g, margin=1e-5)

    def _masked(self) -> Tensor:
        return self.v if self.mask is None else self.v * self.mask

    def forward(self, x: Tensor) -> Tensor:
        if self.depthwise:
            return depthwise_conv2d(x, self.kernels())
        return F.conv2d(x, self.kernels(), self.bias, self.stride, self.padding, groups=self.groups)


@dataclass(frozen=True)
class CellBody:
    """What f is made of.

    Arguments:
        kind: its convolutions.
        normalization: batch norms; or none, and weight normalization of every convolution.
        activation: between the convolutions.
        expansion: how many times a separable one widens the features.
    """

    kind: BodyKind
    normalization: Normalization = "batch"
    activation: Activation = "swish"
    expansion: int = 6

    def before(self, channels: int) -> list[nn.Module]:
        """What stands before a convolution."""
        nonlinearity: nn.Module = nn.SiLU() if self.activation == "swish" else nn.ELU()
        return [*self.norm(channels), nonlinearity]

    def norm(self, channels: int) -> list[nn.Module]:
        """A batch norm, if there are any."""
        return [batch_norm(channels)] if self.normalization == "batch" else []

    def build(self, channels: int, width: int) -> nn.Sequential:
        """f from ``channels`` to ``width``, which is twice as many where it halves the resolution, half as many where
        it doubles it."""
        first: list[nn.Module] = [nn.Upsample(scale_factor=2, mode="nearest")] if width < channels else []
        stride = 2 if width > channels else 1
        make = self._regular if self.kind == "regular" else self._separable
        return nn.Sequential(*first, *make(channels, width, stride))

    def _regular(self, channels: int, width: int, stride: int) -> list[nn.Module]:
        first = [*self.before(channels), KernelConv2d(channels, width, 3, stride=stride)]
        return [*first, *self.before(width), KernelConv2d(width, width, 3)]

    def _separable(self, channels: int, width: int, stride: int) -> list[nn.Module]:
        wide, own = self.expansion * channels, self.normalization == "weight"  # a norm has the bias, and the length
        body = [*self.norm(channels), KernelConv2d(channels, wide, 1, bias=own, weight_norm=own)]
        body += [*self.before(wide), KernelConv2d(wide, wide, 5, stride, bias=own, groups=wide, weight_norm=own)]
        body += [*self.before(wide), KernelConv2d(wide, width, 1, bias=own, weight_norm=own), *self.norm(width)]
        return body


REGULAR = CellBody("regular")
"""The paper's on the way up."""


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """As in NVAE: running statistics move by a twentieth."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.05)


@final
class DoubleAndHalve(nn.Module):
    """The skip connection of a cell that doubles the resolution: bilinear with aligned corners, 1x1 without bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = KernelConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size = (2 * x.shape[2], 2 * x.shape[3])
        result: Tensor = self.conv(F.interpolate(x, size=size, mode="bilinear", align_corners=True))
        return result


@final
class Cell(Checkpointed):
    """A residual cell (module docstring).

    Arguments:
        skip: what the input becomes where it passes by.
        body: f.
        channels: of the output.
        squeeze_excite: gate the channels of the body's output.
    """

    def __init__(self, skip: nn.Module, body: nn.Sequential, channels: int, squeeze_excite: bool) -> None:
        super().__init__()
        self.skip = skip
        self.body = body
        self.squeeze_excite = SqueezeExcite(channels, bias=True) if squeeze_excite else None

    def compute(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        out: Tensor = torch.add(self.skip(x), y, alpha=RESIDUAL_SCALE)
        return out


@final
class CellBranch(nn.Module):
    """What a cell adds to its input, 0.1 SE(f(x)), by itself; the arguments are those of :class:`Cell`."""

    def __init__(self, body: nn.Sequential, channels: int, squeeze_excite: bool) -> None:
        super().__init__()
        self.body = body
        self.squeeze_excite = SqueezeExcite(channels, bias=True) if squeeze_excite else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return RESIDUAL_SCALE * (y if self.squeeze_excite is None else self.squeeze_excite(y))


def encoder_cell(channels: int, squeeze_excite: bool, resize: Resize = "keep", body: CellBody = REGULAR) -> Cell:
    """A cell of the way up: batch norm, swish, 3x3 convolution, twice; the first changes resolution and width."""
    width = 2 * channels if resize == "halve" else channels
    skip = FactorizedReduce(channels, width, KernelConv2d) if resize == "halve" else nn.Identity()
    return Cell(skip, body.build(channels, width), width, squeeze_excite)


def decoder_cell(
    channels: int, expansion: int, squeeze_excite: bool, resize: Resize = "keep", body: CellBody | None = None
) -> Cell:
    """A cell of the way down: an inverted residual that widens the features ``expansion`` times, or another body."""
    width = channels // 2 if resize == "double" else channels
    skip = DoubleAndHalve(channels, width) if resize == "double" else nn.Identity()
    return Cell(skip, _of_decoder(body, expansion).build(channels, width), width, squeeze_excite)


def encoder_cells(
    channels: int, count: int, squeeze_excite: bool, reversible: bool, body: CellBody = REGULAR
) -> list[nn.Module]:
    """Cells of the way up that keep the resolution, one after the other; or one reversible stack of as many."""
    if reversible and count:
        return [_stack(channels, count, squeeze_excite, body)]
    return [encoder_cell(channels, squeeze_excite, body=body) for _ in range(count)]


def decoder_cells(
    channels: int, count: int, expansion: int, squeeze_excite: bool, reversible: bool, body: CellBody | None = None
) -> list[nn.Module]:
    """The same of the way down."""
    if reversible and count:
        return [_stack(channels, count, squeeze_excite, _of_decoder(body, expansion))]
    return [decoder_cell(channels, expansion, squeeze_excite, body=body) for _ in range(count)]


def _of_decoder(body: CellBody | None, expansion: int) -> CellBody:
    return replace(CellBody("separable") if body is None else body, expansion=expansion)


def _stack(channels: int, count: int, squeeze_excite: bool, body: CellBody) -> ReversibleStack:
    def branch(width: int) -> nn.Module:
        return CellBranch(body.build(width, width), width, squeeze_excite)

    return ReversibleStack(channels, count, branch)
