r"""Glow: a flow of several scales whose channels are mixed by learned matrices between couplings.

Noise makes an image continuous, on [-1/2, 1/2). Each of L scales turns blocks of 2x2 pixels into channels and then
takes K *steps*: a scale and a shift for each channel (:mod:`davi.flows.actnorm`), an invertible 1x1 convolution
(:mod:`davi.flows.conv1x1`) and a coupling of the channels' halves,

.. math:: y_a = x_a, \qquad y_b = \sigma(r + 2) \odot (x_b + t), \qquad (r, t) = \mathrm{net}(x_a)

or, additive, :math:`y_b = x_b + t`. After each scale but the last the second half of the channels is let go of; its
prior is Normal, with mean and scale by the first half h that stays: the last coupling of the scale,

.. math:: z = e^{-s(h)} \odot (h' - m(h))

so that all latents are standard Normal variables. The last scale's may have a mean and a scale of their own for each
channel.

Log-scales of every image are bounded: r and s are :math:`8 \tanh(\cdot / 8)` of what a network gives.

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions, D. P. Kingma, P. Dhariwal, NeurIPS 2018,
    https://arxiv.org/abs/1807.03039
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Normal
from davi.flows import (
    ActNorm,
    Additive,
    Bijection,
    Conv1x1,
    Coupling,
    Dequantization,
    Elementwise,
    LUConv1x1,
    MultiScale,
    Sequential,
    Squeeze,
)
from davi.flows.actnorm import standardizing
from davi.flows.base import bounded
from davi.flows.multiscale import padding_of
from davi.flows.noise import DequantizationSection, UniformConfig, make_noise
from davi.flows.splits import Channels
from davi.layers.checkpointed import Checkpointed
from davi.layers.from_data import SetFromData
from davi.model import Invertible

_BOUND = 8.0
"""Limit of what is taken for a log-scale: a guard against overflow that no trained model comes near."""


@dataclass(frozen=True)
class GlowConfig:
    """Options of :class:`Glow`.

    Arguments:
        scales: L.
        steps: K, of each scale.
        width: channels of the couplings' networks.
        coupling: affine or additive.
        convolution: how the matrices of the 1x1 convolutions are held: plain, or as triangular factors (lu).
        learned_top: whether the latents of the last scale have a mean and a scale of their own for each channel.
        dequantization: the noise.
    """

    scales: int = 3
    steps: int = 32
    width: int = 512
    coupling: Literal["affine", "additive"] = "affine"
    convolution: Literal["plain", "lu"] = "plain"
    learned_top: bool = False
    dequantization: DequantizationSection = field(default_factory=UniformConfig)

    def __post_init__(self) -> None:
        for name in ("scales", "steps", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name, choices in (("coupling", ("affine", "additive")), ("convolution", ("plain", "lu"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {' or '.join(choices)}")


@final
class Affine(Elementwise):
    """y = sigmoid(r + 2) (x + t), with r bounded; at r = t = 0 it is 0.88 x."""

    numbers = 2

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = F.logsigmoid(bounded(raw[:, 0], _BOUND) + 2.0)
        return (x + raw[:, 1]) * log_scale.exp(), log_scale

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = F.logsigmoid(bounded(raw[:, 0], _BOUND) + 2.0)
        return y * (-log_scale).exp() - raw[:, 1], -log_scale


@final
class Standardize(Elementwise):
    """z = (x - m) exp(-s), with s bounded: standard Normal where x is Normal with mean m and scale exp(s)."""

    numbers = 2

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = bounded(raw[:, 0], _BOUND)
        return (x - raw[:, 1]) * (-log_scale).exp(), -log_scale

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = bounded(raw[:, 0], _BOUND)
        return y * log_scale.exp() + raw[:, 1], log_scale


class ScaledConv2d(nn.Module):
    """exp(f s) (W * x + b), with a learned log-scale s of each output channel, and 'same' padding.

    Arguments:
        inputs, outputs: channels.
        kernel_size: odd.
        factor: f, by how much faster the log-scale learns.
        std: standard deviation of W at first; b and s begin at 0.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, factor: float, std: float) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(std * torch.randn(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.factor * self.log_scale).exp()
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, self.bias * scale, padding=self.weight.shape[-1] // 2)


@final
class NormalizedConv2d(ScaledConv2d, SetFromData):
    """A convolution whose outputs have mean 0 and variance 1 in each channel over the first images.

    Arguments:
        inputs, outputs: channels.
        kernel_size: odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int) -> None:
        super().__init__(inputs, outputs, kernel_size, factor=1.0, std=0.05)

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        shift, log_scale = standardizing(F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2))
        self.bias.copy_(shift)
        self.log_scale.copy_(log_scale)


def zero_conv(inputs: int, outputs: int) -> ScaledConv2d:
    """A 3x3 convolution whose outputs are 0 at first."""
    return ScaledConv2d(inputs, outputs, 3, factor=3.0, std=0.0)


@final
class Conditioner(nn.Module):
    """What a coupling is told: convolutions, with rectifiers between them.

    Arguments:
        layers: the convolutions.
    """

    def __init__(self, *layers: ScaledConv2d) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        h = a
        for number, layer in enumerate(self.layers):
            h = layer(h.relu() if number else h)
        return h


@final
class GlowStep(Checkpointed, Bijection):
    """One step of the flow (module docstring).

    Arguments:
        config: the options.
        channels: C, even.
    """

    def __init__(self, config: GlowConfig, channels: int) -> None:
        super().__init__()
        function: Elementwise = Affine() if config.coupling == "affine" else Additive()
        half, width = channels // 2, config.width
        first, second = NormalizedConv2d(half, width, 3), NormalizedConv2d(width, width, 1)
        network = Conditioner(first, second, zero_conv(width, function.numbers * half))
        mixture = Conv1x1(channels) if config.convolution == "plain" else LUConv1x1(channels)
        self.parts = Sequential(ActNorm(channels), mixture, Coupling(Channels(channels), function, network))

    def compute(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.parts(x, context)
        return y, log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.parts.inverse(y, context)


def prior(channels: int) -> Coupling:
    """That of the second half of the channels, given the first (module docstring)."""
    half = channels // 2
    return Coupling(Channels(channels), Standardize(), Conditioner(zero_conv(half, 2 * half)))


@final
class Glow(Invertible):
    """Actnorm, invertible 1x1 convolutions and couplings, on several scales (module docstring).

    Arguments:
        shape: (C, H, W); images whose sides are no multiples of 2^L are padded
            (:mod:`davi.flows.dequantization`).
        levels: values per channel.
        config: the options.
        classes: 0.
    """

    name = "glow"
    Config = GlowConfig
    config: GlowConfig
    bijection: MultiScale

    def __init__(self, shape: tuple[int, int, int], levels: int, config: GlowConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        channels, height, width = self.shape
        padding = padding_of(height, width, config.scales, config.scales)
        height, width = height + padding[0], width + padding[1]
        noise = make_noise((channels, height, width), levels, config.dequantization)
        self.dequantization = Dequantization(levels, -0.5, 0.5, noise, padding)
        scales, shapes = [], []
        for number in range(config.scales):
            last = number == config.scales - 1
            channels, height, width = 4 * channels, height // 2, width // 2
            parts: list[Bijection] = [Squeeze(), *(GlowStep(config, channels) for _ in range(config.steps))]
            scales.append(Sequential(*parts, *(() if last else (prior(channels),))))
            channels = channels if last else channels // 2
            shapes.append((channels, height, width))
        self.bijection = MultiScale(scales, shapes)
        self.top = nn.Parameter(torch.zeros(2, channels)) if config.learned_top else None

    def base(self, n: int) -> Normal:
        sizes = [torch.Size(shape).numel() for shape in self.latent_shapes]
        parameters = next(self.parameters()).new_zeros(2, sum(sizes))
        if self.top is not None:
            of_the_top = self.top.repeat_interleave(sizes[-1] // self.top.shape[1], 1)
            parameters = F.pad(of_the_top, (sum(sizes[:-1]), 0))
        mean, log_scale = parameters[:, None].expand(-1, n, -1)
        return Normal(mean, bounded(log_scale, _BOUND).exp())

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        return self.bijection.shapes

    def blocks(self) -> Iterable[nn.Module]:
        return [part for scale in self.bijection for part in scale.modules() if isinstance(part, GlowStep)]
