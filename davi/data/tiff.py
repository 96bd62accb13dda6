"""The layout of a TIFF file, and a copy that Pillow reads the same way whatever the layout.

TIFF has more layouts than any reader knows, and Pillow reads some of them wrongly without a word: turned ones, signed
values, bits in reverse order, a single channel that is called planar. So the tags are read here, strictly. Only layouts
that are known to be read right are let through, and ``tests/test_data_layouts.py`` compares them with another decoder.
All others are refused in one line.

References:
    Adobe Developers Association, "TIFF Revision 6.0", 1992, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from davi.data.picture import check_pixels, in_words
from davi.errors import UserError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What a TIFF file begins with: either byte order, offsets of 32 or of 64 bits."""

GRAY, RGB, PALETTE, YCBCR = (0, 1), 2, 3, 6
"""Values of the tag PhotometricInterpretation: of gray, 0 has white and 1 has black as its zero."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL = 256, 257, 258, 259, 262, 266
_DESCRIPTION, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES = 270, 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _COLORS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 284, 317, 320, 322, 323, 324, 325
_EXTRA, _FORMAT, _DEPTH = 338, 339, 32997

_DEFAULTS: dict[int, tuple[int, ...]] = dict.fromkeys(
    (_BITS, _COMPRESSION, _FILL, _ORIENTATION, _SAMPLES, _PLANAR, _PREDICTOR, _FORMAT, _DEPTH), (1,)
)
_DEFAULTS |= {_ROWS: (2**32 - 1,), _EXTRA: (), _DESCRIPTION: ()}
"""Tags that may be left out, and what that means."""

_REQUIRED = (_WIDTH, _HEIGHT, _PHOTOMETRIC)
_OPTIONAL = (_STRIPS, _STRIP_BYTES, _COLORS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES)
_NAMES = {_WIDTH: "ImageWidth", _HEIGHT: "ImageLength", _PHOTOMETRIC: "PhotometricInterpretation"}
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}
"""Numbers of the types of whole numbers and text, and Python's letter for them."""

_NONE, _FAX, _JPEG, _PREDICTED, _PACKBITS = 1, (2, 3, 4), 7, (5, 8, 32946, 34925, 50000), 32773
_COMPRESSIONS = (_NONE, *_FAX, _JPEG, *_PREDICTED, _PACKBITS)
"""None, CCITT, JPEG, PackBits; and LZW, Deflate (two numbers), LZMA and Zstandard, which go with a predictor."""

