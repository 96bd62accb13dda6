r"""Top layers whose KL divergence is a constant.

A posterior that cannot become the prior cannot collapse. Here prior and posterior of the top layer are chosen together,
such that

.. math:: KL(q(z \mid x) \| p(z)) = R

whatever the image and the weights are. All that the encoder can choose is where the posterior lies. As the rate R is
paid in any case, the decoder loses nothing by making use of what it buys.

All :math:`d = C h w` latent variables of the top layer of an image together are one vector.

References:
    Preventing Posterior Collapse with delta-VAEs, A. Razavi, A. van den Oord, B. Poole, O. Vinyals, ICLR 2019,
    https://arxiv.org/abs/1901.03416 (prior and posterior families that keep a distance)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from davi.distributions import Latent
from davi.errors import OptionError
from davi.posteriors.base import Posterior


@dataclass(frozen=True)
class ConstantRateConfig:
    """The section ``constant_rate`` of a hierarchy's options; each kind has its own options beside ``name``."""

    name: str


class ConstantRate(Posterior, ABC):
    """Prior and posterior of the top layer, with a constant divergence. It has no weights of its own: the mean of the
    Normal that the model's head reads says where the posterior lies, and its scale plays no part.

    Arguments:
        shape: of the layer's latents for one image, ``[C, h, w]``.
        config: the options, an instance of :attr:`Config`.

    Raises:
        OptionError: a ``ValueError``, if there is a single latent variable, which has no direction to choose.
    """

    name: ClassVar[str]
    """The name recipes use, as ``constant_rate.name``."""
    Config: ClassVar[type[ConstantRateConfig]]
    """The dataclass of the options; its ``name`` is a literal."""

    def __init__(self, shape: tuple[int, ...], config: Any) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self.variables = math.prod(shape)
        if self.variables < 2:
            raise OptionError(
                "constant_rate.name",
                f"got {config.name} for a top layer of {self.variables} latent variable, expected at least 2",
            )

    @property
    @abstractmethod
    def rate(self) -> float:
        """R, the KL divergence of every image, nats."""

    @abstractmethod
    def prior(self) -> Latent:
        """The prior, for a batch of one."""

    def extra_repr(self) -> str:
        return f"{self.variables} variables, {self.rate:.4g} nats"
