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

import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn.functional import pad

import davi
from davi import estimates, recipes
from davi.data import load
from davi.inspection.chains import PICTURES, filters_of, follow
from davi.inspection.views import Chains
from davi.model import Partition
from davi.models import RBM
from davi.run_folder import RECIPE

STATIC = Path(__file__).parent / "_static"
BLUE, VERMILION = "#0072b2", "#d55e00"
FILTERS, COLUMNS = 36, 9
ROWS = 4
"""Chains that are shown."""


def tiled(pictures: Tensor, columns: int) -> NDArray[np.float64]:
    """Pictures ``[n, H, W]`` in rows, with a pixel of nothing between them."""
    cells = pad(pictures.double(), (0, 1, 0, 1), value=math.nan)
    rows = cells.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)  # [rows (H + 1), columns (W + 1)]
    return rows[:-1, :-1].numpy()


def filters(axes: Axes, fields: Tensor) -> None:
    """The largest filters, red above zero and blue below."""
    high = float(np.quantile(fields.abs().numpy(), 0.995))
    axes.imshow(tiled(fields[:FILTERS, 0], COLUMNS), cmap="RdBu_r", vmin=-high, vmax=high, interpolation="nearest")
    axes.set_title("filters, largest first", fontsize=9)
    axes.set_axis_off()


def strips(axes: Axes, rows: Tensor, levels: int) -> None:
    """Chains that begin at test images, ``[rows, pictures, H, W]``."""
    width = rows.shape[-1] + 1
    joined = tiled(rows.flatten(0, 1), rows.shape[1])
    axes.imshow(joined, cmap="gray_r", vmin=0, vmax=levels - 1, interpolation="nearest")
    axes.set_xticks([width * i + (width - 2) / 2 for i in range(rows.shape[1])], [f"{n:,}" for n in (0, *PICTURES)])
    for i in range(1, rows.shape[1]):
        axes.axvline(width * i - 1, color="#cccccc", linewidth=0.8)
    for i in range(1, rows.shape[0]):
        axes.axhline((rows.shape[2] + 1) * i - 1, color="#cccccc", linewidth=0.8)
    axes.set(yticks=[])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_color("#cccccc")
    axes.set_title("Gibbs chains from test images, after so many steps", fontsize=9)


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


def partition(axes: Axes, several: tuple[Partition, ...]) -> None:
    """Estimates of log Z, with three standard errors."""
    ends = [end for one in several for end in (one.low, one.high, one.reverse_low, one.reverse_high)]
    finite = [end for end in ends if end is not None and np.isfinite(end)]
    room = 0.06 * (max(finite) - min(finite))
    bottom, top = min(finite) - room, max(finite) + room
    for one in several:
        directions = (
            (0.97, one.log_z, one.low, one.high, BLUE, "o", "forward"),
            (1.03, one.reverse, one.reverse_low, one.reverse_high, VERMILION, "s", "reverse"),
        )
        for aside, value, low, high, color, marker, name in directions:
            if value is None or low is None or high is None:
                continue
            place = aside * (one.temperatures or 0)
            axes.vlines(place, max(low, bottom), min(high, top), color=color, linewidth=1.2)
            axes.plot(place, value, marker, color=color, markersize=3.5, label=name if one is several[0] else "_")
    axes.set(xscale="log", ylim=(bottom, top))
    counts = [one.temperatures or 0 for one in several]
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("estimates of log Z, nats", fontsize=9)
    axes.set_xlabel("temperatures", fontsize=8)


def rbm(run: Path) -> Figure:
    """Filters, chains and estimates."""
    network = davi.load(run).saved
    assert isinstance(network, RBM)
    data = recipes.load(run / RECIPE).data
    assert data is not None
    images = load(data).test
    begin = (images.pixels[:ROWS], [f"test image {i}" for i in range(ROWS)])
    found, shown = follow(network, images, None, begin, Generator().manual_seed(0))
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, 2, height_ratios=(1.0, 0.95))
    filters(above[0], filters_of(network)[0].fields)
    strips(above[1], torch.stack([strip.images[:, 0] for strip in shown]), network.levels)
    correlation(below[0], found)
    partition(below[1], estimates.kept(network, run))
    for axes in below:
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
