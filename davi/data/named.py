"""The standard sets of the field, from a local directory; nothing is ever downloaded.

The directory holds one folder for each set:

===================== =============================================== =====================================
set                   files                                           content
===================== =============================================== =====================================
``mnist``             ``train.npz``, ``test.npz``                     ``images`` [N, 28, 28] uint8, ``labels`` [N]
``fashion_mnist``     ``train.npz``, ``test.npz``                     ``images`` [N, 28, 28] uint8, ``labels`` [N]
``omniglot28``        ``background.npz``, ``evaluation.npz``          ``images`` [N, 28, 28] uint8, ``labels`` [N]
``cifar10``           ``train-0.webp`` to ``train-4.webp``,           10,000 images each: 100 x 100 tiles of 32 x 32
                      ``test.webp``                                   RGB, lossless, row after row
                      ``labels.npz``                                  ``train`` [50000], ``test`` [10000]
===================== =============================================== =====================================

In the place of these, the folders of ``mnist``, ``fashion_mnist`` and ``cifar10`` may hold the files as they are
distributed (:mod:`davi.data.formats`); the images are the same. ``chardata.mat`` is not ``omniglot28`` but another
scaling and split, so it is given by its path. ``binarized_mnist`` comes with DAVI (:mod:`davi.data.shipped`).

References:
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998, http://yann.lecun.com/exdb/mnist/

    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017, https://arxiv.org/abs/1708.07747

    B. Lake, R. Salakhutdinov, J. Tenenbaum, "Human-level concept learning through probabilistic program induction",
    2015, https://doi.org/10.1126/science.aab3050 (OMNIGLOT)

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 (CIFAR-10),
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from davi.data.arrays import OneLine, read_array, read_beside, read_labels, to_images
from davi.data.formats import is_distribution, read_distribution
from davi.data.images import Images, Source
from davi.data.labels import CIFAR10, FASHION, called, labeled, numbers, unlabeled
from davi.data.splitting import counted
from davi.errors import UserError
from davi.sets import FILES, folder_of

_TILES = 100  # tiles along each side of a CIFAR-10 mosaic
_SIDE = 32


@dataclass(frozen=True)
class _Gray:
    """Files of a gray 28x28 set, and how many images the whole set has."""

    train: str
    test: str
    train_count: int
    test_count: int
    note: str = ""
    classes: tuple[str, ...] = numbers(10)
    first: int = 0
    """The label of the first class."""


_GRAY = {
    "mnist": _Gray("train.npz", "test.npz", 60000, 10000),
    "fashion_mnist": _Gray("train.npz", "test.npz", 60000, 10000, classes=FASHION),
    "omniglot28": _Gray(
        "background.npz",
        "evaluation.npz",
        19280,
        13180,
        note="; test alphabets are unseen in training; not the scaling nor the split of the published numbers",
        classes=tuple(f"{character:04}" for character in range(1, 1624)),
        first=1,
    ),
}


@dataclass(frozen=True)
class _Original:
    """What a set is, whose files are taken as they are distributed."""

    shape: tuple[int, int, int]
    levels: int
    train_count: int
    test_count: int
    classes: tuple[str, ...] = ()


_ORIGINALS = {
    "mnist": _Original((1, 28, 28), 256, 60000, 10000, numbers(10)),
    "fashion_mnist": _Original((1, 28, 28), 256, 60000, 10000, FASHION),
    "cifar10": _Original((3, 32, 32), 256, 50000, 10000, CIFAR10),
}
NAMES = tuple(FILES)
"""Sets that are read from a directory."""


def named(name: str, root: str | None, labels: bool = False) -> Source:
    """Read a named set.

    Arguments:
        name: one of :data:`NAMES`.
        root: the directory with the folders of the sets; None takes it from the environment variable ``DAVI_DATA``.
        labels: read the labels as well, where the set has them.

    Raises:
        UserError: if the directory or a file of the set is missing or damaged.
    """
    with OneLine(Path(root or os.environ.get("DAVI_DATA", "")) / name, "a folder with the files of the set"):
        folder = folder_of(name, root)
        ours = any(folder.glob("*.npz")) or any(folder.glob("*.webp"))
        if name in _ORIGINALS and not ours and is_distribution(folder):
            return _originals(folder, name, labels)
    if name == "cifar10":
        return _cifar10(folder, labels)
    return _gray(folder, name, _GRAY[name], labels)


def _originals(folder: Path, name: str, labels: bool) -> Source:
    """A set from the files in which it is distributed."""
    source, want = read_distribution(folder, None, labels), _ORIGINALS[name]
    assert isinstance(source, Source)  # of a folder
    if (source.train.shape, source.train.levels) != (want.shape, want.levels):
        got = f"[C, H, W] = {list(source.train.shape)} with {source.train.levels} levels"
        raise UserError(f"{folder}: got images {got}, expected {list(want.shape)} with {want.levels} levels for {name}")
    train, test = counted(source.train, want.train_count), counted(source.test, want.test_count)
    words = f"the set's own, from its original files: {train} for training, {test} for test"
    train_images, test_images = (called(part, want.classes, str(folder)) for part in (source.train, source.test))
    return replace(source, train=train_images, test=test_images, split=words)


def _found(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"data.root: looked for {path}, found no such file (give --data.root DIR or set DAVI_DATA)")
    return path


def _read(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The uint8 array of a named set's file; another type or image size is refused."""
    array = read_array(_found(path), key)
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        want = ", ".join(["N", *map(str, shape)])
        raise UserError(f"{path}: got {array.dtype.name} {array.shape}, expected uint8 [{want}]")
    return array


