"""The pictures of the README and of the gallery, from runs.

``python docs/gallery.py MNIST_RUN CIFAR_RUN DATA_ROOT`` writes the large ones to ``docs/_static``. The first is a run
of ``attentive_mnist_demo``, the second one of ``very_deep_vae_cifar10_small``.

``python docs/gallery.py RUN`` writes samples of a run of any recipe: ``family_RECIPE.png``, a row for the gallery, and
``thumbnail_RECIPE.png``, for the README.

Nothing is selected by hand. What lies between the images is transparent, for light pages and dark ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import davi
from davi.data import DataConfig, load
from davi.distributions import Latent, WithMean
from davi.inspection import Inspection, inspect
from davi.model import Hierarchy, Model
from davi.page.bits import brightest
from davi.page.pixels import overlay

STATIC = Path(__file__).parent / "_static"
CLEAR = (255, 255, 255, 0)
INK = "#767676"
"""Gray that can be read on white and on black."""
CELL = 96
"""Sides of an image in pixels of the pictures."""

GAP = 4
HEADINGS = ("samples", "originals and reconstructions", "originals and where their bits go")

Pixels = NDArray[np.uint8]


def cell(x: Tensor, levels: int) -> Pixels:
    """An image ``[C, H, W]``, in units of levels, enlarged by a whole factor, on black, ``[CELL, CELL, 3]``."""
    shades = (255 * x.double().clamp(0, levels - 1) / (levels - 1)).round().to(torch.uint8)
    return _enlarged(shades.expand(3, -1, -1).permute(1, 2, 0).numpy())


def _enlarged(shades: Pixels) -> Pixels:
    scale = CELL // max(shades.shape[:2])
    large = shades.repeat(scale, 0).repeat(scale, 1)
    top, left = (CELL - large.shape[0]) // 2, (CELL - large.shape[1]) // 2
    placed = np.zeros((CELL, CELL, 3), np.uint8)
    placed[top : top + large.shape[0], left : left + large.shape[1]] = large
    return placed


def sheet(rows: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Cells in rows, with gaps between them."""
    height, width = (len(rows) * (CELL + GAP) - GAP, max(map(len, rows)) * (CELL + GAP) - GAP)
    picture = Image.new("RGBA", (width, height), CLEAR)
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            picture.paste(Image.fromarray(pixels), (j * (CELL + GAP), i * (CELL + GAP)))
    return picture


def in_rows(cells: Sequence[Pixels], columns: int) -> list[Sequence[Pixels]]:
    return [cells[i : i + columns] for i in range(0, len(cells), columns)]


def drawn(found: Inspection) -> Tensor:
    """Samples at temperature 1: means of p(x | z) where they are known, else draws."""
    return found.expected.get(1.0, found.samples[1.0])


def panels(found: Inspection, levels: int) -> list[Image.Image]:
    """Eight samples, the four typical images beside their reconstructions, four images beside their bits."""
    samples = [cell(x, levels) for x in drawn(found)[:8]]
    typical = [item for item in found.chosen if item.role == "typical"][:4]
    pairs = [cell(x, levels) for item in typical for x in (item.original, item.reconstruction) if x is not None]
    maps = found.bits
    assert maps is not None
    cost = maps.reconstruction + maps.layers.sum(1)  # [n, H, W]
    high, beside = brightest(cost), []
    for x, values in zip(maps.images, cost, strict=True):
        laid = overlay(x, levels, values, high, "", max(x.shape), CELL)
        beside += [cell(x, levels), _enlarged(np.asarray(laid.image.convert("RGB")))]
    return [sheet(in_rows(cells, 4)) for cells in (samples, pairs, beside)]


def strip(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """The panels of each model in a row, under headings."""
    width, height = rows[0][0].size
    above, between = 26, 24
    whole = (3 * width + 4 * between, above + len(rows) * (height + 12) + 4)
    picture = Image.new("RGBA", whole, CLEAR)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for j, heading in enumerate(HEADINGS):
        left = between + j * (width + between)
        draw.text((left, 4), heading, fill=INK, font=font)
        for i, row in enumerate(rows):
            picture.paste(row[j], (left, above + i * (height + 12)))
    return picture


def progressive(found: Inspection, levels: int) -> Image.Image:
    """Each image from its first k layers, and the image itself at the end of the row."""
    steps = found.progressive
    assert steps is not None
    images = torch.cat([steps.images.double(), steps.originals.double()[None]])  # [depths + 1, n, C, H, W]
    return sheet([[cell(x, levels) for x in images[:, i]] for i in range(images.shape[1])])


def strips(found: Inspection, levels: int, kind: str) -> Image.Image:
    return sheet([[cell(x, levels) for x in row.images] for row in found.strips if row.kind == kind])


@torch.no_grad()
def first_samples(model: Model, n: int) -> Tensor:
    """The first draws of seed 0, in units of levels, ``[n, C, H, W]``; of a hierarchy the means of p(x | z), where they
    are known."""
    if isinstance(model, Hierarchy):
        generator = torch.Generator().manual_seed(0)

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert prior is not None
            return prior.expand(n).sample(generator)

        likelihood = model.top_down(choose)
        if isinstance(likelihood, WithMean):
            return likelihood.mean()
    return model.sample(n, seed=0)


def family(folder: str) -> None:
    """Write eight samples of a run, and the first four of them as a thumbnail."""
    run = davi.Run(folder)
    samples = [cell(x, run.model.levels) for x in first_samples(run.model, 8)]
    save(sheet([samples]), f"family_{run.recipe.name}")
    save(sheet([samples[:4]]), f"thumbnail_{run.recipe.name}")


def save(picture: Image.Image, name: str) -> None:
    """Write a picture in 255 colors, and one more for what is transparent."""
    indexed = picture.convert("RGB").quantize(255, dither=Image.Dither.NONE)
    colors = (indexed.getpalette() or [])[: 3 * 255]
    places = np.where(np.asarray(picture.getchannel("A")) > 0, np.asarray(indexed), 255)
    written = Image.fromarray(places.astype(np.uint8), "L").convert("P")
    written.putpalette([*colors, *[0] * (3 * 256 - len(colors))])
    written.save(STATIC / f"{name}.png", optimize=True, transparency=255)


def main() -> None:
    if len(sys.argv) == 2:
        family(sys.argv[1])
    else:
        large(*sys.argv[1:])


def large(mnist: str, cifar: str, root: str) -> None:
    """Write the strip of the README, and samples, layers and variations of both runs."""
    rows = []
    for folder, data in ((mnist, DataConfig(set="binarized_mnist")), (cifar, DataConfig(set="cifar10", root=root))):
        model = davi.load(folder)
        found = inspect(model, load(data).test)
        rows.append(panels(found, model.levels))
        name = data.set
        save(sheet(in_rows([cell(x, model.levels) for x in drawn(found)[:24]], 8)), f"{name}_samples")
        save(progressive(found, model.levels), f"{name}_layers")
        save(strips(found, model.levels, "variations"), f"{name}_variations")
    save(strip(rows), "strip")


if __name__ == "__main__":
    main()
