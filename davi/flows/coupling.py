r"""Coupling layers: one part of the variables is changed by what the other part says.

.. math:: y_a = x_a, \qquad y_b = g(x_b; \theta(x_a))

with a function g that increases in each variable and any network theta. The Jacobian is triangular: every variable's
share of the log-determinant is the logarithm of its own slope, and 0 in the part that stays.

References:
    NICE: Non-linear Independent Components Estimation, L. Dinh, D. Krueger, Y. Bengio, 2014,
    https://arxiv.org/abs/1410.8516

    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from davi.distributions.base import at_least_float32
from davi.flows.base import Bijection
from davi.flows.splits import Split


class Elementwise(nn.Module, ABC):
    """An increasing function of each variable, with parameters of its own for each."""

    numbers: int
    """Parameters of one variable."""

    @abstractmethod
    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """y, and the logarithms of dy/dx, both of the shape of ``x``.

        Arguments:
            x: ``[B, C, ...]``.
            raw: outputs of a network, ``[B, numbers, C, ...]``.
        """

    @abstractmethod
    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """x, and the logarithms of dx/dy, both of the shape of ``y``."""


@final
class Additive(Elementwise):
    """y = x + t: volume is preserved."""

    numbers = 1

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return x + raw[:, 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return y - raw[:, 0], torch.zeros_like(y)


@final
class TanhAffine(Elementwise):
    r""":math:`y = e^{\tanh s}\, x + t`: the scale stays between 1/e and e."""

    numbers = 2

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = raw[:, 0].tanh()
        return x * log_scale.exp() + raw[:, 1], log_scale

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = raw[:, 0].tanh()
        return (y - raw[:, 1]) * (-log_scale).exp(), -log_scale


@final
class Coupling(Bijection):
    """A coupling layer (module docstring).

    Arguments:
        split: into a, which stays, and b.
        function: g.
        network: theta, ``a, context -> [B, numbers * C, ...]`` for a b of ``[B, C, ...]``; the parameters of one kind
            stand together. Its outputs are taken in float32 at least.
    """

    def __init__(self, split: Split, function: Elementwise, network: nn.Module) -> None:
        super().__init__()
        self.split = split
        self.function = function
        self.network = network

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(self.function, x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(self.function.inverse, y, context)

    def _through(
        self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        a, b = self.split.split(x)
        raw = at_least_float32(self.network(a, context)).unflatten(1, (self.function.numbers, -1))
        b, log_slope = function(b, raw)
        return self.split.merge(a, b), self.split.merge(torch.zeros_like(a), log_slope)
