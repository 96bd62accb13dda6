"""The figure of a table: ours on the left, what is published on the right, never on one pair of axes.

Arms with a place on an axis are joined, series by series; others stand one below the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from davi.formatting import UNITS
from davi.page.blocks import Chart, Figure
from davi.page.charts import BLUE, GREEN, INK, PURPLE, VERMILION, empty, style
from davi.study.format import QUANTITIES
from davi.study.result import Row, StudyResult, TableResult

_COLORS = (BLUE, VERMILION, GREEN, PURPLE)
_MARKERS = ("o", "s", "^", "D")
_LONGEST_NAME = 30


@dataclass(frozen=True)
class Point:
    """A number of an arm.

    Arguments:
        arm, series, x: of the arm.
        value: the number.
        error: half the length of its error bar; 0: none.
    """

    arm: str
    series: str
    x: float | None
    value: float
    error: float = 0.0


def figure(result: StudyResult, table: TableResult, name: str) -> Figure | None:
    """The figure of a table; None where there is no number to draw.

    Arguments:
        result: of the study.
        table: of it.
        name: of the files.
    """
    ours = [point for row in table.rows if (point := _ours(result, row)) is not None]
    column, quoted = _published(table)
    panels = [(ours, _label(result, table))] if ours else []
    panels += [(quoted, f"published: {column}")] if quoted else []
    if not panels:
        return None
    draw = _over_axis if _has_axis(table, panels) else _in_rows
    parts = {True: "ours", False: "published"}
    charts = tuple(
        Chart(draw(table, points, label), f"{table.title}, {parts[points is ours]}: {_told(points)}.")
        for points, label in panels
    )
    reading = (
        "Lower is better. Error bars are two standard errors: over the seeds where there are several, else over the "
        "test images. What is published is drawn on axes of its own: other sizes, budgets and images."
    )
    caption = f"{table.title}, {' and '.join(parts[points is ours] for points, _ in panels)}."
    return Figure(name, charts, caption, reading, "; ".join(result.sources))


def _ours(result: StudyResult, row: Row) -> Point | None:
    """The first quantity of the study that is one number."""
    number = next((row.numbers[name] for name in result.measured if name in row.numbers), None)
    if number is None:
        return None
    error = number.over_seeds if number.over_seeds is not None else number.over_images
    return Point(row.arm, row.series, row.x, number.mean, 2.0 * (error or 0.0))


def _published(table: TableResult) -> tuple[str, list[Point]]:
    """The column that is drawn, and its points."""
    for column in [table.drawn] if table.drawn else table.columns:
        found = [(row, _as_number(row.published.get(column))) for row in table.rows]
        points = [Point(row.arm, row.series, row.x, value) for row, value in found if value is not None]
        if points:
            return column, points
    return "", []


def _as_number(value: str | float | int | None) -> float | None:
    """A published number, which may be written as text."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _label(result: StudyResult, table: TableResult) -> str:
    first = next(name for name in result.measured if any(name in row.numbers for row in table.rows))
    unit = f", {UNITS[table.unit]}" if first in ("bound", "elbo") and table.unit is not None else ""
    return f"ours: {QUANTITIES[first]}{unit}"


def _has_axis(table: TableResult, panels: Sequence[tuple[list[Point], str]]) -> bool:
    return table.axis is not None and all(point.x is not None for points, _ in panels for point in points)


def _told(points: Sequence[Point]) -> str:
    return ", ".join(f"{point.arm} {point.value:.4g}" for point in points)


def _over_axis(table: TableResult, points: Sequence[Point], label: str) -> Drawing:
    """Values over the axis of the table, a line for each series."""
    with style():
        drawing, axes = empty()
        names = list(dict.fromkeys(point.series for point in points))
        for i, name in enumerate(names):
            own = sorted((point for point in points if point.series == name), key=lambda point: point.x or 0.0)
            color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
            x, y, errors = ([getattr(point, key) for point in own] for key in ("x", "value", "error"))
            axes.errorbar(
                x, y, errors, color=color, marker=marker, markersize=3.5, capsize=2, elinewidth=0.8, label=name
            )
        if table.log:
            axes.set_xscale("log", base=2)
        places = sorted({point.x for point in points if point.x is not None})
        if len(places) <= 8:
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.set_xticks([], minor=True)
        axes.set_xlabel(table.axis or "")
        axes.set_ylabel(label)
        if any(names):
            axes.legend(loc="best")
    return drawing


def _in_rows(table: TableResult, points: Sequence[Point], label: str) -> Drawing:
    """Values one below the other, with the names of the arms."""
    with style():
        drawing, axes = empty((4.4, 0.8 + 0.22 * len(points)))
        places = np.arange(len(points))
        values, errors = [point.value for point in points], [point.error for point in points]
        axes.errorbar(values, places, xerr=errors, fmt="o", color=BLUE, ecolor=INK, markersize=3.5, capsize=2)
        _name(axes, points)
        axes.set_xlabel(label)
    return drawing


def _name(axes: Axes, points: Sequence[Point]) -> None:
    """Names of the arms on the vertical axis, the first on top."""
    names = [point.arm for point in points]
    short = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..." for name in names]
    axes.set_yticks(range(len(points)), short)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_ylim(len(points) - 0.4, -0.6)
