"""The drawn figures of the documentation: ``python docs/figures.py`` writes them to ``docs/_static``.

They are kept in the repository, so that pages show them wherever they are read. Every number in them is computed here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from davi.distributions import Normal
from davi.layers.causal import CausalNetwork
from davi.layers.pixel_head import LikelihoodConfig
from davi.models.gated_pixelcnn import GatedPixelCNNConfig, GatedPixelCNNNetwork
from davi.models.ladder_vae import merged
from davi.models.pixelcnn import PixelCNNConfig, PixelCNNNetwork
from davi.models.pixelcnn_pp import PixelCNNPPConfig, PixelCNNPPNetwork
from davi.models.pixelsnail import PixelSNAILConfig, PixelSNAILNetwork
from davi.models.very_deep_vae import Rows, VeryDeepVAEConfig

STATIC = Path(__file__).parent / "_static"
COLORS = ("#0072b2", "#d55e00", "#009e73")
"""Three of the colors of Okabe and Ito, which people with any form of color vision can tell apart."""

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
    for ratio, color in zip(NARROWNESS, COLORS, strict=True):
        bounds = [-gap(ratio, int(k)) for k in counts]
        axes.plot(counts, bounds, "o", color=color, markersize=4.5, label=f"variance of q: {ratio:g} v")
        smooth = np.geomspace(1, counts[-1], 400)
        expansion = -relative_variance(ratio) / (2.0 * smooth)
        shown = expansion > -0.45
        axes.plot(smooth[shown], expansion[shown], color=color, linewidth=1.0)
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
                color = COLORS[1] if own else COLORS[0] if offered[row, column] else "#eeeeee"
                axes.add_patch(mpl.patches.Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=color))
        axes.set(xlim=(-0.6, columns - 0.4), ylim=(layers - 0.4, -0.6), aspect="equal", title=title)
        axes.set_xticks(range(columns), [*map(str, range(layers)), *(["image"] if columns > layers else [])])
        axes.set_yticks(range(layers))
        axes.set_xlabel("layer that is read, j")
        axes.set_ylabel("layer that reads, i")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    box = mpl.patches.FancyBboxPatch((x - 0.72, y - 0.22), 1.44, 0.44, "round,pad=0.02", color=color, alpha=0.25, lw=0)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center")


def _draw_layer(axes: Axes) -> None:
    """One layer of the way down: from the map x at its resolution to the map that it leaves."""
    blue, orange, green = COLORS
    for x, y, text, color in (
        (0.0, 4.4, "x", "#999999"),
        (2.0, 4.4, "encoder's a", "#999999"),
        (0.0, 3.3, "prior f", blue),
        (2.0, 3.3, "posterior f", orange),
        (1.0, 2.2, "z", green),
        (-1.0, 1.1, "x + d + P z", "#999999"),
        (-1.0, 0.0, "x + f(x)", "#999999"),
    ):
        _box(axes, x, y, text, color)
    arrows = [((0.0, 4.4), (0.0, 3.3)), ((0.0, 4.4), (2.0, 3.3)), ((2.0, 4.4), (2.0, 3.3)), ((0.0, 3.3), (1.0, 2.2))]
    arrows += [((2.0, 3.3), (1.0, 2.2)), ((1.0, 2.2), (-1.0, 1.1)), ((-1.0, 1.1), (-1.0, 0.0))]
    for (x0, y0), (x1, y1) in arrows:
        axes.annotate("", (x1, y1 + 0.27), (x0, y0 - 0.27), arrowprops={"arrowstyle": "->", "color": "#333333"})
    for x0, y0, bend in ((-0.78, 4.4, 0.25), (0.0, 3.03, 0.1)):
        style = {"arrowstyle": "->", "color": "#333333", "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate("", (-1.1 if bend > 0.2 else -0.8, 1.37), (x0, y0), arrowprops=style)
    axes.text(-0.52, 2.5, "d", ha="center")
    axes.set(xlim=(-1.9, 2.9), ylim=(-0.4, 4.8), title="one layer")
    axes.set_axis_off()


def very_deep_vae() -> Figure:
    """A layer of the Very Deep VAE, and where its CIFAR-10 model has its blocks and its latent variables."""
    config = VeryDeepVAEConfig()
    rows = Rows(config)
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    _draw_layer(left)
    places = np.arange(len(rows.reached))
    for shift, row, label, color in (
        (-0.2, rows.encoder, "encoder", "#999999"),
        (0.2, rows.decoder, "decoder", COLORS[2]),
    ):
        counts = [sum(entry.resolution == resolution for entry in row) for resolution in rows.reached]
        right.barh(places + shift, counts, 0.38, color=color, label=f"{label}: {len(row)} blocks")
    for place, resolution in zip(places, rows.reached, strict=True):
        layers = sum(entry.resolution == resolution for entry in rows.decoder)
        variables = layers * config.latent_channels * resolution**2
        right.text(layers + 0.4, place + 0.2, f"{variables:,} latents", va="center", fontsize=8.5)
    right.set_yticks(places, [f"{resolution} x {resolution}" for resolution in rows.reached])
    right.invert_yaxis()
    right.set(xlim=(0, 33), xlabel="blocks", title="CIFAR-10 model")
    right.legend(frameon=False, loc="lower right")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _back(z: NDArray[np.float64], moved: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inverse of a step of a flow in the plane, which moves one coordinate of ``z``, ``[2, ...]``, by functions of the
    other; and the logarithm of its gate."""
    other = z[1 - moved]
    log_gate = -np.log1p(np.exp(-1.0 - 0.1 * other**2))
    gate = np.exp(log_gate)
    shift = 3.0 * other**2 - 4.0 if moved else 5.0 * np.tanh(other)
    before = z.copy()
    before[moved] = (z[moved] - (1.0 - gate) * shift) / gate
    return before, log_gate