def _gray(folder: Path, name: str, files: _Gray, labels: bool) -> Source:
    train, test = (
        _gray_part(folder / file, f"{name}/{part}", files, labels)
        for part, file in (("train", files.train), ("test", files.test))
    )
    return Source(
        train=train,
        test=test,
        split=(
            f"the set's own: {files.train} ({counted(train, files.train_count)}) for training, "
            f"{files.test} ({counted(test, files.test_count)}) for test{files.note}"
        ),
        test_order="file order",
    )


def _gray_part(path: Path, name: str, files: _Gray, labels: bool) -> Images:
    images = to_images(_read(path, "images", (28, 28)), 256, name)
    if not labels:
        return images
    return labeled(images, read_labels(path), files.classes, str(path), files.first)


def _cifar10(folder: Path, labels: bool) -> Source:
    given = [i for i in range(5) if (folder / f"train-{i}.webp").is_file()]
    shards = [folder / f"train-{i}.webp" for i in given]
    if not shards:
        _found(folder / "train-0.webp")
    train = to_images(np.concatenate([_mosaic(path) for path in shards]), 256, "cifar10/train")
    test = to_images(_mosaic(_found(folder / "test.webp")), 256, "cifar10/test")
    if labels:
        path, per_shard = _found(folder / "labels.npz"), _TILES**2
        known = _cifar10_labels(path, "train")
        parts = [known[i * per_shard : (i + 1) * per_shard] for i in given]
        train = labeled(train, np.concatenate(parts), CIFAR10, str(path))
        test = labeled(test, _cifar10_labels(path, "test"), CIFAR10, str(path))
    stems = ", ".join(path.stem for path in shards)
    return Source(
        train=train,
        test=test,
        split=f"the set's own: {stems} ({counted(train, 50000)}) for training, test ({counted(test, 10000)}) for test",
        test_order="file order",
    )


def _cifar10_labels(path: Path, part: str) -> NDArray[Any]:
    """The labels of one split, in the order of its mosaics."""
    found = read_beside(path, (part,))
    if found is None:
        raise unlabeled(f"{path} has no array {part!r}")
    return found


def _mosaic(path: Path) -> NDArray[np.uint8]:
    """The 10,000 images of one mosaic, ``[10000, 32, 32, 3]``."""
    if not features.check("webp"):
        raise UserError(f"{path}: this Pillow was built without WebP, expected one that reads it")
    side = _TILES * _SIDE
    with OneLine(path, f"a lossless WebP mosaic of {side}x{side} pixels"), Image.open(path, formats=["WEBP"]) as image:
        if image.size != (side, side) or image.mode != "RGB":  # known before anything is decoded
            raise UserError(f"{path}: got {image.mode} {image.size}, expected RGB ({side}, {side})")
        pixels = np.asarray(image)  # [3200, 3200, 3]
    tiles = pixels.reshape(_TILES, _SIDE, _TILES, _SIDE, 3).swapaxes(1, 2)  # [100, 100, 32, 32, 3]
    return tiles.reshape(-1, _SIDE, _SIDE, 3)
