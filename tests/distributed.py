"""Files as MNIST, OMNIGLOT and CIFAR are distributed, written by hand from their descriptions."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from davi.data import DataConfig
from davi.data.formats import is_distribution
from davi.data.images import Source
from davi.data.sources import source_of
from davi.errors import UserError

Array = np.ndarray


def random(shape: tuple[int, ...], high: int = 256, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def idx(images: Array, magic: int = 0x803) -> bytes:
    """An IDX file: its magic number and sizes, big-endian, then the values row by row."""
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


def idx_labels(labels: Array, magic: int = 0x801) -> bytes:
    """An IDX file of labels: its magic number and their number, big-endian, then one byte for each."""
    return struct.pack(">2I", magic, len(labels)) + labels.astype(np.uint8).tobytes()


def amat(images: Array) -> bytes:
    """A row of text for each image."""
    return "".join(" ".join(map(str, image.ravel())) + "\n" for image in images).encode()


def cifar(images: Array, classes: tuple[int, ...] = (10,)) -> bytes:
    """Records of labels and the three planes; images [N, 32, 32, 3]."""
    labels = np.stack([np.arange(len(images)) % count for count in classes], axis=1).astype(np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels, planes], axis=1).tobytes()


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_chardata(path: Path, train: Array, test: Array, compress: bool = True) -> None:
    """Images [N, 28, 28] of values from 0 to 1, each a column whose first 28 values are the image's first column."""
    columns = [images.transpose(2, 1, 0).reshape(784, -1) for images in (train, test)]
    content = {"data": columns[0], "testdata": columns[1], "target": np.eye(3)}
    scipy.io.savemat(path, content, do_compression=compress)


def split(path: Path, test: Path | None = None, levels: int | None = None) -> Source:
    """A set in one of these forms, as it is split."""
    return source_of(DataConfig(set=str(path), test=None if test is None else str(test), levels=levels))


def refused(path: Path, match: str, test: Path | None = None, levels: int | None = None) -> None:
    """The file or folder is recognized, and refused in one line that contains its path and the words."""
    assert is_distribution(path)
    with pytest.raises(UserError, match=match) as caught:
        split(path, test, levels)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
