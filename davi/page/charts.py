"""Charts by matplotlib: drawn once, saved as PNG and SVG, and shown on the page in its own colors.

A chart is drawn in the light theme. On the page its SVG becomes a part of the document, and each color of the theme
becomes a variable of the style sheet, so that a chart is as readable in the dark as the text around it. Letters stay
letters. The colors of lines are those that Okabe and Ito chose for colour-blind readers.

References:
    Color Universal Design, M. Okabe, K. Ito, 2008, https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK, MUTED, RULE, PAGE = "#1b1f24", "#57606a", "#d0d7de", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#007a5a", "#a8407b"

THEME = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAGE: "--page",
    BLUE: "--blue",
    VERMILION: "--vermilion",
    GREEN: "--green",
    PURPLE: "--purple",
}
"""Colors of charts, and the variables of the style sheet that stand for them."""

SIZE = (4.4, 2.7)
"""Inches of 72 pixels: on a phone a chart is shown a little larger than drawn, on a screen half as large again."""

_STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "text.parse_math": False,  # names are names, whatever letters they are made of
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.4,
    "legend.facecolor": PAGE,
    "legend.edgecolor": PAGE,
    "legend.framealpha": 1.0,
    "legend.fontsize": 7.5,
    "figure.facecolor": PAGE,
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "davi",  # the same chart is the same file
    "image.composite_image": False,
}

_LONGEST_CURVE = 400
"""Points: more cannot be told apart."""

_SHORT = 0.07
"""Length of a short mark, as a share of the height."""

_LONGEST_NAME = 24
"""Letters of the name of a bar; of longer ones the beginning is shown."""

_CELLS_WITH_NUMBERS = 9
"""Rows or columns of a matrix up to which there is room for a number in each cell."""


@contextmanager
def style() -> Iterator[None]:
    """What charts look like, while they are drawn and while they are saved."""
    with matplotlib.rc_context(_STYLE):
        yield


@dataclass(frozen=True)
class Curve:
    """A line.

    Arguments:
        label: in the legend.
        x: where.
        y: how much.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A vertical line at a step, and what it stands for in the legend; a short one is a tick on the axis."""

    label: str
    x: float
    color: str
    short: bool = False


def lines(curves: Sequence[Curve], y_label: str, x_label: str, marks: Sequence[Mark] = (), cut: bool = False) -> Figure:
    """Curves over steps, with marks.

    Arguments:
        curves: drawn in the order blue, vermilion, green; the second and third are dashed and dotted as well.
        y_label: with the unit.
        x_label: with the unit.
        marks: vertical lines.
        cut: values of the first tenth of the range of x may lie above the frame, so that the rest can be read.
    """
    with style():
        figure, axes = empty()
        for curve, color, dashes in zip(curves, (BLUE, VERMILION, GREEN), ("-", "--", ":"), strict=False):
            x, y = thinned(curve.x, curve.y)
            marker = "o" if len(x) <= 40 else None
            axes.plot(x, y, dashes, color=color, label=curve.label, marker=marker, markersize=2.4)
        if cut:
            _cut(axes, curves)
        named: set[str] = set()
        for mark in marks:
            label = "_" if mark.label in named else mark.label
            named.add(mark.label)
            if mark.short:
                axes.axvline(mark.x, 0, _SHORT, color=mark.color, linewidth=1.2, label=label)
            else:
                axes.axvline(mark.x, color=mark.color, linestyle=(0, (2, 2)), linewidth=1, label=label)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.02)
        if len(curves) + len(named) > 1:
            axes.legend(loc="best")
    return figure


def bars(
    heights: Sequence[float], errors: Sequence[float], hollow: Sequence[bool], y_label: str, x_label: str
) -> Figure:
    """Vertical bars numbered from 0, with errors; hollow ones stand out.

    Arguments:
        heights: of the bars; those below zero hang down.
        errors: half the length of the error bars.
        hollow: which bars are outlined in vermilion, not filled in blue.
        y_label: with the unit.
        x_label: of the numbers.
    """
    with style():
        figure, axes = empty()
        places = np.arange(len(heights))
        fill = ["none" if empty else BLUE for empty in hollow]
        edge = [VERMILION if empty else BLUE for empty in hollow]
        wide = 0.75 if len(heights) > 5 else 0.5
        drawn = [error if error > 0 else np.nan for error in errors]
        axes.bar(places, heights, wide, color=fill, edgecolor=edge, linewidth=1.2, yerr=drawn, ecolor=INK, capsize=2)
        axes.set_xlim(-0.7, len(heights) - 0.3)
        if min(heights) < 0:
            axes.axhline(0, color=MUTED, linewidth=0.6)
        else:
            axes.set_ylim(0, None)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(heights) <= 16:
            axes.set_xticks(places)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    return figure


def bounds(
    counts: Sequence[int],
    costs: Sequence[float],
    errors: Sequence[float],
    parts: tuple[float, str, str] | None,
    y_label: str,
) -> Figure:
    """Bounds on a cost over numbers of samples, and how the distance from the first to the last divides.

    Arguments:
        counts: of samples, the first 1; on a logarithmic axis.
        costs: the bounds.
        errors: half the length of the error bars.
        parts: a cost between the first and the last, and names of the two parts above and below it; None for none.
        y_label: with the unit.
    """
    with style():
        figure, axes = empty()
        axes.errorbar(counts, costs, errors, color=BLUE, marker="o", markersize=2.8, ecolor=MUTED, elinewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(0.8, 1.3 * counts[-1])
        if parts is not None:
            between, above, below = parts
            axes.set_xlim(0.8, 40.0 * counts[-1])
            axes.axhline(between, color=VERMILION, linestyle=(0, (4, 2)), linewidth=1, label="ELBO, q optimized")
            for ends, name in (((costs[0], between), above), ((between, costs[-1]), below)):
                place = 2.2 * counts[-1]
                for end in ends:
                    axes.plot([counts[-1] * 1.4, place * 1.3], [end, end], color=INK, linewidth=0.6)
                arrow = {"arrowstyle": "<->", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (place, ends[0]), (place, ends[1]), arrowprops=arrow)
                middle = (place, sum(ends) / 2)
                axes.annotate(name, middle, (5, 0), textcoords="offset points", va="center", fontsize=7.5)
            axes.legend(loc="upper right")
        ticks = [10**power for power in range(len(str(counts[-1])))]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("importance samples K")
        axes.set_ylabel(y_label)
    return figure


def levels(values: Sequence[float], names: Sequence[str], texts: Sequence[str], label: str) -> Figure:
    """Bars from left to right, one below the other, with their values; the first stands out.

    Arguments:
        values: lengths of the bars, from 0.
        names: of the bars, top first.
        texts: beside the bars.
        label: with the unit.
    """
    with style():
        figure, axes = empty((SIZE[0], 0.7 + 0.32 * len(values)))
        places = np.arange(len(values))
        axes.barh(places, values, 0.62, color=[BLUE, *[MUTED] * (len(values) - 1)])
        for place, value, text in zip(places, values, texts, strict=True):
            end = (max(value, 0.0), place)
            axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", fontsize=8)
        shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..." for name in names]
        axes.set_yticks(places, shown)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_xlim(0, 1.15 * max(*values, 0.0) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
    return figure


def matrix(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    beside: tuple[Sequence[float], str],
) -> Figure:
    """A matrix of shares as colored cells, 0 dark and 1 bright, and a bar for each row; NaN is left empty.

    Arguments:
        values: in 0..1, or NaN, [rows, columns].
        rows: names of the rows, first on top.
        columns: names of the columns.
        labels: what the rows and what the columns are.
        beside: lengths of the bars, and what they are.
    """
    with style():
        height = 1.1 + 0.26 * min(max(len(rows), 3), 12)
        figure = Figure(figsize=(SIZE[0], height), dpi=72, layout="constrained")
        axes, bars_axes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        for each in (axes, bars_axes):
            each.grid(False)
            each.tick_params(axis="y", length=0)
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="viridis", edgecolor=PAGE, linewidth=1
        )
        axes.invert_yaxis()
        every = -(-max(len(rows), len(columns)) // 16)  # names that would overlap are left out
        axes.set_xticks(np.arange(0, len(columns), every) + 0.5, columns[::every])
        axes.set_yticks(np.arange(0, len(rows), every) + 0.5, rows[::every])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel(labels[0])
        axes.set_xlabel(labels[1])
        if max(values.shape) <= _CELLS_WITH_NUMBERS:
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    color = "#010101" if value > 0.55 else "#fefefe"
                    place = (column + 0.5, row + 0.5)
                    axes.annotate(f"{value:.2f}", place, ha="center", va="center", color=color, fontsize=7)
        bars_axes.barh(np.arange(len(rows)) + 0.5, beside[0], 0.6, color=BLUE)
        bars_axes.set_xlim(0, 1.1 * max(*beside[0], 1.0))
        bars_axes.set_xlabel(beside[1])
        bars_axes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        bars_axes.spines["left"].set_visible(False)
        bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.03, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
    return figure


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve of few points: means over equal numbers of neighbors, and the last point as it is."""
    across, up = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    block = -(-len(across) // _LONGEST_CURVE)
    if block <= 1:
        return across, up
    starts = np.arange(0, len(across), block)
    counts = np.diff(np.append(starts, len(across)))
    means = [np.add.reduceat(values, starts) / counts for values in (across, up)]
    return np.append(means[0], across[-1]), np.append(means[1], up[-1])


def empty(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, to be drawn on within :func:`style`."""
    figure = Figure(figsize=size, dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def _cut(axes: Axes, curves: Sequence[Curve]) -> None:
    """Limits of the vertical axis that hold all values but those of the first tenth of the steps."""
    last = max((curve.x[-1] for curve in curves if len(curve.x)), default=0.0)
    late = [y for curve in curves for x, y in zip(curve.x, curve.y, strict=True) if x > last / 10]
    if late:
        low, high = min(late), max(late)
        room = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
