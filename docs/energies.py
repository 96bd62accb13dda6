r"""The figure of a restricted Boltzmann machine on handwritten digits, in :doc:`concepts/inspection`.

::

    davi train rbm_digits_tiny --run RUN --model.hidden 64 --training.steps 4000 --training.batch_size 100 \
        --training.objective.chains 100
    for n in 100 300 1000 3000 14501; do davi evaluate RUN --ais-temperatures $n --ais-reverse; done
    python docs/energies.py RUN

writes ``docs/_static/rbm.svg``: filters, a Markov chain with the autocorrelation of its free energy, and the estimates
of the partition function that are kept in the run's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Generator, Tensor

import davi
from davi import estimates, recipes
from davi.data import load
from davi.inspection.chains import PICTURES, filters_of, follow
from davi.inspection.views import Chains
from davi.model import Unnormalized, WithChain, WithFilters
from davi.run_folder import RECIPE

STATIC = Path(__file__).parent / "_static"
BLUE, VERMILION = "#0072b2", "#d55e00"
FILTERS, COLUMNS = 30, 6
ROWS = 2
"""Chains that are shown."""


def filters(panel: SubFigure, fields: Tensor) -> None:
    """The largest filters, red above zero and blue below."""
    panel.suptitle("filters, largest first", fontsize=9)
    high = float(np.quantile(fields.abs().numpy(), 0.995))
    grid = panel.subplots(FILTERS // COLUMNS, COLUMNS, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    for axes, field in zip(grid.flat, fields, strict=False):
        axes.imshow(field[0], cmap="RdBu_r", vmin=-high, vmax=high, interpolation="nearest")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#cccccc")


def strips(panel: SubFigure, rows: list[Tensor], levels: int) -> None:
    """Chains that begin at test images."""
    panel.suptitle("Markov chains from test images, after so many Gibbs steps", fontsize=9)
    grid = panel.subplots(len(rows), len(PICTURES) + 1, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes, picture in zip(line, row, strict=True):
            axes.imshow(picture[0], cmap="gray_r", vmin=0, vmax=levels - 1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#cccccc")
    for axes, steps in zip(grid[-1], (0, *PICTURES), strict=True):
        axes.set_xlabel(f"{steps:,}", fontsize=8, labelpad=2)


def correlation(axes: Axes, found: Chains) -> None:
    """Of the free energy over the lag."""
    measured = found.free_energy
    shown = 150 if measured.time is None else round(6 * measured.time)
    axes.plot(measured.rho[:shown], color=BLUE)
    axes.axhline(0.0, color="#999999", linewidth=0.6)
    if measured.time is not None:
        told = f"$\\tau$ = {measured.time:.0f} ± {measured.standard_error:.0f} steps"
        axes.axvline(measured.time, color=VERMILION, linestyle="--", linewidth=1.0, label=told)
        axes.legend(frameon=False, fontsize=8)
    axes.set_title("autocorrelation of the free energy", fontsize=9)
    axes.set_xlabel("lag, Gibbs steps", fontsize=8)


def partition(axes: Axes, several: tuple[davi.model.Partition, ...]) -> None:
    """Estimates of log Z, with three standard errors."""
    ends = [end for one in several for end in (one.low, one.high, one.reverse_low, one.reverse_high)]
    finite = [end for end in ends if end is not None and np.isfinite(end)]
    room = 0.06 * (max(finite) - min(finite))
    bottom, top = min(finite) - room, max(finite) + room
    for one in several:
        assert one.temperatures is not None
        directions = (
            (0.97, one.log_z, one.low, one.high, BLUE, "o", "forward"),
            (1.03, one.reverse, one.reverse_low, one.reverse_high, VERMILION, "s", "reverse"),
        )
        for aside, value, low, high, color, marker, name in directions:
            if value is None or low is None or high is None:
                continue
            place = aside * one.temperatures
            axes.vlines(place, max(low, bottom), min(high, top), color=color, linewidth=1.2)
            axes.plot(place, value, marker, color=color, markersize=3.5, label=name if one is several[0] else "_")
    axes.set(xscale="log", ylim=(bottom, top))
    axes.set_xticks([one.temperatures for one in several], [f"{one.temperatures:,}" for one in several])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("estimates of log Z, nats", fontsize=9)
    axes.set_xlabel("temperatures", fontsize=8)


def rbm(run: Path) -> Figure:
    """Filters, chains and estimates."""
    network = davi.load(run).saved
    assert isinstance(network, WithFilters)
    assert isinstance(network, WithChain)
    assert isinstance(network, Unnormalized)
    data = recipes.load(run / RECIPE).data
    assert data is not None
    images = load(data).test
    begin = (images.pixels[:ROWS], [f"test image {i}" for i in range(ROWS)])
    found, shown = follow(network, images, None, begin, Generator().manual_seed(0))
    figure = Figure(figsize=(7.2, 5.6))
    left, right = figure.add_gridspec(1, 2, width_ratios=(1.0, 1.25), left=0.03, right=0.97, top=0.97, bottom=0.42)
    filters(figure.add_subfigure(left), filters_of(network)[0].fields)
    strips(figure.add_subfigure(right), [strip.images for strip in shown], network.levels)
    below = figure.add_gridspec(1, 2, left=0.07, right=0.97, top=0.36, bottom=0.09, wspace=0.2)
    correlation(figure.add_subplot(below[0]), found)
    partition(figure.add_subplot(below[1]), estimates.kept(network, run))
    for axes in figure.axes[-2:]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure


def main(run: Path, folder: Path = STATIC) -> None:
    """Write the figure."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "davi", "svg.image_inline": True}):
        rbm(run).savefig(folder / "rbm.svg", metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
