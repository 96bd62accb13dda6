"""Charts of energies: histograms, correlations, and estimates of a partition function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from davi.page.charts import BLUE, GREEN, MUTED, VERMILION, empty, style, thinned

_BINS = 30
"""Of a histogram, at most."""

_OUTLIERS = 0.002
"""Share of all values at either end that a histogram leaves out, so that the rest can be read."""


def histograms(values: Sequence[tuple[str, NDArray[np.float64]]], x_label: str) -> Figure:
    """Outlines of histograms over the same bins, as shares of each.

    Arguments:
        values: names and numbers; drawn in the order blue, vermilion, green, the second dashed and the third dotted.
        x_label: with the unit.
    """
    together = np.concatenate([numbers for _, numbers in values])
    low, high = np.quantile(together, (_OUTLIERS, 1.0 - _OUTLIERS))
    count = int(min(_BINS, max(5, min(len(numbers) for _, numbers in values) ** 0.5 * 2)))
    edges = np.linspace(low, high if high > low else low + 1.0, count + 1)
    with style():
        figure, axes = empty()
        for (name, numbers), color, dashes in zip(values, (BLUE, VERMILION, GREEN), ("-", "--", ":"), strict=False):
            shares = np.histogram(numbers, edges)[0] / len(numbers)
            axes.stairs(shares, edges, color=color, linestyle=dashes, linewidth=1.3, label=name)
            axes.axvline(float(numbers.mean()), 0, 0.06, color=color, linewidth=1.3)
        axes.set_ylim(0, None)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share of images")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.legend(loc="best")
    return figure


def correlation(rho: NDArray[np.float64], time: float | None) -> Figure:
    """The autocorrelation over the lag, and where the autocorrelation time is.

    Arguments:
        rho: at the lags 0, 1, ...
        time: in steps; None: not known.
    """
    shown = len(rho) if time is None else min(len(rho), max(20, round(8 * time)))
    with style():
        figure, axes = empty()
        lags, values = thinned(range(shown), rho[:shown].tolist())
        axes.plot(lags, values, color=BLUE)
        axes.axhline(0, color=MUTED, linewidth=0.6)
        if time is not None:
            axes.axvline(time, color=VERMILION, linestyle=(0, (4, 2)), linewidth=1, label=f"τ = {time:.3g} steps")
            axes.legend(loc="upper right")
        axes.set_xlim(0, None)
        axes.set_xlabel("lag, Gibbs steps")
        axes.set_ylabel("autocorrelation")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


@dataclass(frozen=True)
class Interval:
    """An estimate over a number of temperatures, and its interval, whose ends may be infinite."""

    temperatures: int
    value: float
    low: float
    high: float


def estimates(forward: Sequence[Interval], reverse: Sequence[Interval], exact: float | None, y_label: str) -> Figure:
    """Estimates with their intervals over the number of temperatures; an open interval ends in an arrow.

    Arguments:
        forward: from independent units to the energy.
        reverse: from the energy back.
        exact: the true value, a horizontal line; None: not known.
        y_label: with the unit.
    """
    ends = [end for one in (*forward, *reverse) for end in (one.low, one.value, one.high) if np.isfinite(end)]
    ends += [] if exact is None else [exact]
    room = 0.06 * (max(ends) - min(ends)) or 0.5
    bottom, top = min(ends) - room, max(ends) + room
    with style():
        figure, axes = empty()
        kinds = (("forward", forward, BLUE, "o", "-", 0.985), ("reverse", reverse, VERMILION, "s", "--", 1.015))
        for name, several, color, marker, dashes, aside in kinds:
            if not several:
                continue
            x = [aside * one.temperatures if reverse else float(one.temperatures) for one in several]
            y = [one.value for one in several]
            axes.plot(x, y, dashes, color=color, marker=marker, markersize=3.4, label=name)
            for place, one in zip(x, several, strict=True):
                axes.vlines(place, max(one.low, bottom), min(one.high, top), color=color, linewidth=1)
                if one.low == -np.inf:
                    axes.plot(place, bottom, "v", color=color, markersize=4, clip_on=False)
                if one.high == np.inf:
                    axes.plot(place, top, "^", color=color, markersize=4, clip_on=False)
        if exact is not None:
            axes.axhline(exact, color=GREEN, linestyle=":", linewidth=1, label="exact")
        axes.set_ylim(bottom, top)
        axes.set_xscale("log")
        ticks = sorted({one.temperatures for one in (*forward, *reverse)})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.margins(x=0.08)
        axes.set_xlabel("temperatures")
        axes.set_ylabel(y_label)
        if reverse or exact is not None:
            axes.legend(loc="best")
    return figure
