r"""A Normal posterior of fixed variance whose mean lies on a sphere.

With the standard Normal prior of d variables, a mean of length r and the standard deviation :math:`\sigma` everywhere,

.. math:: q(z \mid x) = N\!\left(r \, \frac{m(x)}{|m(x)|}, \sigma^2 I\right), \qquad
          KL(q \| N(0, I)) = \frac{1}{2} \left(r^2 + d\,(\sigma^2 - 1 - \ln \sigma^2)\right)

is a constant. By default :math:`r^2 = d\,(1 - \sigma^2)`: then draws are as long as the prior's,
:math:`E |z|^2 = d`, and the rate is :math:`d \ln (1/\sigma)`.

References:
    Preventing Posterior Collapse with delta-VAEs, A. Razavi, A. van den Oord, B. Poole, O. Vinyals, ICLR 2019,
    https://arxiv.org/abs/1901.03416 (posteriors that keep a distance from the prior, a fixed variance among them)

    Spherical Latent Spaces for Stable Variational Autoencoders, J. Xu, G. Durrett, EMNLP 2018,
    https://arxiv.org/abs/1808.10805 (a rate that is an option, with another distribution)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from davi.distributions import Latent, Normal
from davi.distributions.sphere import direction
from davi.posteriors.constant_rate import ConstantRate, ConstantRateConfig

_SCALES = (1e-4, 10.0)
"""The smallest and the largest."""
_FARTHEST = 1e5
"""In units of the scale. Beyond it, as below the smallest scale, numbers in float32 are too coarse for the density of a
draw."""


@final
@dataclass(frozen=True)
class FixedNormalConfig(ConstantRateConfig):
    r"""Options of the Normal of fixed variance.

    Arguments:
        name: ``fixed_normal``.
        scale: :math:`\sigma`, the standard deviation, 0.0001 to 10.
        radius: r, the length of the mean, at most 100,000 :math:`\sigma`; None: :math:`\sqrt{d (1 - \sigma^2)}`.
    """

    name: Literal["fixed_normal"] = "fixed_normal"
    scale: float = 0.5
    radius: float | None = None

    def __post_init__(self) -> None:
        low, high = _SCALES
        if not low <= self.scale <= high:
            raise ValueError(f"scale: got {self.scale}, expected {low:g} to {high:g}")
        if self.radius is None and self.scale >= 1.0:
            raise ValueError(f"scale: got {self.scale} without a radius, expected a number above 0 and below 1")
        if self.radius is not None and not 0.0 < self.radius <= _FARTHEST * self.scale:
            raise ValueError(
                f"radius: got {self.radius}, expected a number above 0, at most {_FARTHEST:g} times the scale"
            )


@final
class FixedNormal(ConstantRate):
    """The Normal of fixed variance with its mean on a sphere (module docstring)."""

    name: ClassVar[str] = "fixed_normal"
    Config: ClassVar[type[ConstantRateConfig]] = FixedNormalConfig
    config: FixedNormalConfig
    zero: Tensor

    def __init__(self, shape: tuple[int, ...], config: Any) -> None:
        super().__init__(shape, config)
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    @property
    def radius(self) -> float:
        """r."""
        radius, variance = self.config.radius, self.config.scale**2
        return math.sqrt(self.variables * (1.0 - variance)) if radius is None else radius

    @property
    def rate(self) -> float:
        scale = self.config.scale
        return 0.5 * (self.radius**2 + self.variables * (scale**2 - 1.0 - 2.0 * math.log(scale)))

    def prior(self) -> Latent:
        return Normal(self.zero, torch.ones_like(self.zero))

    def forward(self, base: Normal, features: Tensor) -> Latent:
        mean = self.radius * direction(base.mean)
        return Normal(mean, torch.full_like(mean, self.config.scale))
