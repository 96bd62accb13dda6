"""Folders of images: every format and depth, sizes, splits by content, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from davi.cli import main
from davi.data import DataConfig, DataSets, Images, load
from davi.data.decoding import Picture, decode, strict
from davi.data.fitting import Fit
from davi.data.splitting import content_digest, part_of
from davi.errors import UserError

Array = NDArray[Any]


def random(*shape: int, levels: int = 256, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, levels, shape, dtype=np.uint16 if levels > 256 else np.uint8)


def decoded(content: bytes, name: str = "image") -> Picture:
    with strict():
        return decode(io.BytesIO(content), name)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: Array, color: int) -> bytes:
    """A PNG file of 16 bits by the words of its specification, each row with the next of the five filters."""
    height, width = values.shape[:2]
    data = values.astype(">u2").tobytes()
    stride, pixel = len(data) // height, len(data) // (height * width)
    above, rows = bytes(stride), b""
    for y in range(height):
        row = data[y * stride : (y + 1) * stride]
        out = bytearray([y % 5])
        for i, x in enumerate(row):
            a, b, c = (row[i - pixel] if i >= pixel else 0), above[i], (above[i - pixel] if i >= pixel else 0)
            p = a + b - c
            paeth = min((a, b, c), key=lambda v: abs(p - v))  # the first of equals, as the specification has it
            out.append((x - (0, a, b, (a + b) // 2, paeth)[y % 5]) % 256)
        above, rows = row, rows + bytes(out)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: Array, order: str, packed: bool) -> bytes:
    """A color TIFF file of 16 bits by the words of its specification: one strip, as it is or packed (Deflate)."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if packed else data
    data += bytes(len(data) % 2)
    end = 8 + len(data)
    tags = [(256, width), (257, height), (258, end + 2 + 12 * 10 + 4), (259, 8 if packed else 1), (262, 2), (273, 8)]
    tags += [(277, channels), (278, height), (279, len(data)), (284, 1)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags if tag != 258)
    bits = struct.pack(f"{order}HHII", 258, 3, channels, tags[2][1])
    directory = struct.pack(f"{order}H", len(tags)) + entries[:24] + bits + entries[24:] + bytes(4)
    magic = b"II" if order == "<" else b"MM"
    return magic + struct.pack(f"{order}HI", 42, end) + data + directory + struct.pack(f"{order}3H", 16, 16, 16)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_eight_bits_are_kept(form: str, shape: tuple[int, ...]) -> None:
    values = random(*shape)
    picture = decoded(saved(Image.fromarray(values), form, **({"lossless": True} if form == "WEBP" else {})))
    expected = values if values.ndim == 3 else values[:, :, None]
    if form == "WEBP":  # has no gray of its own
        expected = np.broadcast_to(expected, (5, 7, 3))
    assert picture.levels == 256
    assert picture.values.dtype == np.uint8
    assert np.array_equal(picture.values, expected)


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 3)])
def test_jpeg_is_what_pillow_decodes(shape: tuple[int, ...]) -> None:
    content = saved(Image.fromarray(random(*shape)), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(content))).reshape(*shape[:2], -1)
    assert np.array_equal(decoded(content).values, expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_of_gray_are_kept(form: str) -> None:
    values = random(6, 9, levels=65536)
    picture = decoded(saved(Image.fromarray(values), form))
    assert (picture.levels, picture.values.dtype) == (65536, np.dtype(np.uint16))
    assert np.array_equal(picture.values[:, :, 0], values)


@pytest.mark.parametrize("kind", ["png", "<", ">", "< packed", "> packed"])
def test_sixteen_bits_of_color_are_kept(kind: str) -> None:
    values = random(11, 9, 3, levels=65536)
    picture = decoded(png(values, 2) if kind == "png" else tiff(values, kind[0], "packed" in kind))
    assert picture.levels == 65536
    assert np.array_equal(picture.values, values)


def test_one_bit_has_two_levels() -> None:
    values = random(5, 11, levels=2)
    for form in ("PNG", "TIFF", "BMP"):
        picture = decoded(saved(Image.fromarray(values.astype(bool)), form))
        assert picture.levels == 2
        assert np.array_equal(picture.values[:, :, 0], values)


def test_indexed_images_have_the_channels_of_their_colors() -> None:
    indices = random(6, 6, levels=3)
    for colors, channels in (([[9, 9, 9], [50, 50, 50], [7, 7, 7]], 1), ([[9, 8, 9], [50, 0, 50], [7, 7, 7]], 3)):
        image = Image.fromarray(indices)
        image.putpalette(np.ravel(colors).tolist())
        assert image.mode == "P"
        picture = decoded(saved(image, "PNG"))
        assert np.array_equal(picture.values, np.asarray(colors)[indices][:, :, :channels])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(orientation: int) -> None:
    values = random(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.swapaxes(0, 1),
        6: np.rot90(values, -1),
        7: values[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(values),
    }[orientation]
    for form in ("PNG", "TIFF"):
        picture = decoded(saved(Image.fromarray(values), form, exif=exif))
        assert np.array_equal(picture.values, turned)


def animated() -> bytes:
    frames = [Image.fromarray(random(8, 8, 3, seed=seed)) for seed in range(3)]
    return saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


def pages() -> bytes:
    return saved(Image.fromarray(random(4, 4)), "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))])


def bomb(side: int) -> bytes:
    """A PNG that promises side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def broken_checksum() -> bytes:
    content = bytearray(saved(Image.fromarray(random(30, 30)), "PNG"))
    content[-14] ^= 1  # in the checksum of the pixels: their values are whole
    return bytes(content)


REFUSED: dict[str, tuple[bytes, str]] = {
    "rgba": (saved(Image.new("RGBA", (4, 4)), "PNG"), r"transparency \(RGBA\), expected none \(flatten it: magick"),
    "gray alpha": (saved(Image.new("LA", (4, 4)), "PNG"), "flatten it"),
    "transparent color": (saved(Image.new("RGB", (4, 4)), "PNG", transparency=(0, 0, 0)), "flatten it"),
    "transparent index": (saved(Image.new("P", (4, 4)), "PNG", transparency=0), "flatten it"),
    "16-bit rgba": (png(random(3, 3, 4, levels=65536), 6), "flatten it"),
    "cmyk": (saved(Image.new("CMYK", (4, 4)), "JPEG"), "CMYK, expected gray or RGB"),
    "float": (saved(Image.new("F", (4, 4)), "TIFF"), "floating-point values"),
    "lab": (saved(Image.new("LAB", (4, 4)), "TIFF"), "CIE Lab, expected gray or RGB"),
    "signed": (saved(Image.fromarray(np.full((4, 4), 5, np.int32)), "TIFF"), "signed or unknown integers of 32 bits"),
    "animated": (animated(), "3 frames, expected one"),
    "pages": (pages(), "2 frames"),
    "gif": (saved(Image.new("L", (4, 4)), "GIF"), "got something else, expected a PNG"),
    "text": (b"hello", "got something else"),
    "empty": (b"", "got something else"),
    "truncated": (saved(Image.fromarray(random(40, 40)), "PNG")[:800], "cannot be read"),
    "truncated jpeg": (saved(Image.fromarray(random(64, 64)), "JPEG")[:900], "truncated"),
    "checksum": (broken_checksum(), "cannot be read"),
    "bomb": (bomb(100_000), r"promises too many pixels, .* expected at most \d+"),
    "bomb of which Pillow only warns": (bomb(10_000), r"promises too many pixels, .* expected at most \d+"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    content, match = REFUSED[case]
    with pytest.raises(UserError, match=match) as caught:
        decoded(content, "bad image")
    assert str(caught.value).startswith("bad image: ")
    assert "\n" not in str(caught.value)


def test_of_a_photograph_with_previews_the_first_picture_is_taken() -> None:
    first, second = (Image.fromarray(random(16, 16, 3, seed=seed)) for seed in range(2))
    content = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(decoded(content).values, np.asarray(Image.open(io.BytesIO(content))))
    assert Image.open(io.BytesIO(content)).format == "MPO"


def test_fits() -> None:
    values = random(7, 10, 3)
    assert np.array_equal(Fit("crop", (4, 4))(values, 256, "x"), values[None, 1:5, 3:7])
    patches = Fit("patches", (3, 4))(values, 256, "x")
    corners = [(0, 0), (0, 4), (3, 0), (3, 4)]
    assert np.array_equal(patches, [values[top : top + 3, left : left + 4] for top, left in corners])
    for how in ("crop", "patches"):
        with pytest.raises(
            UserError, match=f"data.{how}: got 4 wide, 8 high, expected no more than 10 wide, 7 high, the size of x"
        ):
            Fit(how, (8, 4))(values, 256, "x")
    with pytest.raises(UserError, match=r"data\.resize: got \[0, 4\], expected"):
        Fit("resize", (0, 4))
    for size in ((100_000, 100_000), (10**12, 10**12)):
        with pytest.raises(UserError, match=r"data\.resize: got .*, expected at most \d+ pixels"):
            Fit("resize", size)


def test_resizing() -> None:
    """Of 8 bits as Pillow does it by itself, to the last rounding; a straight ramp stays one with 16 bits as well."""
    values = random(40, 60, 3)
    ours = Fit("resize", (10, 10))(values, 256, "x")[0]
    theirs = np.asarray(ImageOps.fit(Image.fromarray(values), (10, 10), Image.Resampling.LANCZOS))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.array_equal(Fit("resize", (40, 60))(values, 256, "x")[0], values)
    ramp = np.tile(np.arange(400, dtype=np.uint16) * 100, (200, 1))[:, :, None]
    halved = Fit("resize", (100, 200))(ramp, 65536, "x")[0, :, :, 0]
    # Pixel j of the half is centered at 2j + 1/2; away from the ends a symmetric filter keeps a ramp, +-1 by rounding.
    assert np.abs(halved[:, 5:-5].astype(int) - (np.arange(200) * 200 + 50)[5:-5]).max() <= 1
    edge = np.repeat(np.asarray([0, 255], np.uint8), 50)[None, :, None].repeat(20, 0)
    assert Fit("resize", (10, 50))(edge, 256, "x").max() == 255  # the overshoot is cut off, not wrapped


def fill(folder: Path, n: int = 40, shape: tuple[int, ...] = (6, 5), levels: int = 256, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        Image.fromarray(random(*shape, levels=levels, seed=i)).save(folder / f"{i:03}.png")
    return folder


def rows(images: Images | None) -> set[bytes]:
    assert images is not None
    return {image.numpy().tobytes() for image in images.pixels}


def read(folder: Path, **options: Any) -> DataSets:
    return load(DataConfig(set=str(folder), **options))


@pytest.mark.parametrize(("shape", "levels"), [((6, 5), 256), ((6, 5, 3), 256), ((5, 7), 65536)])
def test_a_folder(tmp_path: Path, shape: tuple[int, ...], levels: int) -> None:
    folder = fill(tmp_path / "set", shape=shape, levels=levels)
    fill(folder / "deeper" / "down", 10, shape, levels, first=40)
    (folder / "notes.txt").write_text("not an image")
    fill(folder / ".hidden", 3, shape, levels, first=90)
    (folder / "loop").symlink_to(folder)
    sets = read(folder, validation=0.2)
    channels = shape[2] if len(shape) == 3 else 1
    assert sets.shape == (channels, *shape[:2])
    assert sets.levels == levels
    assert sets.notes == (f"50 images found in {folder}",)
    stored = torch.uint8 if levels == 256 else torch.int32
    parts: dict[str, list[Array]] = {"train": [], "validation": [], "test": []}
    # numpy arrays in the order of relative paths, where the digits come before the folder
    for i in range(50):
        values = random(*shape, levels=levels, seed=i).reshape(*shape[:2], channels)
        parts[part_of(content_digest(values, levels), 0.1, 0.2)].append(values.transpose(2, 0, 1))
    for name, images in (("train", sets.train), ("validation", sets.validation), ("test", sets.test)):
        assert images is not None
        assert images.pixels.dtype == stored
        assert np.array_equal(images.pixels.numpy(), parts[name])
        sha = hashlib.sha256(np.asarray(parts[name]).astype("u1" if levels == 256 else "<i4").tobytes()).hexdigest()
        assert sets.protocol[f"{name}_sha256"] == sha
    assert sets.protocol["files"] == {name: len(images) for name, images in parts.items()}
    assert (sets.protocol["test_fraction"], sets.protocol["unreadable"], sets.protocol["fit"]) == (0.1, 0, None)


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.floats(0.01, 0.99), st.floats(0, 0.99), st.floats(0, 0.99))
def test_the_split_is_a_function_of_the_content(digest: bytes, test: float, some: float, more: float) -> None:
    """Asking for validation images moves none to or from the test set, and asking for more takes none back."""
    low, high = sorted((some, more))
    parts = [part_of(digest, test, validation) for validation in (0.0, low, high)]
    assert (parts[0] == "test") == (parts[1] == "test") == (parts[2] == "test")
    assert not (parts[1] == "validation" and parts[2] == "train")
    u = int.from_bytes(digest[:8], "big") / 2**64
    assert (parts[0] == "test") == (u < test)


def test_fractions_of_the_split() -> None:
    parts = [part_of(hashlib.sha256(bytes([i % 256, i // 256])).digest(), 0.2, 0.25) for i in range(5000)]
    for part, share in (("test", 0.2), ("validation", 0.2), ("train", 0.6)):
        # five standard deviations of a binomial share
        assert abs(parts.count(part) / 5000 - share) < 5 * (share * (1 - share) / 5000) ** 0.5


def test_nothing_moves_when_files_come_go_or_are_renamed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 60)
    before = read(folder, validation=0.2)
    fill(folder / "more", 40, first=60)
    for i in range(0, 60, 2):
        (folder / f"{i:03}.png").rename(folder / f"z{i}.png")
    image = Image.open(folder / "001.png")
    image.save(folder / "001.tif")  # the same pixels in another form
    (folder / "003.png").unlink()
    after = read(folder, validation=0.2)
    gone = random(6, 5, seed=3)[None].tobytes()
    for name in ("train", "validation", "test"):
        assert rows(getattr(before, name)) - {gone} <= rows(getattr(after, name))
    assert not rows(after.train) & rows(after.test)
    assert sum(after.protocol["files"].values()) == 60 + 40 - 1 + 1


def test_folders_that_say_their_splits(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for part, first in (("train", 0), ("test", 20), ("val", 40)):
        fill(folder / part, 20, first=first)
    fill(folder / "test", 1, first=0)  # also a training image
    sets = read(folder)
    assert sets.protocol["counts"] == {"train": 19, "validation": 20, "test": 21}
    assert "; 1 copies of images of another split left out" in sets.protocol["split"]
    assert sets.protocol["test_fraction"] is None
    assert rows(sets.validation) == {random(6, 5, seed=i).tobytes() for i in range(40, 60)}
    with pytest.raises(UserError, match=r"data\.validation: got 0\.1, expected 0: .* has its own validation images"):
        read(folder, validation=0.1)
    two = load(DataConfig(set=str(folder / "train"), test=str(folder / "val"), validation=0.3))
    assert (len(two.train) + two.protocol["counts"]["validation"], len(two.test)) == (20, 20)
    assert rows(two.test) == rows(sets.validation)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (("train", "val"), r"has train/ and val/ but no test/"),
        (("train", "test", "other"), r"has other/000\.png beside train/ and test/"),
        (("train", "test", "val", "valid"), r"has val/ and valid/, which stand for the same split"),
    ],
)
def test_sub_folders_that_could_be_misunderstood(tmp_path: Path, parts: tuple[str, ...], match: str) -> None:
    for part in parts:
        fill(tmp_path / part, 2)
    with pytest.raises(UserError, match=match):
        read(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for first, name in enumerate(("train", "car", "plane")):
        fill(tmp_path / "set" / name, 20, first=20 * first)
    assert sum(read(tmp_path / "set").protocol["files"].values()) == 60


def test_mixed_sizes_need_a_choice(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 30, (9, 8, 3))
    fill(folder, 30, (12, 16, 3), first=30)
    with pytest.raises(UserError) as caught:
        read(folder)
    for words in (
        "000.png is 8 wide, 9 high",
        "030.png is 16 wide, 12 high",
        "data.crop",
        "data.resize",
        "data.patches",
    ):
        assert words in str(caught.value)
    crop, resize, patches = (read(folder, **{how: (4, 8)}) for how in ("crop", "resize", "patches"))
    assert crop.shape == resize.shape == patches.shape == (3, 4, 8)
    # 9x8 holds 2 x 1 patches, 12x16 holds 3 x 2
    files = patches.protocol["files"]
    assert len(patches.train) + len(patches.test) == 30 * 2 + 30 * 6
    assert crop.protocol["files"] == files  # the split does not depend on what is cut
    assert not rows(patches.train) & rows(patches.test)
    assert (crop.protocol["fit"], patches.protocol["fit"]) == ("centre of 4x8", "patches of 4x8")
    assert patches.protocol["test_order"] == "by relative path, patches row by row"
    with pytest.raises(
        UserError,
        match=r"data\.crop: got 8 wide, 10 high, expected no more than 8 wide, 9 high, the size of .*000\.png",
    ):
        read(folder, crop=(10, 8))
    with pytest.raises(
        UserError, match=r"data\.crop: got data\.patches as well, expected one of crop, resize, patches"
    ):
        read(folder, crop=(4, 4), patches=(4, 4))


def test_mixed_kinds_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 5)
    fill(folder, 1, (6, 5, 3), first=5)
    with pytest.raises(
        UserError, match=r"000\.png is gray of 256 levels, .*005\.png is color of 256 levels, .*--data\.mode rgb"
    ):
        read(folder)
    fill(folder, 1, (6, 5), 65536, first=5)
    with pytest.raises(
        UserError, match=r"000\.png is gray of 256 levels, .*005\.png is gray of 65536 levels, .*magick"
    ):
        read(folder)


def test_unreadable_images_stop_or_are_counted(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 40)
    for i in range(5):
        (folder / f"bad{i}.png").write_bytes(REFUSED["text"][0])
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "absent.png")
    with pytest.raises(UserError) as caught:
        read(folder)
    message = str(caught.value)
    assert f"7 of 47 images in {folder} cannot be read (--skip-unreadable leaves them out): " in message
    assert "bad2.png: got something else" in message
    assert message.count("got something else") == 1  # of three files
    assert message.endswith("; and 4 more")
    sets = read(folder, skip_unreadable=True)
    assert (sets.protocol["unreadable"], sum(sets.protocol["files"].values())) == (7, 40)
    assert "7 unreadable images left out: " in sets.notes[1]
    with pytest.raises(UserError, match="7 of 47 images"):
        read(folder)  # also when the others are decoded already
    (tmp_path / "bad").mkdir()
    for i in range(2):
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of 2 images"):
        read(tmp_path / "bad", skip_unreadable=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"validation": 10}, r"data\.validation: got 10 for a folder of images, expected a fraction"),
        ({"test_fraction": 1.0}, r"data\.test_fraction: got 1\.0, expected a fraction between 0 and 1"),
        ({"levels": 17}, r"data\.levels: got 17, expected 256: set/train holds the values \d+ to 255 of 256 levels"),
        ({"memory": -1.0}, r"data\.memory: got -1\.0, expected"),
        ({"test": "absent"}, r"data\.test: got .*absent, expected another folder of images"),
        ({"test": "a\0b"}, r"data\.test: got 'a\\x00b', expected a path"),
        ({"cache": "a\0b"}, r"data\.cache: got 'a\\x00b', expected a path"),
        ({"root": "a\0b"}, r"data\.root: got 'a\\x00b', expected a path"),
        ({"crop": (0, 3)}, r"data\.crop: got \[0, 3\], expected \[H, W\] of at least 1"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    folder = fill(tmp_path / "set", 12)
    with pytest.raises(UserError, match=match) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"data\.set: found no images in .*, expected files with the endings \.bmp"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"data\.crop: got \[4, 4\], expected nothing: digits is no folder"):
        load(DataConfig(crop=(4, 4)))


def test_binarized_validation_images_are_drawn_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 60)
    sets = read(folder, validation=0.3, binarization="dynamic")
    assert sets.validation is not None
    assert (sets.train.levels, sets.validation.levels, sets.test.levels) == (256, 2, 2)
    again = read(folder, validation=0.3, binarization="dynamic").validation
    assert again is not None
    assert torch.equal(sets.validation.pixels, again.pixels)
    fill(tmp_path / "color", 30, (6, 5, 3))
    with pytest.raises(
        UserError, match=r"data\.binarization: got 'dynamic' for images of 3 channels .*likelihood.family log"
    ):
        read(tmp_path / "color", binarization="dynamic")


@pytest.mark.parametrize(("shape", "levels"), [((9, 14, 3), 256), ((7, 5), 65536)])
def test_a_recipe_trains_on_any_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...], levels: int
) -> None:
    folder = fill(tmp_path / "set", 50, shape, levels)
    run = str(tmp_path / "run")
    words = ["train", "attentive_digits_tiny", "--data", str(folder), "--run", run, "--training.steps", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "data.validation: 0.05 in place of the recipe's 64 images, which are of digits" in said
    assert f"data: 50 images found in {folder}" in said
    assert f"{'x'.join(map(str, (*shape[2:], *shape[:2]) if len(shape) == 3 else (1, *shape)))} with {levels}" in said
    assert main(["evaluate", run, "--split", "validation"]) == 0
    assert main(["evaluate", run, "--data", str(folder), "--skip-unreadable"]) == 0


def test_what_is_said_of_a_folder_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files are others' words: they neither begin a line nor clear the screen."""
    folder = fill(tmp_path / os.fsdecode(b"set\xff"), 50)
    (folder / "a\ndavi: \x1b[2J.png").write_bytes(b"")
    run = tmp_path / "run"
    words = ["train", "attentive_digits_tiny", "--data", str(folder), "--run", str(run), "--training.steps", "1"]
    assert main([*words, "--skip-unreadable"]) == 0
    said = capsys.readouterr().out.splitlines()
    (line,) = [line for line in said if "left out" in line]
    assert r"a davi: \x1b[2J.png: got something else" in line
    assert main(["inspect", str(run), "--limit", "2", "--importance-samples", "2", "--no-figures"]) == 0
    assert r"set\udcff" in (run / "inspection.html").read_text(encoding="utf-8")


def test_recipes_with_a_fixed_padding_say_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "set", 80, (13, 17, 3))
    assert main(["train", "attentive_cifar10", "--data", str(folder), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "pad: got 0, which makes 13x17; expected multiples of 2; --model.pad null adds as much" in said


def test_recipes_of_binary_images_name_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "attentive_mnist", "--run", str(tmp_path / "run"), "--data"]
    assert main([*words, str(fill(tmp_path / "color", 80, (6, 5, 3)))]) == 2
    said = capsys.readouterr()
    assert said.out == ""  # nothing has begun
    assert "data.binarization: got 'dynamic'" in said.err
    assert "--data.binarization none" in said.err
    assert "--model.likelihood.family logistic_mixture" in said.err
    assert said.err.count("\n") == 1
    assert main([*words, str(fill(tmp_path / "gray", 80)), "--data.binarization", "none"]) == 2
    said = capsys.readouterr()
    assert "--model.likelihood.family logistic_mixture takes any" in said.err
    assert said.err.count("\n") == 1
    folder = tmp_path / "own"
    for part, first in (("train", 0), ("test", 20), ("valid", 40)):
        fill(folder / part, 20, first=first)
    assert main([*words, str(folder), "--training.steps", "1", "--model.width", "4"]) == 0
    assert f"data.validation: 0 in place of the recipe's 1000; {folder} has its own" in capsys.readouterr().out
    (folder / "test").rename(tmp_path / "other")
    assert main([*words[:-3], "--plan", "--data", str(folder), "--data.test", str(tmp_path / "other")]) == 0
    assert f"data.validation: 0 in place of the recipe's 1000; {folder} has its own" in capsys.readouterr().out
