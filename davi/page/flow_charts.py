"""Charts of flows: parts that add up, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from davi.page.charts import BLUE, GREEN, INK, MUTED, SIZE, VERMILION, empty, style

_LONGEST_NAME = 30
"""Letters; of longer names the beginning is shown."""


@dataclass(frozen=True)
class Bar:
    """A number with its name.

    Arguments:
        name: beside the axis.
        value: of either sign.
        text: beside the bar.
        error: half the length of a line over the end of the bar; 0 for none.
        whole: whether it is the sum of the others.
    """

    name: str
    value: float
    text: str
    error: float = 0.0
    whole: bool = False


def parts(bars: Sequence[Bar], label: str) -> Figure:
    """Bars from a line at zero to either side, one below the other: blue above zero, vermilion below; a sum is gray.

    Arguments:
        bars: top first.
        label: with the unit.
    """
    with style():
        figure, axes = empty((SIZE[0], 0.7 + 0.24 * max(len(bars), 2)))
        places, values = np.arange(len(bars)), np.array([bar.value for bar in bars])
        colors = [MUTED if bar.whole else BLUE if bar.value >= 0 else VERMILION for bar in bars]
        axes.barh(places, values, 0.62, color=colors)
        for place, bar in zip(places, bars, strict=True):
            if bar.error > 0:
                axes.plot([bar.value - bar.error, bar.value + bar.error], [place, place], color=INK, linewidth=0.8)
            end = max(bar.value + bar.error, 0.0)
            axes.annotate(bar.text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
        names = [bar.name if len(bar.name) <= _LONGEST_NAME else f"{bar.name[: _LONGEST_NAME - 3]}..." for bar in bars]
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=MUTED, linewidth=0.6)
        low = min(0.0, *(bar.value - bar.error for bar in bars))
        high = max(0.0, *(bar.value + bar.error for bar in bars))
        span = (high - low) or 1.0
        axes.set_xlim(low - 0.02 * span, high + 0.2 * span)  # room for the text
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
    return figure


def noise(shares: Sequence[float]) -> Figure:
    """A histogram of numbers in [0, 1) beside the uniform one.

    Arguments:
        shares: of equal parts of the interval; they sum to 1.
    """
    with style():
        figure, axes = empty()
        densities = np.asarray(shares) * len(shares)
        axes.stairs(densities, np.linspace(0, 1, len(shares) + 1), color=BLUE, fill=True, label="learned")
        axes.axhline(1.0, color=GREEN, linestyle="--", linewidth=1.2, label="uniform")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, None)
        axes.set_xlabel("noise u added to a pixel's integer")
        axes.set_ylabel("density")
        axes.legend(loc="best")
    return figure
