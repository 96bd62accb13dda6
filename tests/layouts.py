"""Small TIFF files in every layout, written by the words of the specification, and covering arrays of layouts.

References:
    Adobe Developers Association, "TIFF Revision 6.0", 1992

    R. Kuhn, D. R. Wallace, A. M. Gallo, "Software Fault Interactions and Implications for Software Testing", 2004,
    https://doi.org/10.1109/TSE.2004.24 (why pairs and triples of options find what single ones do not)
"""

from __future__ import annotations

import io
import itertools
import lzma
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
Row = dict[str, Any]

HEIGHT, WIDTH = 21, 37  # neither square nor a multiple of anything
TILE = 16
ROWS = 8
DEPTHS = {"u1": 1, "u2": 2, "u4": 4, "u8": 8, "u12": 12, "u16": 16, "u32": 32}
DEPTHS |= {"i8": 8, "i16": 16, "i32": 32, "f16": 16, "f32": 32}
"""Kinds of samples: unsigned, signed (i) or floating point, and their bits."""


class Codec(NamedTuple):
    """A compression: its number in the tag, and what packs the bytes of a strip or tile of shape ``[h, w, S]``."""

    tag: int
    pack: Callable[[bytes, Array], bytes]


def packed_by_pillow(form: str, **options: Any) -> Callable[[bytes, Array], bytes]:
    """A strip or tile as a whole file of another format."""

    def pack(_: bytes, part: Array) -> bytes:
        file = io.BytesIO()
        Image.fromarray(part[..., 0] if part.shape[2] == 1 else part).save(file, form, **options)
        return file.getvalue()

    return pack


def _fax(name: str) -> Callable[[bytes, Array], bytes]:
    """A strip or tile of one bit as libtiff packs it. In the file 0 is white for the coder, whatever the tag says."""

    def pack(_: bytes, part: Array) -> bytes:
        file = io.BytesIO()
        image = Image.fromarray(part[..., 0].astype(bool))
        image.save(file, "TIFF", compression=name, tiffinfo={278: len(part)})
        file.seek(0)
        with tifffile.TiffFile(file) as written:
            page = written.pages[0]
            assert isinstance(page, tifffile.TiffPage)
            (start,), (count,) = page.dataoffsets, page.databytecounts
        return file.getvalue()[start : start + count]

    return pack


CODECS = {
    "none": Codec(1, lambda data, part: data),
    "fax modified": Codec(2, _fax("tiff_ccitt")),
    "fax 3": Codec(3, _fax("group3")),
    "fax 4": Codec(4, _fax("group4")),
    "lzw": Codec(5, lambda data, part: imagecodecs.lzw_encode(data)),
    "jpeg": Codec(7, packed_by_pillow("JPEG", quality=90, keep_rgb=True)),
    "deflate": Codec(8, lambda data, part: zlib.compress(data)),
    "packbits": Codec(32773, lambda data, part: imagecodecs.packbits_encode(data)),
    "old deflate": Codec(32946, lambda data, part: zlib.compress(data)),
    "lzma": Codec(34925, lambda data, part: lzma.compress(data)),
    "zstd": Codec(50000, lambda data, part: imagecodecs.zstd_encode(data)),
    "webp": Codec(50001, packed_by_pillow("WEBP", lossless=True)),
}
WITH_PREDICTOR = ("lzw", "deflate", "old deflate", "lzma", "zstd")
FAX = ("fax modified", "fax 3", "fax 4")
ONLY = {**dict.fromkeys(FAX, "u1"), "jpeg": "u8", "webp": "u8"}
"""Compressions of one kind of samples only."""

TIFF: dict[str, tuple[Any, ...]] = {
    "kind": tuple(DEPTHS),
    "compression": tuple(CODECS),
    "orientation": tuple(range(1, 9)),
    "extra": ((), (0,), (1,), (2,), (0, 0)),
    "photometric": (0, 1, 2, 3),
    "cut": ("strip", "strips", "tiles"),
    "planar": (1, 2),
    "predictor": (1, 2),
    "fill": (1, 2),
    "order": ("<", ">"),
    "big": (False, True),
}
"""Options of a TIFF file and their values: ``extra`` the kinds of samples beyond the colors (1 and 2 are opacities),
``fill`` the order of the bits in a byte, ``big`` offsets of 64 bits."""


Rules = Sequence[tuple[set[str], Callable[..., bool]]]

