r"""What a model has to beat: bits per dimension of standard methods, on the same test images.

*Independent pixels*: every position and channel has its own histogram of the training images, smoothed by adding one
to the count of each level (Laplace's rule of succession), so that no test image is impossible:

.. math:: p_j(v) = \frac{n_j(v) + 1}{N + L}, \qquad \log_2 p(x) = \sum_j \log_2 p_j(x_j)

With binary test images and gray training images (which a model sees drawn afresh at each presentation) the counts are
their expectations, :math:`n_j(1) = \sum_n g_{nj} / (L_g - 1)`.

*PNG* and *lossless WebP*: length of the file of each image, encoded on its own by Pillow, headers included. Images of
less than a kilobyte are put side by side into one file for the whole set: in files of their own most of each would be
header, and such a baseline is beaten by anything.

A set may be far larger than the memory. No more than 256 MiB of training images are counted and no more than 32 million
values of test images are put into files; of larger sets some images stand for all, spread evenly
(:mod:`davi.data.subsets`), and the note says how many.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features

from davi.data import Images, evenly
from davi.data.subsets import rule
from davi.errors import UserError
from davi.evaluation.clusters import standard_error

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""

Save = Callable[[Image.Image, io.BytesIO], None]

_ENTRIES = 2**22
"""Numbers held at once while counting: 32 MiB of float64."""

_COUNTED_BYTES = 2**28
"""Of training images that are counted: all of CIFAR-10 or MNIST."""

_FILED_VALUES = 2**25
"""Of test images that are put into files, which takes minutes: all of CIFAR-10's or MNIST's."""

_WEBP_LONGEST_SIDE = 16383

_SMALL_BYTES = 1024
"""Images whose values take less, uncompressed, share one file; a digit of 28x28 gray values takes 784."""


@dataclass(frozen=True)
class Baseline:
    """What one method needs for the test images.

    Arguments:
        name: of the method.
        bits_per_dim: mean over the images; None where the method cannot be used.
        standard_error: of that mean, over the images (:mod:`davi.evaluation.clusters`); None also for a single image,
            or a single file for all of them.
        note: how it was done, or why it could not be done.
    """

    name: str
    bits_per_dim: float | None
    standard_error: float | None
    note: str


def baselines(train: Images | None, test: Images, progress: Progress | None = None) -> list[Baseline]:
    """All baselines. WebP's thorough search takes some 5 ms for a 28x28 digit, 30 ms for a 32x32 photograph.

    Arguments:
        train: the training images as stored; None if they are not known, and independent pixels cannot be counted.
        test: the images that the model is evaluated on.
        progress: told how many WebP files are written; all the rest is quick.

    Raises:
        UserError: if the two sets do not belong together.
    """
    counted = _unknown_pixels() if train is None else independent_pixels(train, test)
    return [counted, png(test), webp(test, progress)]


def _unknown_pixels() -> Baseline:
    return Baseline("independent pixels", None, None, "the training images of the run are not at hand")


def independent_pixels(train: Images, test: Images) -> Baseline:
    """One smoothed histogram for every position and channel (module docstring).

    Arguments:
        train: the images that are counted; of the same shape as ``test``, and of the same number of levels unless
            ``test`` is binary.
        test: the images that are coded.

    Raises:
        UserError: if the two sets do not belong together.
    """
    if train.shape != test.shape or (train.levels != test.levels and test.levels != 2):
        raise UserError(
            f"{train.name}: got images [C, H, W] = {list(train.shape)} with {train.levels} levels, expected "
            f"{list(test.shape)} with {test.levels} levels as in {test.name}"
        )
    seen = _flat(_some(train, _COUNTED_BYTES // train.pixels.element_size()))  # [N, D]
    coded = _flat(test)  # [M, D]
    dims, levels = coded.shape[1], test.levels
    width = max(1, _ENTRIES // levels)
    bits = np.zeros(len(coded))
    for start in range(0, dims, width):
        part = slice(start, start + width)
        counts = _counts(seen[:, part], train.levels, levels)  # [d, L]
        log_p = np.log2(counts + 1.0) - np.log2(len(seen) + levels)
        place = np.arange(len(counts))
        for rows in _chunks(len(coded), len(counts)):
            bits[rows] -= log_p[place, coded[rows, part]].sum(1)
    how = "expected counts of the gray values" if train.levels != levels else "counts"
    among = "" if len(seen) == len(train) else f" ({rule(len(train), len(seen))})"
    note = f"{how} of {len(seen)} training images{among} at each position and channel, one added to each level"
    return _baseline("independent pixels", bits / dims, test, note)


def _some(images: Images, values: int) -> Images:
    """All images, or so many as hold no more values, spread evenly."""
    return evenly(images, max(1, values // images.pixels[0].numel()))


def _flat(images: Images) -> NDArray[np.generic]:
    """``[N, C * H * W]``."""
    flat: NDArray[np.generic] = images.pixels.cpu().flatten(1).numpy()
    return flat


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows, each of which holds about as many numbers as may be held at once."""
    step = max(1, _ENTRIES // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def png(test: Images) -> Baseline:
    """PNG, one file for each image, or for all where they are small: bilevel for two levels, 8 or 16 bits for more.

    One channel is stored as gray, two as gray and alpha, three as color, four as color and alpha; other numbers of
    channels, and more than one channel above 256 levels, have no PNG file here.
    """
    if not fits_png(test):
        return Baseline("PNG", None, None, _unfit(test))
    return _files("PNG", test, "optimize", save_png, None)


def webp(test: Images, progress: Progress | None = None) -> Baseline:
    """Lossless WebP with the most thorough search, in files as for :func:`png`; gray is stored as color.

    WebP holds 8 bits, three channels or four, and sides of at most 16383 pixels.
    """
    name = "lossless WebP"
    if not features.check("webp"):
        return Baseline(name, None, None, "Pillow was built without WebP")
    if not fits_webp(test):
        return Baseline(name, None, None, _unfit(test))
    return _files(name, test, "lossless, quality 100, method 6", save_webp, progress)


def fits_png(images: Images) -> bool:
    """Whether PNG holds such images."""
    channels = images.shape[0]
    return channels == 1 or (channels <= 4 and images.levels <= 256)


def fits_webp(images: Images) -> bool:
    """Whether WebP holds such images, if Pillow knows it."""
    return images.shape[0] in (1, 3, 4) and images.levels <= 256 and max(images.shape[1:]) <= _WEBP_LONGEST_SIDE


def save_png(image: Image.Image, file: io.BytesIO) -> None:
    """Write a PNG file as small as Pillow makes it."""
    image.save(file, "PNG", optimize=True)


def save_webp(image: Image.Image, file: io.BytesIO) -> None:
    """Write a lossless WebP file as small as Pillow makes it; gray is stored as color."""
    color = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    # exact: or else the color of fully transparent pixels is thrown away.
    color.save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)


