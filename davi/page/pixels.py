"""Tensors as small pictures: images in their own colors, maps of numbers in a scale that colour-blind people can read.

A pixel of the picture is a pixel of the data; enlarging is left to the browser, which repeats pixels. Images that are
larger than a page has room for are averaged over whole blocks of pixels, and the page says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from davi import pictures
from davi.page.blocks import Picture, Scale

ROOM = 344
"""Pixels of the screen for a sheet: as wide as a phone shows."""

LARGE = 600
"""The least width of a large sheet, in pixels of the screen; a phone shows it smaller."""

TILE = 132
"""Pixels of the screen for one image."""

SMALL = 100
"""The same for one of many: twelve fit side by side on a wide page, three on a phone."""

MIDDLE = 240
"""The same for one of a few: four or five fit side by side on a wide page; a phone shows two, smaller."""

WIDE, BETWEEN = 1248, 8
"""Pixels of the screen for a row on a wide page, and between two tiles of it, as in ``style.css``."""

GAP = 2
"""Pixels between pictures in a strip."""

_TOP, _MARK, _NOTHING = 253, 254, 255
"""Places in the palette: the brightest color of a map, the frame around a query pixel, and what is no number."""

PALETTE = tuple(
    tuple(round(255 * float(value)) for value in colormaps["viridis"](place / _TOP)[:3]) for place in range(_TOP + 1)
)
"""Colors of maps, dark for the least and yellow for the most."""

_WIDEST = 4
"""Pixels of the screen that a gap may be wide."""

_DIMMED = 0.7
"""Factor on the shades of an image under a map."""

_FRAME = (255, 77, 0)
"""A color that is not in :data:`PALETTE`, and as light as none of its ends."""


def factor(height: int, width: int, longest: int) -> int:
    """Side of the blocks over which an image is averaged so that no side is longer than ``longest``."""
    return -(-max(height, width) // longest)


def shrunk(x: Tensor, longest: int) -> Tensor:
    """Means over whole blocks of pixels, ``[..., H, W]``; what fits is returned as it is.

    Arguments:
        x: integers or numbers, ``[..., H, W]``. Integers stay integers.
        longest: of the sides of the result, in pixels.
    """
    block = factor(x.shape[-2], x.shape[-1], longest)
    if block == 1:
        return x
    flat = x.reshape(-1, 1, *x.shape[-2:]).double()
    means = F.avg_pool2d(flat, block, ceil_mode=True)  # [n, 1, h, w]
    means = means if x.is_floating_point() else means.round()
    return means.to(x.dtype).reshape(*x.shape[:-2], *means.shape[-2:])


def in_levels(x: Tensor, levels: int) -> tuple[Tensor, int]:
    """Images as integers, and of how many levels: integers as they are, means in units of levels as 256 shades."""
    if not x.is_floating_point():
        return x, levels
    return (x * (255 / (levels - 1))).round().clamp(0, 255).to(torch.uint8), 256


def room_of(count: int) -> int:
    """Pixels of the screen for each of so many images, so that they fill a row of a wide page; :data:`SMALL` at least
    and :data:`MIDDLE` at most."""
    return min(max((WIDE + BETWEEN) // max(count, 1) - BETWEEN, SMALL), MIDDLE)


def image(x: Tensor, levels: int, alt: str, longest: int, room: int = TILE) -> Picture:
    """One image.

    Arguments:
        x: integers in 0..levels-1, or means in units of levels, ``[C, H, W]``.
        levels: of a pixel.
        alt: what there is to see.
        longest: of its sides, in pixels of the picture.
        room: pixels of the screen in either direction.
    """
    return sheet(x[None], levels, 1, alt, longest, room, padding=0)


def sheet(
    x: Tensor, levels: int, columns: int, alt: str, longest: int, room: int = ROOM, padding: int = GAP
) -> Picture:
    """Images in rows.

    Arguments:
        x: integers in 0..levels-1, or means in units of levels, ``[N, C, H, W]``.
        levels: of a pixel.
        columns: images in a row.
        alt: what there is to see.
        longest: of the sides of one image, in pixels of the picture.
        room: pixels of the screen in either direction; from :data:`LARGE` on the least width.
        padding: pixels between the images.
    """
    x, levels = in_levels(shrunk(x, longest), levels)
    plain = pictures.grid(x, levels, columns, scale=1, padding=0)
    if padding and room >= LARGE:
        scale = max(-(-(room - (columns + 1) * padding) // plain.width), 1)
    else:
        scale = max((room - (columns + 1) * padding) // max(plain.size), 1)
    if 1 < scale <= _WIDEST:  # the gaps may be enlarged with the pixels
        plain = pictures.grid(x, levels, columns, scale=1, padding=1 if padding else 0)
    elif padding:
        plain, scale = pictures.grid(x, levels, columns, scale=scale, padding=padding), 1
    if x.shape[1] != 3:
        plain = plain.convert("L")
    return Picture(plain, scale, alt)


def heat(values: Tensor, low: float, high: float) -> Image.Image:
    """Maps of numbers side by side, in the colors of :data:`PALETTE`; what is no number is transparent.

    Arguments:
        values: ``[n, h, w]``.
        low: what is darkest.
        high: what is brightest.
    """
    x = values.detach().double().cpu()
    span = high - low if high > low else 1.0
    places = ((x - low) / span).clamp(0, 1).mul(_TOP).round()  # NaN stays NaN
    places = torch.where(places.isnan(), float(_NOTHING), places)
    places = F.pad(places, (0, GAP), value=float(_NOTHING))  # [n, h, w + gap]
    strip = places.permute(1, 0, 2).flatten(1)[:, :-GAP]  # [h, n (w + gap) - gap]
    picture = Image.fromarray(np.ascontiguousarray(strip.to(torch.uint8).numpy()))
    picture.putpalette([part for color in (*PALETTE, _FRAME, (0, 0, 0)) for part in color])
    picture.info["transparency"] = _NOTHING
    return picture


def maps(values: Tensor, high: float, alt: str, longest: int, room: int = ROOM, low: float = 0.0) -> Picture:
    """:func:`heat` as a picture of the page."""
    values = shrunk(values, longest)
    picture = heat(values, low, high)
    return Picture(picture, max(room // max(picture.size), 1), alt)


def overlay(x: Tensor, levels: int, values: Tensor, high: float, alt: str, longest: int, room: int) -> Picture:
    """A map laid over its image: where it is 0 the image is seen, dimmed; where it is high, the colors of the map.

    Arguments:
        x: integers in 0..levels-1, ``[C, H, W]``.
        levels: of a pixel.
        values: of every pixel, ``[H, W]``.
        high: what is brightest.
        alt: what there is to see.
        longest: of the sides, in pixels of the picture.
        room: pixels of the screen in either direction.
    """
    gray = 255 * shrunk(x.double().mean(0), longest) / (levels - 1)  # [h, w]
    values = shrunk(values.double(), longest)
    colors = np.asarray(heat(values[None], 0.0, high).convert("RGB"), dtype=np.float64)
    opaque = (values / high if high > 0 else torch.zeros_like(values)).clamp(0, 1)
    picture = Image.fromarray(_laid_over(gray.numpy(), colors, opaque.numpy()))
    return Picture(picture, max(room // max(picture.size), 1), alt)


def _laid_over(
    gray: NDArray[np.float64], colors: NDArray[np.float64], opaque: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Colors, ``[..., 3]``, over shades, ``[...]``, as opaque as they are said to be."""
    mixed = (1 - opaque[..., None]) * _DIMMED * gray[..., None] + opaque[..., None] * colors
    return mixed.round().astype(np.uint8)