def iaf() -> Figure:
    """The density of a Normal posterior, and after one and two steps of a flow."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    edge = 3.6
    plane = np.stack(np.meshgrid(*[np.linspace(-edge, edge, 121)] * 2))
    titles = ("Normal", "after a step", "after one in reverse order")
    for axes, steps, title in zip(figure.subplots(1, 3), ((), (1,), (0, 1)), titles, strict=True):
        z, log_density = plane, np.zeros(plane.shape[1:])
        for moved in steps:  # the last step first
            z, log_gate = _back(z, moved)
            log_density -= log_gate
        density = np.exp(log_density - 0.5 * (z**2).sum(0)) / (2.0 * np.pi)
        axes.contour(*plane, density, levels=(0.01, 0.03, 0.09, 0.15), colors=COLORS[0], linewidths=1.0)
        axes.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal", title=title, xlabel="$z_1$", ylabel="$z_2$")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def biva() -> Figure:
    """Who depends on whom in BIVA with three layers."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    place = {"z3": (1.0, 3.0), "u2": (0.0, 2.0), "d2": (2.0, 2.0), "u1": (0.0, 1.0), "d1": (2.0, 1.0), "x": (1.0, 0.0)}
    names = {"z3": "$z_3$", "u2": "$z_2^{BU}$", "d2": "$z_2^{TD}$", "u1": "$z_1^{BU}$", "d1": "$z_1^{TD}$", "x": "x"}
    above = [("z3", name) for name in ("u2", "d2", "u1", "d1", "x")]
    above += [(name, below) for name in ("u2", "d2") for below in ("u1", "d1", "x")] + [("u1", "x"), ("d1", "x")]
    climbed = [("x", name) for name in ("u1", "u2", "z3", "d1", "d2")] + [("u1", "u2"), ("u1", "z3"), ("u2", "z3")]
    descended = [(name, "d2") for name in ("z3", "u1", "u2")] + [(name, "d1") for name in ("z3", "u1", "u2", "d2")]
    none: set[tuple[str, str]] = set()
    sides = (("generative: p(x, z)", above, none), ("inference: q(z | x)", climbed + descended, set(descended)))
    for axes, (title, arrows, late) in zip(figure.subplots(1, 2), sides, strict=True):
        for start, end in arrows:
            color = COLORS[1] if (start, end) in late else COLORS[0]
            bend = "arc3,rad=0.12" if place[start][0] == place[end][0] else "arc3,rad=0"
            style = {"arrowstyle": "->", "color": color, "connectionstyle": bend, "shrinkA": 13, "shrinkB": 13}
            axes.annotate("", place[end], place[start], arrowprops=style)
        for name, (x, y) in place.items():
            axes.add_patch(mpl.patches.Circle((x, y), 0.24, facecolor="white", edgecolor="#333333"))
            axes.text(x, y, names[name], ha="center", va="center")
        axes.set(xlim=(-0.5, 2.5), ylim=(-0.4, 3.4), aspect="equal", title=title)
        axes.set_axis_off()
    return figure


