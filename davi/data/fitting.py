"""Images of many sizes brought to one: a part of each, a resampled part of each, or patches of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from davi.data.picture import MAX_PIXELS, in_words
from davi.errors import UserError

How = Literal["crop", "resize", "patches"]


@dataclass(frozen=True)
class Fit:
    """How images come to their size.

    Arguments:
        how: ``crop``, the center of each image as it is; ``resize``, the largest centered part that has the wanted
            proportions, resampled (nothing is distorted, and at most one pair of margins is lost); ``patches``, parts
            side by side from the top left, row by row, without what is left at the right and at the bottom.
        size: (H, W) of the result, in pixels.

    Raises:
        UserError: if the size is not positive, or has more than ``MAX_PIXELS`` pixels.
    """

    how: How
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UserError(f"data.{self.how}: got {list(self.size)}, expected [H, W] of at least 1 pixel each")
        if self.size[0] * self.size[1] > MAX_PIXELS:
            raise UserError(f"data.{self.how}: got {list(self.size)}, expected at most {MAX_PIXELS} pixels")

    def __str__(self) -> str:
        height, width = self.size
        # Part of the identity of images (check_same): the words stay as runs have them.
        words = {"crop": "centre of", "resize": "largest centred part, Lanczos-resampled to", "patches": "patches of"}
        return f"{words[self.how]} {height}x{width}"

    def __call__(self, values: NDArray[Any], levels: int, name: str) -> NDArray[Any]:
        """What becomes of one image.

        Arguments:
            values: ``[H, W, C]``.
            levels: number of values a channel can take; resampled values are rounded and stay within them.
            name: what the image is called in messages.

        Returns:
            ``[N, h, w, C]`` of the same type; N = 1 but for patches.

        Raises:
            UserError: if the image is smaller than what shall be cut out of it.
        """
        height, width = self.size
        if self.how == "resize":
            return _resized(values, levels, height, width)[None]
        if values.shape[0] < height or values.shape[1] < width:
            found = in_words(values.shape[0], values.shape[1])
            raise UserError(
                f"data.{self.how}: got {in_words(height, width)}, expected no more than {found}, the size of {name}"
            )
        if self.how == "crop":
            top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
            return values[None, top : top + height, left : left + width]
        rows, columns = values.shape[0] // height, values.shape[1] // width
        whole = values[: rows * height, : columns * width]
        apart = whole.reshape(rows, height, columns, width, -1).swapaxes(1, 2)  # [rows, columns, h, w, C]
        return apart.reshape(rows * columns, height, width, -1)


def _resized(values: NDArray[Any], levels: int, height: int, width: int) -> NDArray[Any]:
    """The largest centered part of the proportions height to width, ``[height, width, C]``."""
    scale = min(values.shape[0] / height, values.shape[1] / width)
    top, left = (values.shape[0] - scale * height) / 2, (values.shape[1] - scale * width) / 2
    box = (left, top, left + scale * width, top + scale * height)
    channels = []
    for channel in np.moveaxis(values, 2, 0):
        image = Image.fromarray(channel.astype(np.float32))  # Pillow resamples 8 and 16 bits alike only as floats
        resampled = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box))
        channels.append(np.rint(resampled).clip(0, levels - 1))  # Lanczos overshoots at edges
    return np.stack(channels, 2).astype(values.dtype)
