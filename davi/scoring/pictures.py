"""The oddest images on a contact sheet, and the scores as histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from davi.data import Images
from davi.evaluation.scores import RAW
from davi.files import writing
from davi.page.charts import BLUE, MUTED, VERMILION, style
from davi.pictures import grid
from davi.scoring.result import Scores
from davi.scoring.tables import p_value, shortened, title

SIDE, _GAP, _LINE = 160, 16, 17
"""Pixels: of a picture, between pictures, of a line of text."""

_INK, _PAPER = (27, 31, 36), (255, 255, 255)


def contact_sheet(scores: Scores, by: str, top: int) -> Image.Image:
    """The oddest files, from left to right and from top to bottom: the image, its name and its score.

    Of a file that is cut into patches the one with the highest score is shown.

    Arguments:
        scores: of all files.
        by: name of the score that orders them.
        top: how many are shown, at most.
    """
    column, tiles = scores.columns[by], []
    for file in scores.order(by)[:top].tolist():
        p = p_value(column, file)
        lines = [
            shortened(scores.files.names[file], 21),
            f"{column.values[file]:.3f}" + (f", p = {p}" if p != "-" else ""),
        ]
        tiles.append((enlarged(scores.images, scores.oddest_image(file, by)), lines))
    return sheet(tiles)


def sheet(tiles: Sequence[tuple[Image.Image, Sequence[str]]]) -> Image.Image:
    """Pictures of at most :data:`SIDE` pixels a side in rows of five, each over its lines of text."""
    lines = max((len(text) for _, text in tiles), default=0)
    columns = min(len(tiles), 5)
    rows = -(-len(tiles) // columns)
    across, down = SIDE + _GAP, SIDE + lines * _LINE + _GAP
    made = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(13)
    for number, (picture, text) in enumerate(tiles):
        left, top_edge = _GAP + number % columns * across, _GAP + number // columns * down
        made.paste(picture, (left + (SIDE - picture.width) // 2, top_edge + (SIDE - picture.height) // 2))
        for line, words in enumerate(text):
            draw.text((left, top_edge + SIDE + 3 + line * _LINE), words, _INK, font)
    return made


def enlarged(images: Images, index: int) -> Image.Image:
    """One image, by a whole factor as large as its place; a larger one is made smaller."""
    _, height, width = images.shape
    scale = max(1, SIDE // max(height, width))
    picture = grid(images.pixels[index : index + 1], images.levels, scale=scale, padding=0)
    picture.thumbnail((SIDE, SIDE))
    return picture


def histogram(scores: Scores, path: Path) -> None:
    """A histogram of each score, with that of the held-out files behind it, as a PNG file.

    Raises:
        UserError: if it cannot be written.
    """
    count = len(scores.columns)
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    with style(), writing(str(path)):
        figure = Figure(figsize=(4.4 * columns, 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (name, column) in zip(axes, scores.columns.items(), strict=False):
            known = None if scores.calibration is None else scores.calibration.values[name]
            every = column.values if known is None else np.concatenate([column.values, known])
            edges = np.histogram_bin_edges(every, bins=min(60, max(10, round(math.sqrt(len(every))))))
            if known is not None:
                shares = np.full(len(known), 1 / len(known))
                axis.hist(known, edges, weights=shares, color=BLUE, alpha=0.45, label=f"{len(known)} held-out files")
            shares = np.full(len(column.values), 1 / len(column.values))
            label = f"{len(column.values)} files scored"
            axis.hist(
                column.values, edges, weights=shares, histtype="step", color=VERMILION, linewidth=1.6, label=label
            )
            axis.set_xlabel("bits/dim" if name == RAW else f"{title(name)}, bits/dim")
            axis.set_ylabel("share of files", color=MUTED)
            axis.legend(loc="best")
        for axis in axes[count:]:
            axis.set_visible(False)
        figure.savefig(path, format="png", dpi=144)
