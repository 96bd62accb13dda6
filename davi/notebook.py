"""What a notebook shows inline: images, and the page of a run."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from davi.data import Images
from davi.data.given import collected
from davi.errors import UserError
from davi.pictures import grid


def show(images: Any, levels: Any = 256, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """:func:`davi.show`."""
    if isinstance(images, Images):
        pixels, count = images.pixels, images.levels
    else:
        count = getattr(levels, "levels", levels)  # of a model or a run
        if isinstance(count, bool) or not isinstance(count, int):
            raise UserError(f"levels: got {type(levels).__name__}, expected a whole number, or a model or run")
        pixels = images if isinstance(images, Tensor) and images.ndim == 4 else _pixels(images, count)
    return grid(pixels, count, columns, scale)


def _pixels(images: Any, levels: int) -> Tensor:
    """``[N, C, H, W]`` of what is no such tensor."""
    stacked = collected(images, levels=levels).images
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), np.int32))


@dataclass(frozen=True)
class Page:
    """A page in a file, which a notebook shows inline.

    Arguments:
        path: of the file.
    """

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        content = escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{content}" style="width: 100%; height: 50em; border: 1px solid #888"></iframe>'