def _draw_group(axes: Axes) -> None:
    """One group of NVAE's way down."""
    blue, orange, green = COLORS
    for x, y, text, color in (
        (0.0, 4.4, "cells(s)", "#999999"),
        (2.0, 4.4, "encoder's h", "#999999"),
        (0.0, 3.3, "prior", blue),
        (2.0, 3.3, "posterior", orange),
        (1.0, 2.2, "z", green),
        (0.0, 1.1, "conv [s | z]", "#999999"),
    ):
        _box(axes, x, y, text, color)
    arrows = [((0.0, 4.4), (0.0, 3.3)), ((0.0, 4.4), (2.0, 3.3)), ((2.0, 4.4), (2.0, 3.3)), ((0.0, 3.3), (1.0, 2.2))]
    arrows += [((2.0, 3.3), (1.0, 2.2)), ((1.0, 2.2), (0.0, 1.1))]
    for (x0, y0), (x1, y1) in arrows:
        axes.annotate("", (x1, y1 + 0.27), (x0, y0 - 0.27), arrowprops={"arrowstyle": "->", "color": "#333333"})
    around = {"arrowstyle": "->", "color": "#333333", "connectionstyle": "arc3,rad=0.35"}
    axes.annotate("", (-0.5, 1.37), (-0.74, 4.3), arrowprops=around)
    across = {"arrowstyle": "->", "color": "#333333"}
    axes.annotate("", (1.24, 3.3), (0.76, 3.3), arrowprops=across)
    axes.set(xlim=(-1.8, 2.9), ylim=(0.7, 4.8), title="one group")
    axes.set_axis_off()


def nvae() -> Figure:
    """A group of NVAE, and where its CelebA 64 model has its latent variables."""
    groups, channels, finest = (5, 10, 20), 20, 32
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    _draw_group(left)
    grids = [finest >> scale for scale in reversed(range(len(groups)))]
    right.barh(range(len(groups)), groups, 0.5, color=COLORS[2])
    for place, (count, grid) in enumerate(zip(groups, grids, strict=True)):
        right.text(count + 0.5, place, f"{count * channels * grid**2:,} latents", va="center", fontsize=8.5)
    right.set_yticks(range(len(groups)), [f"{grid} x {grid}" for grid in grids])
    right.invert_yaxis()
    right.set(xlim=(0, 34), xlabel="groups", title="CelebA 64 model")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def encoder_gradients(k: int, n: int, doubly: bool, seed: int = 0) -> NDArray[np.float64]:
    """Estimates of dL_k / dm for q = N(m, s^2), p(z) = N(0, 1), p(x | z) = N(z, 1), ``[n]``.

    log q of a draw m + s e does not depend on m, so the plain gradient of log w is that of log p(x, z). With the
    parameters of q frozen log q contributes as well, and the weights enter squared.
    """
    x, m, s = 1.5, 0.4, 0.9
    noise = np.random.default_rng(seed).standard_normal((n, k))
    z = m + s * noise
    log_w = -0.5 * (z**2 + (x - z) ** 2 - noise**2)
    shares = np.exp(log_w - log_w.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    slope = x - 2.0 * z
    return (shares**2 * (slope + noise / s) if doubly else shares * slope).sum(1)


def gradient_signal() -> Figure:
    """Signal-to-noise ratio of the encoder's gradient against the number of draws."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    counts = 2 ** np.arange(0, 11)
    for doubly, label, color in ((False, "reparameterized", COLORS[1]), (True, "doubly reparameterized", COLORS[0])):
        found = [encoder_gradients(int(k), 2**21 // int(k), doubly) for k in counts]
        axes.plot(counts, [abs(g.mean()) / g.std() for g in found], "o-", color=color, markersize=4.5, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(counts[::2], [f"{k:,}" for k in counts[::2]])
    axes.set_xlabel("draws k")
    axes.set_ylabel("|mean| / standard deviation")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def ladder() -> Figure:
    """A merge of measurement and prior, and what it costs for measurements of any precision."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    prior, measured = Normal(torch.zeros(1), torch.ones(1)), Normal(torch.full((1,), 1.8), torch.full((1,), 0.7))
    z = torch.linspace(-3.0, 4.0, 300)
    for q, label, color in (
        (prior, "prior", COLORS[0]),
        (measured, "measurement", COLORS[1]),
        (merged(measured, prior), "posterior", COLORS[2]),
    ):
        left.plot(z, q.log_prob_map(z).exp(), color=color, label=label)
    left.set(xlabel="z", ylabel="density")
    left.legend(frameon=False)
    scales = torch.logspace(-2.0, 2.0, 200)
    q = merged(Normal(torch.full_like(scales, 1.8), scales), prior)
    right.plot(scales, q.closed_kl_map(prior), color="#333333", label="KL(q || p), nats")
    right.plot(scales, q.mean, color=COLORS[2], label="mean of q")
    right.plot(scales, q.scale, color=COLORS[2], linestyle="--", label="standard deviation of q")
    right.set(xscale="log", xlabel="standard deviation of the measurement")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _tile(axes: Axes, x: float, y: float, width: float, title: str, below: str, color: str) -> None:
    """A box with a name and, in small letters, what it is."""
    box = mpl.patches.FancyBboxPatch((x, y - 0.3), width, 0.6, "round,pad=0.02", color=color, alpha=0.22, lw=0)
    axes.add_patch(box)
    axes.text(x + width / 2, y + (0.1 if below else 0.0), title, ha="center", va="center")
    axes.text(x + width / 2, y - 0.15, below, ha="center", va="center", fontsize=7.0, color="#444444")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "lw": 1.0, "shrinkA": 0})


