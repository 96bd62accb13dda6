"""A model made of a causal network: one paper's network is one such class."""

from __future__ import annotations

from abc import ABC
from collections.abc import Container, Iterable
from typing import Any, ClassVar, final

import torch
from torch import Generator, Tensor, nn

from davi.distributions import Distribution
from davi.layers.autoregressive_pixels import AutoregressivePixels, Report
from davi.layers.causal import CausalNetwork, refuse_batch_norm
from davi.layers.pixel_head import PixelHead, PixelLikelihood
from davi.model.autoregressive import Autoregressive
from davi.model.base import DataInitialized
from davi.model.network import Conditional


class CausalModel(Autoregressive, Conditional, DataInitialized, PixelLikelihood, ABC):
    """A model whose conditionals a causal network computes, given the class of an image if there are classes.

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options of the network, :attr:`~davi.layers.causal.CausalNetwork.Config`.
        classes: number of classes; 0: labels play no part.

    Raises:
        ValueError: if the options contradict one another or do not fit the images, or the network has a batch norm.
    """

    Causal: ClassVar[type[CausalNetwork[Any]]]
    """The class of the network."""
    head: PixelHead

    def __init__(self, shape: tuple[int, int, int], levels: int, config: Any, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.causal = self.Causal(self.shape, levels, config, classes)
        refuse_batch_norm(self.causal)
        self.head = self.causal.head
        self.images_wanted = self.causal.images_wanted

    @final
    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """The weights of the network that follow from images, if there are some. Classes are drawn at random: images
        come without them."""
        if not self.images_wanted:
            return
        y = torch.randint(self.classes, (len(images),), device=images.device) if self.classes else None
        own = {name for name, _ in self.causal.named_parameters() if f"causal.{name}" in kept}
        self.causal.initialize(images, y=y, kept=own)

    def blocks(self) -> Iterable[nn.Module]:
        return self.causal.compilable()

    def pixels(self, n: int, y: Tensor | None = None) -> AutoregressivePixels:
        """The distribution of ``n`` images of the classes y, ``[n]``."""
        return AutoregressivePixels(self.causal, n, y=y)

    @final
    def conditionals(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        return self.pixels(len(x), y).conditionals(x)

    @final
    def _complete(
        self,
        x: Tensor,
        given: int,
        temperature: float,
        generator: Generator | None,
        y: Tensor | None,
        report: Report | None,
    ) -> Tensor:
        return self.pixels(len(x), y).complete(x, given, temperature, generator, report=report)
