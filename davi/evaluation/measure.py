"""Measures: single numbers about a model beside its claim about log p(x)."""

from __future__ import annotations

from dataclasses import dataclass

from davi.evidence import Kind


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
        draws: of the latents, for each image.
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
