"""A linear flow: dequantized images times a lower triangular matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from davi.distributions import Normal
from davi.flows import Bijection, Dequantization
from davi.flows.noise import DequantizationSection, UniformConfig, make_noise
from davi.model import Invertible


@final
class Triangular(Bijection):
    """z = L (y - b), with exp(s) on the diagonal of L: every variable's share of the log-determinant is its s."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((dims,), 0.5))
        self.log_scale = nn.Parameter(torch.ones(dims))
        self.below = nn.Parameter(0.1 * torch.randn(dims, dims))

    def _matrix(self) -> Tensor:
        return self.below.tril(-1) + self.log_scale.exp().diag()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = (x.flatten(1) - self.shift) @ self._matrix().T
        return z.view_as(x), self.log_scale.view(1, *x.shape[1:]).expand_as(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.linalg.solve_triangular(self._matrix(), y.flatten(1).T, upper=False).T + self.shift
        return x.view_as(y), -self.log_scale.view(1, *y.shape[1:]).expand_as(y)


@dataclass(frozen=True)
class TriangularFlowConfig:
    """The noise."""

    dequantization: DequantizationSection = field(default_factory=UniformConfig)


@final
class TriangularFlow(Invertible):
    """A triangular matrix, standard Normal variables."""

    name = "toy_flow"
    Config = TriangularFlowConfig

    def __init__(
        self, shape: tuple[int, int, int], levels: int, config: TriangularFlowConfig, classes: int = 0
    ) -> None:
        super().__init__(shape, levels, config, classes)
        self.dequantization = Dequantization(levels, noise=make_noise(self.shape, levels, config.dequantization))
        self.bijection = Triangular(self.dims)

    def base(self, n: int) -> Normal:
        zeros = next(self.parameters()).new_zeros(n, *self.shape)
        return Normal(zeros, torch.ones_like(zeros))
