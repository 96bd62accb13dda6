"""One image file as integers: PNG, JPEG, WebP, TIFF or BMP, gray or color, of 1, 8 or 16 bits a channel.

Values are those that the file stores; color profiles and gamma are not applied. What cannot be kept as it is (a
transparency, CMYK, floating point, several frames) is refused with its remedy, never converted silently; a
transparency of 8 bits is put on a background if one is given:

- gray of 1 bit has 2 levels, of 2 to 8 bits 256 (stretched to 0..255), of 9 to 16 bits 65,536; black is 0, also where
  the file has it the other way round;
- color has 256 levels, or 65,536 from 16 bits a channel;
- an indexed image is color, or gray if all colors that its pixels use are; with 1 bit, for black and white, it has
  2 levels;
- an image is turned as its EXIF orientation says; of a JPEG that carries further pictures (MPO) the first is taken.

A file that promises more pixels than it may have (:data:`davi.data.picture.MAX_PIXELS`, unless it is asked for more) is
refused before it is decoded.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from davi.data import bmp, libtiff, tiff
from davi.data.arrays import OneLine
from davi.data.picture import MAX_PIXELS, Picture, check_pixels, in_mode, indexed, put_on
from davi.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp"})
"""Endings, in lower case, of the files that are taken for images."""

_FORMATS = ("PNG", "JPEG", "WEBP")
"""What is left to Pillow as it is, whatever else it knows; TIFF is looked at before, and BMP read without it."""

BACKGROUNDS = {"white": 255, "gray": 128, "black": 0}
"""What transparent images may be put on."""

_NO_ALPHA = "none (flatten it: magick IN -background white -flatten OUT.png)"

_OTHER_HALF = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}
"""Pillow's names of the ways to take 8 bits from each 16: big-endian takes the first byte, little-endian the second."""


@contextmanager
def strict() -> Iterator[None]:
    """A block without Pillow's warnings about odd metadata, and about large images, which :func:`decode` refuses.

    Python's warning filters, Pillow's limit and libtiff's error handler belong to the whole process: this goes around
    threads that decode, not into them.
    """
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(action="ignore"), libtiff.quiet():
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def decode(
    file: Path | BinaryIO,
    name: str,
    max_pixels: int = MAX_PIXELS,
    background: str | None = None,
    mode: str | None = None,
) -> Picture:
    """Decode one file. To be called within :func:`strict`.

    Arguments:
        file: a path, or the content as a seekable stream.
        name: what it is called in messages.
        max_pixels: that the image may have.
        background: one of :data:`BACKGROUNDS`, on which a transparent image is put; None: it is refused.
        mode: of :func:`davi.data.picture.in_mode`.

    Raises:
        UserError: one line: it is none of the five formats, damaged, too large, or of a kind that is refused.
    """
    with OneLine(Path(name), "a whole PNG, JPEG, WebP, TIFF or BMP image"):
        if isinstance(file, Path) and not file.is_file():  # a pipe or a device would be waited for without end
            raise UserError(f"{name}: found {'no regular file' if file.exists() else 'nothing'}, expected an image")
        with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as stream:
            stream.seek(0)
            first = stream.read(4)
            if first in tiff.MAGIC:
                return in_mode(_tiff(stream, name, max_pixels, background), mode)
            if first[:2] == bmp.MAGIC:
                shade = None if background is None else BACKGROUNDS[background]
                return in_mode(bmp.decode(stream, name, max_pixels, shade), mode)
            try:
                return in_mode(_other(stream, name, max_pixels, background), mode)
            except UnidentifiedImageError:
                raise UserError(f"{name}: got something else, expected a PNG, JPEG, WebP, TIFF or BMP image") from None


def _tiff(file: BinaryIO, name: str, max_pixels: int, background: str | None) -> Picture:
    """A TIFF file, of a layout that Pillow is known to read right."""
    layout = tiff.read(file, name, max_pixels, background is not None)
    content = tiff.copy(file, layout)

    def opened() -> Image.Image:
        image = Image.open(content, formats=["TIFF"])
        image.info.pop("xmp", None)  # where the tag is missing, Pillow would turn the image as this says
        return image

    libtiff.complaints()
    with opened() as image:
        _check_frames(image, name)
        values = _values(image)
    if layout.deep:
        with opened() as other:
            values = _deep(values, other, name)
    if libtiff.complaints():
        raise UserError(f"{name}: got damaged pixels, expected a whole TIFF file")
    values = tiff.turned(values, layout.orientation)
    if layout.alpha and background is not None:
        shade = BACKGROUNDS[background]
        return Picture(put_on(values[:, :, :-1], values[:, :, -1:], shade, layout.alpha == 1), 256)
    if layout.palette is not None:
        return indexed(values[:, :, 0], layout.palette, layout.bits, name)
    levels = 2 if layout.bits == 1 else 256 if layout.bits <= 8 else 65536
    values = values.astype(np.uint16 if levels == 65536 else np.uint8)
    return Picture(levels - 1 - values if layout.photometric == 0 else values, levels)


