"""Decoded images on disk: decoded once, then read row by row from a memory map, never as a whole.

A folder of the cache holds one ``NAME.npy`` for each split, images ``[N, C, H, W]``, and ``index.json``: what they were
made from and what is known of them. It is made under another name and renamed when it is whole, so that what a killed
process leaves is never taken for a cache. One process makes it while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from davi.errors import UserError

INDEX = "index.json"
FORMAT = 3
"""Changes whenever a cache made by an older version must not be used any more.

2: values of some TIFF, BMP and indexed files. 3: the size of each file is written down.
"""


def location(given: str | None) -> Path:
    """Where decoded images are kept: as given, else ``DAVI_CACHE``, else ``~/.cache/davi``."""
    return Path(given or os.environ.get("DAVI_CACHE") or "~/.cache/davi").expanduser()


class Writer:
    """Appends images to a ``.npy`` file; how many there will be need not be known, and none is kept in memory.

    A context that closes the file, which is worth something only if :meth:`finish` was called before.

    Arguments:
        path: the file.
        shape: of one image.
        dtype: their type; the lowest byte comes first.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype.newbyteorder("<")
        self._hash = hashlib.sha256()
        self._file = path.open("wb")
        self.count = 0
        self._header()

    def _header(self) -> None:
        # NumPy leaves room in a header for a larger number of images: it can be written again in its place.
        shape = (self.count, *self._shape)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, images: NDArray[Any]) -> None:
        """Add images ``[n, ...]``."""
        data = np.ascontiguousarray(images, self._dtype).data
        self._hash.update(data)
        self._file.write(data)
        self.count += len(images)

    def finish(self) -> dict[str, Any]:
        """Complete the file and return its entry in ``index.json``. The hash is :func:`davi.data.protocol.digest`'s."""
        self._file.seek(0)
        self._header()
        self._file.flush()
        os.fsync(self._file.fileno())
        return {
            "file": self._path.name,
            "shape": [self.count, *self._shape],
            "dtype": self._dtype.str,
            "sha256": self._hash.hexdigest(),
        }


def fetch(
    root: Path, key: Mapping[str, Any], stamp: str, build: Callable[[Path], Mapping[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """A folder of the cache, made if it is not there, out of date or damaged.

    Arguments:
        root: of all caches.
        key: what the folder is for. A folder for the same key replaces the last one.
        stamp: changes with everything that the content depends on and that is not in ``key``.
        build: puts the arrays into an empty folder and returns the index, with ``arrays``: name -> what
            :meth:`Writer.finish` returned.

    Returns:
        The folder, and the content of its index.

    Raises:
        UserError: if the cache cannot be written, or from ``build``.
    """
    name = hashlib.sha256(json.dumps({**key, "format": FORMAT}, sort_keys=True).encode()).hexdigest()[:32]
    folder, fresh = root / name, root / f"{name}.new"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            index = _index(folder, stamp)
            if index is None:
                shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
                fresh.mkdir()
                try:
                    index = {**build(fresh), "key": dict(key), "stamp": stamp}
                    _write(fresh / INDEX, json.dumps(index))
                    shutil.rmtree(folder, ignore_errors=True)
                    fresh.rename(folder)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
            return folder, index
    except (OSError, NotImplementedError) as error:  # filelock's error where the file system knows no locks
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"data.cache: {root} cannot be used ({reason}), expected a folder with room for the decoded images"
        ) from None


def array(folder: Path, record: Mapping[str, Any], in_memory: bool) -> NDArray[Any]:
    """One array of the cache.

    Arguments:
        folder: of :func:`fetch`.
        record: one of the index's ``arrays``.
        in_memory: read it; else a memory map, of which only what is used is read. Writing to it changes no file.

    Raises:
        UserError: if the file is not as recorded.
        OSError: if there is no such file.
    """
    path = folder / record["file"]
    found: NDArray[Any] = np.load(path, mmap_mode=None if in_memory else "c", allow_pickle=False)
    size = path.stat().st_size - math.prod(found.shape) * found.itemsize
    if list(found.shape) != record["shape"] or found.dtype.str != record["dtype"] or not 0 < size < 2**12:
        raise UserError(f"{path}: not the array that was written, expected no other program to change the cache")
    return found


def _index(folder: Path, stamp: str) -> dict[str, Any] | None:
    """The index, if the folder is unchanged since it was made; the values themselves are not read again."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index["stamp"] != stamp:
            return None
        for record in index["arrays"].values():
            array(folder, record, in_memory=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    return index


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
