r"""Energies: probabilities known up to a normalizing constant.

.. math:: p(v) = \frac{e^{-F(v)}}{Z}, \qquad Z = \sum_v e^{-F(v)}

The free energy F says which of two images is more probable, and by how much. How probable one of them is takes the
partition function Z as well, a sum over all images.

References:
    A Practical Guide to Training Restricted Boltzmann Machines, G. E. Hinton, 2012,
    https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.errors import UserError
from davi.evidence import Evidence, Kind
from davi.model.base import Model, Temperature, check_draw
from davi.model.chain import WithChain
from davi.model.network import Network

NEGATIVE_LOG_Z = "negative_log_z"
"""Name of the term that is minus log Z."""

FEW = 0.5
"""An estimate that rests on a smaller share of its chains is in doubt."""

_OVERFLOW = 700.0
"""Nats whose exponential is almost too large for a float64."""


class Unnormalized(Network, ABC):
    """A network whose probabilities are known up to the partition function of an energy: its own, or that of a part.
    With it, it becomes a :class:`~davi.model.Model`."""

    @property
    @abstractmethod
    def energy(self) -> Energy:
        """The energy whose partition function is wanted."""

    @abstractmethod
    def normalized(self, partition: Partition | None) -> Model:
        """The model that it is with that partition function; without one, a model that can only be drawn from."""

    def energy_images(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """What the energy sees of a batch of images: integers of its shape, ``[B, C, H, W]``. Estimates of the
        partition function begin with their mean."""
        return batch.x


class Energy(Unnormalized, WithChain, ABC):
    """An unnormalized probability over integer images (module docstring). By itself it makes no claim about log p(x);
    :class:`Normalized` does."""

    chain_steps: ClassVar[int] = 1000
    """Gibbs steps from uniform noise to a sample."""

    @abstractmethod
    def free_energy(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """F of integer images ``[B, C, H, W]``: ``[B]``, nats.

        An energy of real units draws from the generator where in its cell of the lattice of integers an image lies.
        """

    @abstractmethod
    def gibbs(self, x: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Integer images after ``steps`` steps of a Markov chain that leaves p(v) as it is, ``[B, C, H, W]``.

        At another temperature T all energies, those of hidden units as well, are divided by T.
        """

    # Chains, whose states are the images unless a subclass says otherwise

    def chain_states(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x

    @torch.no_grad()
    def chain_gibbs(self, states: Tensor, steps: int = 1, generator: Generator | None = None) -> Tensor:
        return self.gibbs(states, steps, generator)

    @torch.no_grad()
    def chain_free_energy(self, states: Tensor) -> Tensor:
        return self.free_energy(states)

    def chain_images(self, states: Tensor, generator: Generator | None = None) -> Tensor:
        return states

    @property
    def claim(self) -> Kind:
        """The kind of -F(x) - log Z, were log Z exact: a lower bound for real units."""
        return Kind.EXACT

    @property
    def energy(self) -> Energy:
        """Itself."""
        return self

    def normalized(self, partition: Partition | None) -> Model:
        """:class:`Normalized`."""
        return Normalized(self, partition)

    def forward(self, x: Tensor) -> Tensor:
        """:meth:`free_energy`. Training calls it, so that wrappers which intercept calls work."""
        return self.free_energy(x)


class Summable(ABC):
    """An energy whose partition function can be summed exactly, if it is small enough."""

    @property
    @abstractmethod
    def log2_states(self) -> float:
        """Base-2 logarithm of the number of terms of the sum."""

    @abstractmethod
    def log_partition(self) -> Tensor:
        """log Z, a float64 scalar, nats."""


@dataclass(frozen=True)
class Partition:
    """What is known of a partition function.

    Arguments:
        log_z: log Z, nats.
        kind: exact, or an estimate.
        low, high: three standard errors of Z below and above, as logarithms, nats; ``low`` is -inf where the interval
            contains 0. Both are ``log_z`` where it is exact.
        effective_samples: of the chains behind an estimate, as a number of independent ones; None where it is exact.
        chains, temperatures: of annealed importance sampling; None where it is exact.
        base_images: training images whose mean the chains begin with; 0: they begin with uniform noise.
        seed: of the chains.
        reverse, reverse_low, reverse_high: log Z from chains that walk the other way, and three standard errors below
            and above; None where it was not made.
        sweeps: steps of the Markov chains that these begin with.
    """

    log_z: float
    kind: Kind
    low: float | None = None
    high: float | None = None
    effective_samples: float | None = None
    chains: int | None = None
    temperatures: int | None = None
    base_images: int | None = None
    seed: int | None = None
    reverse: float | None = None
    reverse_low: float | None = None
    reverse_high: float | None = None
    sweeps: int | None = None

    @property
    def standard_error(self) -> float | None:
        """Of log Z, nats: that of Z, divided by Z; None where it is exact, or not known."""
        if self.kind is Kind.EXACT or self.high is None or self.high == math.inf:
            return None
        above = self.high - self.log_z
        return math.expm1(max(0.0, above)) / 3.0 if above < _OVERFLOW else None

    @property
    def disagree(self) -> bool:
        """Whether the intervals of the two directions have nothing in common."""
        low, high, back_low, back_high = self.low, self.high, self.reverse_low, self.reverse_high
        if low is None or high is None or back_low is None or back_high is None:
            return False
        return high < back_low or back_high < low

    def doubts(self) -> tuple[str, ...]:
        """Reasons not to trust an estimate, as parts of a sentence; that there are none proves nothing."""
        found = []
        effective, chains = self.effective_samples, self.chains
        if effective is not None and chains is not None and effective < FEW * chains:
            found.append(f"only {effective:.0f} of {chains} chains are effective, fewer than half")
        if self.low == -math.inf:
            found.append("the interval of Z reaches 0: log p(x) may be far lower than estimated")
        if self.disagree:
            found.append("chains that walk forward and back disagree: at least one of them has missed what is probable")
        return tuple(found)


class WithPartition(Model, ABC):
    """A model whose claim is minus log Z and something that does not depend on Z; without Z it can only be drawn
    from.

    Arguments:
        network: with its weights.
        partition: of the network's energy; None: it is not known, and only samples can be drawn.
    """

    network: Network
    """With its weights."""

    def __init__(self, network: Network, partition: Partition | None) -> None:
        super().__init__(network.shape, network.levels, network.config, network.classes)
        self.name = network.name  # of its own it has none: recipes know the network
        self.network = network
        self.partition = partition

    @property
    def saved(self) -> Network:
        """The network."""
        return self.network

    @property
    @abstractmethod
    def claim(self) -> Kind:
        """The kind of its claim, were Z known exactly."""


@final
class Normalized(WithPartition):
    """An energy with its partition function: log p(v) = -F(v) - log Z, as exact as log Z is.

    Arguments:
        network: the energy, with its weights.
        partition: of these weights; None: it is not known, and only samples can be drawn.
    """

    network: Energy

    @property
    def energy(self) -> Energy:
        """The energy."""
        return self.network

    @property
    def claim(self) -> Kind:
        """The energy's."""
        return self.energy.claim

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """Minus the free energy, minus log Z. Of an energy of real units it is the bound with one draw of the noise,
        and its log-weight is the bound itself."""
        self.check_images(x)
        self.check_labels(y, len(x))
        partition = known(self.partition, self.name)
        negative = -self.energy.free_energy(x, generator)
        log_z = torch.full_like(negative, partition.log_z)
        terms = {"negative_free_energy": negative, NEGATIVE_LOG_Z: -log_z}
        kind = Kind.weakest(partition.kind, self.claim)
        if self.claim is Kind.EXACT:
            return Evidence(terms, kind, dims=self.dims, deterministic=True)

        def log_weight_fn(joint: bool = False) -> Tensor:
            """The same for the joint density: that of the noise, uniform in a cell of volume 1, is 1."""
            return negative - log_z

        return Evidence(terms, kind, log_weight_fn, dims=self.dims)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """The ends of ``n`` Gibbs chains from uniform noise, :attr:`Energy.chain_steps` long.

        Raises:
            UserError: a ``ValueError``, if the temperature is 0.
        """
        factor = check_draw(n, temperature)
        if factor == 0.0:
            raise UserError("temperature: got 0, expected a number above 0, by which energies are divided")
        device = next(self.parameters()).device
        noise = torch.randint(self.levels, (n, *self.shape), generator=generator, device=device)
        return self.energy.gibbs(noise, self.energy.chain_steps, generator, factor)


def known(partition: Partition | None, name: str) -> Partition:
    """A partition function that is needed.

    Raises:
        UserError: if it is not known.
    """
    if partition is None:
        raise UserError(
            f"{name}: got no partition function, expected one: without it there is no likelihood; davi evaluate RUN "
            "estimates it and keeps it in the folder of the run"
        )
    return partition
