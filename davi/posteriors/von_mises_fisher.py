r"""A von Mises-Fisher posterior against the uniform distribution on a sphere.

The latents of an image are a unit vector z of :math:`S^{m-1}` with :math:`m = C h w`, and

.. math:: q(z \mid x) \propto \exp\!\left(\kappa\, \mu(x)^T z\right), \qquad p(z) = \frac{\Gamma(m/2)}{2 \pi^{m/2}}

whose divergence depends on m and the concentration :math:`\kappa` alone (:mod:`davi.distributions.sphere`, with the
formula, the sampler and its gradient). :math:`\kappa` is an option, as in the second paper; the first one lets the
encoder choose it, and the divergence is then no constant. For large :math:`\kappa` the divergence grows by
:math:`\tfrac{m-1}2 \ln 2` with each doubling; for small ones it is about :math:`\kappa^2 / 2m`.

References:
    Hyperspherical Variational Auto-Encoders, T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf, J. M. Tomczak, UAI 2018,
    https://arxiv.org/abs/1804.00891

    Spherical Latent Spaces for Stable Variational Autoencoders, J. Xu, G. Durrett, EMNLP 2018,
    https://arxiv.org/abs/1808.10805
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from davi.distributions import Latent, Normal, UniformSphere, VonMisesFisher
from davi.distributions.sphere import direction, divergence_from_uniform
from davi.posteriors.constant_rate import ConstantRate, ConstantRateConfig

_LARGEST = 1e6
"""Beyond it unit vectors in float32 are too coarse."""


@final
@dataclass(frozen=True)
class VonMisesFisherConfig(ConstantRateConfig):
    r"""Options of the von Mises-Fisher posterior.

    Arguments:
        name: ``von_mises_fisher``.
        kappa: :math:`\kappa`, the concentration.
    """

    name: Literal["von_mises_fisher"] = "von_mises_fisher"
    kappa: float = 80.0

    def __post_init__(self) -> None:
        if not 0.0 < self.kappa <= _LARGEST:
            raise ValueError(f"kappa: got {self.kappa}, expected a number above 0, at most {_LARGEST:g}")


@final
class VonMisesFisherPosterior(ConstantRate):
    """The von Mises-Fisher posterior and the uniform prior (module docstring)."""

    name: ClassVar[str] = "von_mises_fisher"
    Config: ClassVar[type[ConstantRateConfig]] = VonMisesFisherConfig
    config: VonMisesFisherConfig
    zero: Tensor

    def __init__(self, shape: tuple[int, ...], config: Any) -> None:
        super().__init__(shape, config)
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    @property
    def rate(self) -> float:
        return divergence_from_uniform(self.variables, self.config.kappa)

    def prior(self) -> Latent:
        return UniformSphere(self.zero)

    def forward(self, base: Normal, features: Tensor) -> Latent:
        return VonMisesFisher(direction(base.mean), self.config.kappa)
