"""Integer images as pictures: grids, pairs, and PNG files that are written atomically.

Levels 0..L-1 are shown linearly as 0..255, pixels are enlarged by whole factors without smoothing, so that what is
seen is what the model was given or has drawn. Pictures have the mode ``RGB``. Images of one channel are gray, of three
channels colored; of any other number of channels all are shown, as gray images side by side, since no color would
be honest.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from davi.errors import UserError

LONGEST_SIDE = 1000
"""Pixels. Grids are enlarged as far as this allows; images that are larger by themselves are never shrunk."""

GAP_LEVEL = 170
"""Gray of the gaps: seen against black and against white images."""

_HEADING_WIDTH, _HEADING_HEIGHT = 56, 18
"""Pixels that the heading of a column takes."""


def grid(
    images: Tensor, levels: int, columns: int | None = None, scale: int | None = None, padding: int = 2
) -> Image.Image:
    """Images in rows, from left to right and from top to bottom.

    Arguments:
        images: integers in 0..levels-1, [N, C, H, W], N at least 1.
        levels: number of levels of a pixel, 2 to 65536.
        columns: images in a row; by default such that the grid is nearly square.
        scale: each pixel becomes scale x scale; by default as large as ``LONGEST_SIDE`` allows, at least 1.
        padding: width of the gaps around the images, in pixels of the picture.

    Returns:
        picture of the mode ``RGB`` and the size columns (scale W + padding) + padding by rows (scale H + padding) +
        padding; W counts C times where the channels stand side by side.
    """
    cells = _pixels("images", images, levels)  # [N, 3, H, W]
    n, _, height, width = cells.shape
    columns = _columns(columns, n, height, width)
    if scale is None:
        scale = _fitting_scale(columns, -(-n // columns), height, width, padding)
    _check(scale=scale, padding=padding)
    return _tile(_enlarged(cells, scale), columns, padding)


def pairs(
    originals: Tensor,
    reconstructions: Tensor,
    levels: int,
    columns: int | None = None,
    scale: int | None = None,
    padding: int = 2,
) -> Image.Image:
    """Each original with its reconstruction to the right of it; wider gaps part one pair from the next.

    Arguments:
        originals: integers in 0..levels-1, [N, C, H, W], N at least 1.
        reconstructions: the same shape.
        levels: number of levels of a pixel, 2 to 65536.
        columns: pairs in a row; by default such that the picture is nearly square.
        scale: each pixel becomes scale x scale; by default as large as ``LONGEST_SIDE`` allows, at least 1.
        padding: gap inside a pair, in pixels of the picture; the gaps around the pairs are three times as wide.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(f"reconstructions: got {list(reconstructions.shape)}, expected {list(originals.shape)}")
    left, right = _pixels("originals", originals, levels), _pixels("reconstructions", reconstructions, levels)
    n, _, height, width = left.shape
    columns = _columns(columns, n, height, 2 * width)
    if scale is None:
        # A row of m pairs has m gaps inside them and m + 1 around them: as wide as if every image had a double one.
        scale = _fitting_scale(2 * columns, -(-n // columns), height, width, 3 * padding)
    _check(scale=scale, padding=padding)
    left, right = _enlarged(left, scale), _enlarged(right, scale)
    gap = left.new_full((n, 3, left.shape[2], padding), GAP_LEVEL)
    return _tile(torch.cat([left, gap, right], dim=3), columns, 3 * padding)  # [N, 3, H, 2 W + padding]


def completions(originals: Tensor, drawn: Tensor, rows: int, levels: int, padding: int = 4) -> Image.Image:
    """A row for each image: the original, what of it was given, and the completions of that, with headings.

    Arguments:
        originals: integers in 0..levels-1, [N, C, H, W], N at least 1.
        drawn: completions of each, [N, D, C, H, W].
        rows: how many rows were given; the others of that column are as gray as the gaps.
        levels: number of levels of a pixel, 2 to 65536.
        padding: width of the gaps, in pixels of the picture.
    """
    draws = drawn.shape[1]
    cells = _pixels("originals", originals, levels)
    given = cells.clone()
    given[:, :, rows:] = GAP_LEVEL
    completed = _pixels("drawn", drawn.flatten(0, 1), levels).unflatten(0, (-1, draws))
    cells = torch.cat([cells[:, None], given[:, None], completed], 1)  # [N, 2 + D, 3, H, W]
    columns, (height, width) = draws + 2, cells.shape[3:]
    scale = max(_fitting_scale(columns, len(cells), height, width, padding), -(-_HEADING_WIDTH // width))
    below = _tile(_enlarged(cells.flatten(0, 1), scale), columns, padding)
    headings = ["original", "given", *(f"draw {i + 1}" for i in range(draws))]
    return _headed(below, headings, scale * width + padding, padding)


def _headed(below: Image.Image, headings: Sequence[str], step: int, padding: int) -> Image.Image:
    """The picture with a line of text over it, a word over each column; columns are ``step`` pixels apart."""
    picture = Image.new("RGB", (below.width, below.height + _HEADING_HEIGHT), (GAP_LEVEL,) * 3)
    picture.paste(below, (0, _HEADING_HEIGHT))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for i, heading in enumerate(headings):
        middle = padding + i * step + (step - padding) // 2
        pen.text((middle, padding + _HEADING_HEIGHT // 2), heading, fill=(0, 0, 0), font=font, anchor="mm")
    return picture


def save_png(image: Image.Image, path: str | Path) -> None:
    """Writes a PNG file beside ``path`` and renames it, so that no half-written picture is ever seen.

    Raises:
        UserError: the folder does not exist or cannot be written to, or ``path`` is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written, no such folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{path}: cannot be written, it is a folder")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(beside, format="PNG", optimize=True)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):  # what could not be written cannot be removed either; the first error counts
            beside.unlink()


def _pixels(name: str, images: Tensor, levels: int) -> Tensor:
    """Integers in 0..levels-1, [N, C, H, W], as uint8 [N, 3, H, W], or [N, 3, H, C W] with channels side by side."""
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"{name}: got the shape {list(images.shape)}, expected [N, C, H, W] with no zero")
    if images.is_floating_point() or images.is_complex() or images.dtype is torch.bool:
        raise TypeError(f"{name}: got {images.dtype}, expected integers")
    if not 2 <= levels <= 65536:
        raise ValueError(f"levels: got {levels}, expected 2 to 65536")
    x = images.detach().to("cpu", torch.int64)
    lowest, highest = int(x.min()), int(x.max())
    if lowest < 0 or highest >= levels:
        raise ValueError(f"{name}: got values from {lowest} to {highest}, expected 0 to {levels - 1}")
    n, channels, height, width = x.shape
    if channels not in (1, 3):
        x = x.transpose(1, 2).reshape(n, 1, height, channels * width)  # [N, 1, H, C W]
    top = levels - 1
    x = (2 * 255 * x + top) // (2 * top)  # 255 x / top, rounded
    return x.to(torch.uint8).expand(-1, 3, -1, -1)  # [N, 3, H, W]


def _columns(columns: int | None, n: int, height: int, width: int) -> int:
    if columns is None:
        columns = round(math.sqrt(n * height / width))
        return min(max(columns, 1), n)
    if columns < 1:
        raise ValueError(f"columns: got {columns}, expected at least 1")
    return columns


def _fitting_scale(columns: int, rows: int, height: int, width: int, padding: int) -> int:
    across = (LONGEST_SIDE - (columns + 1) * padding) // (columns * width)
    down = (LONGEST_SIDE - (rows + 1) * padding) // (rows * height)
    return max(min(across, down), 1)


def _check(scale: int, padding: int) -> None:
    if scale < 1:
        raise ValueError(f"scale: got {scale}, expected at least 1")
    if padding < 0:
        raise ValueError(f"padding: got {padding}, expected at least 0")


def _enlarged(cells: Tensor, scale: int) -> Tensor:
    return cells.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)  # [N, 3, scale H, scale W]


def _tile(cells: Tensor, columns: int, padding: int) -> Image.Image:
    """Cells [N, 3, H, W] on one canvas, with gaps of ``padding`` between and around them."""
    n, channels, height, width = cells.shape
    rows = -(-n // columns)
    missing = cells.new_full((rows * columns - n, channels, height, width), GAP_LEVEL)
    cells = F.pad(torch.cat([cells, missing]), (padding, 0, padding, 0), value=GAP_LEVEL)
    cells = cells.reshape(rows, columns, *cells.shape[1:])  # [rows, columns, 3, H, W], gaps on the left and above
    canvas = cells.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [rows H, columns W, 3]
    canvas = F.pad(canvas, (0, 0, 0, padding, 0, padding), value=GAP_LEVEL)
    return Image.fromarray(canvas.contiguous().numpy())
