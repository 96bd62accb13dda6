"""Charts of classes: reliability diagrams and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from davi.evaluation.calibration import Reliability
from davi.page.charts import BLUE, MUTED, PAGE, SIZE, VERMILION, empty, style

_COUNTED = 12
"""Classes up to which there is room for a number in each cell."""

_NAMED = 20
"""Classes of which each has room for its name."""

_LONGEST_NAME = 12
"""Letters of a name; of longer ones the beginning is shown."""


def reliability(found: Reliability) -> Figure:
    """How often a classifier is right over how sure it is, with the share of images in each bin below."""
    with style():
        figure = Figure(figsize=(SIZE[0], 3.4), dpi=72, layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        some = found.counts > 0
        left, width = found.edges[:-1][some], np.diff(found.edges)[some]
        right, sure = found.accuracy[some], found.confidence[some]
        axes.bar(left, right, width, align="edge", color=BLUE, edgecolor=PAGE, linewidth=0.8, label="right")
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 2)), linewidth=1, label="calibrated")
        axes.plot(sure, right, "o", color=VERMILION, markersize=3.2, clip_on=False, label="mean confidence")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_ylabel("share of right answers")
        axes.legend(loc="upper left")
        below.bar(left, found.counts[some] / found.counts.sum(), width, align="edge", color=MUTED, edgecolor=PAGE)
        below.set_ylim(0, None)
        below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        below.set_ylabel("images")
        below.set_xlabel("confidence: probability of the most probable class")
    return figure


def confusion(shares: NDArray[np.float64], counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Images of each class by the class that they are put into; cells without an image are empty.

    Arguments:
        shares: of the images of the class, ``[own, named]``, which say how bright a cell is.
        counts: of images, ``[own, named]``, which are written into the cells of few classes.
        names: of the classes.
    """
    with style():
        side = 1.4 + 0.24 * min(max(len(names), 4), _NAMED)
        figure, axes = empty((max(SIZE[0], side), side))
        axes.grid(False)
        values = np.ma.masked_where(counts == 0, shares)
        axes.pcolormesh(values, norm=PowerNorm(0.5, 0.0, 1.0), cmap="viridis", edgecolor=PAGE, linewidth=0.5)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        every = -(-len(names) // _NAMED)
        shown = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]}.." for name in names][::every]
        places = np.arange(0, len(names), every) + 0.5
        axes.set_xticks(places, shown, rotation=90 if max(map(len, shown)) > 2 else 0)
        axes.set_yticks(places, shown)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("put into")
        axes.set_ylabel("class of the image")
        if len(names) <= _COUNTED:
            for (own, named), count in np.ndenumerate(counts):
                if count:
                    color = "#010101" if shares[own, named] ** 0.5 > 0.55 else "#fefefe"
                    place = (named + 0.5, own + 0.5)
                    axes.annotate(f"{count}", place, ha="center", va="center", color=color, fontsize=6.5)
    return figure
