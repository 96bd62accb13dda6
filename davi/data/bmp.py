"""BMP files as integers: 1, 4 or 8 bits of a palette, 24 or 32 of colors, uncompressed, from the bottom or the top.

Read here by the words of the format: Pillow takes some palettes for gray of another depth and drops a fourth channel.

References:
    Microsoft, "Bitmap Storage", https://learn.microsoft.com/en-us/windows/win32/gdi/bitmap-storage
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from davi.data.picture import Picture, check_pixels, indexed, put_on
from davi.errors import UserError

MAGIC = b"BM"

_OLD = 12
_HEADERS = (40, 52, 56, 64, 108, 124)
_BYTE = {0xFF: 0, 0xFF00: 1, 0xFF0000: 2, 0xFF000000: 3}
"""Which byte of a pixel a mask takes, the lowest first."""

_PLAIN, _MASKS = 0, (3, 6)
_COMPRESSIONS = {1: "run lengths", 2: "run lengths", 4: "JPEG", 5: "PNG"}


def decode(file: BinaryIO, name: str, max_pixels: int, shade: int | None = None) -> Picture:
    """Decode a file that begins with :data:`MAGIC`.

    Arguments:
        file: the file.
        name: what it is called in messages.
        max_pixels: that the image may have.
        shade: value of the background on which a transparent image is put; None: it is refused.

    Raises:
        UserError: one line, if it is damaged, too large, or of a kind that is refused.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(14 + 124 + 4)
    start, size = struct.unpack_from("<I", head, 10)[0], struct.unpack_from("<I", head, 14)[0]
    if size == _OLD:
        width, height, planes, bits = struct.unpack_from("<4H", head, 18)
        compression = used = 0
    elif size in _HEADERS:
        width, height, planes, bits, compression, _, _, _, used = struct.unpack_from("<iiHHIIiiI", head, 18)
    else:
        raise _refused(name, f"a header of {size} bytes", f"{_OLD} or {', '.join(map(str, _HEADERS))}")
    check_pixels(abs(height), width, max_pixels, name)
    masked = compression in _MASKS and bits == 32 and size != 64
    if planes != 1 or bits not in (1, 4, 8, 24, 32) or not (masked or compression == _PLAIN):
        how = f", compressed as {_COMPRESSIONS.get(compression, compression)}" if compression not in (0, 3, 6) else ""
        raise _refused(name, f"{bits} bits a pixel{how}", "1, 4, 8, 24 or 32 and no compression")
    line = (width * bits + 31) // 32 * 4
    if start < 14 + size or start + line * abs(height) > length:
        raise UserError(f"{name}: got {length} bytes, expected {start + line * abs(height)}: the file was cut off")
    file.seek(start)
    lines = np.frombuffer(file.read(line * abs(height)), np.uint8).reshape(abs(height), line)
    if height > 0:
        lines = lines[::-1]  # the last line comes first
    if bits > 8:
        masks = struct.unpack_from("<3I", head, 54) if masked else (0xFF0000, 0xFF00, 0xFF)
        opacity = 0
        if masked and (size >= 56 or compression == 6):
            (opacity,) = struct.unpack_from("<I", head, 66)
        colors, alpha = _colors(lines, width, bits, masks, opacity, name)
        if alpha is None:
            return Picture(colors, 256)
        if shade is None:
            raise _transparent(name)
        return Picture(put_on(colors, alpha, shade), 256)
    entry = 3 if size == _OLD else 4
    file.seek(14 + size)
    table = file.read(min(min(used or 2**bits, 2**bits) * entry, start - 14 - size))
    palette = np.frombuffer(table[: len(table) // entry * entry], np.uint8).reshape(-1, entry)[:, 2::-1]
    return indexed(_indices(lines, bits)[:, :width], palette, bits, name)


def _indices(lines: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """One byte for each index, the first from the highest bits."""
    if bits == 8:
        return lines
    if bits == 1:
        return np.unpackbits(lines, axis=1)
    return np.stack((lines >> 4, lines & 15), axis=2).reshape(len(lines), -1)


def _colors(
    lines: NDArray[np.uint8], width: int, bits: int, masks: tuple[int, ...], opacity: int, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Red, green and blue, ``[H, W, 3]``, and the opacity, ``[H, W, 1]``, where the file says or shows that it has one:
    a fourth byte without a mask is one unless it is 0 everywhere, or 255."""
    pixels = lines[:, : width * bits // 8].reshape(len(lines), width, bits // 8)
    if len(set(masks)) != 3 or any(mask not in _BYTE for mask in masks):
        raise _refused(name, f"the masks {', '.join(map(hex, masks))}", "a byte for each color")
    order = [_BYTE[mask] for mask in masks]
    if bits != 32:
        return pixels[:, :, order], None
    (rest,) = {0, 1, 2, 3} - set(order)
    if opacity and _BYTE.get(opacity) != rest:
        raise _refused(name, f"the mask {opacity:#x} of the opacity", "the byte that is no color's")
    fourth = pixels[:, :, rest : rest + 1]
    transparent = bool(opacity) or (fourth.any() and (fourth != 255).any())
    return pixels[:, :, order], fourth if transparent else None


def _refused(name: str, got: str, expected: str) -> UserError:
    return UserError(f"{name}: got a BMP file with {got}, expected {expected} (convert it: magick IN OUT.png)")


def _transparent(name: str) -> UserError:
    remedy = "flatten it: magick IN -background white -flatten OUT.png, or give --data.background white"
    return UserError(f"{name}: got a transparency (a fourth channel), expected none ({remedy})")
