"""A model that explains an image by latent variables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from davi.distributions import Distribution
from davi.model.base import Model


class LatentModel(Model, ABC):
    """A model that explains an image by latent variables z, ordered from the top (drawn first) to the image."""

    @abstractmethod
    def latents(self, x: Tensor, sample: bool = False, generator: Generator | None = None) -> list[Tensor]:
        """Latents of the images: posterior means, each given the means above it, or posterior draws if ``sample``.

        Where a posterior has a flow, the place to which the flow takes the mean of its base stands for the mean.
        """

    @abstractmethod
    def decode(self, latents: Sequence[Tensor]) -> Distribution:
        """p(x | z) for the given latents."""

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """What p(x | z) makes of the posterior means (:meth:`latents`); integers ``[B, C, H, W]``.

        Of every sub-pixel the most probable value given those before it (:meth:`davi.distributions.Distribution.mode`).
        """
        return self.decode(self.latents(x)).mode()