def marked(picture: Picture, query: Sequence[int], grid: Sequence[int]) -> Picture:
    """The same map with a frame around a query pixel; pixels are repeated to make room for the frame.

    Arguments:
        picture: of one map.
        query: row and column of the query.
        grid: rows and columns that the query counts.
    """
    scale = max(picture.scale, 2)
    width, height = picture.image.width * scale, picture.image.height * scale
    large = picture.image.resize((width, height), Image.Resampling.NEAREST)
    (row, column), (rows, columns) = query, grid
    left, top = column * width // columns, row * height // rows
    right, bottom = max((column + 1) * width // columns - 1, left + 2), max((row + 1) * height // rows - 1, top + 2)
    color = _MARK if large.mode == "P" else _FRAME
    ImageDraw.Draw(large).rectangle((left, top, right, bottom), outline=color, width=max(scale // 4, 1))
    return Picture(large, 1, picture.alt)


UNSEEN, LATER = (112, 112, 112), (196, 196, 196)
"""Colors of what is not a number in the map of a pixel: among the pixels before it, and from it on."""


def ordered(values: Tensor, high: float, place: Sequence[int], alt: str, longest: int, room: int) -> Picture:
    """The map of a pixel that depends on those before it alone, row by row, with a frame around that pixel.

    Arguments:
        values: of every pixel, ``[H, W]``; what is not a number has one of two colors (:data:`UNSEEN`).
        high: what is brightest.
        place: row and column of the pixel.
        alt: what there is to see.
        longest: of the sides, in pixels of the picture.
        room: pixels of the screen in either direction.
    """
    block = factor(values.shape[0], values.shape[1], longest)
    row, column = place[0] // block, place[1] // block
    small = shrunk(values, longest)
    colors = np.array(heat(small[None], 0.0, high).convert("RGB"))
    missing = small.isnan().numpy()
    later = np.arange(small.numel()).reshape(small.shape) >= row * small.shape[1] + column
    colors[missing & ~later], colors[missing & later] = UNSEEN, LATER
    picture = Image.fromarray(colors)
    return marked(Picture(picture, max(room // max(picture.size), 1), alt), (row, column), small.shape)


def given_rows(picture: Picture, rows: int, height: int) -> Picture:
    """The same picture with all but its first rows in gray.

    Arguments:
        picture: of one image, in shades or colors.
        rows: of the image that stay.
        height: rows of the image, which may be more than the picture has.
    """
    covered = picture.image.copy()
    top = -(-rows * covered.height // height)
    gray = pictures.GAP_LEVEL
    covered.paste(gray if covered.mode == "L" else (gray,) * 3, (0, top, covered.width, covered.height))
    return Picture(covered, picture.scale, picture.alt)


def swatch(color: tuple[int, int, int], what: str) -> Scale:
    """The legend of a single color."""
    return Scale(what, "", ("#{:02x}{:02x}{:02x}".format(*color),) * 2)


def legend(high: float, what: str, over: bool = False) -> Scale:
    """What the colors of maps from 0 to ``high`` mean; ``over``: as they look when laid over gray."""
    places = np.linspace(0, _TOP, 9).round().astype(int)
    colors = np.array([PALETTE[place] for place in places])
    if over:
        colors = _laid_over(np.full(len(places), 128.0), colors.astype(np.float64), places / _TOP)
    return Scale(f"{what}: 0", f"{high:.3g}", tuple("#{:02x}{:02x}{:02x}".format(*color) for color in colors))


def data_uri(picture: Image.Image) -> str:
    """The picture as a PNG file inside an address."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()
