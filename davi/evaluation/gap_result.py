"""The variational gap as it is shown and kept: means over images, and everything they depend on.

The names of the fields are the keys of ``gap.json`` (:mod:`davi.records`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from davi.evaluation.result import Protocol
from davi.evidence import About, Kind
from davi.quantity import Quantity
from davi.records import at_least_one

FORMAT = 1
"""Of the file; it rises when older programs would misread a newer file."""


@dataclass(frozen=True)
class CurvePoint(Quantity):
    """The bound for one K.

    Arguments:
        samples: K.
        groups: of so many draws of each image, over which the estimate is the mean.
        below: the highest bound minus this one, positive. Its error is that of a difference over the same images, which
            is far smaller than those of the two.
    """

    samples: int
    groups: int
    below: Quantity

    def __post_init__(self) -> None:
        at_least_one(self, "samples", "groups")


@dataclass(frozen=True)
class Part(Quantity):
    """A part of the gap, positive where something is lost.

    Arguments:
        kind: how it relates to what it says.
    """

    kind: Kind


@dataclass(frozen=True)
class StartCount:
    """Where an optimization began, and how many images found their best posterior from there."""

    name: str
    images: int


@dataclass(frozen=True)
class GapParts:
    """How the gap divides (:mod:`davi.evaluation.gap`).

    Arguments:
        optimized: ELBO of the posteriors that were optimized for each image.
        amortization: that minus the ELBO.
        family: the highest bound minus that.
        total: the highest bound minus the ELBO.
        steps: of the optimization, from each start.
        step_draws: of the latents of each image at a step.
        starts: of the optimization.
        rule: what was optimized, in words.
    """

    optimized: Quantity
    amortization: Part
    family: Part
    total: Part
    steps: int
    step_draws: int
    starts: tuple[StartCount, ...]
    rule: str

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "step_draws")


@dataclass(frozen=True)
class GapResult:
    """The variational gap in numbers to read.

    Arguments:
        kind: how the curve relates to log p(x).
        about: what the claim is about.
        curve: the bound for each K, the first of which is the ELBO.
        parts: how the gap divides; None where posteriors cannot be optimized.
        why_not: the reason for that, in words.
        protocol: what all this depends on.
        format: of the file.
    """

    kind: Kind
    about: About
    curve: tuple[CurvePoint, ...]
    parts: GapParts | None
    why_not: str
    protocol: Protocol
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: got {self.format}, expected {FORMAT}; another version of davi has written this")
        counts = [point.samples for point in self.curve]
        if len(counts) < 2 or any(later <= earlier for earlier, later in pairwise(counts)):
            raise ValueError(f"curve: got K = {counts}, expected at least two in rising order")

    @property
    def units(self) -> tuple[str, str]:
        """The units, the usual one of these images first: nats for binary images, bits per dimension for others."""
        return ("nats", "bits_per_dim") if self.protocol.data.levels == 2 else ("bits_per_dim", "nats")
