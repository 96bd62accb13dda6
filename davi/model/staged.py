"""A network whose parts are trained one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container

from torch import Generator

from davi.batch import Batch
from davi.model.network import Network


class Staged(ABC):
    """A network with parts that are networks themselves. A stage of training moves one part, on what the whole shows
    it: the prior of a quantized model on code images, a layer of a deep belief network on the units below it.

    References:
        A fast learning algorithm for deep belief nets, G. E. Hinton, S. Osindero, Y.-W. Teh, Neural Computation 2006,
        https://www.cs.toronto.edu/~hinton/absps/fastnc.pdf
    """

    @abstractmethod
    def part(self, name: str) -> Network:
        """The part of that name.

        Raises:
            KeyError: if there is none; the message names those that there are.
        """

    @abstractmethod
    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        """The batch on which the part is trained, made from a batch of images by the parts before it."""

    def begin_part(self, name: str, kept: Container[str] = ()) -> frozenset[str]:
        """Set weights with which the stage of a part begins and that follow from the parts before it. Training calls it
        once, before the first step of the stage and before the part is shown any images
        (:class:`~davi.model.DataInitialized`), without gradients; nothing may be drawn.

        Arguments:
            name: of the part.
            kept: names of weights of the whole that stay as they are: those that another model has lent.

        Returns:
            Names of the weights that have been set; the images do not change them any more.
        """
        return frozenset()
