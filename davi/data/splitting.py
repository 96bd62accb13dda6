"""Splitting of sets that have no split of their own.

*By content* (folders of images): :func:`part_of`. *By position* (arrays, and other files that hold a whole set): the
last ones are for test. *By file*: the user names another one for test, and copies of its images are left out of
training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davi.data.images import Images, Source, Whole
from davi.data.labels import matched
from davi.errors import UserError

TENTH = 0.1
"""Share of the images for test if nothing else is asked for."""

_ROWS = 2**24
"""Bytes of images that are looked at together."""


def part_of(digest: bytes, test_fraction: float, validation: float) -> str:
    """The split of an image by its content: ``train``, ``validation`` or ``test``.

    The first 64 bits of the digest are read as a fraction u of 1. Test if u < test_fraction, validation if u is among
    the last ``validation`` of what remains above, else training.

    Arguments:
        digest: SHA-256 of the decoded image.
        test_fraction: of all images, from 0 to 1.
        validation: of the others, from 0 to 1.
    """
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < test_fraction:
        return "test"
    return "validation" if u >= 1.0 - (1.0 - test_fraction) * validation else "train"


def by_count(digests: Iterable[bytes], test_fraction: float, validation: float) -> dict[bytes, str]:
    """The splits of a few images, of which :func:`part_of` would leave one empty: in the same order, but by count.

    Of N different images in the order of their digests the first are for test and the last for validation, as many as
    the fractions say, rounded, but at least one of each and one for training.

    Arguments:
        digests: SHA-256 of the images; copies count once.
        test_fraction: of all images; 0: none is for test.
        validation: of the others; 0: none is for validation.

    Raises:
        ValueError: if there are too few; the message says how many there are and have to be.

    Example:
        >>> list(by_count([bytes([i]) for i in range(24)], 0.1, 0.1).values()).count("train")
        20
    """
    ordered = sorted(set(digests))
    total, least = len(ordered), 1 + (test_fraction > 0) + (validation > 0)
    if total < least:
        raise ValueError(f"got {total} different image{'s' * (total != 1)}, expected at least {least}")
    tests = min(max(1, round(test_fraction * total)), total - least + 1) if test_fraction else 0
    held = min(max(1, round(validation * (total - tests))), total - tests - 1) if validation else 0
    parts = ["test"] * tests + ["train"] * (total - tests - held) + ["validation"] * held
    return dict(zip(ordered, parts, strict=True))


def content_digest(values: NDArray[Any], levels: int) -> bytes:
    """SHA-256 of an image ``[H, W, C]``: its size, channels and levels, then its values, the lowest byte first."""
    header = " ".join(map(str, (*values.shape, levels)))
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return hashlib.sha256(header.encode() + b"\n" + data.tobytes()).digest()


def last_count(total: int, fraction: float) -> int:
    """How many of so many images :func:`last_part` takes for test."""
    return max(1, math.floor(total * fraction + 1e-9))  # 0.29 of 100 is 28.999999999999996 to a computer


def last_part(whole: Whole, fraction: float = TENTH) -> Source:
    """Take the last images of a set, at least one, for test.

    Arguments:
        whole: the set.
        fraction: of the images, for test; rounded down.

    Raises:
        UserError: if there are fewer than two images, or none would be left for training.
    """
    images, name, total = whole.images, whole.images.name, len(whole.images)
    if total < 2:
        raise UserError(f"{whole.path}: got one image, expected at least 2: one for training, one for test")
    n = last_count(total, fraction)
    if n >= total:  # not before a fraction of 1 - 1e-9 / total
        raise UserError(f"data.test_fraction: got {fraction} for {total} images, expected to leave at least one")
    share = "tenth" if fraction == TENTH else f"{fraction:g} of all"
    words = f"{name} in {whole.order}: the last {share} ({n} images) for test, the {total - n} before for training"
    train, test = images.subset(slice(None, -n), f"{name}/train"), images.subset(slice(-n, None), f"{name}/test")
    again = int(repeated(test, train).sum())
    notes = (f"{again} of the {n} test images are training images as well",) if again else ()
    details = {**whole.details, "test_fraction": fraction}
    return Source(train, test, words, test_order=whole.order, details=details, notes=(*whole.notes, *notes))


def two_files(whole: Whole, other: Whole) -> Source:
    """Training images of one file with the test images of another; copies of these are left out of training.

    Raises:
        UserError: if their images are not of one shape and number of levels, or all are test images.
    """
    train, test = whole.images, other.images
    if (test.shape, test.levels) != (train.shape, train.levels):
        got, want = (f"[C, H, W] = {list(i.shape)} with {i.levels} levels" for i in (test, train))
        raise UserError(f"data.test: got {other.path} with images {got}, expected {want} as in {whole.path}")
    train, test = matched(train, test)
    copies = repeated(train, test)
    left_out = int(copies.sum())
    if left_out == len(train):
        raise UserError(
            f"data.test: got {other.path}, which holds all images of {whole.path}, expected other images for test"
        )
    words = f"{len(train)} images of {train.name} for training, {len(test)} of {test.name} for test"
    notes = dict.fromkeys((*whole.notes, *other.notes))
    kept: slice | torch.Tensor = slice(None)
    if left_out:
        words += f"; {left_out} that are test images as well left out of training"
        notes[f"{left_out} training images are test images as well: left out of training"] = None
        kept = (~copies).nonzero().flatten()
    return Source(
        train.subset(kept, f"{train.name}/train"),
        test.subset(slice(None), f"{test.name}/test"),
        words,
        test_order=other.order,
        notes=tuple(notes),
    )


def repeated(images: Images, among: Images) -> torch.Tensor:
    """Which images are, value by value, among others; none is if the sets differ in shape or levels.

    Arguments:
        images: ``[N, C, H, W]``.
        among: ``[M, C, H, W]``.

    Returns:
        Truth values ``[N]``.
    """
    if (images.shape, images.levels) != (among.shape, among.levels):
        return torch.zeros(len(images), dtype=torch.bool)
    known = set(digests(among))
    return torch.tensor([digest in known for digest in digests(images)])


def digests(images: Images) -> Iterator[bytes]:
    """A digest of each image; a set that is read from a file as it is needed is never in memory as a whole."""
    pixels = images.pixels
    size = pixels[0].numel() * pixels.element_size()
    for part in pixels.split(max(1, _ROWS // size)):
        for row in part.cpu().flatten(1).contiguous().numpy():
            yield hashlib.blake2b(row, digest_size=16).digest()


def counted(images: Images, whole: int | None = None) -> str:
    """The number of images in words, with a warning when it is not that of the whole set."""
    n = len(images)
    return f"{n} images" if whole in (None, n) else f"{n} images, NOT the {whole} of the whole set"
