"""Sections about attention: over depth, as one picture for each side, and over space, from chosen query pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from davi.inspection import DepthAttentionView, SpatialAttentionView
from davi.layers.depth_attention import Side
from davi.page import charts, pixels
from davi.page.bits import name_of, spread
from davi.page.blocks import Chart, Figure, Fold, Picture, Section, Tile, Tiles
from davi.page.contents import Contents

_MOST_READERS = 6
"""Readers whose maps are shown; of more, some at equal distances."""

_PAPER = "The kind of figure shown in Deep Attentive Variational Inference (Apostolopoulou et al., ICLR 2022), {}."


_OFFERED: dict[Side, str] = {
    "generative": "contexts of the layers above",
    "inference": "features of the layer itself and below",
    "classifier": "outputs of earlier layers (0 is the stem, the last reader makes the logits)",
}

_SHOWN: dict[Side, str] = {
    "generative": "which shows the patterns of its generative attention over depth",
    "inference": "which shows the patterns of its inference attention over depth",
    "classifier": "there of a hierarchy of latents",
}


def depth(contents: Contents, longest: int) -> Section | None:
    """Which layers each layer reads, in the generative model and in inference, or in a classifier.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    views = contents.inspection.depth_attention
    if not views:
        return None
    layers = len(contents.inspection.layers)
    maps = tuple(_depth_maps(view, contents, longest) for view in views if len(view.maps))
    folds = (Fold("Attention pixel by pixel", maps),) if maps else ()
    return Section("depth", "Attention over depth", (*(_summary(view, layers) for view in views), *folds))


def _summary(view: DepthAttentionView, layers: int) -> Figure:
    """Who reads whom, and from how far."""
    values = view.matrix.double().numpy()
    far = _distances(view, values, layers)
    drawing = charts.matrix(
        values, view.readers, view.sources, ("reading layer", "layer that is read"), (far, "mean distance")
    )
    known = np.where(np.isnan(values), -1.0, values)
    most = [
        f"{_label(reader)} reads {_label(view.sources[int(row.argmax())])} most ({row.max():.2f})"
        for reader, row in zip(view.readers, known, strict=True)
    ]
    what = _OFFERED[view.side]
    gates = f"{min(view.gates):.2f}" + (f" to {max(view.gates):.2f}" if min(view.gates) < max(view.gates) else "")
    return Figure(
        f"depth-{view.side}",
        (Chart(drawing, f"Matrix of attention weights, {_title(view).lower()}: " + "; ".join(most) + "."),),
        f"On average a layer reads {float(np.mean(far)):.1f} layers away.",
        f"In each row a layer divides its attention over {what}; a row sums to 1, mean over pixels and images; empty "
        "cells are not offered to it. The bars are the mean distance, in layers, from the reader to what it reads"
        + ("; the image counts as the layer below the last" if "image" in view.sources else "")
        + f". What was read is multiplied by a learned gate, here {gates}: at 0 the layer ignores it, whatever the "
        "weights are.",
        _PAPER.format(_SHOWN[view.side]),
        title=_title(view),
    )


def _distances(view: DepthAttentionView, values: NDArray[np.float64], layers: int) -> list[float]:
    """Layers between each reader and what it reads, weighted by its attention."""

    def place(name: str) -> int:
        return int(name) if name.isdecimal() else layers

    sources = np.array([place(source) for source in view.sources])
    return [
        float(np.nansum(row * np.abs(sources - place(reader))))
        for reader, row in zip(view.readers, values, strict=True)
    ]


def _depth_maps(view: DepthAttentionView, contents: Contents, longest: int) -> Figure:
    """The weights at each pixel: a row for each image and reader, a map for each layer that is read."""
    readers = spread(len(view.readers), _MOST_READERS)
    rows = []
    for i, planes in enumerate(view.maps):  # [readers, sources, h, w]
        name = name_of(contents.inspection, i)
        for reader in readers:
            label = _label(view.readers[reader])
            original = _original(contents, i, longest)
            tiles = [Tile((original,), "original")] if original is not None else []
            for source, weights in zip(view.sources, planes[reader], strict=True):
                if not bool(weights.isnan().all()):
                    mean = float(weights.nanmean())
                    alt = f"{name}: weights of {label} on {_label(source)}, mean {mean:.2f}."
                    picture = pixels.maps(weights[None], 1.0, alt, longest, pixels.SMALL)
                    tiles.append(Tile((picture,), f"{_label(source)}: {mean:.2f}"))
            rows.append(Tiles(tuple(tiles), f"{name}, {label} reads"))
    some = (
        f" {len(readers)} of {len(view.readers)} reading layers are shown." if len(readers) < len(view.readers) else ""
    )
    return Figure(
        f"depth-{view.side}-maps",
        (*rows, pixels.legend(1.0, "weight")),
        f"How much each pixel reads from which layer.{some}",
        "A row is a reading layer, a map the weight at every pixel of the grid, the number its mean; at each pixel the "
        "maps of a row sum to 1. Where maps follow the shapes of the image, different parts of it are explained by "
        "different layers.",
        _PAPER.format(_SHOWN[view.side]),
        title=f"{_title(view)}, pixel by pixel",
    )


