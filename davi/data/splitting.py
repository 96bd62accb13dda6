"""Training and test images from a file that holds only one of the two."""

from __future__ import annotations

from pathlib import Path

from davi.data.images import Images, Source
from davi.errors import UserError


def last_tenth(images: Images, path: Path | str, order: str = "file order") -> Source:
    """Take the last tenth of a set, at least one image, for test.

    Arguments:
        images: the whole set.
        path: where it is from, for messages and names.
        order: in words, the order of the images.

    Raises:
        UserError: if there are fewer than two images.
    """
    name = Path(path).name
    if len(images) < 2:
        raise UserError(f"{path}: got one image, expected at least 2: one for training, one for test")
    n = max(1, len(images) // 10)
    words = f"{name} in {order}: the last tenth ({n} images) for test, the {len(images) - n} before for training"
    train, test = images.subset(slice(None, -n), f"{name}/train"), images.subset(slice(-n, None), f"{name}/test")
    return Source(train, test, words, test_order=order)


def two_files(train: Images, path: Path, test: Images, other: Path) -> Source:
    """Training images of one file with the test images of another.

    Raises:
        UserError: if their images are not of one shape and number of levels.
    """
    if (test.shape, test.levels) != (train.shape, train.levels):
        got, want = (f"[C, H, W] = {list(i.shape)} with {i.levels} levels" for i in (test, train))
        raise UserError(f"data.test: got {other} with images {got}, expected {want} as in {path}")
    words = f"{len(train)} images of {path.name} for training, {len(test)} of {other.name} for test"
    return Source(train, test, words, test_order="file order")


def counted(images: Images, whole: int | None = None) -> str:
    """The number of images in words, with a warning when it is not that of the whole set."""
    n = len(images)
    return f"{n} images" if whole in (None, n) else f"{n} images, NOT the {whole} of the whole set"