_DEPTHS = {0: (1, 2, 4, 8, 16), 1: (1, 2, 4, 8, 12, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), YCBCR: (8,)}
_OTHER_COLORS = {4: "a mask of transparency", 5: "CMYK", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab"}
_OTHER_COLORS |= {32803: "a color filter", 32844: "LogL", 32845: "LogLuv", 34892: "raw values of a camera"}
_MAX_TAGS, _MAX_VALUES, _MAX_TEXT = 4096, 2**22, 4096


@dataclass(frozen=True)
class Layout:
    """What the first directory of a file says, as far as it is needed once the layout has been checked.

    Arguments:
        photometric: :data:`GRAY`, :data:`RGB`, :data:`PALETTE` or :data:`YCBCR`.
        bits: of each sample.
        orientation: 1 to 8, as in EXIF.
        palette: ``[2^bits, 3]`` of 8 bits, or None.
        alpha: 0 without a transparency; 1 where colors are multiplied by it already, 2 where they are not.
        places: where in the file the values of each tag begin, and Python's letter for their type.
        order: ``<`` or ``>``.
    """

    photometric: int
    bits: int
    orientation: int
    palette: NDArray[np.uint8] | None
    alpha: int
    places: dict[int, tuple[int, str]]
    order: str

    @property
    def deep(self) -> bool:
        """Whether these are three channels of 16 bits."""
        return self.photometric == RGB and self.bits == 16


class _Directory:
    """The first directory of a file: tags that are whole numbers or text, and where their values are."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.length = file.seek(0, io.SEEK_END)
        self.order = "<" if self._bytes(0, 2) == b"II" else ">"
        big = self._bytes(2, 2) in (b"+\0", b"\0+")
        if big and (self.order == ">" or self._numbers(4, "HH") != (8, 0)):
            raise self.refused("offsets of 64 bits in big-endian order", "32 bits or little-endian order")
        start = self._numbers(8, "Q")[0] if big else self._numbers(4, "I")[0]
        counting, entry = ("Q", "HHQ") if big else ("H", "HHI")
        offset = entry[-1]
        before, room = struct.calcsize("<" + entry), struct.calcsize("<" + offset)
        count = self._numbers(start, counting)[0]
        if count > _MAX_TAGS:
            raise self.refused(f"{count} tags", f"at most {_MAX_TAGS}")
        wanted = {*_DEFAULTS, *_REQUIRED, *_OPTIONAL}
        self.values: dict[int, tuple[int, ...]] = {}
        self.places: dict[int, tuple[int, str]] = {}
        at = start + struct.calcsize("<" + counting)
        for place in range(at, at + count * (before + room), before + room):
            tag, kind, many = self._numbers(place, entry)
            if tag not in wanted:
                continue
            if kind not in _TYPES or tag in self.values:
                what = f"tag {tag} twice" if tag in self.values else f"tag {tag} of type {kind}"
                raise self.refused(what, "each tag once, as whole numbers")
            if tag == _DESCRIPTION:
                many = min(many, _MAX_TEXT)
            if many > _MAX_VALUES:
                raise self.refused(f"{many} values of tag {tag}", f"at most {_MAX_VALUES}")
            size = many * struct.calcsize("<" + _TYPES[kind])
            where = place + before if size <= room else self._numbers(place + before, offset)[0]
            self.values[tag] = self._numbers(where, f"{many}{_TYPES[kind]}")
            self.places[tag] = (where, _TYPES[kind])
        self.last = self._numbers(at + count * (before + room), offset) == (0,)

    def _bytes(self, start: int, count: int) -> bytes:
        if start + count > self.length:
            raise self.refused(f"{self.length} bytes", "a whole file: it was cut off")
        self.file.seek(start)
        return self.file.read(count)

    def _numbers(self, start: int, form: str) -> tuple[Any, ...]:
        return struct.unpack(self.order + form, self._bytes(start, struct.calcsize("<" + form)))

    def refused(self, got: str, expected: str, remedy: str = "convert it: magick IN OUT.png") -> UserError:
        """The error for the user."""
        return UserError(f"{self.name}: got a TIFF file with {got}, expected {expected} ({remedy})")

    def all(self, tag: int) -> tuple[int, ...]:
        """The values of a tag, or what it means that it is missing."""
        if tag in _REQUIRED and tag not in self.values:
            raise self.refused(f"no tag {tag} ({_NAMES[tag]})", "one")
        return self.values.get(tag, _DEFAULTS.get(tag, ()))

    def one(self, tag: int) -> int:
        """The only value of a tag."""
        values = self.all(tag)
        if len(values) != 1:
            raise self.refused(f"{len(values)} values of tag {tag}", "one")
        return values[0]


def read(file: BinaryIO, name: str, max_pixels: int, transparent: bool = False) -> Layout:
    """Read and check the first directory of a file that begins with :data:`MAGIC`.

    Arguments:
        file: the file.
        name: what it is called in messages.
        max_pixels: that the image may have.
        transparent: take a transparency of 8 bits; else it is refused.

    Raises:
        UserError: one line, if the file is damaged or not of a layout that is read.
    """
    tags = _Directory(file, name)
    check_pixels(tags.one(_HEIGHT), tags.one(_WIDTH), max_pixels, name)
    alpha = _alpha(tags, transparent)
    _check_samples(tags, alpha)
    _check_coding(tags)
    _check_parts(tags)
    _check_stack(tags)
    photometric, orientation = tags.one(_PHOTOMETRIC), tags.one(_ORIENTATION)
    palette = _palette(tags) if photometric == PALETTE else None
    bits = tags.all(_BITS)[0]
    return Layout(
        photometric, bits, orientation if 1 <= orientation <= 8 else 1, palette, alpha, tags.places, tags.order
    )


def copy(file: BinaryIO, layout: Layout) -> io.BytesIO:
    """The file in memory, with its tags set to what Pillow reads without turning or inverting anything."""
    file.seek(0)
    content = io.BytesIO(file.read())
    plain = {_ORIENTATION: 1}
    if layout.photometric in GRAY:
        plain[_PHOTOMETRIC] = 1
    if layout.photometric in (*GRAY, PALETTE):
        plain[_PLANAR] = 1  # of one sample a pixel both are the same, but Pillow then takes gray for something else
    if layout.alpha:
        plain[_EXTRA] = 2  # or else Pillow divides the colors by it
    for tag, value in plain.items():
        if tag in layout.places:
            where, letter = layout.places[tag]
            content.seek(where)
            content.write(struct.pack(layout.order + letter, value))
    content.seek(0)
    return content


def turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """``[H, W, ...]`` as it is to be seen. The tag says at which sides row 0 and column 0 of the file are."""
    if orientation > 4:
        values = values.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return values[::rows, ::columns]


def _alpha(tags: _Directory, wanted: bool) -> int:
    """The kind of transparency that is taken (:class:`Layout`)."""
    extra, photometric = tags.all(_EXTRA), tags.one(_PHOTOMETRIC)
    if not set(extra) & {1, 2}:
        return 0
    plain = photometric in (1, RGB) and set(tags.all(_BITS)) == {8} and len(extra) == 1
    plain &= tags.one(_PLANAR) == 1 and tags.one(_COMPRESSION) != _JPEG
    flatten = "flatten it: magick IN -background white -flatten OUT.png"
    if not plain:
        raise tags.refused("a transparency in an unusual layout" if wanted else "a transparency", "none", flatten)
    if not wanted:
        raise tags.refused("a transparency", "none", f"{flatten}, or give --data.background white")
    return extra[0]


def _check_samples(tags: _Directory, alpha: int) -> None:
    """Refuse samples that are not the unsigned integers of one gray or three colors, and perhaps a transparency."""
    depths, formats, extra = tags.all(_BITS), set(tags.all(_FORMAT)), tags.all(_EXTRA)
    photometric, samples = tags.one(_PHOTOMETRIC), tags.one(_SAMPLES)
    bits = f"{depths[0]} bits" if len(set(depths)) == 1 else f"{', '.join(map(str, depths[:8]))} bits"
    if formats & {3, 6}:
        remedy = "convert it: magick IN -depth 16 OUT.png"
        raise tags.refused(f"floating-point values of {bits}", "8 or 16 bits", remedy)
    if formats != {1}:
        remedy = "if the values fit, store them as uint16, for example in a .npy array"
        raise tags.refused(f"signed or unknown integers of {bits}", "unsigned integers", remedy)
    if photometric not in _DEPTHS:
        found = _OTHER_COLORS.get(photometric, f"colors of kind {photometric}")
        raise tags.refused(found, "gray or RGB", "convert it: magick IN -colorspace sRGB OUT.png")
    colors = 3 if photometric in (RGB, YCBCR) else 1
    if samples != colors + bool(alpha) or (extra and not alpha):
        remedy = "a .npy array [N, H, W, C] may have any number of them"
        raise tags.refused(f"{samples} channels, {samples - colors} beyond its colors", f"{colors}", remedy)
    if len(set(depths)) != 1 or len(depths) not in (1, samples) or depths[0] not in _DEPTHS[photometric]:
        expected = ", ".join(map(str, _DEPTHS[photometric]))
        remedy = "convert it: magick IN -depth 16 OUT.png; or store the values as uint16, for example in a .npy array"
        raise tags.refused(f"{bits} a channel", f"one of {expected} in this kind of image", remedy)


def _check_coding(tags: _Directory) -> None:
    """Refuse ways to store these samples that are not known to be read right."""
    photometric, bits, samples = tags.one(_PHOTOMETRIC), tags.all(_BITS)[0], tags.one(_SAMPLES)
    compression, predictor, fill, planar = (tags.one(tag) for tag in (_COMPRESSION, _PREDICTOR, _FILL, _PLANAR))
    known = compression in _COMPRESSIONS
    known &= compression not in _FAX or bits == 1
    known &= compression != _JPEG or (bits == 8 and photometric != PALETTE)
    if not known or (photometric == YCBCR and compression != _JPEG):
        colors = ", colors as YCbCr" if photometric == YCBCR else ""
        raise tags.refused(
            f"compression {compression} of {bits} bits{colors}",
            "none, LZW, Deflate, PackBits, LZMA or Zstandard; JPEG of 8 bits; CCITT of 1 bit",
        )
    if predictor != 1 and not (predictor == 2 and compression in _PREDICTED and bits in (8, 16)):
        raise tags.refused(f"predictor {predictor} with compression {compression} of {bits} bits", "none")
    if fill != 1 and not (fill == 2 and photometric in GRAY and bits == 1):
        raise tags.refused(f"the bits of a byte in order {fill}", "1, the highest first")
    if planar != 1 and not (planar == 2 and (samples == 1 or (bits == 8 and photometric == RGB))):
        raise tags.refused(f"channels in an unusual layout (planar {planar}, {bits} bits)", "them side by side")
    if bits == 12 and tags.order == ">":
        raise tags.refused("12 bits in big-endian order", "8 or 16 bits", "convert it: magick IN -depth 16 OUT.png")


def _check_parts(tags: _Directory) -> None:
    """Refuse strips or tiles of another number or size than the image needs, and those that are not in the file."""
    height, width, bits = tags.one(_HEIGHT), tags.one(_WIDTH), tags.all(_BITS)[0]
    planar = tags.one(_PLANAR) == 2
    tiled = _TILES in tags.values
    if tiled == (_STRIPS in tags.values):
        raise tags.refused("both strips and tiles" if tiled else "neither strips nor tiles", "either of them")
    if tiled:
        rows, columns = tags.one(_TILE_HEIGHT), tags.one(_TILE_WIDTH)
        if rows < 1 or columns < 1 or rows % 16 or columns % 16:
            raise tags.refused(f"tiles {in_words(rows, columns)}", "multiples of 16")
    else:
        rows, columns = min(tags.one(_ROWS), height), width
        if rows < 1:
            raise tags.refused("strips of 0 rows", "at least one")
    down, across = -(-height // rows), -(-width // columns)
    number = down * across * (tags.one(_SAMPLES) if planar else 1)
    starts, counts = (tags.all(tag) for tag in ((_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)))
    if len(starts) != number or len(counts) != number:
        raise tags.refused(f"{len(starts)} strips or tiles and {len(counts)} sizes of them", f"{number} of each")
    line = -(-columns * bits * (1 if planar else tags.one(_SAMPLES)) // 8)
    for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
        last = i % down == down - 1 and not tiled
        needed = line * (height - (down - 1) * rows if last else rows) if tags.one(_COMPRESSION) == _NONE else 1
        if count < needed or start + count > tags.length:
            raise tags.refused(f"part {i + 1} of {number} not whole", "a whole file: it was cut off or is damaged")


def _check_stack(tags: _Directory) -> None:
    """Refuse several images behind a single directory: volumes, and the stacks of ImageJ above 4 GB."""
    found = re.match(rb"ImageJ=.*?\nimages=(\d+)", bytes(tags.all(_DESCRIPTION)), re.DOTALL)
    frames = max(int(found[1]) if found and tags.last else 1, tags.one(_DEPTH))
    if frames > 1:
        raise tags.refused(f"{frames} frames", "one", "take them apart: magick IN OUT-%d.png")


def _palette(tags: _Directory) -> NDArray[np.uint8]:
    """The colors ``[2^bits, 3]``; the file stores them with 16 bits, of which 8 in one of two usual ways are taken."""
    colors, number = np.asarray(tags.all(_COLORS)), 2 ** tags.all(_BITS)[0]
    if colors.shape != (3 * number,):
        raise tags.refused(f"a palette of {len(colors)} numbers", f"{3 * number}")
    if (colors % 256).any() and (colors % 257).any():
        remedy = "convert it: magick IN -type TrueColor OUT.png"
        raise tags.refused("a palette of more than 8 bits a channel", "colors times 256 or 257", remedy)
    return (colors >> 8).astype(np.uint8).reshape(3, number).T