def _title(view: DepthAttentionView) -> str:
    return "Classifier" if view.side == "classifier" else f"{view.side.capitalize()} side"


def _label(name: str) -> str:
    """Layers are named by number; anything else has a name already."""
    return f"layer {name}" if name.isdecimal() else name


def _original(contents: Contents, i: int, longest: int, room: int = pixels.SMALL) -> Picture | None:
    """The image whose maps are shown: maps of attention and maps of bits are those of the same images. A classifier has
    no bits."""
    found = contents.inspection
    originals = found.examples if found.bits is None else found.bits.images
    if originals is None or i >= len(originals):
        return None
    alt = f"{name_of(found, i)}, original."
    return pixels.image(originals[i], contents.levels, alt, longest, room)


def spatial(contents: Contents, longest: int) -> Section | None:
    """Which pixels chosen query pixels attend to; attention is all that an autoregressive model has of it to show, so
    its first block is not folded away.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    views = contents.inspection.spatial_attention
    if not views:
        return None
    figures = tuple(_spatial(view, k, contents, longest) for k, view in enumerate(views))
    shown = figures[:1] if views[0].gate is None else ()
    rest = figures[len(shown) :]
    blocks = (
        f"{len(rest)} {'more ' if shown else ''}blocks" if len(rest) > 1 else f"one {'more ' if shown else ''}block"
    )
    folds = (Fold(f"Attention of chosen pixels, {blocks}", rest),) if rest else ()
    return Section("space", "Attention over space", (*shown, *folds))


def _spatial(view: SpatialAttentionView, k: int, contents: Contents, longest: int) -> Figure:
    """A row for each image, a map for each query, which is framed."""
    high = float(view.maps.nan_to_num(0.0).max())
    room = pixels.TILE if view.gate is None else pixels.SMALL
    rows = []
    for i, maps in enumerate(view.maps):
        name = name_of(contents.inspection, i)
        original = _original(contents, i, longest, room)
        tiles = [Tile((original,), "original")] if original is not None else []
        for query, weights in zip(view.queries, maps, strict=True):
            row, column = query
            alt = f"{name}: attention of the pixel in row {row}, column {column}, {view.name}."
            if view.gate is None:
                picture = pixels.ordered(weights, high, query, alt, longest, room)
            else:
                picture = pixels.marked(pixels.maps(weights[None], high, alt, longest, room), query, view.grid)
            tiles.append(Tile((picture,), f"pixel {row}, {column}"))
        rows.append(Tiles(tuple(tiles), name))
    never = (
        (pixels.swatch(pixels.LATER, "the pixel itself and later ones, without weight:"),) if view.gate is None else ()
    )
    return Figure(
        f"space-{k + 1}",
        (*rows, pixels.legend(high, "weight"), *never),
        "The framed pixel attends to the bright ones.",
        f"The numbers are the row and the column of the framed pixel, from 0. {_sums(view)}",
        "The kind of figure shown in Non-local Neural Networks (Wang et al., CVPR 2018)."
        if view.gate is not None
        else "The attention is that of PixelSNAIL (Chen et al., ICML 2018).",
        title=view.name,
    )


def _sums(view: SpatialAttentionView) -> str:
    """What a map sums to, and over which places."""
    if view.gate is None:
        return (
            "Pixels are predicted row by row, from the top left. Each map sums to 1 over the pixels before the framed "
            "one; it and later pixels are masked."
        )
    height, width = view.key_grid
    return (
        f"Each map sums to 1 over {height} x {width} places; uniform attention is {1 / (height * width):.2g}. "
        f"The gate of this block is {view.gate:.3f}: at 0 it has no effect."
    )
