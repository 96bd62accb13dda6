r"""A scale and a shift for each channel, set by the first images.

.. math:: y_c = e^{s_c} (x_c + b_c), \qquad \log \frac{\partial y_c}{\partial x_c} = s_c

for every channel c, at all places alike. From the first images that reach it,

.. math:: b_c = -\mathrm{mean}(x_c), \qquad s_c = -\log \mathrm{std}(x_c)

so that each channel has mean 0 and variance 1 over these images and their places; from then on b and s are weights like
any others. Unlike batch normalization it does the same in training and afterwards, and to each image alone.

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions, D. P. Kingma, P. Dhariwal, NeurIPS 2018,
    https://arxiv.org/abs/1807.03039
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from davi.flows.base import Bijection, per_channel
from davi.layers.from_data import SetFromData

_CONSTANT = 1e-6
"""A channel that varies less than this has no scale that could be normalized."""


@final
class ActNorm(Bijection, SetFromData):
    """y = exp(s) (x + b) for each channel of ``[B, C, ...]`` (module docstring). Until it is set, y = x.

    Arguments:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        shift, log_scale = standardizing(x)
        self.shift.copy_(shift)
        self.log_scale.copy_(log_scale)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = (per_channel(parameter, x) for parameter in (self.shift, self.log_scale))
        return (x + shift) * log_scale.exp(), log_scale.expand_as(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = (per_channel(parameter, y) for parameter in (self.shift, self.log_scale))
        return y * (-log_scale).exp() - shift, -log_scale.expand_as(y)


def standardizing(x: Tensor) -> tuple[Tensor, Tensor]:
    """b and s that give each channel of ``[B, C, ...]`` mean 0 and variance 1, ``[C]`` both (module docstring).

    A channel that is constant keeps its scale, s = 0.
    """
    std, mean = torch.std_mean(x.transpose(0, 1).flatten(1), 1, correction=0)
    return -mean, torch.where(std > _CONSTANT, -std.clamp_min(_CONSTANT).log(), 0.0)
