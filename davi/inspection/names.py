"""What one image of a set is called where it is shown."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from torch import Tensor

from davi.data import Images

SPLITS = ("train", "validation", "test")


@runtime_checkable
class _Filed(Protocol):
    """A set that knows the file of each image, and its place in it where images are patches."""

    files: tuple[str, ...]
    corners: Tensor | None


def name_of(images: Images, place: int) -> str:
    """The name of its file, and the corner of a patch in it; else the number among the images of the split.

    Arguments:
        images: the set.
        place: of the image in it.
    """
    if isinstance(images, _Filed) and images.files:
        name = PurePosixPath(images.files[place]).name
        if images.corners is None:
            return name
        top, left = images.corners[place].tolist()
        return f"{name}, row {top}, column {left}"
    split = images.name.rpartition("/")[2]
    return f"{split} image {place}" if split in SPLITS else f"image {place}"