WRITABLE: Rules = [
    ({"order", "big"}, lambda order, big: order == "<" or not big),  # refused whatever else they are
    ({"photometric", "kind"}, lambda photometric, kind: photometric != 3 or kind in ("u1", "u2", "u4", "u8")),
    (
        {"predictor", "kind"},
        lambda predictor, kind: predictor == 1 or (kind[1:] in ("8", "16", "32") and kind[0] != "f"),
    ),
    ({"predictor", "compression"}, lambda predictor, compression: predictor == 1 or compression in WITH_PREDICTOR),
    ({"kind", "compression"}, lambda kind, compression: kind == ONLY.get(compression, kind)),
    ({"photometric", "compression"}, lambda photometric, compression: compression != "webp" or photometric == 2),
    ({"photometric", "compression"}, lambda photometric, compression: (photometric, compression) != (3, "jpeg")),
    ({"planar", "compression"}, lambda planar, compression: compression != "webp" or planar == 1),
    ({"fill", "compression"}, lambda fill, compression: compression not in ("webp", "jpeg") or fill == 1),
    ({"extra", "compression"}, lambda extra, compression: compression != "webp" or not extra),
    (
        {"planar", "compression", "extra"},
        lambda planar, compression, extra: planar == 2 or compression not in (*FAX, "jpeg") or not extra,
    ),
    (
        {"planar", "compression", "photometric"},
        lambda planar, compression, photometric: planar == 2 or compression not in FAX or photometric != 2,
    ),
]
"""Which values there are files of: the names of options, and whether their values go together."""

READ: Rules = [
    ({"kind"}, lambda kind: kind[0] == "u" and kind != "u32"),
    ({"extra"}, lambda extra: not extra),
    ({"compression"}, lambda compression: compression != "webp"),
    ({"kind", "photometric"}, lambda kind, photometric: DEPTHS[kind] in READ_DEPTHS[photometric]),
    ({"kind", "order"}, lambda kind, order: kind != "u12" or order == "<"),
    ({"compression", "photometric"}, lambda compression, photometric: photometric != 2 or compression not in FAX),
    ({"predictor", "kind"}, lambda predictor, kind: predictor == 1 or kind in ("u8", "u16")),
    ({"fill", "kind"}, lambda fill, kind: fill == 1 or kind == "u1"),
    ({"fill", "photometric"}, lambda fill, photometric: fill == 1 or photometric < 2),
    ({"fill", "predictor"}, lambda fill, predictor: fill == 1 or predictor == 1),
    (
        {"planar", "photometric", "kind"},
        lambda planar, photometric, kind: planar == 1 or photometric != 2 or kind == "u8",
    ),
]
"""Which of them DAVI reads; the others are refused."""

READ_DEPTHS = {0: (1, 2, 4, 8, 16), 1: (1, 2, 4, 8, 12, 16), 2: (8, 16), 3: (1, 2, 4, 8)}


def keeps(row: Row, rules: Rules) -> bool:
    """Whether a row, or a part of one that can be completed, keeps all rules that speak only of what it has."""
    return all(rule(**{name: row[name] for name in names}) for names, rule in rules if row.keys() >= names)


def covering(options: Mapping[str, Sequence[Any]], rules: Rules, strength: int, seed: int) -> list[Row]:
    """Rows in which every combination of ``strength`` options takes every allowed tuple of values, chosen greedily.

    Arguments:
        options: their values.
        rules: that a row keeps; whatever part of a row keeps them can be completed to a row.
        strength: 2 for pairs, 3 for triples.
        seed: of the order among equals.
    """
    rng = np.random.default_rng(seed)
    names = list(options)
    todo: dict[tuple[tuple[str, Any], ...], None] = {}
    for chosen in itertools.combinations(names, strength):
        for values in itertools.product(*(options[name] for name in chosen)):
            if keeps(dict(zip(chosen, values, strict=True)), rules):
                todo[tuple(zip(chosen, values, strict=True))] = None
    rows = []
    while todo:
        row = dict(next(iter(todo)))
        for name in rng.permutation([name for name in names if name not in row]):
            best, most = None, -1
            for i in rng.permutation(len(options[name])):
                value = options[name][i]
                if not keeps({**row, name: value}, rules):
                    continue
                others = [(n, row.get(n)) for n in names if n in row or n == name]
                gained = sum(
                    tuple((n, value if n == name else v) for n, v in some) in todo
                    for some in itertools.combinations(others, strength)
                    if any(n == name for n, _ in some)
                )
                if gained > most:
                    best, most = value, gained
            assert most >= 0, f"nothing completes {row} with {name}"
            row[str(name)] = best
        row = {name: row[name] for name in names}
        for some in itertools.combinations(row.items(), strength):
            todo.pop(some, None)
        rows.append(row)
    return rows


def channels(row: Row) -> int:
    """Samples of a pixel."""
    return (3 if row["photometric"] == 2 else 1) + len(row["extra"])


