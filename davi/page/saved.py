"""Figures as files and as parts of the page: SVG in the colors of the style sheet, PNG, and pictures with labels."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from PIL import Image

from davi.files import replace_text, writing
from davi.page.blocks import GAP, Figure, Tile, Tiles
from davi.page.charts import THEME, style
from davi.pictures import save_png

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_WIDTH, _SPACE, _LETTERS = 1300, 14, 13
"""Of a saved figure of pictures: its width, the room between tiles and the size of the letters, in pixels."""


def inline(drawing: Drawing, name: str, alt: str) -> Markup:
    """A chart as an SVG element of an HTML page.

    Arguments:
        drawing: the chart.
        name: begins all identifiers inside, so that they differ from those of other charts of the page.
        alt: what there is to see.
    """
    root = ElementTree.fromstring(_svg(drawing))
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet and notes about itself would be those of the whole page.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        if "id" in element.attrib:
            element.attrib["id"] = f"{name}-{element.attrib['id']}"
        if element.get(_LINK, "").startswith("#"):
            element.attrib[_LINK] = f"#{name}-{element.attrib[_LINK][1:]}"
        for key, value in element.attrib.items():
            element.attrib[key] = _themed(value.replace("url(#", f"url(#{name}-"))
    for size in ("width", "height"):  # the style sheet says how large
        del root.attrib[size]
    root.attrib.update({"role": "img", "aria-label": alt, "class": "chart"})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # escaped by ElementTree


def save(figure: Figure, folder: Path) -> list[Path]:
    """Writes a figure as PNG and SVG; a figure of several charts is several files.

    Arguments:
        figure: of the page.
        folder: an existing one.

    Raises:
        UserError: if a file cannot be written.
    """
    drawings = [chart.drawing for chart in figure.charts()]
    tiles = list(figure.tiles())
    if tiles:
        drawings.append(_montage(tiles))
    paths = []
    for i, drawing in enumerate(drawings):
        name = figure.name if len(drawings) == 1 else f"{figure.name}-{i + 1}"
        with style():
            canvas = FigureCanvasAgg(drawing)
            drawing.set_dpi(72 if tiles and drawing is drawings[-1] else 180)
            canvas.draw()
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            drawing.set_dpi(72)
        save_png(picture, folder / f"{name}.png")
        with writing(str(folder / f"{name}.svg")):
            replace_text(folder / f"{name}.svg", _svg(drawing))
        paths += [folder / f"{name}.png", folder / f"{name}.svg"]
    return paths


def _svg(drawing: Drawing) -> str:
    file = io.StringIO()
    with style():
        drawing.savefig(file, format="svg", dpi=72, metadata={"Date": None, "Creator": "DAVI"})
    return file.getvalue()


def _themed(value: str) -> str:
    """The variables of the style sheet instead of the colors that they stand for."""
    return re.sub(
        r"#[0-9a-f]{6}\b", lambda found: f"var({THEME[found[0]]})" if found[0] in THEME else found[0], value.strip()
    )


def _montage(rows: list[Tiles]) -> Drawing:
    """Pictures with the texts under them on one drawing, as on a wide page."""
    places: list[tuple[float, float, Tile]] = []
    titles: list[tuple[float, str]] = []
    bottom = float(_SPACE)
    for row in rows:
        if row.title:
            titles.append((bottom, row.title))
            bottom += 1.6 * _LETTERS
        left, top, height = float(_SPACE), bottom, 0.0
        for tile in row.tiles:
            width, down = _size(tile)
            if left > _SPACE and left + width > _WIDTH:
                left, top, height = float(_SPACE), top + height + _SPACE, 0.0
            places.append((left, top, tile))
            left, height = left + width + _SPACE, max(height, down)
        bottom = top + height + _SPACE
    right = max([*(x + _size(tile)[0] for x, _, tile in places), *(0.56 * _LETTERS * len(t) for _, t in titles)])
    return _drawn(places, titles, right + _SPACE, bottom)


def _drawn(
    places: list[tuple[float, float, Tile]], titles: list[tuple[float, str]], right: float, bottom: float
) -> Drawing:
    """Tiles and the titles of rows at their places, in pixels from the top left."""
    with style():
        drawing = Drawing(figsize=(right / 72, bottom / 72), dpi=72)
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for y, title in titles:
            axes.text(_SPACE, y, title, va="top", fontsize=_LETTERS * 0.75, weight="bold")
        for x, y, tile in places:
            height = max(picture.image.height * picture.scale for picture in tile.pictures)
            axes.text(x, y + height + 3, tile.label, va="top", fontsize=_LETTERS * 0.75)
            for picture in tile.pictures:
                width, height = (side * picture.scale for side in picture.image.size)
                shown = np.asarray(picture.image.convert("RGBA"))
                axes.imshow(shown, extent=(x, x + width, y + height, y), aspect="auto", interpolation="none")
                x += width + GAP
        axes.set(xlim=(0, right), ylim=(bottom, 0))
    return drawing


def _size(tile: Tile) -> tuple[float, float]:
    """Width and height of a tile with its text."""
    down = max(picture.image.height * picture.scale for picture in tile.pictures)
    return max(float(tile.width), 0.56 * _LETTERS * len(tile.label)), down + 1.6 * _LETTERS