def _other(file: BinaryIO, name: str, max_pixels: int, background: str | None) -> Picture:
    """A file of another format, as Pillow decodes it."""
    with _opened(file) as image:
        check_pixels(image.height, image.width, max_pixels, name)
        _check(image, name, background)
        transparent = image.has_transparency_data
        if image.format == "PNG":
            image.verify()  # the checksums, which decoding passes over
    if transparent:
        with _opened(file) as image:
            return _flattened(image, BACKGROUNDS[background or "white"], name)
    with _opened(file) as image:
        layouts = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
        deep = image.mode == "RGB" and any(";16" in layout for layout in layouts)
        ImageOps.exif_transpose(image, in_place=True)
        values = _values(image)
        if image.mode == "1":
            return Picture(values.astype(np.uint8), 2)
        if image.mode == "P":
            palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            return indexed(values[:, :, 0], palette, 1 if layouts == {"P;1"} else 8, name)
        if image.mode.startswith("I"):
            return Picture(values.astype(np.uint16), 65536)
        if not deep:
            return Picture(values, 256)
    with _opened(file) as other:
        return Picture(_deep(values, other, name), 65536)


def _opened(file: BinaryIO) -> Image.Image:
    """The image before its pixels are read."""
    file.seek(0)
    return Image.open(file, formats=_FORMATS)


def _flattened(image: Image.Image, shade: int, name: str) -> Picture:
    """A transparent image on a background of one shade; gray stays gray, and so does an indexed image if it is."""
    layouts = {_raw_mode(tile) for tile in getattr(image, "tile", ())}
    odd = image.mode not in ("L", "LA", "P", "RGB", "RGBA") or bool(layouts & {"L;2", "L;4"})
    if odd or any(";16" in layout for layout in layouts):
        raise UserError(f"{name}: got a transparency in a file that has no 8 bits a channel, expected {_NO_ALPHA}")
    gray, palette = image.mode in ("L", "LA"), image.mode == "P"
    ImageOps.exif_transpose(image, in_place=True)
    color = np.asarray(image.convert("RGBA"))  # [H, W, 4]
    values = put_on(color[:, :, :3], color[:, :, 3:], shade)
    if gray or (palette and (values == values[:, :, :1]).all()):
        values = values[:, :, :1]
    return Picture(values, 256)


def _check(image: Image.Image, name: str, background: str | None) -> None:
    """Refuse what a header already tells."""
    if image.has_transparency_data:
        if background is not None:
            _check_frames(image, name)
            return
        raise UserError(
            f"{name}: got a transparency ({image.mode}), expected {_NO_ALPHA[:-1]}, or give --data.background white)"
        )
    if image.mode == "CMYK":
        remedy = "magick IN -colorspace sRGB OUT.png"
        raise UserError(f"{name}: got CMYK, expected gray or RGB (convert it: {remedy})")
    if image.mode not in ("1", "L", "P", "RGB", "I") and not image.mode.startswith("I;16"):
        raise UserError(f"{name}: got Pillow's mode {image.mode}, expected gray or RGB")
    if image.format != "MPO":
        _check_frames(image, name)


def _check_frames(image: Image.Image, name: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise UserError(f"{name}: got {frames} frames, expected one (take them apart: magick IN OUT-%d.png)")


def _values(image: Image.Image) -> NDArray[Any]:
    """``[H, W, C]``."""
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


def _deep(high: NDArray[Any], other: Image.Image, name: str) -> NDArray[np.uint16]:
    """All 16 bits of a color image, ``[H, W, 3]``: Pillow has no such mode, but decodes either half of the bits.

    Which half is a matter of the byte order that it is told. Decoding twice takes twice as long.

    Arguments:
        high: the upper halves, as Pillow decodes them by itself.
        other: the same image, opened again.
        name: what it is called in messages.
    """
    tiles = getattr(other, "tile", [])
    if any(_raw_mode(tile) not in _OTHER_HALF for tile in tiles):
        raise UserError(f"{name}: got 16 bits a channel in an unusual layout, expected it as PNG (magick IN OUT.png)")
    swapped = [tile._replace(args=_swapped(tile.args)) for tile in tiles]
    other.tile = swapped  # type: ignore[attr-defined]  # only images that were opened from files have it
    ImageOps.exif_transpose(other, in_place=True)
    return high.astype(np.uint16) << np.uint16(8) | _values(other)


def _raw_mode(tile: Any) -> str:
    """How the bytes of a part of the image are laid out, in Pillow's words."""
    args = tile.args
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _swapped(args: Any) -> Any:
    """A decoder's arguments, of which the first or only one is the layout, for the other half of the bits."""
    return _OTHER_HALF[args] if isinstance(args, str) else (_OTHER_HALF[args[0]], *args[1:])
