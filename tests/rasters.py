"""Small PNG and BMP files of every depth, written by the words of their specifications.

References:
    W3C, "Portable Network Graphics (PNG) Specification", third edition, 2025, https://www.w3.org/TR/png-3/

    Microsoft, "Bitmap Storage", https://learn.microsoft.com/en-us/windows/win32/gdi/bitmap-storage
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""First row and step, first column and step of the passes of an interlaced PNG."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bits_of(values: Array, bits: int) -> Array:
    """The lines ``[h, bytes]`` of samples ``[h, n]`` side by side, the highest bit and byte first."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((values[..., None] >> shifts & 1).astype(np.uint8).reshape(len(values), -1), axis=1)


def png(values: Array, bits: int, color: int, interlaced: bool = False, before: bytes = b"") -> bytes:
    """A PNG file.

    Arguments:
        values: samples as stored, ``[H, W, S]``.
        bits: of a sample.
        color: 0 gray, 2 color, 3 indexed, 4 and 6 gray and color with opacity.
        interlaced: stored in seven passes.
        before: chunks before the pixels.
    """
    height, width = values.shape[:2]
    passes = ADAM7 if interlaced else ((0, 1, 0, 1),)
    data = b""
    for top, down, left, right in passes:
        part = values[top::down, left::right]
        if part.size:
            lines = bits_of(part.reshape(len(part), -1), bits)
            data += b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">2I5B", width, height, bits, color, 0, 0, interlaced)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    )


def bmp(
    values: Array,
    bits: int,
    *,
    header: int = 40,
    top_down: bool = False,
    palette: Array | None = None,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    data: bytes | None = None,
) -> bytes:
    """A BMP file.

    Arguments:
        values: indices ``[H, W]``, or samples ``[H, W, S]`` in the order of the file.
        bits: of a pixel.
        header: its size, which tells its version.
        top_down: whether the first line is the upper one.
        palette: ``[N, 3]``, red first.
        compression: as in the header; the pixels are packed so only if ``data`` is.
        masks: of red, green, blue and perhaps opacity.
        data: instead of the pixels.
    """
    height, width = values.shape[:2]
    lines = bits_of(values.reshape(height, -1), bits if values.ndim == 2 else 8)
    lines = np.pad(lines, ((0, 0), (0, -lines.shape[1] % 4)))
    if data is None:
        data = (lines if top_down else lines[::-1]).tobytes()
    colors = b""
    if palette is not None:
        rest = [] if header == 12 else [np.zeros((len(palette), 1))]
        colors = np.concatenate([palette[:, ::-1], *rest], axis=1).astype(np.uint8).tobytes()
    used = 0 if palette is None or len(palette) == 2**bits else len(palette)
    packed_masks = struct.pack(f"<{len(masks)}I", *masks)
    if header == 12:
        words = struct.pack("<I4H", header, width, height, 1, bits)
    else:
        rows = -height if top_down else height
        words = struct.pack("<IiiHHIIiiII", header, width, rows, 1, bits, compression, len(data), 0, 0, used, 0)
        words = (words + packed_masks).ljust(header, b"\0")  # of 40 bytes, the masks come after them
    start = 14 + len(words) + len(colors)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + words + colors + data
