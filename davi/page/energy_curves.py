"""Learning curves of energies: the likelihood that is estimated in training, and the gap of free energies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from davi.page import charts
from davi.page.blocks import Chart, Figure
from davi.page.charts import Curve, Mark
from davi.page.units import Unit

Records = Sequence[Mapping[str, Any]]


def energy_figures(train: Records, validation: Records, marks: Sequence[Mark], unit: Unit) -> Iterator[Figure]:
    """What there is of both.

    Arguments:
        train, validation: records of one stage.
        marks: events, as they are drawn into all curves.
        unit: of a likelihood.
    """
    cost = _curve("training", [(record, record.get("log_likelihood")) for record in train], lambda x: unit.of_nats(-x))
    if cost.x:
        what = "what this stage trains on, images or units of a layer," if train[0].get("stage") else "a training image"
        yield Figure(
            "curve-likelihood",
            (Chart(charts.lines([cost], unit.name, "step", marks, cut=True), _told(cost, unit.name)),),
            f"Estimated cost of {what} in {unit.name}; lower is better.",
            "The partition function is estimated by importance chains that follow the weights from step to step, and "
            f"begin again where they have lost them{_counted(train)}. It is that of the weights of the moment; the "
            "evaluation estimates that of the averaged weights, with more chains and many more temperatures.",
            "Annealed importance sampling along the trajectory of training: Béreux et al., ICLR 2025.",
        )
    gap = _curve("gap", [(record, record.get("gap")) for record in validation], unit.of_nats)
    if gap.x:
        yield Figure(
            "curve-gap",
            (Chart(charts.lines([gap], f"gap, {unit.name}", "step", marks), _told(gap, unit.name)),),
            f"Free energy of validation images less that of training images, in {unit.name}.",
            "Both are means over equally many images, with the same averaged weights, so the partition function drops "
            "out: it is how much more a new image costs than one that was trained on. Where it grows, the model "
            "overfits.",
            "A Practical Guide to Training Restricted Boltzmann Machines (Hinton, 2012), section 6.",
        )


def _curve(label: str, points: Sequence[tuple[Mapping[str, Any], Any]], to: Any) -> Curve:
    """Of the records whose value is a number that can be drawn."""
    found = [(float(record["step"]), to(value)) for record, value in points if number(value)]
    return Curve(label, [x for x, _ in found], [y for _, y in found])


def number(value: Any) -> bool:
    """Whether a value of a record is a number that can be drawn."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value) and abs(value) < 1e15


def _counted(train: Records) -> str:
    """How many chains count at the end."""
    last = train[-1].get("effective_samples") if train else None
    return f"; in the end {last:.3g} of them count" if number(last) else ""


def _told(curve: Curve, unit: str) -> str:
    first, last = (f"{curve.y[place]:.4g} at step {curve.x[place]:.0f}" for place in (0, -1))
    return f"Line chart over steps: from {first} to {last} ({unit})."