def _counts(seen: NDArray[np.generic], seen_levels: int, levels: int) -> NDArray[np.float64]:
    """How often every level was seen at every position: ``[N, d]`` -> ``[d, levels]``; expected where it is drawn."""
    n, d = seen.shape
    if seen_levels != levels:  # gray values, of which binary ones are drawn
        ones = sum(seen[rows].sum(0, dtype=np.float64) for rows in _chunks(n, d)) / (seen_levels - 1)
        return np.stack([n - ones, ones], 1)
    counts = np.zeros(d * levels)
    for rows in _chunks(n, d):
        place = np.arange(d) * levels + seen[rows].astype(np.int64)  # [n', d]
        counts += np.bincount(place.ravel(), minlength=d * levels)
    return counts.reshape(d, levels)


def picture(values: NDArray[np.generic], levels: int) -> Image.Image:
    """One image ``[C, H, W]`` as it is put into a file: the integers as they are; two levels are black and white."""
    if len(values) > 1:
        return Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0), dtype=np.uint8))  # [H, W, C]
    if levels == 2:
        return Image.fromarray(values[0].astype(bool))
    return Image.fromarray(np.ascontiguousarray(values[0], dtype=np.uint8 if levels <= 256 else np.uint16))


def file_bits(images: Images, save: Save, progress: Progress | None = None) -> NDArray[np.float64]:
    """Bits of a file of each image, ``[N]``.

    Arguments:
        images: that the format holds.
        save: writes one.
        progress: told how many are written.
    """

    def length(values: NDArray[np.generic]) -> int:
        file = io.BytesIO()
        save(picture(values, images.levels), file)
        return file.tell()

    bits = np.zeros(len(images))
    with ThreadPoolExecutor() as pool:  # the encoders release Python's lock
        for i, found in enumerate(pool.map(length, _flat(images).reshape(-1, *images.shape))):
            bits[i] = 8.0 * found
            if progress is not None:
                progress(i + 1, len(bits))
    return bits


def mosaic(images: NDArray[np.generic]) -> NDArray[np.generic]:
    """Images side by side, row after row, in about a square: ``[N, C, H, W]`` -> ``[C, rows * H, columns * W]``.

    What is left over of the last row is zero.
    """
    n, channels, height, width = images.shape
    columns = min(n, max(1, round(math.sqrt(n * height / width))))
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, channels, height, width), images.dtype)
    tiles[:n] = images
    return (
        tiles.reshape(rows, columns, channels, height, width)
        .transpose(2, 0, 3, 1, 4)
        .reshape(channels, rows * height, columns * width)
    )


def _files(name: str, test: Images, options: str, save: Save, progress: Progress | None) -> Baseline:
    some = _some(test, _FILED_VALUES)
    flat = _flat(some)
    if len(flat) > 1 and flat.shape[1] * math.log2(test.levels) / 8 < _SMALL_BYTES:
        pixels = torch.from_numpy(mosaic(flat.reshape(-1, *test.shape)))
        whole = replace(
            some, pixels=pixels[None], groups=None, labels=None, classes=(), files=(), corners=None, checked=True
        )
        among = rule(len(test), len(flat)) or f"all {len(flat)} images"
        note = f"Pillow, {options}; one file for {among}, side by side, since each by itself would be mostly header"
        return Baseline(name, float(file_bits(whole, save, progress)[0]) / flat.size, None, note)
    bits = file_bits(some, save, progress)
    among = "" if len(bits) == len(test) else f"; {rule(len(test), len(bits))}"
    note = f"Pillow, {options}; one file for each image, headers included, which weigh heavily on small images{among}"
    return _baseline(name, bits / flat.shape[1], some, note)


def _baseline(name: str, bits: NDArray[np.float64], coded: Images, note: str) -> Baseline:
    groups = None if coded.groups is None else coded.groups.cpu().numpy()
    return Baseline(name, float(bits.mean()), standard_error(bits, groups), note)


def _unfit(test: Images) -> str:
    channels, height, width = test.shape
    plural = "channel" if channels == 1 else "channels"
    return f"the format does not hold {channels} {plural} of {test.levels} levels, {height} x {width} pixels"
