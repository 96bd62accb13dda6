"""Real images that come with scikit-learn, so that a first model needs no download.

References:
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998,
    https://archive.ics.uci.edu/dataset/80 (the digits; scikit-learn holds the 1,797 images of its test part)

    F. Pedregosa et al., "Scikit-learn: Machine Learning in Python", 2011, https://jmlr.org/papers/v12/pedregosa11a.html
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davi.data.arrays import to_images
from davi.data.images import Source
from davi.data.labels import labeled, numbers

PATCH = 32
TEST_LEFT = 480
"""First column of the test region of each photograph."""
STRIDE = 8
_DIGITS_TRAIN = 1400


def digits(labels: bool = False) -> Source:
    """Handwritten digits, ``[1, 8, 8]``, 17 levels: 1,400 for training, 397 for test, in file order.

    A value counts the inked pixels in a 4x4 block of a scan, which is why there are 17 of them.

    Arguments:
        labels: which digit each is, 0 to 9.
    """
    from sklearn.datasets import load_digits  # takes a second to import, and only these sets need it

    found = load_digits()
    pixels = found.images.astype(np.uint8)  # [1797, 8, 8]
    train = to_images(pixels[:_DIGITS_TRAIN], 17, "digits/train")
    test = to_images(pixels[_DIGITS_TRAIN:], 17, "digits/test")
    if labels:
        train = labeled(train, found.target[:_DIGITS_TRAIN], numbers(10), "digits")
        test = labeled(test, found.target[_DIGITS_TRAIN:], numbers(10), "digits")
    return Source(
        train=train,
        test=test,
        split="scikit-learn's 1797 digits in file order: the first 1400 for training, the last 397 for test",
        test_order="file order",
    )


def photos() -> Source:
    """Patches of scikit-learn's two color photographs (427 x 640), ``[3, 32, 32]``, 256 levels.

    Each photograph is cut into two regions at column 480, so that training and test share no pixel:

    - training, columns 0 to 479: patches at every 8th row and column, 50 x 57 in each photograph, 5,700 altogether.
      They overlap. They are ordered by column, so that the last of them, kept out for validation, lie together.
    - test, columns 480 to 639: 13 x 5 patches side by side in each photograph, 130 altogether; they do not overlap,
      and the last 11 rows, which fill no patch, are not used.

    The photographs are JPEG files; another JPEG library may decode some values differently by one.
    """
    from sklearn.datasets import load_sample_images  # takes a second to import, and only these sets need it

    pictures = np.stack(load_sample_images().images)  # [2, 427, 640, 3]
    _, height, width, _ = pictures.shape
    train = _corners(height, 0, TEST_LEFT, STRIDE)
    test = _corners(height, TEST_LEFT, width, PATCH)
    return Source(
        train=replace(to_images(_cut(pictures, train), 256, "photos/train"), groups=train[:, 0].clone()),
        test=replace(to_images(_cut(pictures, test), 256, "photos/test"), groups=test[:, 0].clone()),
        split=(
            f"{PATCH}x{PATCH} patches of scikit-learn's two photographs: columns 0 to {TEST_LEFT - 1} for training "
            f"(every {STRIDE}th row and column, overlapping), columns {TEST_LEFT} to {width - 1} for test (disjoint)"
        ),
        test_order="by column, then photograph, then row",
        corners=train,
    )


def share_pixels(some: Tensor, others: Tensor) -> Tensor:
    """Which patches share a pixel with any of the others.

    Arguments:
        some: ``[N, 3]``, (picture, top, left) of each patch.
        others: ``[M, 3]``, likewise.

    Returns:
        Truth values ``[N]``.
    """
    reach = (1, PATCH, PATCH)  # the same picture, and less than a patch apart in either direction
    overlap = torch.ones(len(some), len(others), dtype=torch.bool)  # [N, M]
    for axis, limit in enumerate(reach):
        overlap &= (some[:, None, axis] - others[None, :, axis]).abs() < limit
    return overlap.any(dim=1)


def _corners(height: int, first_column: int, end_column: int, stride: int) -> Tensor:
    """(picture, top, left) of the patches in a region, ordered by column, photograph, row; ``[N, 3]``."""
    left = torch.arange(first_column, end_column - PATCH + 1, stride)
    top = torch.arange(0, height - PATCH + 1, stride)
    return torch.cartesian_prod(left, torch.arange(2), top)[:, [1, 2, 0]]


def _cut(pictures: NDArray[np.uint8], corners: Tensor) -> NDArray[np.uint8]:
    """The patches at the corners, ``[N, 32, 32, 3]``."""
    windows = np.lib.stride_tricks.sliding_window_view(pictures, (PATCH, PATCH), axis=(1, 2))  # [2, 396, 609, 3, P, P]
    picture, top, left = corners.numpy().T
    patches: NDArray[np.uint8] = windows[picture, top, left].transpose(0, 2, 3, 1)
    return patches
