"""TIFF files in every layout, against an independent decoder (tifffile): its values, or a refusal of one line."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from layouts import (
    CODECS,
    DEPTHS,
    FAX,
    HEIGHT,
    READ,
    TIFF,
    WIDTH,
    WRITABLE,
    Row,
    Rules,
    Tags,
    colors,
    covering,
    keeps,
    packed_by_pillow,
    stored,
    tiff,
)
from numpy.typing import NDArray

from davi.data.decoding import decode, strict
from davi.data.picture import Picture
from davi.errors import UserError

Array = NDArray[Any]

PLAIN: Row = {name: values[0] for name, values in TIFF.items()} | {"kind": "u8", "photometric": 1}
MOST = 400
"""Files altogether."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """tifffile writes what it finds odd to the log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def decoded(content: bytes) -> Picture:
    with strict():
        return decode(io.BytesIO(content), "file.tif")


def outcome(content: bytes) -> Picture | str:
    """What DAVI makes of a file: values, or one line that names it."""
    try:
        return decoded(content)
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        assert line.startswith("file.tif: ")
        return line


def independent(content: bytes) -> Array:
    """What tifffile makes of it, ``[H, W, S]``, as stored: neither turned nor inverted nor colored."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        values = page.asarray()
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        values = np.moveaxis(values, 0, -1)
    return values.reshape(page.imagelength, page.imagewidth, -1)


def seen(values: Array, orientation: int) -> Array:
    """Turned as the tag says, in the words of the specification: which sides row 0 and column 0 are."""
    return {
        1: values,  # top, left
        2: values[:, ::-1],  # top, right
        3: values[::-1, ::-1],  # bottom, right
        4: values[::-1],  # bottom, left
        5: values.swapaxes(0, 1),  # left, top
        6: np.rot90(values, -1),  # right, top
        7: np.rot90(values, 2).swapaxes(0, 1),  # right, bottom
        8: np.rot90(values),  # left, bottom
    }[orientation]


def meant(row: Row, values: Array) -> tuple[Array, int]:
    """Values and levels that stored values stand for, by the rules of :mod:`davi.data.decoding`."""
    bits, photometric = DEPTHS[row["kind"]], row["photometric"]
    values = seen(values.astype(int), row["orientation"])
    if photometric == 3:
        return colors(row).astype(int)[values[..., 0]], 256
    if photometric == 0:
        values = 2**bits - 1 - values
    if bits in (2, 4):
        values = values * (255 // (2**bits - 1))
    return values, 2 if bits == 1 else 256 if bits <= 8 else 65536


ALL: dict[str, tuple[dict[str, Any], Rules, int]] = {
    "pairs of all": (TIFF, WRITABLE, 2),
    "triples of what is read": ({**TIFF, "orientation": (1, 3, 6)}, [*WRITABLE, *READ], 3),
}
"""Covering arrays: values, rules, strength. What is read has one of its own: a refusal for one reason would hide what
is wrong for another."""


@functools.cache
def files(which: str) -> list[Row]:
    options, rules, strength = ALL[which]
    return covering(options, rules, strength, seed=0)


def test_the_files_cover_what_they_should() -> None:
    for which, (options, rules, strength) in ALL.items():
        for names in itertools.combinations(options, strength):
            every = set(itertools.product(*(options[name] for name in names)))
            allowed = {values for values in every if keeps(dict(zip(names, values, strict=True)), rules)}
            assert {tuple(row[name] for name in names) for row in files(which)} == allowed
    assert sum(len(files(which)) for which in ALL) <= MOST


@pytest.mark.parametrize("which", ALL)
def test_values_or_one_line(which: str) -> None:
    """Right is what tifffile reads (and the writer wrote), turned and inverted; a layout is read where it should be."""
    wrong = []
    for row in files(which):
        written = stored(row)
        content = tiff(row, written)
        values = independent(content)
        assert row["compression"] == "jpeg" or np.array_equal(values, written), row  # both know TIFF
        picture = outcome(content)
        if isinstance(picture, str):
            fault = picture if keeps(row, READ) else ""
        else:
            right, levels = meant(row, values)
            fault = "" if picture.levels == levels and np.array_equal(picture.values, right) else "other values"
            fault = fault if keeps(row, READ) else "read, though it should not be"
        if fault:
            different = {name: value for name, value in row.items() if value != PLAIN[name]}
            wrong.append(f"{fault}: {different}")
    assert not wrong, f"{len(wrong)} of {len(files(which))}: " + "\n".join(wrong[:20])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("cut", TIFF["cut"])
def test_jpeg_of_luma_and_chroma(monkeypatch: pytest.MonkeyPatch, subsampling: int, cut: str) -> None:
    """As most programs store photographs with JPEG in TIFF; it is what an independent JPEG reader makes of it."""
    pack = packed_by_pillow("JPEG", quality=90, subsampling=subsampling)
    monkeypatch.setitem(CODECS, "jpeg", CODECS["jpeg"]._replace(pack=pack))
    row = {**PLAIN, "photometric": 2, "compression": "jpeg", "cut": cut, "orientation": 8}
    more: Tags = {262: ("H", [6]), 530: ("H", [[1, 1], [2, 1], [2, 2]][subsampling])}
    content = tiff(row, stored(row), more)
    assert np.array_equal(decoded(content).values, seen(independent(content), 8))


ASIDE: dict[str, tuple[Row, Tags, int, str]] = {
    # name of the case: options of the file, other tags, a tag that is left out, words of the message
    "float16": ({"kind": "f16"}, {}, 0, "floating-point values of 16 bits, expected 8 or 16 bits .*-depth 16"),
    "float32 of three": ({"kind": "f32", "photometric": 2}, {}, 0, "floating-point values of 32 bits"),
    "float16 of three": ({"kind": "f16", "photometric": 2}, {}, 0, "floating-point values of 16 bits"),
    "signed": (
        {"kind": "i16"},
        {},
        0,
        "signed or unknown integers of 16 bits.* as uint16, for example in a .npy array",
    ),
    "complex": ({"kind": "u32"}, {339: ("H", [6])}, 0, "floating-point values of 32 bits"),
    "near infrared": (
        {"photometric": 2, "extra": (0,)},
        {},
        0,
        r"4 channels, 1 beyond its colors, expected 3 \(a .npy",
    ),
    "more channels than it says": ({"photometric": 2, "extra": (0,)}, {}, 338, "4 channels"),
    "opacity": ({"photometric": 2, "extra": (2,)}, {}, 0, "transparency, expected none .*-flatten"),
    "gray with opacity": ({"extra": (1,)}, {}, 0, "transparency, expected none .*-flatten"),
    "CMYK": ({"photometric": 2, "extra": (0,)}, {262: ("H", [5])}, 338, "CMYK, expected gray or RGB .*-colorspace"),
    "Lab": ({"photometric": 2}, {262: ("H", [8])}, 0, "CIE Lab, expected gray or RGB"),
    "unknown colors": ({}, {262: ("H", [77])}, 0, "colors of kind 77"),
    "luma and chroma": ({"photometric": 2}, {262: ("H", [6])}, 0, "colors as YCbCr"),
    "no photometric": ({}, {}, 262, r"no tag 262 \(PhotometricInterpretation\), expected one"),
    "no width": ({}, {}, 256, "no tag 256"),
    "no strips": ({}, {}, 273, "neither strips nor tiles"),
    "strips and tiles": ({}, {324: ("I", [8])}, 0, "both strips and tiles"),
    "no sizes": ({}, {}, 279, "1 strips or tiles and 0 sizes of them, expected 1 of each"),
    "the same strip twice": ({}, {273: ("I", [8, 9]), 279: ("I", [9, 9])}, 0, "2 strips .* expected 1 of each"),
    "a strip too short": ({}, {279: ("I", [HEIGHT * WIDTH - 1])}, 0, "part 1 of 1 not whole"),
    "an empty strip": ({"compression": "lzw"}, {279: ("I", [0])}, 0, "part 1 of 1 not whole"),
    "a strip beyond the end": ({}, {273: ("I", [10**6])}, 0, "part 1 of 1 not whole"),
    "strips of no row": ({}, {278: ("I", [0])}, 0, "strips of 0 rows"),
    "tiles of odd size": ({"cut": "tiles"}, {322: ("I", [10])}, 0, "tiles 10 wide, 16 high, expected multiples of 16"),
    "several depths": ({"photometric": 2}, {258: ("H", [5, 6, 5])}, 0, "5, 6, 5 bits a channel"),
    "12 bits from the other end": ({"kind": "u12", "order": ">"}, {}, 0, "12 bits in big-endian order"),
    "32 bits": ({"kind": "u32"}, {}, 0, "32 bits a channel"),
    "planar colors of 16 bits": ({"kind": "u16", "photometric": 2, "planar": 2}, {}, 0, "an unusual layout"),
    "compression without a name": ({}, {259: ("H", [999])}, 0, "compression 999 of 8 bits"),
    "old JPEG": ({}, {259: ("H", [6])}, 0, "compression 6 of 8 bits"),
    "a predictor that is ignored": ({}, {317: ("H", [2])}, 0, "predictor 2 with compression 1"),
    "offsets of 64 bits": ({"order": ">", "big": True}, {}, 0, "offsets of 64 bits in big-endian order"),
    "two sizes": ({}, {256: ("I", [WIDTH, WIDTH])}, 0, "2 values of tag 256, expected one"),
    "palette of small numbers": ({"photometric": 3}, {320: ("H", [*range(256)] * 3)}, 0, "more than 8 bits a channel"),
    "palette of 16 bits": ({"photometric": 3}, {320: ("H", [*range(7, 775)])}, 0, "more than 8 bits .*-type TrueColor"),
    "palette too short": ({"photometric": 3}, {320: ("H", [0] * 48)}, 0, "a palette of 48 numbers, expected 768"),
    "no palette": ({"photometric": 3}, {}, 320, "a palette of 0 numbers"),
    "a volume": ({}, {32997: ("H", [4])}, 0, "4 frames, expected one"),
    "a stack of ImageJ": ({}, {270: ("B", list(b"ImageJ=1.53k\nimages=12\nslices=12\n"))}, 0, "12 frames"),
    "a turn that is no number": ({}, {274: ("B", [1, 1])}, 0, "2 values of tag 274"),
}


@pytest.mark.parametrize("case", ASIDE)
def test_what_is_refused(case: str) -> None:
    options, more, without, words = ASIDE[case]
    row = {**PLAIN, **options}
    line = outcome(tiff(row, stored(row), more, without))
    assert isinstance(line, str)
    assert re.search(words, line), line


def test_a_cut_file_is_refused() -> None:
    for row in (PLAIN, {**PLAIN, "cut": "tiles", "compression": "lzw"}, {**PLAIN, "big": True}):
        content = tiff(row, stored(row))
        for length in (*range(4, 30), *range(30, len(content), 37)):
            line = outcome(content[:length])
            assert isinstance(line, str), length


def test_only_the_tag_turns() -> None:
    """Orientations that are none, and what XMP says beside a file without the tag, change nothing."""
    values = stored(PLAIN)
    for more, without in (({274: ("H", [0])}, 0), ({274: ("H", [9])}, 0), ({274: ("I", [1])}, 0), (XMP, 274)):
        assert np.array_equal(decoded(tiff(PLAIN, values, more, without)).values, values)
    assert np.array_equal(decoded(tiff(PLAIN, values, {**XMP, 274: ("H", [2])})).values, values[:, ::-1])


XMP: Tags = {700: ("B", list(b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'))}


def test_palettes_of_either_kind() -> None:
    """Programs store 8 bits as 16 times 256 or times 257; gray is what has only gray colors in use."""
    row = {**PLAIN, "photometric": 3}
    indices = stored(row)
    for factor in (256, 257):
        content = tiff(row, indices, {320: ("H", (colors(row).T.astype(int) * factor).ravel().tolist())})
        assert np.array_equal(decoded(content).values, colors(row)[indices[..., 0]])
    grays = np.repeat(np.arange(256)[:, None], 3, 1)
    grays[200:, 0] = 1
    more: Tags = {320: ("H", (grays.T * 257).ravel().tolist())}
    assert np.array_equal(decoded(tiff(row, indices % 200, more)).values, indices % 200)
    assert decoded(tiff(row, indices, more)).values.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("first", [0, 255])
def test_one_bit_of_black_and_white_has_two_levels(first: int) -> None:
    row = {**PLAIN, "photometric": 3, "kind": "u1"}
    values = stored(row)
    for second, levels in ((255 - first, 2), (100, 256)):
        picture = decoded(tiff(row, values, {320: ("H", [257 * first, 257 * second] * 3)}))
        right = np.where(values, second, first) // (255 if levels == 2 else 1)
        assert picture.levels == levels
        assert np.array_equal(picture.values, right)


def test_a_path_is_read_as_a_stream_is(tmp_path: Path) -> None:
    """Pillow maps uncompressed files into memory, where it may; turned ones came out scrambled."""
    for orientation, kind in itertools.product(range(1, 9), ("u8", "u16")):
        row = {**PLAIN, "orientation": orientation, "kind": kind}
        (tmp_path / "file.tif").write_bytes(tiff(row, stored(row)))
        with strict():
            picture = decode(tmp_path / "file.tif", "file.tif")
        assert np.array_equal(picture.values, seen(stored(row), orientation))


def test_the_size_is_looked_at_first() -> None:
    content = tiff(PLAIN, stored(PLAIN))
    with (
        strict(),
        pytest.raises(UserError, match=f"many pixels, {WIDTH} wide, {HEIGHT} high: 777, expected at most 776"),
    ):
        decode(io.BytesIO(content), "file.tif", HEIGHT * WIDTH - 1)
    with strict():
        assert decode(io.BytesIO(content), "file.tif", HEIGHT * WIDTH).levels == 256


@pytest.mark.parametrize("compression", ["lzw", "deflate", "jpeg", "fax 3", "fax 4", "zstd"])
def test_damaged_pixels_are_refused_without_a_word_more(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff prints what it finds wrong, and of damaged faxes Pillow takes what there is."""
    row = {**PLAIN, "compression": compression, "kind": "u1" if compression in FAX else "u8"}
    content = bytearray(tiff(row, stored(row)))
    content[9] ^= 0x55
    line = outcome(bytes(content))
    assert isinstance(line, str)
    assert capfd.readouterr() == ("", "")
    assert isinstance(outcome(tiff(row, stored(row))), Picture)  # it is not held against the next file
