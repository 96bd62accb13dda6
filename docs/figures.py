"""The drawn figures of the documentation: ``python docs/figures.py`` writes them to ``docs/_static``.

They are kept in the repository, so that pages show them wherever they are read. Every number in them is computed here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

STATIC = Path(__file__).parent / "_static"
COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Three of the colours of Okabe and Ito, which people with any form of colour vision can tell apart."""

LATENTS = 20
NARROWNESS = (0.9, 0.7, 0.55)
"""Variance of q over that of the true posterior."""


def log_weights(ratio: float, groups: int, samples: int, seed: int) -> NDArray[np.float64]:
    """Draws of log w - log p(x) for a q whose variance is ``ratio`` times that of the posterior, ``[groups, samples]``.

    With z = sqrt(ratio) e in units of the posterior's standard deviation, a latent contributes
    log N(z; 0, 1) - log N(z; 0, ratio) = (log ratio + (1 - ratio) e^2) / 2, and the sum of all e^2 is chi-squared.
    """
    chi_squared = np.random.default_rng(seed).chisquare(LATENTS, (groups, samples))
    return 0.5 * (LATENTS * np.log(ratio) + (1.0 - ratio) * chi_squared)


def gap(ratio: float, samples: int, seed: int = 0) -> float:
    """log p(x) - L_K, averaged over draws."""
    groups = max(400, 2**18 // samples)
    drawn = log_weights(ratio, groups, samples, seed)
    top = drawn.max(1, keepdims=True)
    return float(-(top[:, 0] + np.log(np.exp(drawn - top).mean(1))).mean())


def relative_variance(ratio: float) -> float:
    """Var[w] / p(x)^2 in closed form; infinite for a ratio of one half or less."""
    return float((ratio / np.sqrt(2.0 * ratio - 1.0)) ** LATENTS - 1.0)


def importance() -> Figure:
    """L_K against K for three posteriors."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    counts = 2 ** np.arange(0, 13)
    axes.axhline(0.0, color="#333333", linewidth=1.2)
    axes.text(counts[-1], 0.03, "log p(x)", ha="right", va="bottom")
    for ratio, colour in zip(NARROWNESS, COLOURS, strict=True):
        bounds = [-gap(ratio, int(k)) for k in counts]
        axes.plot(counts, bounds, "o", color=colour, markersize=4.5, label=f"variance of q: {ratio:g} v")
        smooth = np.geomspace(1, counts[-1], 400)
        expansion = -relative_variance(ratio) / (2.0 * smooth)
        shown = expansion > -0.45
        axes.plot(smooth[shown], expansion[shown], color=colour, linewidth=1.0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts[::2], [f"{k:,}" for k in counts[::2]])
    axes.set_xlabel("importance samples K")
    axes.set_ylabel("bound minus log p(x), nats")
    axes.set_ylim(-1.65, 0.16)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def who_reads_whom(layers: int = 6) -> Figure:
    """Which layers a layer may read from, on the generative and on the inference side."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, title, offered in (
        (left, "generative: contexts above", np.tril(np.ones((layers, layers)), -1)),
        (right, "inference: own and features below", np.triu(np.ones((layers, layers + 1)))),
    ):
        columns = offered.shape[1]
        for row in range(layers):
            for column in range(columns):
                own = axes is right and row == column
                colour = COLOURS[1] if own else COLOURS[0] if offered[row, column] else "#eeeeee"
                axes.add_patch(mpl.patches.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=colour))
        axes.set(xlim=(-0.6, columns - 0.4), ylim=(layers - 0.4, -0.6), aspect="equal", title=title)
        axes.set_xticks(range(columns), [*map(str, range(layers)), *(["image"] if columns > layers else [])])
        axes.set_yticks(range(layers))
        axes.set_xlabel("layer that is read, j")
        axes.set_ylabel("layer that reads, i")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


FIGURES = {"importance": importance, "who_reads_whom": who_reads_whom}


def main(folder: Path = STATIC) -> None:
    """Write all figures as SVG."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "davi", "font.size": 10.0, "axes.titlesize": 10.0}
    with mpl.rc_context(style):
        for name, draw in FIGURES.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
