"""Charts of codes: how often each is used, and how a cost divides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from davi.page.charts import BLUE, GREEN, MUTED, SIZE, VERMILION, empty, style, thinned


def usage(layers: Sequence[tuple[str, NDArray[np.float64]]], y_label: str, x_label: str) -> Figure:
    """How often codes occur, the most frequent first, on a logarithmic axis; codes that do not occur are left out.

    Arguments:
        layers: names and numbers, from the most frequent code on, 1 where all codes occur equally often; drawn in the
            order blue, vermilion, green, the second dashed and the third dotted.
        y_label: what the numbers are.
        x_label: what is counted across.
    """
    with style():
        figure, axes = empty()
        for (name, numbers), color, dashes in zip(layers, (BLUE, VERMILION, GREEN), ("-", "--", ":"), strict=False):
            used = numbers[numbers > 0]
            x, y = thinned(range(1, len(used) + 1), used.tolist())
            axes.plot(x, y, dashes, color=color, label=name, marker="o" if len(x) <= 40 else None, markersize=2.4)
        axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)), label="all equally often")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10.0, (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0, 1.02 * max(len(numbers) for _, numbers in layers))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(loc="best")
    return figure


def divided(
    names: Sequence[str],
    first: float,
    second: Sequence[float],
    parts: tuple[str, str],
    texts: Sequence[str],
    label: str,
) -> Figure:
    """Bars from left to right, one below the other: a part that all have, and behind it one of each.

    Arguments:
        names: of the bars, top first.
        first: length of the common part.
        second: lengths of the others.
        parts: what the two parts are.
        texts: beside the bars.
        label: with the unit.
    """
    with style():
        figure, axes = empty((SIZE[0], 0.95 + 0.32 * len(names)))
        places = np.arange(len(names))
        axes.barh(places, [first] * len(names), 0.62, color=BLUE, label=parts[0])
        axes.barh(places, second, 0.62, left=first, color=VERMILION, label=parts[1])
        for place, value, text in zip(places, second, texts, strict=True):
            axes.annotate(text, (first + value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(False)
        low = min(first, 0.0)  # a density above 1 has a negative cost
        axes.set_xlim(1.15 * low, 1.2 * (first + max(second)) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        figure.legend(loc="outside upper center", ncols=2)
    return figure
