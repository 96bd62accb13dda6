"""A flow of two scales: logit, squeezes, affine couplings; its noise is uniform or learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from davi.distributions import Normal, Transformed
from davi.flows import Coupling, Dequantization, Inverse, Logit, MultiScale, Sequential, Squeeze, TanhAffine
from davi.flows.splits import Channels
from davi.model import Invertible


@final
class Look(nn.Conv2d):
    """A convolution."""

    def forward(self, input: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(input)


@final
class Noise(nn.Module):
    """u = sigmoid of a Normal variable whose mean and scale a convolution says."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.look = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.sigmoid = Inverse(Logit(0.0))

    def forward(self, x: Tensor) -> Transformed:
        seen = self.look(x.to(self.look.weight.dtype) / self.levels)
        mean, log_scale = seen.chunk(2, 1)
        return Transformed(Normal(mean, log_scale.tanh().exp()), self.sigmoid)


@dataclass(frozen=True)
class ScalesFlowConfig:
    """Whether the noise is learned."""

    learned: bool = False


@final
class ScalesFlow(Invertible):
    """Two scales, of which the first lets go of half of its channels; standard Normal variables."""

    name = "toy_scales"
    Config = ScalesFlowConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: ScalesFlowConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        c, height, width = shape
        padding = (-height % 4, -width % 4)
        h, w = height + padding[0], width + padding[1]
        noise = Noise(c, levels) if config.learned else None
        self.dequantization = Dequantization(levels, noise=noise, padding=padding)
        scales = [Sequential(Squeeze(), *(_coupling(n, flipped) for flipped in (False, True))) for n in (4 * c, 8 * c)]
        shapes = [(2 * c, h // 2, w // 2), (8 * c, h // 4, w // 4)]
        self.bijection = Sequential(Logit(0.05), MultiScale(scales, shapes))
        self.shapes = shapes

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        return list(self.shapes)

    def base(self, n: int) -> Normal:
        zeros = next(self.parameters()).new_zeros(n, sum(map(math.prod, self.shapes)))
        return Normal(zeros, torch.ones_like(zeros))


def _coupling(channels: int, flipped: bool) -> Coupling:
    return Coupling(Channels(channels, flipped), TanhAffine(), Look(channels // 2, channels, 3, padding=1))
