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
from davi.page.blocks import Figure, Tile
from davi.page.charts import THEME, style
from davi.pictures import save_png

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_WIDTH, _SPACE, _LETTERS = 900, 14, 13
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


def _montage(tiles: list[Tile]) -> Drawing:
    """Pictures with the texts under them on one drawing, as on a wide page."""
    places: list[tuple[float, float, Tile]] = []
    left = top = float(_SPACE)
    row = 0.0
    for tile in tiles:
        width, height = _size(tile)
        if left > _SPACE and left + width > _WIDTH:
            left, top, row = float(_SPACE), top + row + _SPACE, 0.0
        places.append((left, top, tile))
        left, row = left + width + _SPACE, max(row, height)
    right = max(x + _size(tile)[0] for x, _, tile in places) + _SPACE
    bottom = top + row + _SPACE
    with style():
        drawing = Drawing(figsize=(right / 72, bottom / 72), dpi=72)
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for x, y, tile in places:
            height = max(picture.image.height * picture.scale for picture in tile.pictures)
            axes.text(x, y + height + 3, tile.label, va="top", fontsize=_LETTERS * 0.75)
            for picture in tile.pictures:
                width, height = (side * picture.scale for side in picture.image.size)
                shown = np.asarray(picture.image.convert("RGBA"))
                axes.imshow(shown, extent=(x, x + width, y + height, y), aspect="auto", interpolation="none")
                x += width + 4
        axes.set(xlim=(0, right), ylim=(bottom, 0))
    return drawing


def _size(tile: Tile) -> tuple[float, float]:
    """Width and height of a tile with its text."""
    across = sum(picture.image.width * picture.scale + 4 for picture in tile.pictures)
    down = max(picture.image.height * picture.scale for picture in tile.pictures)
    return max(float(across), 0.56 * _LETTERS * len(tile.label)), down + 1.6 * _LETTERS
