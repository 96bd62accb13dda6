r"""Householder flow: a product of reflections, which turns a diagonal covariance into a full one.

.. math:: z_k = H_k z_{k-1}, \qquad H_k = I - 2 \frac{v_k v_k^\top}{\lVert v_k \rVert^2}, \qquad
          \log \left| \det H_k \right| = 0

with :math:`v_1` linear in the encoder's features and each further :math:`v_k` linear in :math:`v_{k-1}`. A reflection
is its own inverse. If :math:`z_0 \sim N(\mu, \operatorname{diag} \sigma^2)` then
:math:`z_K \sim N(H \mu, H \operatorname{diag}(\sigma^2) H^\top)` with :math:`H = H_K \cdots H_1`.

References:
    Improving Variational Auto-Encoders using Householder Flow, J. M. Tomczak, M. Welling, 2016,
    https://arxiv.org/abs/1611.09630
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.vectors import VectorFlow, VectorStep, full_precision


def unit_vectors(v: Tensor) -> Tensor:
    """v divided by its length, along the last dimension. Where v is zero it has no direction: the first axis then."""
    squared = v.square().sum(-1, keepdim=True)
    vanishes = squared < torch.finfo(v.dtype).tiny
    axis = torch.zeros_like(v)
    axis[..., 0] = 1
    return torch.where(vanishes, axis, v * torch.where(vanishes, 1, squared).rsqrt())


@final
class Reflection(VectorStep):
    """One step (module docstring).

    Arguments:
        v: ``[B, P, C]``, of any length.
    """

    def __init__(self, v: Tensor) -> None:
        self.v = unit_vectors(v)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.inverse(z), z.new_zeros(z.shape[:-1])

    def inverse(self, y: Tensor) -> Tensor:
        return y - 2 * (self.v * y).sum(-1, keepdim=True) * self.v


@final
@dataclass(frozen=True)
class HouseholderConfig(PosteriorFlowConfig):
    """Options of the Householder flow.

    Arguments:
        name: ``householder``.
        steps: how many reflections.
    """

    name: Literal["householder"] = "householder"


@final
class HouseholderFlow(VectorFlow):
    """Reflections whose vectors follow one from the other (module docstring)."""

    name: ClassVar[str] = "householder"
    Config: ClassVar[type[PosteriorFlowConfig]] = HouseholderConfig

    def __init__(self, channels: int, features: int, config: HouseholderConfig) -> None:
        super().__init__(channels, features, config)
        sizes = [features, *[channels] * (config.steps - 1)]
        self.vectors = nn.ModuleList(nn.Linear(size, channels) for size in sizes)

    def vector_steps(self, features: Tensor) -> list[Reflection]:
        steps, v = [], features
        for linear in self.vectors:
            v = linear(v)
            steps.append(Reflection(full_precision(v)))
        return steps
