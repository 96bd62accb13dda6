r"""Real NVP: affine couplings on checkerboards and halves of channels, at several scales.

Dequantized pixels y in [0, 1) go to :math:`h_0 = \operatorname{logit}(\alpha + (1 - 2\alpha) y)` with
:math:`\alpha = 0.05`. A coupling divides its input into a part a, which stays, and a part b of :math:`n_b` values, and
changes b by what a network says of a:

.. math:: b' = (b + t(a)) \, e^{\ell(a)}, \qquad \ell(a) = s \tanh r(a), \qquad
          b'' = \frac{b' - m}{\sqrt{v + \epsilon}}, \qquad
          \log \left| \det \frac{\partial b''}{\partial b} \right|
          = \sum_{i=1}^{n_b} \bigl( \ell_i - \tfrac{1}{2} \log (v_i + \epsilon) \bigr)

with one learned number s for each coupling, so that :math:`|\ell| \le |s|`, and a batch norm whose m and v are running
statistics of the channels, or those of the batch in training (:mod:`davi.flows.batch_norm`).

A scale has three couplings on checkerboards, in turn on either color, then every 2 x 2 pixels become one with four
times the channels, and three couplings on halves of the channels follow. Half of the channels go on to the next scale,
the pixels on the first diagonal of each 2 x 2 block, as they have become; the others are done. The last scale has four
couplings on checkerboards and nothing else. What is done at any scale is standard Normal.

The network of a coupling is residual. Its kernels are weight-normalized, with learned lengths in all layers but the
first, W, and the first of each block, and what leaves it is a sum over all blocks:

.. math:: x_0 = W * \operatorname{relu}([\hat a, -\hat a, \mathrm{mask}]), \qquad x_{i} = x_{i-1} + f_i(x_{i-1}), \qquad
          (t, r) = O \operatorname{relu} \operatorname{norm} \sum_{i} S_i x_i

with :math:`\hat a` the normalized a, and 1x1 convolutions O and :math:`S_i`.

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Normal
from davi.flows import (
    Bijection,
    Coupling,
    Dequantization,
    Elementwise,
    FlowBatchNorm,
    Logit,
    MultiScale,
    Reorder,
    Sequential,
    Squeeze,
)
from davi.flows.batch_norm import ShiftedBatchNorm
from davi.flows.multiscale import padding_of
from davi.flows.noise import DequantizationSection, UniformConfig, make_noise
from davi.flows.splits import Channels, Checkerboard
from davi.model import Invertible

Moments = Literal["masked", "original"]
"""What the statistics of a batch are about where a checkerboard divides an image (:class:`RealNVPConfig`)."""
ALPHA = 0.05
"""Distance of the logit's argument from 0 and 1, at least."""
_DIAGONALS = (0, 3, 1, 2)
"""Offsets within 2 x 2 pixels, row by row: those of the first diagonal first."""


