"""What the prior of a hierarchy's top layer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from davi.distributions import Latent

Infer = Callable[[Tensor], Latent]
"""Images ``[K, C, H, W]`` as numbers from 0 to 1 -> the posterior of the top layer, for a prior that is made of it."""


@dataclass(frozen=True)
class PriorConfig:
    """The section ``prior`` of a hierarchy's options; each prior has its own options beside ``name``."""

    name: str


def at_least_one(name: str, value: int) -> None:
    """Refuse an option that counts something and is no positive number.

    Raises:
        ValueError: one line.
    """
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")


class TopPrior(nn.Module, ABC):
    """The prior of the top layer, in place of the model's own.

    Arguments:
        shape: of the layer's latents for one image, ``[C, h, w]``.
        images: (C, H, W) of the images.
        config: the options, an instance of :attr:`Config`.

    Raises:
        OptionError: a ``ValueError``, if the options do not fit such latents.
    """

    name: ClassVar[str]
    """The name recipes use, as ``prior.name``."""
    Config: ClassVar[type[PriorConfig]]
    """The dataclass of the options; its ``name`` is a literal."""

    def __init__(self, shape: tuple[int, ...], images: tuple[int, int, int], config: Any) -> None:
        super().__init__()
        self.shape, self.images, self.config = shape, images, config

    @abstractmethod
    def forward(self, infer: Infer) -> Latent:
        """The prior, for a batch of one; :meth:`~davi.distributions.Latent.expand` makes it that of many images.

        Arguments:
            infer: the posterior of the top layer.
        """


class FromPosteriors(TopPrior, ABC):
    """A prior that is made of posteriors of the top layer. Their density must be known at any point."""


class FromImages(TopPrior, ABC):
    """A prior some of whose initial weights follow from training images."""

    images_wanted: int
    """How many are enough."""

    @abstractmethod
    def initialize(self, pixels: Tensor) -> None:
        """Set those weights, in place.

        Arguments:
            pixels: images as numbers from 0 to 1, ``[N, C, H, W]``.
        """


class CommittedRate(TopPrior, ABC):
    """A prior from which no posterior of independent Normal variables has a divergence of less than some rate."""

    @property
    @abstractmethod
    def least_rate(self) -> float:
        """That rate, of the whole layer, nats per image."""
