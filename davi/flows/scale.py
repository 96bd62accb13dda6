r"""A scale of each variable, the same for all images.

.. math:: y = e^s x, \qquad \log |\det| = \sum_i s_i, \qquad s = c \tanh(r / c)

The bound c keeps every scale a number that its inverse can undo.

References:
    NICE: Non-linear Independent Components Estimation, L. Dinh, D. Krueger, Y. Bengio, 2014,
    https://arxiv.org/abs/1410.8516
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from davi.flows.base import Bijection, bounded
from davi.layers.from_data import SetFromData


@final
class Scale(Bijection, SetFromData):
    """A scale of each variable (module docstring); the identity, unless it is set by its first input.

    Arguments:
        shape: of one image.
        deviation: standard deviation that its first input leaves with. None: the first input plays no part.
        bound: c. Variables of n levels that hardly vary need an s of about log n.
    """

    def __init__(self, shape: tuple[int, ...], deviation: float | None = None, bound: float = 20.0) -> None:
        super().__init__()
        self.deviation = deviation
        self.bound = bound
        self.raw = nn.Parameter(torch.zeros(shape))

    @property
    def log_scale(self) -> Tensor:
        """s, of the shape of one image."""
        return bounded(self.raw, self.bound)

    def set_from(self, x: Tensor) -> None:
        """Give every variable the standard deviation. One image tells nothing of it."""
        if self.deviation is None or len(x) < 2:
            return
        smallest = self.deviation * math.exp(-0.9 * self.bound)
        s = math.log(self.deviation) - x.std(0).clamp_min(smallest).log()
        self.raw.copy_(self.bound * torch.atanh(s.clamp_min(-0.9 * self.bound) / self.bound))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s = self.log_scale
        return x * s.exp(), s.expand_as(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s = -self.log_scale
        return y * s.exp(), s.expand_as(y)
