"""Malformed, foreign and hostile files, written from their formats' descriptions for :mod:`test_malformed`.

A function makes its thing at a path it is given. ``mark`` beside that path is a file that hostile content would create.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Make = Callable[[Path], None]
MARK = "mark"
GRAY = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)


def put(content: bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


class Payload:
    """An object whose unpickling creates the mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent / MARK)))


def pickled_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Payload(path.parent / MARK)], dtype=object), allow_pickle=True)


def pickled_npz(path: Path) -> None:
    np.savez(path, images=np.array([Payload(path.parent / MARK)], dtype=object))


def npy(header: str, data: bytes = bytes(100)) -> Make:
    text = header.encode() + b"\n"
    return put(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)


def npy_of(descr: str, shape: str) -> Make:
    return npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}")


def npz(members: dict[str, bytes]) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return make


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_bomb(path: Path) -> None:
    """A member whose header promises what its 100 kB of packed zeros bear out by its number, not by its content."""
    header = npy_bytes(np.zeros((1, 2), np.uint8)).replace(b"(1, 2), }" + b" " * 14, b"(99999, 28, 28), }     ", 1)
    npz({"images.npy": header + bytes(10**8)})(path)


def links(path: Path) -> None:
    """A ``.tar.gz`` whose members are links out of it."""
    with tarfile.open(path, "w:gz") as archive:
        for name in ("data_batch_1.bin", "test_batch.bin"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)


def cut(make: Make, keep: float = 0.5) -> Make:
    """What another function makes, without its end."""

    def make_cut(path: Path) -> None:
        make(path)
        os.truncate(path, int(keep * path.stat().st_size))

    return make_cut


def flipped(make: Make, where: float = 0.5) -> Make:
    """What another function makes, with one byte changed."""

    def make_flipped(path: Path) -> None:
        make(path)
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 0xFF
        path.write_bytes(content)

    return make_flipped


# Images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 8, height: int = 8, data: bytes = bytes(72), before: bytes = b"", depth: int = 8) -> bytes:
    """A gray PNG, whatever its parts say."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def image(kind: str, mode: str = "L", size: tuple[int, int] = (8, 8), **options: Any) -> Make:
    """Random pixels as Pillow stores them."""

    def make(path: Path) -> None:
        channels = len(Image.new(mode, (1, 1)).getbands())
        values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
        Image.fromarray(values[:, :, 0] if channels == 1 else values).convert(mode).save(path, kind, **options)

    return make


def frames(kind: str) -> Make:
    def make(path: Path) -> None:
        first, second = (Image.fromarray(values) for values in GRAY[:2])
        first.save(path, kind, save_all=True, append_images=[second])

    return make


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    """A little-endian TIFF with one directory of (tag, type, count, value)."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + struct.pack("<I", following) + bytes(200)


def tiff_entries(width: int, height: int) -> list[tuple[int, int, int, int]]:
    sizes = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    return [*sizes, (273, 4, 1, 122), (278, 4, 1, height), (279, 4, 1, 64)]


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 118, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(64)


def good_images(folder: Path) -> None:
    folder.mkdir()
    for i, values in enumerate(GRAY):
        Image.fromarray(values).save(folder / f"good-{i:02}.png")


def beside_good(name: str, make: Make) -> Make:
    """A folder of twelve good gray images and one thing more."""

    def make_folder(path: Path) -> None:
        good_images(path)
        (path / name).parent.mkdir(exist_ok=True)
        make(path / name)

    return make_folder


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(target: str) -> Make:
    def make(path: Path) -> None:
        path.symlink_to(target)

    return make


def folder(path: Path) -> None:
    path.mkdir()


def many(name: str, make: Make) -> Make:
    """A folder with one thing only, which is not an image."""

    def make_folder(path: Path) -> None:
        path.mkdir()
        make(path / name)

    return make_folder


# Distributions


def idx(count: int, height: int, width: int, data: bytes, magic: int = 0x803) -> bytes:
    return struct.pack(">4I", magic, count, height, width) + data


def amat(change: Callable[[list[str]], None]) -> Make:
    """Three rows of zeros and ones, with a change."""
    values = [str(i % 2) for i in range(784)]

    def make(path: Path) -> None:
        rows = [list(values) for _ in range(3)]
        change(rows[1])
        path.write_text("\n".join(" ".join(row) for row in rows) + "\n", encoding="ascii")

    return make


def mat(**variables: Any) -> Make:
    def make(path: Path) -> None:
        import scipy.io

        scipy.io.savemat(path, variables)

    return make


def archive(size: int, content: bytes) -> bytes:
    """A ``.tar.gz`` whose member says that it has this size."""
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = size
    return gzip.compress(info.tobuf() + content)


# Recipes


BILLION_LAUGHS = (
    "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    + "model: *a9\n"
)


def text(content: str) -> Make:
    return put(content.encode())
