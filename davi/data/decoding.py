"""One image file as integers: PNG, JPEG, WebP, TIFF or BMP, grey or colour, of 1, 8 or 16 bits a channel.

Values are those that the file stores; colour profiles and gamma are not applied. What cannot be kept as it is (a
transparency, CMYK, floating point, several frames) is refused with its remedy, never converted in silence:

- grey of 1 bit has 2 levels, of 2 to 8 bits 256 (stretched to 0..255), of 9 to 16 bits 65,536;
- colour has 256 levels, or 65,536 from 16 bits a channel;
- an indexed image is colour, or grey if all its colours are; the palette is all that is converted;
- an image is turned as its EXIF orientation says; of a JPEG that carries further pictures (MPO) the first is taken.

A file that promises more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (some 89 million) is refused before it is decoded.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from davi.data.arrays import OneLine
from davi.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""What is decoded, whatever else Pillow knows."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp"})
"""Endings, in lower case, of the files that are taken for images."""

_OTHER_HALF = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}
"""Pillow's names of the ways to take 8 bits from each 16: big-endian takes the first byte, little-endian the second."""

_BITS_PER_SAMPLE = 258  # TIFF tag
_WHITE_IS_ZERO = (262, 0)  # TIFF tag and its value
_REMEDIES = {
    "CMYK": "CMYK, expected grey or RGB (convert it: magick IN -colorspace sRGB OUT.png)",
    "F": "floating-point values, expected 8 or 16 bits (convert it: magick IN -depth 16 OUT.png)",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded file.

    Arguments:
        values: ``[H, W, C]``, C = 1 or 3; uint16 for 65,536 levels, else uint8.
        levels: 2, 256 or 65,536.
    """

    values: NDArray[Any]
    levels: int


@contextmanager
def strict() -> Iterator[None]:
    """A block in which Pillow refuses large images (it only warns of some) and keeps quiet about odd metadata.

    Python's warning filters belong to the whole process, so this goes around threads that decode, not into them.
    """
    with warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(file: Path | BinaryIO, name: str) -> Picture:
    """Decode one file. To be called within :func:`strict`.

    Arguments:
        file: a path, or the content as a seekable stream.
        name: what it is called in messages.

    Raises:
        UserError: one line: it is none of the five formats, damaged, too large, or of a kind that is refused.
    """
    with OneLine(Path(name), "a whole PNG, JPEG, WebP, TIFF or BMP image"):
        if isinstance(file, Path) and not file.is_file():  # a pipe or a device would be waited for without end
            raise UserError(f"{name}: found {'no regular file' if file.exists() else 'nothing'}, expected an image")
        try:
            with _opened(file) as image:
                _check(image, name)
                if image.format == "PNG":
                    image.verify()  # the checksums, which decoding passes over
            with _opened(file) as image:
                return _picture(image, file, name)
        except UnidentifiedImageError:
            raise UserError(f"{name}: got something else, expected a PNG, JPEG, WebP, TIFF or BMP image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = Image.MAX_IMAGE_PIXELS
            raise UserError(
                f"{name}: promises too many pixels, expected at most {limit} (PIL.Image.MAX_IMAGE_PIXELS)"
            ) from None


def _opened(file: Path | BinaryIO) -> Image.Image:
    """The image before its pixels are read."""
    if not isinstance(file, Path):
        file.seek(0)
    return Image.open(file, formats=FORMATS)


def _check(image: Image.Image, name: str) -> None:
    """Refuse what a header already tells."""
    if image.has_transparency_data:
        remedy = "magick IN -background white -flatten OUT.png"
        raise UserError(f"{name}: got a transparency ({image.mode}), expected none (flatten it: {remedy})")
    if image.mode in _REMEDIES:
        raise UserError(f"{name}: got {_REMEDIES[image.mode]}")
    if image.mode not in ("1", "L", "P", "RGB", "I") and not image.mode.startswith("I;16"):
        raise UserError(f"{name}: got Pillow's mode {image.mode}, expected grey or RGB")
    tag, value = _WHITE_IS_ZERO
    if image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(tag) == value:  # Pillow turns round 8 bits only
        raise UserError(f"{name}: got 16 bits with white as 0, expected black as 0 (convert it: magick IN OUT.png)")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UserError(f"{name}: got {frames} frames, expected one (take them apart: magick IN OUT-%d.png)")


def _picture(image: Image.Image, file: Path | BinaryIO, name: str) -> Picture:
    """The values of an image that has been checked."""
    if image.mode == "1":
        return Picture(_array(image).astype(np.uint8), 2)
    if image.mode == "P":
        colours = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
        return Picture(_array(image.convert("L" if (colours == colours[:, :1]).all() else "RGB")), 256)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = _array(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: got values {values.min()} to {values.max()}, expected 0 to 65535")
        return Picture(values.astype(np.uint16), 65536)
    if image.mode == "RGB" and _is_deep(image):
        return Picture(_deep(image, file, name), 65536)
    return Picture(_array(image), 256)


def _array(image: Image.Image) -> NDArray[Any]:
    """``[H, W, C]``, turned as the EXIF orientation says."""
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    return values[:, :, None] if values.ndim == 2 else values


def _is_deep(image: Image.Image) -> bool:
    """Whether a colour image stores more than 8 bits a channel, of which Pillow would keep 8."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return max(bits) > 8 or any(";16" in _raw_mode(tile) for tile in getattr(image, "tile", ()))


def _deep(image: Image.Image, file: Path | BinaryIO, name: str) -> NDArray[np.uint16]:
    """All 16 bits of a colour image, ``[H, W, 3]``: Pillow has no such mode, but decodes either half of the bits.

    Which half is a matter of the byte order that it is told. Decoding twice takes twice as long.
    """
    tiles = getattr(image, "tile", [])
    if any(_raw_mode(tile) not in _OTHER_HALF for tile in tiles):
        raise UserError(f"{name}: got 16 bits a channel in an unusual layout, expected it as PNG (magick IN OUT.png)")
    with _opened(file) as other:
        swapped = [tile._replace(args=_swapped(tile.args)) for tile in tiles]
        other.tile = swapped  # type: ignore[attr-defined]  # only images that were opened from files have it
        low = _array(other).astype(np.uint16)
    return _array(image).astype(np.uint16) << np.uint16(8) | low


def _raw_mode(tile: Any) -> str:
    """How the bytes of a part of the image are laid out, in Pillow's words."""
    args = tile.args
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _swapped(args: Any) -> Any:
    """A decoder's arguments, of which the first or only one is the layout, for the other half of the bits."""
    return _OTHER_HALF[args] if isinstance(args, str) else (_OTHER_HALF[args[0]], *args[1:])
