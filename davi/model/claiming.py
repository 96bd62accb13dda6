"""Networks that make a claim in nats, image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Generator, Tensor

from davi.evidence import Evidence
from davi.model.network import Network


class Claiming(Network, ABC):
    """A network with evidence: about log p(x) of a :class:`~davi.model.Model`, about log p(y | x) of a
    :class:`~davi.model.Classifier`. It can be evaluated, and compared with others of the same claim."""

    @abstractmethod
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """What the network claims; ``Evidence.about`` says what about.

        Arguments:
            x: integer images, ``[B, C, H, W]``, in ``{0 .. levels - 1}``.
            generator: source of the network's own randomness; torch's default when None.
            y: class of each image, ``[B]``, for a network with classes; refused by one without.
        """

    @property
    def saved(self) -> Network:
        """The network that runs save and whose weights a claim is about: this one, unless it is an energy's
        (:class:`~davi.model.Normalized`)."""
        return self
