"""Measures: single numbers about a model beside its claim about log p(x)."""

from __future__ import annotations

from dataclasses import dataclass

from davi.evidence import Kind
from davi.records import left_out

NEAR_CAP = 0.1
"""So close to its cap, in the unit of the measure, a number says no more than that it is there."""


@dataclass(frozen=True)
class Measure:
    """A number about a model, with all that must be known to read it.

    Arguments:
        name: such as ``active units``.
        unit: that it is counted in.
        value: the number.
        standard_error: of it; None where it has none.
        kind: how it relates to what it measures; None for a count.
        rule: what it is, in words.
        layers: what each layer, top first, has of it; None where it is not about layers.
        out_of: the most that each layer could have.
        images: over which it was taken; None: over all.
        draws: of the latents, for each image; of the model, where it is not about images.
        cap: no such number can be larger, whatever the model, given how it was taken; None: there is no such limit.
        interval: of 95 %, where it is not the value with two standard errors to both sides.
        depths: of the ``layers``, counted from the bottom, where they are not all that a network has.
    """

    name: str
    unit: str
    value: float
    standard_error: float | None
    kind: Kind | None
    rule: str
    layers: tuple[float, ...] | None = None
    out_of: tuple[float, ...] | None = None
    images: int | None = None
    draws: int | None = None
    cap: float | None = left_out()
    interval: tuple[float, ...] | None = left_out()
    depths: tuple[int, ...] | None = left_out()

    def __post_init__(self) -> None:
        if self.interval is not None and len(self.interval) != 2:
            raise ValueError(f"interval: got {len(self.interval)} numbers, expected two")

    @property
    def at_cap(self) -> bool:
        """Whether the number is within ``NEAR_CAP``, or within its standard error, of the largest it can be: the
        true one may be far larger."""
        return self.cap is not None and self.value > self.cap - max(NEAR_CAP, self.standard_error or 0.0)


@dataclass(frozen=True)
class LeftOut:
    """A measure that a model does not have.

    Arguments:
        name: of the measure.
        reason: why, in words.
    """

    name: str
    reason: str
