r"""An AR(1) process as the prior of the top layer: a minimum rate to which the model is committed.

.. math:: z_t = \alpha z_{t-1} + N(0, 1 - \alpha^2)

along the positions of a map, row by row, for each channel, or along the variables of a vector
(:mod:`davi.distributions.ar1`). A posterior of independent Normal variables cannot be equal to it. Its divergence is at
least

.. math:: \frac{1}{2} \left[ (n - 2) \ln(1 + \alpha^2) - \ln(1 - \alpha^2) \right] \text{ nats}

for each series of n variables, so that it cannot collapse, however strong the decoder is.

References:
    Preventing Posterior Collapse with delta-VAEs, A. Razavi, A. van den Oord, B. Poole, O. Vinyals, ICLR 2019,
    https://arxiv.org/abs/1901.03416
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from davi.distributions import AR1, Latent, committed_rate
from davi.errors import OptionError
from davi.priors.base import CommittedRate, Infer, PriorConfig


@final
@dataclass(frozen=True)
class Autoregressive1Config(PriorConfig):
    """Options of the AR(1) prior.

    Arguments:
        name: ``autoregressive_1``.
        alpha: correlation of neighbors, above 0 and below 1.
    """

    name: Literal["autoregressive_1"] = "autoregressive_1"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha: got {self.alpha}, expected a number between 0 and 1")


@final
class Autoregressive1(CommittedRate):
    """The AR(1) prior (module docstring). A temperature scales its noise, and with it all latents."""

    name: ClassVar[str] = "autoregressive_1"
    Config: ClassVar[type[PriorConfig]] = Autoregressive1Config
    config: Autoregressive1Config
    zero: Tensor

    def __init__(self, shape: tuple[int, ...], images: tuple[int, int, int], config: Autoregressive1Config) -> None:
        super().__init__(shape, images, config)
        if math.prod(shape) == 1:
            raise OptionError("prior.name", f"got {self.name} for a single latent variable, expected at least two")
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    @property
    def least_rate(self) -> float:
        positions = math.prod(self.shape[1:])
        series, n = (self.shape[0], positions) if positions > 1 else (1, self.shape[0])
        return series * committed_rate(n, self.config.alpha)

    def forward(self, infer: Infer) -> Latent:
        return AR1(self.zero, self.config.alpha)