def stored(row: Row, seed: int = 0) -> Array:
    """The values that the file of a row holds, ``[H, W, S]``."""
    rng, kind = np.random.default_rng(seed), row["kind"]
    shape = (HEIGHT, WIDTH, channels(row))
    if kind[0] == "f":
        return rng.random(shape).astype(kind[0] + str(DEPTHS[kind] // 8))
    if kind[0] == "i":
        return rng.integers(-100, 100, shape).astype(f"i{DEPTHS[kind] // 8}")
    return rng.integers(0, 2 ** DEPTHS[kind], shape).astype(f"u{max(1, (DEPTHS[kind] + 7) // 8)}".replace("u3", "u4"))


def colors(row: Row) -> Array:
    """The palette of a row, ``[2^bits, 3]``, of 8 bits."""
    return np.random.default_rng(1).integers(0, 256, (2 ** DEPTHS[row["kind"]], 3), dtype=np.uint8)


def _parts(row: Row, values: Array) -> list[Array]:
    """The strips or tiles ``[h, w, S]`` in the order of the file; tiles are filled up with zeros."""
    if row["planar"] == 2:
        return [part for s in range(values.shape[2]) for part in _parts({**row, "planar": 1}, values[:, :, s : s + 1])]
    if row["cut"] != "tiles":
        step = HEIGHT if row["cut"] == "strip" else ROWS
        return [values[y : y + step] for y in range(0, HEIGHT, step)]
    padded = np.zeros((-(-HEIGHT // TILE) * TILE, -(-WIDTH // TILE) * TILE, values.shape[2]), values.dtype)
    padded[:HEIGHT, :WIDTH] = values
    corners = itertools.product(range(0, len(padded), TILE), range(0, padded.shape[1], TILE))
    return [padded[y : y + TILE, x : x + TILE] for y, x in corners]


def _packed(row: Row, part: Array) -> bytes:
    """A strip or tile as it is in the file."""
    bits, kind = DEPTHS[row["kind"]], row["kind"]
    values = part
    if row["predictor"] == 2:
        values = values.copy()
        values[:, 1:] -= part[:, :-1]
    if bits % 8:  # samples side by side, the highest bit first, each line padded to whole bytes
        shifts = np.arange(bits - 1, -1, -1)
        flat = (values[..., None] >> shifts & 1).astype(np.uint8).reshape(len(values), -1)
        data = np.packbits(flat, axis=1).tobytes()
    else:
        data = values.astype(f"{row['order']}{kind[0]}{bits // 8}").tobytes()
    data = CODECS[row["compression"]].pack(data, part)
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if row["fill"] == 2 else data


Tags = Mapping[int, tuple[str, Sequence[int]]]
"""Number -> type (B, H, I or Q) and values."""


def tiff(row: Row, values: Array, more: Tags | None = None, without: int = 0) -> bytes:
    """The file of a row with these values.

    Arguments:
        row: a value for each option of :data:`TIFF`.
        values: ``[H, W, S]``.
        more: further tags, or others than usual.
        without: a tag that is left out.
    """
    parts = [_packed(row, part) for part in _parts(row, values)]
    order, wide = row["order"], "Q" if row["big"] else "I"
    start = 16 if row["big"] else 8
    starts = list(itertools.accumulate((len(part) + len(part) % 2 for part in parts), initial=start))
    samples, bits = values.shape[2], DEPTHS[row["kind"]]
    tags: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [WIDTH]),
        257: ("I", [HEIGHT]),
        258: ("H", [bits] * samples),
        259: ("H", [CODECS[row["compression"]].tag]),
        262: ("H", [row["photometric"]]),
        274: ("H", [row["orientation"]]),
        277: ("H", [samples]),
        284: ("H", [row["planar"]]),
    }
    where = (324, 325) if row["cut"] == "tiles" else (273, 279)
    tags[where[0]] = (wide, starts[:-1])
    tags[where[1]] = (wide, [len(part) for part in parts])
    if row["cut"] == "tiles":
        tags |= {322: ("I", [TILE]), 323: ("I", [TILE])}
    else:
        tags[278] = ("I", [HEIGHT if row["cut"] == "strip" else ROWS])
    if row["fill"] == 2:
        tags[266] = ("H", [2])
    if row["predictor"] == 2:
        tags[317] = ("H", [2])
    if row["photometric"] == 3:
        tags[320] = ("H", (colors(row).T.astype(int) * 257).ravel().tolist())
    if row["extra"]:
        tags[338] = ("H", row["extra"])
    if row["kind"][0] != "u":
        tags[339] = ("H", [2 if row["kind"][0] == "i" else 3] * samples)
    magic = (b"II" if order == "<" else b"MM") + struct.pack(
        order + ("HHHQ" if row["big"] else "HI"), *((43, 8, 0, starts[-1]) if row["big"] else (42, starts[-1]))
    )
    body = b"".join(part + bytes(len(part) % 2) for part in parts)
    tags |= dict(more or {})
    tags.pop(without, None)
    return magic + body + _directory(tags, order, row["big"], starts[-1])


def _directory(tags: Tags, order: str, big: bool, start: int) -> bytes:
    """A directory that begins at ``start``, the only one, and the lists that do not fit into it."""
    types = {"B": 1, "H": 3, "I": 4, "Q": 16}
    count, offset, room = ("Q", "Q", 8) if big else ("H", "I", 4)
    end = start + struct.calcsize("<" + count) + len(tags) * (4 + 2 * room) + room
    entries, lists = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(data) > room:
            place, lists = end + len(lists), lists + data + bytes(len(data) % 2)
            data = struct.pack(order + offset, place)
        entries += struct.pack(f"{order}HH{offset}", tag, types[kind], len(values)) + data.ljust(room, b"\0")
    return struct.pack(order + count, len(tags)) + entries + bytes(room) + lists
