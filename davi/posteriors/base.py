"""What turns the Normal that a model's own head reads into the posterior of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from davi.distributions import Latent, Normal


class Posterior(nn.Module, ABC):
    """The posterior of one layer, made of the Normal that the model's head reads and of the features it reads."""

    @abstractmethod
    def forward(self, base: Normal, features: Tensor) -> Latent:
        """The posterior.

        Arguments:
            base: the Normal, ``[B, C, h, w]``.
            features: what the head reads, ``[B, F, h, w]``.
        """