def _draw_way(axes: Axes) -> None:
    """From a file of images to a loss, and to a number."""
    blue, orange, green = COLORS
    way = [("file", ""), ("Images", "integers, labels"), ("Batch", "x, y"), ("Network", ""), ("Evidence", "nats, kind")]
    for i, (title, below) in enumerate(way):
        _tile(axes, 1.5 * i, 4.6, 1.15, title, below, blue)
        if i:
            _arrow(axes, (1.5 * i - 0.3, 4.6), (1.5 * i - 0.03, 4.6))
    for y, color, tiles in (
        (5.1, orange, [("Objective", "one scalar"), ("training", "a run")]),
        (4.1, green, [("measures", "an evaluation"), ("report, page", "bits per dim.")]),
    ):
        for i, (title, below) in enumerate(tiles):
            _tile(axes, 7.55 + 1.5 * i, y, 1.15, title, below, color)
        _arrow(axes, (7.22, 4.6 + (y - 4.6) / 3), (7.5, y))
        _arrow(axes, (8.75, y), (9.0, y))


def _draw_kinds(axes: Axes) -> None:
    """The tree of capabilities."""
    gray = "#888888"
    rows = [
        (0, "Network", "what recipes build and runs save: shape, levels, classes, options"),
        (1, "Model", "evidence(x), sample(n)"),
        (2, "Autoregressive", "every pixel given those before it; completion"),
        (2, "Invertible", "a flow on dequantized images"),
        (2, "LatentModel", "latents of an image and back"),
        (3, "Hierarchy", "layers of latents, one top-down pass"),
        (2, "Normalized", "an energy with its partition function"),
        (1, "Energy", "free energies and Gibbs chains; no claim by itself"),
        (1, "Classifier", "log p(y | x), nothing about the image"),
    ]
    top, step = 3.3, 0.385
    for i, (depth, name, text) in enumerate(rows):
        y = top - step * i
        axes.text(0.55 * depth, y, name, va="center", weight="bold" if depth < 2 else "normal")
        axes.text(3.1, y, text, va="center", fontsize=8.5, color="#444444")
        parent = next((j for j in range(i - 1, -1, -1) if rows[j][0] < depth), None)
        if parent is not None:
            x = 0.55 * depth - 0.33
            above = top - step * parent - 0.16
            axes.plot([x, x, x + 0.25], [above, y, y], color=gray, lw=0.8)


def architecture() -> Figure:
    """The way of an image to a number, and the kinds of networks."""
    figure = Figure(figsize=(8.4, 4.9), layout="constrained")
    axes = figure.subplots()
    _draw_way(axes)
    _draw_kinds(axes)
    axes.set(xlim=(-0.15, 10.4), ylim=(0.05, 5.5))
    axes.set_axis_off()
    return figure


