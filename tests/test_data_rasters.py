"""PNG and BMP files of every depth, against an independent decoder (imagecodecs): its values, or one line."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rasters import bits_of, bmp, chunk, png

from davi.data.decoding import decode, strict
from davi.data.picture import Picture
from davi.errors import UserError

Array = NDArray[Any]
HEIGHT, WIDTH = 5, 13


def decoded(content: bytes) -> Picture:
    with strict():
        return decode(io.BytesIO(content), "image")


def refused(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        decoded(content)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("image: ")


def random(*shape: int, most: int = 256) -> Array:
    return np.random.default_rng(0).integers(0, most, shape)


def palette(name: str, bits: int) -> Array:
    """Colors that an index of these bits can choose from."""
    number = 2**bits
    return {
        "colors": random(number, 3),
        "grays": np.repeat(np.arange(number)[:, None] * (255 // (number - 1)), 3, axis=1),
        "dark grays": np.repeat(np.arange(number)[:, None], 3, axis=1),
        "white, black": np.asarray([[255] * 3, [0] * 3]),
        "black, white": np.asarray([[0] * 3, [255] * 3]),
        "three": random(min(3, number), 3),
    }[name]


PALETTES = ("colors", "grays", "dark grays", "white, black", "black, white", "three")


def same(picture: Picture, colors: Array, bits: int) -> None:
    """Indexed images: of one channel if they are gray, of two levels if they are of one bit, black and white."""
    gray = (colors == colors[..., :1]).all()
    two = bits == 1 and gray and np.isin(colors, (0, 255)).all()
    assert picture.levels == (2 if two else 256)
    assert picture.values.shape[2] == (1 if gray else 3)
    assert np.array_equal(np.broadcast_to(picture.values * (255 if two else 1), colors.shape), colors)


def independent(values: Array) -> Array:
    """What imagecodecs decodes, with a channel for gray."""
    return values[:, :, None] if values.ndim == 2 else values


@pytest.mark.parametrize(("color", "bits"), [*itertools.product([0], [1, 2, 4, 8, 16]), (2, 8), (2, 16)])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("before", [b"", chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0")])
def test_png(color: int, bits: int, interlaced: bool, before: bytes) -> None:
    values = random(HEIGHT, WIDTH, 1 if color == 0 else 3, most=2**bits)
    content = png(values, bits, color, interlaced, before)
    picture = decoded(content)
    assert picture.levels == {1: 2, 16: 65536}.get(bits, 256)
    stretched = values * (255 // (2**bits - 1)) if bits < 8 else values  # as libpng does
    assert np.array_equal(independent(imagecodecs.png_decode(content)), stretched)
    assert np.array_equal(picture.values, values if bits == 1 else stretched)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("name", PALETTES)
def test_indexed_png(bits: int, interlaced: bool, name: str) -> None:
    colors = palette(name, bits)
    indices = random(HEIGHT, WIDTH, 1, most=len(colors))
    content = png(indices, bits, 3, interlaced, chunk(b"PLTE", colors.astype(np.uint8).tobytes()))
    right = imagecodecs.png_decode(content)
    assert np.array_equal(right, colors[indices[..., 0]])
    same(decoded(content), right, bits)


@pytest.mark.parametrize(("bits", "unused"), [(2, [[9, 0, 0], [7, 8, 9]]), (8, [[0, 255, 0]] * 200), (1, [])])
def test_colors_that_no_pixel_uses_have_no_say(bits: int, unused: list[list[int]]) -> None:
    colors = np.asarray([[20] * 3, [30] * 3, *unused])
    indices = random(HEIGHT, WIDTH, 1, most=2)
    picture = decoded(png(indices, bits, 3, before=chunk(b"PLTE", colors.astype(np.uint8).tobytes())))
    assert picture.levels == 256
    assert np.array_equal(picture.values, 20 + 10 * indices)
    if bits != 2:  # which BMP has not
        again = decoded(bmp(indices[..., 0], bits, palette=colors))
        assert np.array_equal(again.values, picture.values)


@pytest.mark.parametrize(
    ("color", "bits", "before"),
    [
        *((0, bits, chunk(b"tRNS", b"\0\1")) for bits in (1, 2, 4, 8, 16)),
        *((2, bits, chunk(b"tRNS", bytes(6))) for bits in (8, 16)),
        *((3, bits, chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", bytes(1))) for bits in (1, 2, 4, 8)),
        *((color, bits, b"") for color in (4, 6) for bits in (8, 16)),
    ],
)
@pytest.mark.parametrize("interlaced", [False, True])
def test_transparent_png_is_refused(color: int, bits: int, before: bytes, interlaced: bool) -> None:
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    refused(png(random(HEIGHT, WIDTH, samples, most=2), bits, color, interlaced, before), "got a transparency")


def test_an_index_without_a_color_is_refused() -> None:
    indices = np.asarray([[[0], [1], [3]]])
    refused(png(indices, 2, 3, before=chunk(b"PLTE", bytes(6))), "got color 3 of a palette of 2")
    refused(png(indices, 2, 3), "cannot be read")
    refused(bmp(indices[..., 0], 8, palette=palette("black, white", 1)), "got color 3 of a palette of 2")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("color", "bits"), [(0, 1), (0, 16), (2, 16), (3, 4)])
def test_turned_png(orientation: int, color: int, bits: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = random(HEIGHT, WIDTH, 3 if color == 2 else 1, most=2**bits)
    before = chunk(b"PLTE", palette("grays", 4).astype(np.uint8).tobytes()) if color == 3 else b""
    plain = decoded(png(values, bits, color, before=before)).values
    found = decoded(png(values, bits, color, before=before + chunk(b"eXIf", exif.tobytes()[6:]))).values
    turned = [plain, plain[:, ::-1], plain[::-1, ::-1], plain[::-1]]
    turned += [plain.swapaxes(0, 1), np.rot90(plain, -1), np.rot90(plain, 2).swapaxes(0, 1), np.rot90(plain)]
    assert np.array_equal(found, turned[orientation - 1])


@pytest.mark.parametrize("header", [12, 40, 52, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_indexed_bmp(header: int, top_down: bool, bits: int) -> None:
    for name in PALETTES:
        colors = palette(name, bits)
        if header == 12 and (top_down or len(colors) < 2**bits):
            continue  # there are no such files
        indices = random(HEIGHT, WIDTH, most=len(colors))
        content = bmp(indices, bits, header=header, top_down=top_down, palette=colors)
        right = colors[indices]
        if header != 12:  # which imagecodecs does not know
            assert np.array_equal(np.broadcast_to(independent(imagecodecs.bmp_decode(content)), right.shape), right)
        same(decoded(content), right, bits)


@pytest.mark.parametrize("header", [12, 40, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
def test_bmp_of_colors(header: int, top_down: bool) -> None:
    if header == 12 and top_down:
        pytest.skip("there are no such files")
    for bits, fourth in ((24, None), (32, 0), (32, 255)):
        values = random(HEIGHT, WIDTH, 3)
        pixels = values[..., ::-1]
        if fourth is not None:
            pixels = np.concatenate([pixels, np.full((HEIGHT, WIDTH, 1), fourth)], axis=2)
        content = bmp(pixels, bits, header=header, top_down=top_down)
        if header != 12 and bits == 24:
            assert np.array_equal(imagecodecs.bmp_decode(content), values)
        assert np.array_equal(decoded(content).values, values)
        if fourth is not None and header != 12:
            masks = (0xFF000000, 0xFF0000, 0xFF00)
            moved = np.roll(pixels, 1, axis=2)  # the unused byte is the lowest
            turned = bmp(moved, 32, header=header, top_down=top_down, compression=3, masks=masks)
            assert np.array_equal(decoded(turned).values, values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bmp(random(HEIGHT, WIDTH, 2), 16), "got a BMP file with 16 bits a pixel, expected 1, 4, 8, 24 or 32"),
        (bmp(random(HEIGHT, WIDTH, 2), 16, compression=3, masks=(0xF800, 0x7E0, 0x1F)), "16 bits a pixel"),
        (bmp(random(HEIGHT, WIDTH, 4), 32), "got a transparency"),
        (
            bmp(random(HEIGHT, WIDTH, 4), 32, header=108, compression=3, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
            "got a transparency",
        ),
        (bmp(random(HEIGHT, WIDTH, 4), 32, compression=3, masks=(0xFF0000, 0xFFF0, 0xF)), "got .* the masks 0xff0000"),
        (bmp(random(4, 4), 8, compression=1, palette=random(256, 3), data=b"\4\0\0\0" * 4 + b"\0\1"), "as run lengths"),
        (bmp(random(4, 4), 4, compression=2, palette=random(16, 3), data=b"\4\0\0\0" * 4 + b"\0\1"), "as run lengths"),
        (bmp(random(4, 4), 8, palette=random(256, 3))[:-1], "the file was cut off"),
        (bmp(random(4, 4), 8, header=41, palette=random(256, 3)), "a header of 41 bytes"),
        (bmp(random(4, 0), 8, palette=random(256, 3)), "got a size of 0 wide, 4 high, expected at least one pixel"),
        (b"BM" + bytes(60), "a header of 0 bytes"),
        (b"BM", "cannot be read"),
    ],
)
def test_refused_bmp(content: bytes, words: str) -> None:
    refused(content, words)


def test_a_png_cut_in_its_lines_is_refused() -> None:
    lines = bits_of(random(HEIGHT, WIDTH), 8)
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines)[:-20])
    header = chunk(b"IHDR", struct.pack(">2I5B", WIDTH, HEIGHT, 8, 0, 0, 0, 0))
    refused(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""), "cannot be read")
