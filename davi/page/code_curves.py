"""Learning curves of quantized models: how many of its codes each layer uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from davi.page import charts
from davi.page.blocks import Chart, Figure
from davi.page.charts import Curve, Mark
from davi.page.energy_curves import number

_PERPLEXITY, _USAGE = "code_perplexity/", "code_usage/"
"""Beginnings of the names in the records, which end with the number of the layer."""

Records = Sequence[Mapping[str, Any]]


def code_figures(train: Records, marks: Sequence[Mark]) -> Iterator[Figure]:
    """What there is of both.

    Arguments:
        train: records of one stage.
        marks: events, as they are drawn into all curves.
    """
    perplexity, usage = _curves(train, _PERPLEXITY, 1.0), _curves(train, _USAGE, 100.0)
    if perplexity:
        yield Figure(
            "curve-perplexity",
            (Chart(charts.lines(perplexity, "perplexity", "step", marks), _told(perplexity, "codes")),),
            "Perplexity of the codes of the training images.",
            "As many codes, all equally frequent, would carry as many bits. Codes are counted over the last whole pass "
            "over the training images; in the first pass, over the steps so far. Where the perplexity falls and stays "
            "low, the model has given up most of its codes.",
            "Papers about quantized models report it.",
        )
    if usage:
        yield Figure(
            "curve-usage",
            (Chart(charts.lines(usage, "codes in use, %", "step", marks), _told(usage, "%")),),
            "Share of the codes that occur at all.",
            "Counted over the same images as the perplexity. Codes that do not occur for long can be revived by the "
            "objective.",
            "",
        )


def _curves(train: Records, beginning: str, factor: float) -> list[Curve]:
    """One for each layer, the top first."""
    names = sorted({name for record in train for name in record if name.startswith(beginning)})
    curves = []
    for i, name in enumerate(names):
        known = [(float(record["step"]), factor * record[name]) for record in train if number(record.get(name))]
        label = f"layer {i}{' (top)' if i == 0 else ''}" if len(names) > 1 else "codes"
        curves.append(Curve(label, [x for x, _ in known], [y for _, y in known]))
    return [curve for curve in curves if curve.x]


def _told(curves: Sequence[Curve], unit: str) -> str:
    parts = [f"{curve.label} from {curve.y[0]:.4g} to {curve.y[-1]:.4g}" for curve in curves]
    return f"Line chart over steps, {unit}: {'; '.join(parts)}."
