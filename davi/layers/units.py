r"""Layers of random units that are independent given the rest of an energy: exponential families.

With natural parameters :math:`\eta` (the input that the units receive) and a base measure :math:`m`

.. math:: p(u \mid \eta) = m(u)\, e^{\eta \cdot u - A(\eta)}, \qquad A(\eta) = \log \sum_u m(u)\, e^{\eta \cdot u}

with an integral for real units. An energy says nothing of its units but this: how to draw them, their mean, and the log
of the sum over all their states.

References:
    Exponential Family Harmoniums with an Application to Information Retrieval, M. Welling, M. Rosen-Zvi, G. Hinton,
    NeurIPS 2004, https://papers.nips.cc/paper/2004/hash/0e900ad84f63618452210ab8baae0218-Abstract.html
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot, softplus


@dataclass(frozen=True)
class Units(ABC):
    """Units of one kind.

    Arguments:
        shape: of their state, and of their natural parameters, for one image.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def log_partition(self, natural: Tensor) -> Tensor:
        """A of natural parameters ``[B, *shape]``: ``[B]``, nats."""

    def log_partition_change(self, natural: Tensor, lower: float, upper: float) -> Tensor:
        r"""A(upper :math:`\eta`) - A(lower :math:`\eta`), ``[B]``, nats, to the relative precision of the parameters
        however close the two are.

        Arguments:
            natural: :math:`\eta`, ``[B, *shape]``.
            lower, upper: numbers with 0 <= lower <= upper.
        """
        natural = natural.double()  # a difference of two numbers that are almost equal
        return self.log_partition(upper * natural) - self.log_partition(lower * natural)

    @abstractmethod
    def mean(self, natural: Tensor) -> Tensor:
        """Expected states, ``[B, *shape]``: the gradient of A."""

    @abstractmethod
    def natural(self, mean: Tensor) -> Tensor:
        """Natural parameters of expected states ``[B, *shape]``, which lie inside the range of the states."""

    @abstractmethod
    def sample(self, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """States drawn independently of each other, ``[B, *shape]``, in the type of the parameters; energies are
        divided by the temperature."""

    @property
    def even(self) -> bool:
        """Whether the base measure is 1 in all states."""
        return True

    def log_base(self, states: Tensor) -> Tensor:
        """log m of states ``[B, *shape]``: ``[B]``, nats; 0 where it is even."""
        return states.new_zeros(len(states))

    def log_prob(self, states: Tensor, natural: Tensor) -> Tensor:
        """log p of states ``[B, *shape]`` given natural parameters: ``[B]``, nats."""
        return (natural * states).flatten(1).sum(1) + self.log_base(states) - self.log_partition(natural)

    def gauge_fixed(self, natural: Tensor) -> Tensor:
        """Of all natural parameters ``[..., *shape]`` that give the same distribution, those that stand for them; the
        parameters themselves where no two give the same. It is an orthogonal projection."""
        return natural

    @property
    @abstractmethod
    def log2_states(self) -> float:
        """Base-2 logarithm of the number of states of all units together; infinite for real units."""

    @abstractmethod
    def states(self, first: int, count: int, like: Tensor) -> Tensor:
        """States number ``first`` to ``first + count - 1``, in a fixed order, ``[count, *shape]``, as ``like``."""


@final
class Bits(Units):
    """Binary units, 0 or 1; the natural parameter is the logit."""

    def log_partition(self, natural: Tensor) -> Tensor:
        return softplus(natural).flatten(1).sum(1)

    def log_partition_change(self, natural: Tensor, lower: float, upper: float) -> Tensor:
        # log (1 + e^y) / (1 + e^x) = log(1 + sigmoid(x) (e^(y-x) - 1)) for y < x < 0. Positive ones are turned round:
        # nothing overflows, and the argument of the logarithm stays above one half.
        step = (upper - lower) * natural
        rest = torch.sigmoid(-lower * natural.abs()) * torch.expm1(-step.abs())
        return (step.relu() + torch.log1p(rest)).flatten(1).sum(1)

    def mean(self, natural: Tensor) -> Tensor:
        return natural.sigmoid()

    def natural(self, mean: Tensor) -> Tensor:
        return mean.logit()

    def sample(self, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        natural = natural.detach()
        p = (natural if temperature == 1.0 else natural / temperature).sigmoid()
        # Three times as fast as torch.bernoulli on a CPU. Between 0 and 1, without 0: what is impossible stays off.
        noise = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device).neg_().add_(1.0)
        return noise.le_(p)

    @property
    def log2_states(self) -> float:
        return float(math.prod(self.shape))

    def states(self, first: int, count: int, like: Tensor) -> Tensor:
        numbers = torch.arange(first, first + count, device=like.device)
        places = torch.arange(math.prod(self.shape), device=like.device)
        return (numbers[:, None] >> places & 1).to(like.dtype).view(count, *self.shape)


@final
class Potts(Units):
    """Units that take one of several values, as one-hot vectors along the last dimension of the shape."""

    def gauge_fixed(self, natural: Tensor) -> Tensor:
        """Those that sum to 0 over the values: to add a number to all of them changes nothing."""
        return natural - natural.mean(-1, keepdim=True)

    def log_partition(self, natural: Tensor) -> Tensor:
        return natural.logsumexp(-1).flatten(1).sum(1)

    def log_partition_change(self, natural: Tensor, lower: float, upper: float) -> Tensor:
        # As for bits: relative to the highest parameter all exponents are negative, and its own term is 0.
        highest = natural.amax(-1, keepdim=True)
        below = natural - highest
        rest = ((lower * below).softmax(-1) * torch.expm1((upper - lower) * below)).sum(-1)
        return ((upper - lower) * highest[..., 0] + torch.log1p(rest)).flatten(1).sum(1)

    def mean(self, natural: Tensor) -> Tensor:
        return natural.softmax(-1)

    def natural(self, mean: Tensor) -> Tensor:
        logs = mean.log()
        return logs - logs.mean(-1, keepdim=True)  # of all that differ by a constant, those that sum to 0

    def sample(self, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        values = self.shape[-1]
        # Relative to the highest parameter nothing overflows, however low the temperature. Weights that are no numbers
        # are noticed by their free energies: what is drawn of them plays no part, but must not be an error.
        below = (natural - natural.amax(-1, keepdim=True)) / temperature
        p = below.softmax(-1).nan_to_num(1.0).reshape(-1, values)
        drawn = torch.multinomial(p, 1, generator=generator).view(*natural.shape[:-1], 1)
        return torch.zeros_like(natural).scatter_(-1, drawn, 1.0)

    @property
    def log2_states(self) -> float:
        return math.prod(self.shape[:-1]) * math.log2(self.shape[-1])

    def states(self, first: int, count: int, like: Tensor) -> Tensor:
        values = self.shape[-1]
        numbers = torch.arange(first, first + count, device=like.device)
        powers = values ** torch.arange(math.prod(self.shape[:-1]), device=like.device)
        digits = numbers[:, None] // powers % values
        return one_hot(digits, values).to(like.dtype).view(count, *self.shape)


@final
class GaussianUnits(Units):
    """Real units of variance 1: m(u) = exp(-u^2 / 2), the natural parameter is the mean."""

    def log_partition(self, natural: Tensor) -> Tensor:
        return (0.5 * natural.square() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def log_partition_change(self, natural: Tensor, lower: float, upper: float) -> Tensor:
        return 0.5 * (upper - lower) * (upper + lower) * natural.square().flatten(1).sum(1)

    def mean(self, natural: Tensor) -> Tensor:
        return natural

    def natural(self, mean: Tensor) -> Tensor:
        return mean

    def sample(self, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        noise = torch.empty_like(natural).normal_(generator=generator)
        return natural + temperature**0.5 * noise

    @property
    def even(self) -> bool:
        return False

    def log_base(self, states: Tensor) -> Tensor:
        return -0.5 * states.square().flatten(1).sum(1)

    @property
    def log2_states(self) -> float:
        return math.inf

    def states(self, first: int, count: int, like: Tensor) -> Tensor:
        raise TypeError("real units have no list of states")


@final
class Joined(Units):
    """Units of two kinds side by side, each flattened: ``[a, b]``.

    Arguments:
        first: the units in front.
        second: those behind them; so few that all their states can be listed at once.
    """

    def __init__(self, first: Units, second: Units) -> None:
        super().__init__((math.prod(first.shape) + math.prod(second.shape),))
        self.first, self.second = first, second

    def split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """States or parameters ``[B, a + b]`` of the two kinds: ``[B, *first.shape]`` and ``[B, *second.shape]``."""
        cut = math.prod(self.first.shape)
        first, second = both[:, :cut], both[:, cut:]
        return first.reshape(-1, *self.first.shape), second.reshape(-1, *self.second.shape)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        return torch.cat([first.flatten(1), second.flatten(1)], 1)

    def log_partition(self, natural: Tensor) -> Tensor:
        first, second = self.split(natural)
        return self.first.log_partition(first) + self.second.log_partition(second)

    def mean(self, natural: Tensor) -> Tensor:
        first, second = self.split(natural)
        return self.join(self.first.mean(first), self.second.mean(second))

    def natural(self, mean: Tensor) -> Tensor:
        first, second = self.split(mean)
        return self.join(self.first.natural(first), self.second.natural(second))

    def sample(self, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        first, second = self.split(natural)
        drawn = self.first.sample(first, generator, temperature)
        return self.join(drawn, self.second.sample(second, generator, temperature))

    @property
    def even(self) -> bool:
        return self.first.even and self.second.even

    def log_base(self, states: Tensor) -> Tensor:
        first, second = self.split(states)
        return self.first.log_base(first) + self.second.log_base(second)

    @property
    def log2_states(self) -> float:
        return self.first.log2_states + self.second.log2_states

    def states(self, first: int, count: int, like: Tensor) -> Tensor:
        numbers = torch.arange(first, first + count, device=like.device)
        fast = round(2**self.second.log2_states)
        lowest, highest = first // fast, (first + count - 1) // fast
        ahead = self.first.states(lowest, highest - lowest + 1, like)[numbers // fast - lowest]
        return self.join(ahead, self.second.states(0, fast, like)[numbers % fast])
