r"""A mixture of Gaussians as the prior of the top layer, its weights, means and scales learned.

.. math:: p(z) = \sum_{k=1}^K w_k \, N\bigl(z; \mu_k, \mathrm{diag}(\sigma_k^2)\bigr)

over all latents of the layer together, or over the channels of each position, with a mixture of its own for each
position and positions independent.

Before training the weights are equal, the means are drawn from :math:`N(0, s^2)` and all variances are
:math:`1 - s^2`: each variable by itself is close to a standard Normal one, and the components differ.

References:
    VAE with a VampPrior, J. M. Tomczak, M. Welling, AISTATS 2018, https://arxiv.org/abs/1705.07120 (where it is what
    the VampPrior is compared with)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import nn

from davi.distributions import Latent, Normal, NormalMixture
from davi.priors.base import Infer, PriorConfig, TopPrior, at_least_one


@final
@dataclass(frozen=True)
class GaussianMixtureConfig(PriorConfig):
    """Options of the mixture of Gaussians.

    Arguments:
        name: ``gaussian_mixture``.
        components: K.
        per_position: one mixture over the channels of each position, in place of one over the whole layer.
        spread: s, standard deviation of the initial means, from 0 to below 1.
    """

    name: Literal["gaussian_mixture"] = "gaussian_mixture"
    components: int = 100
    per_position: bool = False
    spread: float = 0.5

    def __post_init__(self) -> None:
        at_least_one("components", self.components)
        if not 0.0 <= self.spread < 1.0:
            raise ValueError(f"spread: got {self.spread}, expected a number from 0 to below 1")


@final
class GaussianMixture(TopPrior):
    """A mixture of Gaussians (module docstring)."""

    name: ClassVar[str] = "gaussian_mixture"
    Config: ClassVar[type[PriorConfig]] = GaussianMixtureConfig
    config: GaussianMixtureConfig

    def __init__(self, shape: tuple[int, ...], images: tuple[int, int, int], config: GaussianMixtureConfig) -> None:
        super().__init__(shape, images, config)
        k, spread = config.components, config.spread
        groups = shape[1:] if config.per_position else [1] * (len(shape) - 1)
        self.logits = nn.Parameter(torch.zeros(k, 1, *groups))
        self.mean = nn.Parameter(spread * torch.randn(k, *shape))
        self.log_scale = nn.Parameter(torch.full((k, *shape), 0.5 * math.log1p(-(spread**2))))

    def forward(self, infer: Infer) -> Latent:
        return NormalMixture(self.logits[None], Normal(self.mean[None], self.log_scale.exp()[None]))