def _draw_receptive_field(axes: Axes, network: CausalNetwork[Any], row: int, column: int) -> None:
    """The size of the gradient of a pixel's logit in every pixel, summed over random images."""
    size = torch.zeros(network.shape[1:], dtype=torch.float64)
    for _ in range(20):
        x = torch.rand(1, *network.shape, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[0, 0, row, column], x)
        size += gradient[0, 0].abs()
    axes.imshow(size.where(size > 0, torch.nan).log10(), cmap="viridis")
    axes.plot([column], [row], marker="x", color=COLORS[1])
    axes.set(xticks=[], yticks=[])


def pixelcnn() -> Figure:
    """What a pixel of PixelCNN and of Gated PixelCNN depends on; white: nothing."""
    torch.manual_seed(0)
    shape = (1, 15, 15)
    masked = PixelCNNNetwork(shape, 2, PixelCNNConfig(width=16, blocks=3))
    gated = GatedPixelCNNNetwork(shape, 2, GatedPixelCNNConfig(width=16, layers=4))
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    for axes, title, network in zip(
        figure.subplots(1, 2), ("PixelCNN", "Gated PixelCNN"), (masked, gated), strict=True
    ):
        axes.set_title(title)
        _draw_receptive_field(axes, network.double(), 9, 7)
    return figure


def _seen(network: PixelCNNPPNetwork | PixelSNAILNetwork, row: int, column: int) -> NDArray[np.float64]:
    """Sizes of the gradient of a pixel's parameters, ``[H, W]``, relative to the largest."""
    _, height, width = network.shape
    x = torch.rand(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, :, row, column].square().sum(), x)
    found: NDArray[np.float64] = (gradient[0, 0].abs() / gradient.abs().max()).numpy()
    return found


def pixelcnn_pp() -> Figure:
    """What a pixel of an even row and one of an odd row see in PixelCNN++ with a single block at each scale."""
    torch.manual_seed(0)
    config = PixelCNNPPConfig(width=8, blocks=1, dropout=0.0, likelihood=LikelihoodConfig("bernoulli"))
    network = PixelCNNPPNetwork((1, 16, 24), 2, config).double()
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    for axes, row in zip(figure.subplots(1, 2), (12, 13), strict=True):
        seen = np.ma.log10(np.ma.masked_equal(_seen(network, row, 11), 0.0))
        picture = axes.imshow(seen, cmap="viridis", vmin=-4.0, vmax=0.0, interpolation="nearest")
        axes.add_patch(Rectangle((10.5, row - 0.5), 1.0, 1.0, color=COLORS[1]))
        axes.set(title=f"a pixel of row {row}", xticks=[], yticks=[])
    figure.colorbar(picture, ax=figure.axes, label="$\\log_{10}$ of the gradient")
    return figure


def pixelsnail() -> Figure:
    """The receptive field of a pixel in PixelSNAIL with a single block, without its attention and with it."""
    torch.manual_seed(0)
    config = PixelSNAILConfig(blocks=1, resnets=3, width=16, likelihood=LikelihoodConfig("bernoulli"))
    network = PixelSNAILNetwork((1, 16, 24), 2, config).double()
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    for axes, title in zip(figure.subplots(1, 2), ("with attention", "without"), strict=True):
        seen = np.ma.log10(np.ma.masked_equal(_seen(network, 12, 11), 0.0))
        picture = axes.imshow(seen, cmap="viridis", vmin=-4.0, vmax=0.0, interpolation="nearest")
        axes.add_patch(Rectangle((10.5, 11.5), 1.0, 1.0, color=COLORS[1]))
        axes.set(title=title, xticks=[], yticks=[])
        network.get_parameter("blocks.0.out.shortcut.g").data.zero_()
    figure.colorbar(picture, ax=figure.axes, label="$\\log_{10}$ of the gradient")
    return figure


FIGURES = {
    "architecture": architecture,
    "nvae": nvae,
    "importance": importance,
    "who_reads_whom": who_reads_whom,
    "gradient_signal": gradient_signal,
    "ladder": ladder,
    "very_deep_vae": very_deep_vae,
    "iaf": iaf,
    "biva": biva,
    "pixelcnn": pixelcnn,
    "pixelcnn_pp": pixelcnn_pp,
    "pixelsnail": pixelsnail,
}


def main(folder: Path = STATIC) -> None:
    """Write all figures as SVG."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "davi", "font.size": 10.0, "axes.titlesize": 10.0}
    with mpl.rc_context(style):
        for name, draw in FIGURES.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
