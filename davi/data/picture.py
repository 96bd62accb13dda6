"""A decoded image file, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davi.errors import UserError

MAX_PIXELS = 2**30 // 12
"""Of one image, unless it is asked for more: some 89 million, 256 MiB of colors, as in Pillow."""

_LUMA = np.array([19595, 38470, 7471], np.uint64)
"""0.299, 0.587 and 0.114 in parts of 65,536, as Pillow has them."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded file.

    Arguments:
        values: ``[H, W, C]``, C = 1 or 3; uint16 for 65,536 levels, else uint8.
        levels: 2, 256 or 65,536.
    """

    values: NDArray[Any]
    levels: int


def in_words(height: int, width: int) -> str:
    """A size as messages have it, ``768 wide, 512 high``: which leaves no doubt about the order."""
    return f"{width} wide, {height} high"


def in_mode(picture: Picture, mode: str | None) -> Picture:
    """A picture with the channels that are asked for.

    Arguments:
        picture: gray or colored.
        mode: ``rgb``: gray becomes three equal channels (of 2 levels, 0 and 255). ``gray``: color becomes its luma
            after ITU-R BT.601, rounded. None: as it is.
    """
    values, levels = picture.values, picture.levels
    if mode == "rgb" and values.shape[2] == 1:
        if levels == 2:
            values, levels = values * np.uint8(255), 256
        return Picture(values.repeat(3, 2), levels)
    if mode == "gray" and values.shape[2] == 3:
        luma = (values.astype(np.uint64) @ _LUMA + np.uint64(2**15)) >> np.uint64(16)  # [H, W]
        return Picture(luma[:, :, None].astype(values.dtype), levels)
    return picture


def check_pixels(height: int, width: int, limit: int, name: str) -> None:
    """Refuse an image by the size that its header promises.

    Raises:
        UserError: if it has no pixel, or more than ``limit``.
    """
    if height < 1 or width < 1:
        raise UserError(f"{name}: got a size of {in_words(height, width)}, expected at least one pixel")
    if height * width > limit:
        raise UserError(
            f"{name}: promises too many pixels, {in_words(height, width)}: {height * width}, expected at most "
            f"{limit} (if that is right: --data.max_pixels)"
        )


def indexed(indices: NDArray[Any], palette: NDArray[Any], bits: int, name: str) -> Picture:
    """The colors of an indexed image; gray if all that are used are, of 2 levels if it has 1 bit, black and white.

    Arguments:
        indices: ``[H, W]``, into the palette.
        palette: ``[N, 3]``, uint8; what no pixel uses has no say.
        bits: of an index.
        name: what the file is called in messages.

    Raises:
        UserError: if an index is not in the palette.
    """
    used = np.zeros(256, bool)
    used[indices] = True
    if used[len(palette) :].any():
        missing = used.nonzero()[0].max()
        raise UserError(f"{name}: got color {missing} of a palette of {len(palette)}, expected none that is not in it")
    colors = palette[used[: len(palette)]]
    if (colors != colors[:, :1]).any():
        return Picture(palette[indices], 256)
    gray = palette[indices][:, :, :1]
    if bits == 1 and np.isin(colors, (0, 255)).all():
        return Picture(gray // 255, 2)
    return Picture(gray, 256)


def put_on(
    colors: NDArray[np.uint8], alpha: NDArray[np.uint8], shade: int, multiplied: bool = False
) -> NDArray[np.uint8]:
    """A transparent image on a background of one shade, rounded to the nearest.

    Arguments:
        colors: ``[H, W, C]``.
        alpha: ``[H, W, 1]``; 255 is opaque.
        shade: of the background.
        multiplied: the colors are multiplied by alpha / 255 already.
    """
    weight = alpha.astype(np.uint32)
    share = colors.astype(np.uint32) * (np.uint32(255) if multiplied else weight)
    values = (share + np.uint32(shade) * (255 - weight) + 127) // 255
    return np.minimum(values, 255).astype(np.uint8)
