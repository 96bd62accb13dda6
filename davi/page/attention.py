"""Sections about attention: over depth, as matrices and maps, and over space, from chosen query pixels."""

from __future__ import annotations

import numpy as np

from davi.inspection import DepthAttentionView, Inspection, SpatialAttentionView
from davi.page import charts, pixels
from davi.page.blocks import Cell, Chart, Figure, Picture, Section, Table

_CELL = 64
"""Pixels of the screen for a map in a table."""

_QUERIED = 96
"""Pixels of the screen for a map with a framed pixel."""

_MOST_READERS = 6
"""Readers whose maps are shown; of more, some at equal distances."""

_PAPER = (
    "The kind of figure shown in Deep Attentive Variational Inference (Apostolopoulou et al., ICLR 2022), which shows "
    "the patterns of its {}."
)


def depth(inspection: Inspection, levels: int, longest: int) -> Section | None:
    """Which layers each layer reads, in the generative model and in inference.

    Arguments:
        inspection: of the model.
        levels: of a pixel.
        longest: of the sides of an image, in pixels of its picture.
    """
    title, views = "Attention over depth", inspection.depth_attention
    if not views:
        return None
    maps = [_depth_maps(view, inspection, levels, longest) for view in views if len(view.maps)]
    return Section("depth", title, (*map(_matrix, views), *maps))


def _matrix(view: DepthAttentionView) -> Figure:
    sources = [_label(source) for source in view.sources]
    rows = [f"{_label(reader)} · gate {gate:z.2f}" for reader, gate in zip(view.readers, view.gates, strict=True)]
    values = view.matrix.double().numpy()
    drawing = charts.matrix(values, rows, sources, ("reading layer", "layer that is read"))
    known = np.where(np.isnan(values), -1.0, values)
    most = [
        f"{_label(reader)} reads {sources[int(row.argmax())]} most ({row.max():.2f})"
        for reader, row in zip(view.readers, known, strict=True)
    ]
    what = (
        "the contexts of the layers above it" if view.side == "generative" else "its own and the image's features below"
    )
    return Figure(
        f"depth-{view.side}",
        (Chart(drawing, f"Matrix of attention weights, {view.side} side: " + "; ".join(most) + "."),),
        f"How to read it: in each row a layer divides its attention over {what}; a row sums to 1, mean over pixels and "
        "images; empty cells are not offered to it. The gate is the learned factor of what was read: at 0 the layer "
        "ignores it, whatever the weights are.",
        _PAPER.format(f"{view.side} attention over depth"),
        title=f"{view.side.capitalize()} side, mean over pixels and images",
    )


def _depth_maps(view: DepthAttentionView, inspection: Inspection, levels: int, longest: int) -> Figure:
    """The weights at each pixel: a row for each image and reader, a map for each layer that is read."""
    readers = _spread(len(view.readers))
    rows: list[tuple[Cell, ...]] = []
    for i, planes in enumerate(view.maps):  # [readers, sources, h, w]
        for reader in readers:
            name = _label(view.readers[reader])
            cells: list[Cell] = [f"image {i + 1}, {name}"]
            cells.append((_original(inspection, i, levels, longest, _CELL) or "") if reader == readers[0] else "")
            for source, weights in zip(view.sources, planes[reader], strict=True):
                if bool(weights.isnan().all()):
                    cells.append("")
                    continue
                alt = f"Image {i + 1}: weights of {name} on {_label(source)}, mean {float(weights.nanmean()):.2f}."
                cells.append(pixels.maps(weights[None], 1.0, alt, longest, _CELL))
            rows.append(tuple(cells))
    head = ("reading layer", "original", *(f"reads {_label(source)}" for source in view.sources))
    some = f" {len(readers)} of {len(view.readers)} readers are shown." if len(readers) < len(view.readers) else ""
    return Figure(
        f"depth-{view.side}-maps",
        (Table(f"Weights at each pixel, {view.side} side", head, tuple(rows)), pixels.legend(1.0, "weight")),
        "How to read it: each row is a reading layer, each column a layer that is read, each map the weight at every "
        "pixel of the grid; at each pixel the maps of a row sum to 1. Where maps follow the shapes of the image, "
        f"different parts of it are explained by different layers.{some}",
        _PAPER.format(f"{view.side} attention over depth"),
        title=f"{view.side.capitalize()} side, pixel by pixel",
    )


def _spread(n: int) -> list[int]:
    """At most :data:`_MOST_READERS` of n readers, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, n - 1, min(n, _MOST_READERS))})


def _label(name: str) -> str:
    """A layer is named by its number; what is no layer has a name already."""
    return f"layer {name}" if name.isdecimal() else name


def _original(inspection: Inspection, i: int, levels: int, longest: int, room: int) -> Picture | None:
    """The image whose maps are shown: maps of attention and maps of bits are those of the same images."""
    if inspection.bits is None or i >= len(inspection.bits.images):
        return None
    return pixels.image(inspection.bits.images[i], levels, f"Image {i + 1}, original.", longest, room)


def spatial(inspection: Inspection, levels: int, longest: int) -> Section | None:
    """Where in the image chosen query pixels look.

    Arguments:
        inspection: of the model.
        levels: of a pixel.
        longest: of the sides of an image, in pixels of its picture.
    """
    title = "Attention over space"
    if not inspection.spatial_attention:
        return None
    figures = [_spatial(view, k, inspection, levels, longest) for k, view in enumerate(inspection.spatial_attention)]
    return Section("space", title, tuple(figures))


def _spatial(view: SpatialAttentionView, k: int, inspection: Inspection, levels: int, longest: int) -> Figure:
    """A row for each image, a map for each query, which is framed."""
    high = float(view.maps.max())
    rows: list[tuple[Cell, ...]] = []
    for i, maps in enumerate(view.maps):
        cells: list[Cell] = [f"image {i + 1}", _original(inspection, i, levels, longest, _QUERIED) or ""]
        for query, weights in zip(view.queries, maps, strict=True):
            row, column = query
            alt = f"Where the pixel in row {row}, column {column} of image {i + 1} looks, by {view.name}."
            cells.append(pixels.marked(pixels.maps(weights[None], high, alt, longest, _QUERIED), query, view.grid))
        rows.append(tuple(cells))
    head = ("image", "original", *(f"query at row {row}, column {column}" for row, column in view.queries))
    return Figure(
        f"space-{k + 1}",
        (Table(f"Weights of {view.name}", head, tuple(rows)), pixels.legend(high, "weight")),
        f"How to read it: the framed pixel asks, bright pixels answer; each map sums to 1 over {view.key_grid[0]} x "
        f"{view.key_grid[1]} places, so that {1 / (view.key_grid[0] * view.key_grid[1]):.2g} everywhere would be no "
        f"preference. The gate of this block is {view.gate:.3f}: at 0 its answer is ignored.",
        _PAPER.format("attention over space"),
        title=view.name,
    )
