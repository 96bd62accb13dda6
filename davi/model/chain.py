"""Networks with a Markov chain that can be followed, many chains at once."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Generator, Tensor


class WithChain(ABC):
    """A network that is drawn from by a Markov chain.

    What moves is a state, which may be something else than an image: real numbers, or the units of the upper layers of
    a deep belief network. A batch of states is as many chains. Everything is without gradients.
    """

    @abstractmethod
    def chain_states(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """States of chains that begin at integer images ``[B, C, H, W]``: ``[B, ...]``."""

    @abstractmethod
    def chain_gibbs(self, states: Tensor, steps: int = 1, generator: Generator | None = None) -> Tensor:
        """The states after some steps of Gibbs sampling."""

    @abstractmethod
    def chain_free_energy(self, states: Tensor) -> Tensor:
        """Free energies of states, ``[B]``, nats: minus the log of their probability, up to a constant."""

    @abstractmethod
    def chain_images(self, states: Tensor, generator: Generator | None = None) -> Tensor:
        """Integer images of states, ``[B, C, H, W]``."""
