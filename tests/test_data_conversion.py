"""What is done to images on their way in when it is asked for, small folders, and where each image is from."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from rasters import bmp

from davi.config import override, parse
from davi.data import DataConfig, DataSets, load, select
from davi.data.decoding import decode, strict
from davi.data.splitting import by_count, part_of
from davi.errors import UserError


def random(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(folder: Path, n: int, *shape: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(random(*(shape or (6, 5)), seed=i)).save(folder / f"{i:03}.png")
    return folder


def decoded(image: Image.Image, background: str | None = None, mode: str | None = None, **options: Any) -> Any:
    file = io.BytesIO()
    image.save(file, options.pop("form", "PNG"), **options)
    with strict():
        return decode(file, "x", background=background, mode=mode)


@pytest.mark.parametrize(("word", "shade"), [("white", 255), ("gray", 128), ("black", 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_put_on_the_background(word: str, shade: int, mode: str, form: str) -> None:
    values = random(7, 5, len(mode))
    if form == "WEBP" and mode == "LA":
        values = values[:, :, [0, 0, 0, 1]]  # the format has no gray
        mode = "RGBA"
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    found = decoded(Image.fromarray(values, mode), word, form=form, **options)
    alpha = values[:, :, -1:].astype(float) / 255
    want = alpha * values[:, :, :-1] + (1 - alpha) * shade
    assert found.levels == 256
    assert found.values.shape == want.shape
    assert np.abs(found.values - want).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("extra", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "layout", [{}, {"compression": "zlib", "predictor": True}, {"byteorder": ">"}, {"tile": (16, 16)}], ids=str
)
def test_a_transparent_tiff_is_put_on_the_background(extra: str, channels: int, layout: dict[str, Any]) -> None:
    values = random(7, 5, channels + 1)
    alpha = values[:, :, -1:].astype(float) / 255
    if extra == "assocalpha":
        values[:, :, :-1] = np.rint(values[:, :, :-1] * alpha)
        want = values[:, :, :-1] + (1 - alpha) * 128
    else:
        want = values[:, :, :-1] * alpha + (1 - alpha) * 128
    file = io.BytesIO()
    form: Any = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(file, values, photometric=form, extrasamples=[extra], planarconfig="contig", **layout)
    with strict():
        found = decode(file, "x", background="gray")
        assert found.levels == 256
        assert np.abs(found.values - want).max() <= 0.5 + 1e-9
        with pytest.raises(UserError, match=r"^x: got a TIFF file with a transparency, .*--data\.background white\)$"):
            decode(file, "x")


@pytest.mark.parametrize(
    ("depth", "options"),
    [(np.uint16, {"planarconfig": "contig"}), (np.uint8, {"planarconfig": "separate"})],
    ids=["16 bits", "planes"],
)
def test_other_transparent_tiffs_are_refused(depth: type, options: dict[str, Any]) -> None:
    values: NDArray[Any] = random(7, 5, 4).astype(depth)
    values = np.moveaxis(values, -1, 0) if options["planarconfig"] == "separate" else values
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", extrasamples=["unassalpha"], **options)
    with strict(), pytest.raises(UserError, match=r"^x: got a TIFF file with a transparency in an unusual layout, exp"):
        decode(file, "x", background="white")


@pytest.mark.parametrize("masks", [(), (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF000000, 0xFF0000, 0xFF00, 0xFF)])
def test_a_transparent_bmp_is_put_on_the_background(masks: tuple[int, ...]) -> None:
    values = random(7, 5, 4)
    blue_first = values[:, :, [2, 1, 0, 3]]
    stored = blue_first if not masks or masks[3] > 0xFF else np.roll(blue_first, 1, 2)  # the lowest byte first
    content = bmp(stored, 32, header=108, compression=3, masks=masks) if masks else bmp(stored, 32)
    alpha = values[:, :, 3:].astype(float) / 255
    want = values[:, :, :3] * alpha + (1 - alpha) * 255
    with strict():
        found = decode(io.BytesIO(content), "x", background="white")
        assert np.abs(found.values - want).max() <= 0.5 + 1e-9
        with pytest.raises(UserError, match=r"^x: got a transparency \(a fourth channel\), .*--data\.background white"):
            decode(io.BytesIO(content), "x")


def test_transparent_colors_and_indices() -> None:
    color = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decoded(color, "white", transparency=(1, 2, 3)).values.tolist() == [[[255, 255, 255], [4, 5, 6]]]
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    indexed.putpalette([9, 9, 9, 7, 7, 7])
    assert decoded(indexed, "black", transparency=0).values.tolist() == [[[0], [7]]]  # all grays
    for image in (Image.fromarray(random(3, 3).astype(np.uint16)), Image.new("1", (3, 3))):
        with pytest.raises(UserError, match=r"^x: got a transparency in a file that has no 8 bits a channel, expected"):
            decoded(image, "white", transparency=0)


def test_an_opaque_file_stays_what_it_is() -> None:
    image = Image.fromarray(random(6, 4, 3))
    assert np.array_equal(decoded(image, "white").values, np.asarray(image))
    pictures = [Image.fromarray(random(4, 4, 4, seed=seed)) for seed in range(2)]
    with pytest.raises(UserError, match=r"got 2 frames, expected one"):
        decoded(pictures[0], "white", form="WEBP", save_all=True, append_images=pictures[1:], lossless=True)


def test_modes() -> None:
    color, gray = Image.fromarray(random(6, 4, 3)), Image.fromarray(random(6, 4))
    assert np.array_equal(decoded(color, mode="gray").values[:, :, 0], np.asarray(color.convert("L")))
    assert np.array_equal(decoded(gray, mode="rgb").values, np.asarray(gray.convert("RGB")))
    assert np.array_equal(decoded(color, mode="rgb").values, np.asarray(color))
    assert np.array_equal(decoded(gray, mode="gray").values[:, :, 0], np.asarray(gray))
    bits = decoded(Image.fromarray(random(6, 4) > 127), mode="rgb")
    assert (bits.levels, set(np.unique(bits.values))) == (256, {0, 255})


def test_a_mixed_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 20)
    fill(folder / "color", 20, 6, 5, 3)
    for mode, channels in (("rgb", 3), ("gray", 1)):
        sets = load(DataConfig(set=str(folder), mode=mode))  # type: ignore[arg-type]  # one of the two
        assert sets.shape == (channels, 6, 5)
        assert sets.protocol["mode"] == mode
    assert "mode" not in load(DataConfig(set=str(folder / "color"))).protocol


@pytest.mark.parametrize("given", ["32", "32,32", "[32,32]", "[32, 32]", "'32, 32'", "[32]"])
@pytest.mark.parametrize("option", ["crop", "resize", "patches"])
def test_a_size_is_read_in_every_form(option: str, given: str) -> None:
    config = parse(DataConfig, override({}, [f"{option}={given}"]), "here")
    assert getattr(config, option) == (32, 32)


@pytest.mark.parametrize("given", ["big", "1,2,3", "1.5", "true", "[a, b]", "{}", "''", "32x32"])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"^here: patches: got .*, expected a size in pixels: 32, or H,W$"):
        parse(DataConfig, override({}, [f"patches={given}"]), "here")


def test_words_in_either_spelling() -> None:
    config = parse(DataConfig, {"mode": "grey", "background": "grey"}, "here")
    assert (config.mode, config.background) == ("gray", "gray")
    with pytest.raises(UserError, match="here: background: got 'pink', expected one of white, gray, black or null"):
        parse(DataConfig, {"background": "pink"}, "here")


# Small folders


def test_a_split_by_count() -> None:
    digests = [bytes([i]) * 32 for i in (9, 200, 3, 77, 150, 3)]  # five different ones
    found = by_count(digests, 0.1, 0.1)
    ordered = [found[bytes([i]) * 32] for i in (3, 9, 77, 150, 200)]
    assert ordered == ["test", "train", "train", "train", "validation"]
    assert list(by_count(digests, 0.4, 0.0).values()) == ["test", "test", "train", "train", "train"]
    assert list(by_count(digests, 0.999, 0.999).values()) == ["test", "test", "test", "train", "validation"]
    assert list(by_count(digests, 0.0, 0.5).values()).count("validation") == 2
    with pytest.raises(ValueError, match="got 2 different images, expected at least 3"):
        by_count(digests[:2], 0.1, 0.1)


@pytest.mark.parametrize("validation", [0.0, 0.1])
@pytest.mark.parametrize("n", [3, 4, 7])
def test_no_split_of_a_small_folder_is_empty(tmp_path: Path, n: int, validation: float) -> None:
    sets = load(DataConfig(set=str(fill(tmp_path / "set", n)), validation=validation))
    counts = sets.protocol["counts"]
    assert sum(counts.values()) == n
    assert min(counts["train"], counts["test"]) > 0
    assert bool(counts["validation"]) == bool(validation)


def test_a_split_by_content_stays_what_it_was(tmp_path: Path) -> None:
    """Where no split is empty, each file is where its hash puts it."""
    folder = fill(tmp_path / "set", 40)
    sets = load(DataConfig(set=str(folder), validation=0.1))
    assert "split by count" not in sets.told
    record = {name: part for part in ("train", "validation", "test") for name in getattr(sets, part).files}
    for path in folder.iterdir():
        digest = hashlib.sha256(b"6 5 1 256\n" + np.asarray(Image.open(path)).tobytes()).digest()
        assert record[path.name] == part_of(digest, 0.1, 0.1)


def test_too_few_images(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 1)
    Image.open(folder / "000.png").save(folder / "copy.png")
    with pytest.raises(UserError, match=r"got 1 different image, expected at least 2, one each for test and train$"):
        load(DataConfig(set=str(folder)))


def test_what_is_said_of_patches(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 24, 40, 30)
    config = DataConfig(set=str(folder), patches=(10, 10), validation=0.1)
    sets = load(config)
    files = sets.protocol["files"]
    patches = "/".join(str(12 * files[part]) for part in ("train", "validation", "test"))
    counts = "/".join(str(files[part]) for part in ("train", "validation", "test"))
    assert sets.told.startswith(f"{counts} files, {patches} patches (training/validation/test): 24 images of set")
    assert select(config, "all").told == f"all 288 patches of 24 files of {folder}"


# Where images are from


def names(sets: DataSets) -> set[str]:
    return {name for images in (sets.train, sets.test) for name in images.files}


def test_every_image_knows_its_file(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 30)
    fill(folder / "deep", 3, 6, 5)
    sets = load(DataConfig(set=str(folder)))
    assert names(sets) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    for i, name in enumerate(sets.train.files):
        assert np.array_equal(sets.train.pixels[i, 0].numpy(), np.asarray(Image.open(folder / name)))
    some = sets.train.subset([3, 1])
    assert some.files == (sets.train.files[3], sets.train.files[1])
    assert sets.train.subset(slice(1, 3)).files == sets.train.files[1:3]
    assert load(DataConfig(set="digits")).train.files == ()


def test_every_patch_knows_its_place(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 12, 9, 14)
    Image.fromarray(random(20, 8, seed=99)).save(folder / "tall.png")
    images = select(DataConfig(set=str(folder), patches=(4, 5)), "all").images
    assert images.corners is not None
    for pixels, name, (top, left) in zip(images.pixels, images.files, images.corners.tolist(), strict=True):
        whole = np.asarray(Image.open(folder / name))
        assert np.array_equal(pixels[0].numpy(), whole[top : top + 4, left : left + 5])
    assert images.corners[images.corners.shape[0] - 5 :].tolist() == [[4 * i, 0] for i in range(5)]


def test_one_file_is_a_set(tmp_path: Path) -> None:
    path = fill(tmp_path / "set", 3) / "001.png"
    chosen = select(DataConfig(set=str(path)))
    assert (len(chosen.images), chosen.images.files) == (1, ("001.png",))
    with pytest.raises(UserError, match="got 1 different image, expected at least 2"):
        load(DataConfig(set=str(path)))


def test_a_remedy_is_said_once(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 10)
    for i in range(2):
        Image.new("RGBA", (6, 5), (i, 0, 0, 9)).save(folder / f"clear{i}.png")
    Image.new("LA", (6, 5)).save(folder / "clear9.png")
    with pytest.raises(UserError) as caught:
        load(DataConfig(set=str(folder)))
    said = str(caught.value)
    assert said.count("magick") == said.count("--data.background") == 1
    assert all(f"clear{i}.png" in said for i in (0, 1, 9))
    sets = load(DataConfig(set=str(folder), skip_unreadable=True))
    assert " ".join(sets.notes).count("magick") == 1