@dataclass(frozen=True)
class RealNVPConfig:
    """Options of :class:`RealNVP`.

    Arguments:
        scales: how many; each but the last halves height and width.
        width: channels of the networks on checkerboards at the first scale. At each further scale it is twice as many,
            and twice as many again on halves of channels.
        blocks: residual blocks of each network.
        length_penalty: what training adds to the loss, in nats per image, for the sum of the squares of all learned
            lengths of kernels, and of s on checkerboards.
        moments: masked: on checkerboards a batch norm takes mean and variance of the positions that it is about.
            original: it takes those of the whole image with zeros in the place of the other positions, and a network
            sees twice what it normalizes, as in the authors' program.
        dequantization: the noise.
    """

    scales: int = 2
    width: int = 32
    blocks: int = 4
    length_penalty: float = 5e-5
    moments: Moments = "masked"
    dequantization: DequantizationSection = field(default_factory=UniformConfig)

    def __post_init__(self) -> None:
        for name in ("scales", "width", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 <= self.length_penalty < math.inf:
            raise ValueError(f"length_penalty: got {self.length_penalty}, expected a finite number >= 0")


@final
class NormalizedConv2d(nn.Module):
    r"""A convolution with 'same' padding and kernels :math:`w_o = g_o v_o / \|v_o\|`.

    At first v is uniform on :math:`\pm d` and :math:`g_o = d \sqrt{n / 12}` for n weights, d being the standard
    deviation that keeps the size of what passes.

    Arguments:
        channels: of the input and of the output.
        kernel_size: odd.
        length: whether g is learned; 1 if not.
        bias: whether to add one.
        gain: d is the root of ``gain / n``: 2 behind a rectifier.
    """

    def __init__(
        self, channels: tuple[int, int], kernel_size: int, length: bool = True, bias: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__()
        inputs, outputs = channels
        count = inputs * kernel_size**2
        spread = (gain / count) ** 0.5
        self.v = nn.Parameter(torch.empty(outputs, inputs, kernel_size, kernel_size).uniform_(-spread, spread))
        self.g = nn.Parameter(torch.full((outputs,), spread * (count / 12) ** 0.5)) if length else None
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def kernels(self) -> Tensor:
        """The kernels in use, ``[out, in, k, k]``."""
        scale = 1.0 / torch.linalg.vector_norm(self.v, dim=(1, 2, 3))
        return self.v * (scale if self.g is None else scale * self.g).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernels(), self.bias, padding=self.v.shape[2] // 2)


@final
class Block(nn.Module):
    """f of the module docstring, with its input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in = ShiftedBatchNorm(width)
        self.conv_in = NormalizedConv2d((width, width), 3, length=False, bias=False, gain=2.0)
        self.norm_out = ShiftedBatchNorm(width)
        self.conv_out = NormalizedConv2d((width, width), 3, gain=2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(self.norm_in(x).relu())
        out: Tensor = x + self.conv_out(self.norm_out(h).relu())
        return out


@final
class ResidualNetwork(nn.Module):
    """``[B, inputs, H, W] -> [B, outputs, H, W]`` (module docstring)."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.conv_in = NormalizedConv2d((inputs, width), 3, length=False, gain=2.0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.skips = nn.ModuleList(NormalizedConv2d((width, width), 1) for _ in range(blocks + 1))
        self.norm_out = ShiftedBatchNorm(width)
        self.conv_out = NormalizedConv2d((width, outputs), 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        first, *others = self.skips
        total = first(h)
        for block, skip in zip(self.blocks, others, strict=True):
            h = block(h)
            total = total + skip(h)
        out: Tensor = self.conv_out(self.norm_out(total).relu())
        return out


@final
class CheckerboardNetwork(nn.Module):
    """Looks at one color of a checkerboard and speaks of the other.

    Arguments:
        split: of images of ``size``.
        channels: of the image.
        size: (H, W).
        width: of the network.
        config: the options.
    """

    mask: Tensor

    def __init__(
        self, split: Checkerboard, channels: int, size: tuple[int, int], width: int, config: RealNVPConfig
    ) -> None:
        super().__init__()
        self.split, self.moments = split, config.moments
        self.norm_in = ShiftedBatchNorm(channels)
        self.network = ResidualNetwork(2 * channels + 1, width, 2 * channels, config.blocks)
        a, b = split.split(torch.zeros(1, 1, *size))
        self.blank = tuple(b.shape[2:])
        self.register_buffer("mask", split.merge(torch.ones_like(a), b), persistent=False)  # [1, 1, H, W]

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        original = self.moments == "original"
        x = 2.0 * self.norm_in(self._masked(a)) if original else self._masked(self.norm_in(a))
        mask = self.mask.to(x.dtype).expand(len(x), -1, -1, -1)
        raw = self.network(torch.cat((x, -x, mask), 1).relu())
        return self.split.split(raw)[1]

    def _masked(self, a: Tensor) -> Tensor:
        """The whole image, with zeros in the place of the other color."""
        return self.split.merge(a, a.new_zeros(*a.shape[:2], *self.blank))


@final
class HalfNetwork(nn.Module):
    """Looks at half of the channels and speaks of the other half.

    Arguments:
        channels: of each half.
        width: of the network.
        config: the options.
    """

    def __init__(self, channels: int, width: int, config: RealNVPConfig) -> None:
        super().__init__()
        self.norm_in = ShiftedBatchNorm(channels)
        self.network = ResidualNetwork(2 * channels, width, 2 * channels, config.blocks)

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        a = self.norm_in(a)
        raw: Tensor = self.network(torch.cat((a, -a), 1).relu())
        return raw


@final
class ShiftThenScale(Elementwise):
    """b -> b'' of the module docstring.

    Arguments:
        norm: the batch norm.
        scale: s at first.
    """

    numbers = 2

    def __init__(self, norm: FlowBatchNorm, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.norm = norm

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.scale * raw[:, 1].tanh()
        y, log_norm = self.norm((x + raw[:, 0]) * log_scale.exp())
        return y, log_scale + log_norm

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self.scale * raw[:, 1].tanh()
        x, log_norm = self.norm.inverse(y)
        return x * (-log_scale).exp() - raw[:, 0], log_norm - log_scale


def on_checkerboard(channels: int, size: tuple[int, int], width: int, number: int, config: RealNVPConfig) -> Coupling:
    """The coupling of a number: the even ones look at positions whose row and column have an even sum."""
    split = Checkerboard(flipped=number % 2 == 1, size=size)
    network = CheckerboardNetwork(split, channels, size, width, config)
    zeros = size[0] * size[1] - math.prod(network.blank) if config.moments == "original" else 0
    return Coupling(split, ShiftThenScale(FlowBatchNorm(channels, zeros), 0.0), network)


def on_halves(channels: int, width: int, number: int, config: RealNVPConfig) -> Coupling:
    """The coupling of a number: the even ones look at the first half of an even number of channels."""
    split = Channels(channels, flipped=number % 2 == 1)
    norm = FlowBatchNorm(channels // 2)
    return Coupling(split, ShiftThenScale(norm, 1.0), HalfNetwork(channels // 2, width, config))


@final
class RealNVP(Invertible):
    """Real NVP (module docstring). Images whose height and width are no multiples of what all halvings together divide
    by are padded (:class:`~davi.flows.Dequantization`)."""

    name = "real_nvp"
    Config = RealNVPConfig
    config: RealNVPConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: RealNVPConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        unit = 2 ** (config.scales - 1)
        channels, height, width = self.shape
        rows, columns = padding_of(height, width, config.scales, config.scales - 1)
        noise = make_noise((channels, height + rows, width + columns), levels, config.dequantization)
        self.dequantization = Dequantization(levels, noise=noise, padding=(rows, columns))
        scales, shapes = [], []
        size = (height + rows, width + columns)
        for number in range(config.scales - 1):
            scales.append(self._scale(channels, size, config.width * 2**number))
            channels, size = 2 * channels, (size[0] // 2, size[1] // 2)
            shapes.append((channels, *size))
        couplings = (on_checkerboard(channels, size, config.width * unit, k, config) for k in range(4))
        scales.append(Sequential(*couplings))
        shapes.append((channels, *size))
        self.shapes = tuple(shapes)
        self.bijection = Sequential(Logit(ALPHA), MultiScale(scales, self.shapes))

    def _scale(self, channels: int, size: tuple[int, int], width: int) -> Bijection:
        """A scale that is not the last."""
        squeezed = 4 * channels
        diagonals = [4 * channel + offset for offset in _DIAGONALS for channel in range(channels)]
        return Sequential(
            *(on_checkerboard(channels, size, width, number, self.config) for number in range(3)),
            Squeeze(),
            *(on_halves(squeezed, 2 * width, number, self.config) for number in range(3)),
            Reorder(diagonals),
        )

    @property
    def scales(self) -> MultiScale:
        """What comes after the logit."""
        assert isinstance(self.bijection, Sequential)
        found = list(self.bijection)[-1]
        assert isinstance(found, MultiScale)
        return found

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.shapes

    def base(self, n: int) -> Normal:
        zeros = next(self.parameters()).new_zeros(n, sum(map(math.prod, self.shapes)))
        return Normal(zeros, torch.ones_like(zeros))

    def penalties(self) -> dict[str, Tensor]:
        """The penalty on learned lengths and on s of checkerboards."""
        if not self.config.length_penalty:
            return {}
        squares = [
            part.g.square().sum()
            for part in self.modules()
            if isinstance(part, NormalizedConv2d) and part.g is not None
        ]
        couplings = [part for part in self.modules() if isinstance(part, Coupling)]
        squares += [
            part.function.scale.square()
            for part in couplings
            if isinstance(part.split, Checkerboard) and isinstance(part.function, ShiftThenScale)
        ]
        return {"lengths": self.config.length_penalty * torch.stack(squares).sum()}

    def blocks(self) -> Iterable[nn.Module]:
        return (module for module in self.modules() if isinstance(module, ResidualNetwork))
