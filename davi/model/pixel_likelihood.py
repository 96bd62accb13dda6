"""A hierarchy over pixels, whose likelihood its options choose; its latents may be anything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Any, final

from torch import Tensor

from davi.distributions import Latent
from davi.layers.autoregressive_head import AutoregressiveHead, make_head
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.pixel_head import LikelihoodConfig, PixelLikelihood
from davi.model.base import DataInitialized
from davi.model.hierarchy import Hierarchy


class LikelihoodHierarchy(Hierarchy, PixelLikelihood, DataInitialized, ABC):
    """A hierarchy whose last feature map is read as the section ``likelihood`` of its options says: as independent
    pixels, or by a causal network, which sees the earlier pixels as well.

    A subclass calls :meth:`choose_likelihood` when it is built, gives its last map ``head.inputs`` channels and returns
    ``head(map)`` from its walk.
    """

    images_wanted = 0

    def encode(self, x: Tensor) -> Any:
        """Bottom-up pass over integer images ``[B, C, H, W]``: ``encode_pixels``, and what a subclass adds."""
        self.check_images(x)
        return self.encode_pixels(self._as_numbers(x))

    def _as_numbers(self, x: Tensor) -> Tensor:
        """Integer images as numbers from 0 to 1."""
        return x.to(next(self.parameters()).dtype) / (self.levels - 1)

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Any:
        """:meth:`encode` of images ``[B, C, H, W]`` as numbers from 0 to 1."""

    @final
    def choose_likelihood(self, likelihood: LikelihoodConfig) -> None:
        """Make the head.

        Raises:
            OptionError: a ``ValueError``, if it cannot describe the images.
        """
        self.head = make_head(likelihood, self.shape, self.levels)
        if isinstance(self.head, AutoregressiveHead):
            self.images_wanted = max(self.images_wanted, self.head.network.images_wanted)

    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """The weights of the hierarchy that follow from images, then those of a causal network, given the features that
        latents drawn from the posteriors lead to."""
        self.initialize_layers(images, kept)
        if not isinstance(self.head, AutoregressiveHead) or not self.head.network.images_wanted:
            return
        pixels = self.top_down(_posterior_draw, self.encode(images))
        assert isinstance(pixels, AutoregressivePixels)
        prefix = "head.network."
        own = {name for name, _ in self.head.network.named_parameters() if f"{prefix}{name}" in kept}
        self.head.network.initialize(images, pixels.features, None, own)

    def initialize_layers(self, images: Tensor, kept: Container[str]) -> None:
        """The weights of a hierarchy itself that follow from images; many have none."""


def _posterior_draw(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
    assert posterior is not None
    return posterior.sample()
