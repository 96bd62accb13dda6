"""What is reported of the partition function behind a claim: its error, which all images share, and what to make of it.

A log-likelihood -F(x) - log Z, averaged over images, has two errors. That over images is the usual one. That of log Z
is the same for every image: more images do not make it smaller, and in the difference of two models it does not cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from davi.evidence import Kind, bits_per_dim
from davi.formatting import significant
from davi.model import Partition
from davi.quantity import Statistic
from davi.records import LEFT_OUT, left_out

LOG_Z = "log Z"
"""Its name in tables."""

NO_LOW = "no lower limit: three standard errors of Z reach below 0"
"""What is said in place of a limit that is infinite, for which JSON has no word."""


@dataclass(frozen=True)
class Reverse:
    """log Z from chains that walk from the energy to the base: an indicator, no bound.

    Arguments:
        log_z: nats.
        low, high: three standard errors below and above, nats; None where there is no limit.
        sweeps: steps of the Markov chains that they begin with.
    """

    log_z: float
    low: float | None
    high: float | None
    sweeps: int | None = None


@dataclass(frozen=True)
class LogZ:
    """The partition function behind a claim.

    Arguments:
        log_z: nats.
        kind: exact, or an estimate.
        claim: the kind that the claim would have, were log Z exact.
        standard_error: of log Z, and so of the mean log-likelihood, nats; None where log Z is exact, or the error is
            not known.
        bits_per_dim_error: the same in bits per dimension.
        low, high: three standard errors of Z below and above, as logarithms, nats; None where there is no limit; both
            are ``log_z`` where it is exact.
        unlimited: in words, why there is none.
        effective_samples: of the chains, as a number of independent ones with equal weights.
        chains, temperatures: of annealed importance sampling; None where it is exact.
        base_images: training images whose mean the chains begin with; 0: uniform noise.
        seed: of the chains.
        reverse: the estimate from the other end; None where it was not made.
        warnings: why not to trust it, and what to do, a sentence each.
    """

    log_z: float
    kind: Kind
    claim: Kind
    standard_error: float | None = left_out()
    bits_per_dim_error: float | None = left_out()
    low: float | None = None
    high: float | None = None
    unlimited: str = field(default="", metadata=LEFT_OUT)
    effective_samples: float | None = left_out()
    chains: int | None = left_out()
    temperatures: int | None = left_out()
    base_images: int | None = left_out()
    seed: int | None = left_out()
    reverse: Reverse | None = field(default=None, metadata=LEFT_OUT)
    warnings: tuple[str, ...] = field(default=(), metadata=LEFT_OUT)

    def error(self, unit: str) -> float | None:
        """The standard error that it adds, in ``"nats"`` or in ``"bits_per_dim"``."""
        return self.standard_error if unit == "nats" else self.bits_per_dim_error

    @property
    def error_of_difference(self) -> float:
        """Its standard error in a comparison with another model, nats: 0 where it is exact; infinite where it is not
        known, or so large that log Z has no lower limit."""
        if self.kind is Kind.EXACT:
            return 0.0
        return math.inf if self.low is None or self.standard_error is None else self.standard_error

    def facts(self) -> list[tuple[str, str]]:
        """Names and texts of everything that is known of it, for tables."""
        if self.kind is Kind.EXACT:
            return [(LOG_Z, f"{self.log_z:.4f} nats (exact, a sum)")]
        number = significant(Statistic(self.log_z, self.standard_error), 2)
        rows = [(LOG_Z, f"{number} nats ({self._how()})")]
        digits = max(2, len(number.partition(" ")[0].partition(".")[2]))
        if self.low is not None or self.high is not None or self.unlimited:
            rows.append((f"{LOG_Z}, interval", _limits(self.low, self.high, self.unlimited, digits)))
        if self.effective_samples is not None and self.chains is not None:
            effective = f"{self.effective_samples:.0f} of {self.chains} chains"
            rows.append((f"{LOG_Z}, effective samples", effective))
        if (back := self.reverse) is not None:
            ends = _limits(back.low, back.high, "no upper limit" if back.high is None else "no lower limit", digits)
            rows.append((f"{LOG_Z}, reverse estimate", f"{back.log_z:.{digits}f} nats, {ends}; an indicator, no bound"))
        return rows

    def _how(self) -> str:
        """How it was estimated."""
        parts = ["estimate"]
        if self.chains is not None and self.temperatures is not None:
            parts.append(f"AIS, {self.chains:,} chains, {self.temperatures:,} temperatures")
        if self.base_images is not None:
            from_mean = f"the mean of {self.base_images:,} training images"
            parts.append(f"from {from_mean if self.base_images else 'uniform noise'}")
        return ", ".join(parts)


def log_z_of(partition: Partition, claim: Kind, dims: int) -> LogZ:
    """What is reported of a partition function.

    Arguments:
        partition: what is known of it.
        claim: the kind that the claim would have, were it exact.
        dims: values in one image.
    """
    exact = partition.kind is Kind.EXACT
    error = partition.standard_error
    low, high = (partition.log_z,) * 2 if exact else (_finite(partition.low), _finite(partition.high))
    back = None
    if partition.reverse is not None:
        ends = _finite(partition.reverse_low), _finite(partition.reverse_high)
        back = Reverse(partition.reverse, *ends, partition.sweeps)
    return LogZ(
        log_z=partition.log_z,
        kind=partition.kind,
        claim=claim,
        standard_error=error,
        bits_per_dim_error=None if error is None else -bits_per_dim(error, dims),
        low=low,
        high=high,
        unlimited=NO_LOW if partition.low == -math.inf else "",
        effective_samples=partition.effective_samples,
        chains=partition.chains,
        temperatures=partition.temperatures,
        base_images=partition.base_images,
        seed=partition.seed,
        reverse=back,
        warnings=() if exact else tuple(_warnings(partition)),
    )


def _warnings(partition: Partition) -> list[str]:
    """Why not to trust an estimate, and what to do."""
    found = partition.doubts()
    if not found:
        return []
    more = "" if partition.temperatures is None else f": --ais-temperatures {2 * partition.temperatures}"
    return [*found, f"likelihoods may be too high; more temperatures help{more}"]


def _limits(low: float | None, high: float | None, otherwise: str, digits: int) -> str:
    """An interval in words; of one without a limit, the other limit."""
    if low is not None and high is not None:
        return f"{low:.{digits}f} to {high:.{digits}f} (three standard errors)"
    if high is not None:
        return f"at most {high:.{digits}f}; {otherwise}"
    return otherwise if low is None else f"at least {low:.{digits}f}; {otherwise}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
