r"""Invertible 1x1 convolutions: every pixel's channels, mixed by one matrix.

.. math:: y_{r,c} = W x_{r,c}, \qquad \log \left| \det \frac{\partial y}{\partial x} \right| = H W \log |\det W|

A coupling changes some channels by others; with a learned mixture of the channels before it, each of them has its turn.
W begins as a random rotation, whose determinant is 1. Its columns are free, and so is the sign of its determinant.

In the second form W is a product of triangular matrices,

.. math:: W = P L (U + \operatorname{diag}(\epsilon\, e^s)), \qquad \log |\det W| = \sum_c s_c

with a fixed permutation P, L lower triangular with ones on its diagonal, U upper triangular with zeros there, and fixed
signs :math:`\epsilon`. It has as many weights, and its determinant cannot become 0.

Both are computed as products of matrices, in the type of x even where convolutions are computed in a coarser one.

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions, D. P. Kingma, P. Dhariwal, NeurIPS 2018,
    https://arxiv.org/abs/1807.03039
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from davi.flows.base import Bijection


class InvertibleConv1x1(Bijection, ABC):
    """A mixture of the channels of ``[B, C, ...]`` (module docstring). The inverse matrix is computed in float64."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """W, ``[C, C]``."""

    @abstractmethod
    def log_abs_det(self) -> Tensor:
        """The logarithm of the absolute determinant of W: that of one pixel."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return _mixed(x, self.matrix()), self._shares(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(y.device.type, enabled=False):
            matrix = torch.linalg.inv(self.matrix().double()).to(y.dtype)
            return _mixed(y, matrix), -self._shares(y)

    def _shares(self, x: Tensor) -> Tensor:
        """The log-determinant, in equal shares."""
        return (self.log_abs_det() / x.shape[1]).expand(x.shape)


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    return F.linear(x.movedim(1, -1), matrix).movedim(-1, 1)


@final
class Conv1x1(InvertibleConv1x1):
    """W itself is the weight.

    Arguments:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(rotation(channels))

    def matrix(self) -> Tensor:
        return self.weight

    def log_abs_det(self) -> Tensor:
        return torch.linalg.slogdet(self.weight).logabsdet


@final
class LUConv1x1(InvertibleConv1x1):
    """W by its triangular factors.

    Arguments:
        channels: C.
        matrix: W at first; None: a random rotation.
    """

    rows: Tensor
    signs: Tensor

    def __init__(self, channels: int, matrix: Tensor | None = None) -> None:
        super().__init__()
        p, lower, upper = torch.linalg.lu(rotation(channels) if matrix is None else matrix)
        diagonal = upper.diagonal()
        self.register_buffer("rows", p.argmax(1))
        self.register_buffer("signs", diagonal.sign().to(torch.int8))
        self.factors = nn.Parameter(lower.tril(-1) + diagonal.abs().log().diag() + upper.triu(1))
        """L below the diagonal, s on it, U above it."""

    def matrix(self) -> Tensor:
        one = torch.eye(len(self.signs), dtype=self.factors.dtype, device=self.factors.device)
        diagonal = self.signs * self.factors.diagonal().exp()
        product = (self.factors.tril(-1) + one) @ (self.factors.triu(1) + diagonal.diag())
        return product[self.rows]

    def log_abs_det(self) -> Tensor:
        return self.factors.diagonal().sum()


@torch.no_grad()
def rotation(channels: int) -> Tensor:
    """A random rotation, evenly drawn, ``[C, C]``."""
    matrix: Tensor = nn.init.orthogonal_(torch.empty(channels, channels))
    matrix[0] *= torch.linalg.det(matrix).sign()
    return matrix
