r"""Planar flow: each step moves the latents along one direction, by a function of their projection on another.

.. math:: z' = z + \hat u \tanh(w^\top z + b), \qquad
          \log \left| \det \frac{\partial z'}{\partial z} \right| = \log \left( 1 + \hat u^\top w\, h' \right), \quad
          h' = 1 - \tanh^2(w^\top z + b)

It is invertible if :math:`\hat u^\top w > -1`, which the encoder's u is brought to:

.. math:: \hat u = u + \left( m(w^\top u) - w^\top u \right) \frac{w}{\lVert w \rVert^2}, \qquad
          m(a) = -1 + \log(1 + e^a)

(the square of the length: then :math:`w^\top \hat u = m(w^\top u)`). The inverse solves one equation for
:math:`w^\top z` and steps back along :math:`\hat u`.

References:
    Variational Inference with Normalizing Flows, D. J. Rezende, S. Mohamed, ICML 2015,
    https://arxiv.org/abs/1505.05770
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.vectors import VectorFlow, VectorStep, full_precision, solve_tanh


@final
class PlanarStep(VectorStep):
    """One step (module docstring).

    Arguments:
        u, w: ``[B, P, C]``.
        b: ``[B, P]``.
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        product = (w * u).sum(-1)
        squared = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        self.w, self.b = w, b
        self.stretch = F.softplus(product)  # 1 + w.u_hat, above zero
        self.u_hat = u + (self.stretch - 1 - product)[..., None] * w / squared

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        tanh = ((self.w * z).sum(-1) + self.b).tanh()
        # 1 + (stretch - 1) h' as a sum of two terms that are not negative.
        log_det = (tanh.square() + self.stretch * (1 - tanh.square())).log()
        return z + self.u_hat * tanh[..., None], log_det

    def inverse(self, y: Tensor) -> Tensor:
        target = (self.w * y).sum(-1) + self.b
        one, zero = torch.ones_like(target), torch.zeros_like(target)
        argument = solve_tanh(self.stretch - 1, one, zero, target)
        return y - self.u_hat * argument.tanh()[..., None]


@final
@dataclass(frozen=True)
class PlanarConfig(PosteriorFlowConfig):
    """Options of the planar flow.

    Arguments:
        name: ``planar``.
        steps: how many.
    """

    name: Literal["planar"] = "planar"


@final
class PlanarFlow(VectorFlow):
    """Planar steps with u, w and b linear in the encoder's features."""

    name: ClassVar[str] = "planar"
    Config: ClassVar[type[PosteriorFlowConfig]] = PlanarConfig

    def __init__(self, channels: int, features: int, config: PlanarConfig) -> None:
        super().__init__(channels, features, config)
        self.u = nn.Linear(features, config.steps * channels)
        self.w = nn.Linear(features, config.steps * channels)
        self.b = nn.Linear(features, config.steps)

    def vector_steps(self, features: Tensor) -> list[PlanarStep]:
        u, w = (full_precision(head(features)).chunk(self.config.steps, -1) for head in (self.u, self.w))
        b = full_precision(self.b(features)).unbind(-1)
        return [PlanarStep(*parameters) for parameters in zip(u, w, b, strict=True)]
