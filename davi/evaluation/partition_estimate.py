r"""Estimates of a partition function by annealed importance sampling (:mod:`davi.evaluation.annealing`).

.. math:: \log \hat Z = \log Z_0 + \log \frac 1M \sum_{m=1}^M w_m

The mean weight is right on average, so its logarithm is too small on average (Jensen), and likelihoods are too large:
the more so the worse the chains mix. Its interval comes from the spread of the weights and sees only what the chains
have seen.

**The reverse estimate** walks from the energy back to the base, :math:`\log Z_0 - \log \frac 1M \sum_m w'_m`. Were the
states at its beginning exact draws from the energy, it would be too large on average, as the forward one is too small,
and log Z would lie between the two. They are the ends of long, tempered Markov chains (:mod:`davi.model.tempering`), of
which nothing guarantees that they have reached all that is probable. It is therefore an indicator, no bound. Where the
two disagree, at least one of them is wrong.

References:
    On the Quantitative Analysis of Deep Belief Networks, R. Salakhutdinov, I. Murray, ICML 2008,
    https://doi.org/10.1145/1390156.1390266

    Sandwiching the marginal likelihood using bidirectional Monte Carlo, R. B. Grosse, Z. Ghahramani, R. P. Adams, 2015,
    https://arxiv.org/abs/1511.02543 (the reverse estimate)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from davi.errors import UserError
from davi.evaluation.annealing import STANDARD_TEMPERATURES, Progress, anneal, anneal_back, base_field, checked
from davi.evaluation.weights import Weights, of_chains
from davi.evidence import Kind
from davi.model import Harmonium, Partition
from davi.model.tempering import tempered_chains

CHAINS = 100
"""Chains of an estimate, unless told otherwise."""

SWEEPS = 1000
"""Of the tempered chains that a reverse estimate begins with."""


@dataclass(frozen=True)
class ReverseEstimate:
    """log Z from chains that walk from the energy to the base: an indicator, no bound (module docstring).

    Arguments:
        log_base: log Z of the base, nats.
        weights: w' of the chains, of mean Z_0 / Z if the chains began with exact draws.
        sweeps: of the tempered chains that they began with.
        levels: of their ladder.
        acceptance: the lowest of a pair of levels; near 0, the chains were hardly tempered.
    """

    log_base: float
    weights: Weights
    sweeps: int
    levels: int
    acceptance: float

    @property
    def log_z(self) -> float:
        """log Z, nats."""
        return self.log_base - self.weights.log_mean

    @property
    def low(self) -> float:
        """Three standard errors of the mean weight below, nats."""
        return self.log_base - self.weights.interval()[1]

    @property
    def high(self) -> float:
        """Three standard errors of the mean weight above, nats; infinite where their interval contains 0."""
        return self.log_base - self.weights.interval()[0]


@dataclass(frozen=True, repr=False)
class PartitionEstimate:
    """log Z by annealed importance sampling (module docstring).

    Arguments:
        log_base: log Z of the base, nats.
        weights: w of the chains, of mean Z / Z_0.
        base: the fields of the base, ``[*visible.shape]``.
        temperatures: values of beta, from 0 to 1.
        reverse: the estimate from the other end; None if it was not made.
    """

    log_base: float
    weights: Weights
    base: Tensor
    temperatures: tuple[float, ...]
    reverse: ReverseEstimate | None = None

    def __repr__(self) -> str:
        """What it comes to, in one line: thousands of temperatures would hide it."""
        back = "" if self.reverse is None else f", reverse {self.reverse.log_z:.4f}"
        return (
            f"PartitionEstimate(log Z {self.log_z:.4f}, from {self.low:.4f} to {self.high:.4f}{back}; "
            f"{self.effective_samples:.1f} of {len(self.log_weights)} chains effective, "
            f"{len(self.temperatures)} temperatures)"
        )

    @property
    def log_z(self) -> float:
        """log Z, nats."""
        return self.log_base + self.weights.log_mean

    @property
    def log_weights(self) -> Tensor:
        """log w, float64, ``[chains]``, nats."""
        return self.weights.logs

    @property
    def low(self) -> float:
        """Three standard errors of Z below, as a logarithm, nats; -inf where the interval contains 0."""
        return self.log_base + self.weights.interval()[0]

    @property
    def high(self) -> float:
        """Three standard errors of Z above, as a logarithm, nats."""
        return self.log_base + self.weights.interval()[1]

    @property
    def effective_samples(self) -> float:
        """Of the chains, as a number of independent ones with equal weights."""
        return self.weights.effective_samples

    @property
    def chains(self) -> int:
        """How many chains there are."""
        return len(self.weights.logs)

    @property
    def disagree(self) -> bool:
        """Whether the intervals of the two estimates, of three standard errors each, have nothing in common."""
        return self.partition().disagree

    def doubts(self) -> tuple[str, ...]:
        """Reasons not to trust it (:meth:`davi.model.Partition.doubts`); that there are none proves nothing."""
        return self.partition().doubts()

    def partition(self) -> Partition:
        """What a model needs of it: an estimate."""
        back = self.reverse
        return Partition(
            self.log_z,
            Kind.ESTIMATE,
            self.low,
            self.high,
            self.effective_samples,
            self.chains,
            len(self.temperatures),
            reverse=None if back is None else back.log_z,
            reverse_low=None if back is None else back.low,
            reverse_high=None if back is None else back.high,
            sweeps=None if back is None else back.sweeps,
        )


def estimate_partition(
    energy: Harmonium,
    base_images: Tensor | None = None,
    temperatures: int | Sequence[float] = STANDARD_TEMPERATURES,
    chains: int = CHAINS,
    generator: Generator | None = None,
    progress: Progress | None = None,
    reverse: bool = False,
    sweeps: int = SWEEPS,
) -> PartitionEstimate:
    """Estimate log Z of an energy (module docstring).

    Arguments:
        energy: with its weights.
        base_images: integers, ``[N, C, H, W]``, whose mean the base has; None: all fields of the base are zero.
        temperatures: how many, in the proportions of the standard schedule, or values of beta that rise from 0 to 1.
        chains: how many walk at once.
        generator: of all draws, on the device of the weights.
        progress: called with the temperatures and sweeps that are done, and their number.
        reverse: estimate it from the other end as well.
        sweeps: of the tempered chains that a reverse estimate begins with, at least 4.

    Raises:
        ValueError: if there are fewer than 2 chains, which alone have an error, or the temperatures do not rise from 0
            to 1.
        UserError: if the estimate is not finite.
    """
    if chains < 2:
        raise ValueError(f"chains: got {chains}, expected 2 or more")
    betas = checked(temperatures)
    steps = len(betas) - 1
    total = (2 * steps + sweeps) if reverse else steps
    base = base_field(energy, base_images, generator)
    log_base = float(energy.path_log_z(base))
    weights = of_chains(anneal(energy, base, betas, chains, generator, _part(progress, 0, total)))
    if not math.isfinite(log_base + weights.log_mean):
        raise UserError(
            f"{energy.name}: got the partition function exp({log_base + weights.log_mean}), expected a finite one"
        )
    if not reverse:
        return PartitionEstimate(log_base, weights, base, betas)
    report = _part(progress, steps, total)
    tempered = tempered_chains(energy, base, chains, sweeps, generator=generator, progress=report)
    report = _part(progress, steps + sweeps, total)
    back = of_chains(anneal_back(energy, base, betas, tempered.states[-1], generator, report))
    lowest = float(tempered.acceptance.nan_to_num(1.0).min())
    reversed_ = ReverseEstimate(log_base, back, sweeps, len(tempered.betas), lowest)
    return PartitionEstimate(log_base, weights, base, betas, reversed_)


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of a part, as that of the whole."""
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(before + done, total)
