"""Which images are trained on and which are measured: sub-folders, test images within, copies, all images of a set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davi.data import DataConfig, Images, load, repeated, select
from davi.errors import UserError


def random(n: int, seed: int = 0, side: int = 6, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (n, side, side), dtype=np.uint8)


def fill(folder: Path, images: np.ndarray, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start=first):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


def rows(images: Images | None) -> set[bytes]:
    assert images is not None
    return {image.numpy().tobytes() for image in images.pixels}


def of(*arrays: np.ndarray) -> set[bytes]:
    return {image.tobytes() for array in arrays for image in array}


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize(
    ("test", "validation"), [("test", "val"), ("Test", "Valid"), ("TESTING", "Validation"), ("testing", "dev")]
)
def test_sub_folders_in_any_case(tmp_path: Path, train: str, test: str, validation: str) -> None:
    images = {name: random(6, seed) for seed, name in enumerate((train, test, validation))}
    for name, own in images.items():
        fill(tmp_path / name, own)
    sets = load(DataConfig(set=str(tmp_path)))
    assert (rows(sets.train), rows(sets.test)) == (of(images[train]), of(images[test]))
    assert rows(sets.validation) == of(images[validation])
    assert sets.told.startswith("6 training, 6 validation and 6 test images: 18 images of ")
    assert f"sub-folders {train}/, {validation}/ and {test}/" in sets.told


def test_a_split_may_be_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", random(6))
    fill(tmp_path / "set" / "test", random(5, 1))
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    sets = load(DataConfig(set=str(tmp_path / "set")))
    assert (len(sets.train), len(sets.test)) == (6, 5)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (
            ("Train", "training", "test"),
            r"has Train/ and training/, which stand for the same split",
        ),
        (("Train", "dev"), r"has Train/ and dev/ but no test/, expected the test images there or by data\.test"),
        (("Testing", "cats"), r"has Testing/ but no train/, expected both, or --data\.test .*/Testing, which leaves"),
        (("test",), r"has test/ but no train/"),
        (("Train", "Test", "cats"), r"has cats/00\.png beside train/ and test/"),
    ],
)
def test_what_sub_folders_could_be_misunderstood(tmp_path: Path, parts: tuple[str, ...], match: str) -> None:
    for seed, part in enumerate(parts):
        fill(tmp_path / part, random(6, seed))
    with pytest.raises(UserError, match=match) as caught:
        load(DataConfig(set=str(tmp_path)))
    assert "\n" not in str(caught.value)
    if "data.test" in str(caught.value):  # the remedy works
        place = tmp_path / parts[0] if parts[0] == "Testing" else fill(tmp_path / "other" / "T", random(3, 9))
        if parts[0] == "Testing":
            assert rows(load(DataConfig(set=str(tmp_path), test=str(place))).train) == of(random(6, 1))
    assert len(select(DataConfig(set=str(tmp_path)), "all").images) >= 6 * len(parts)  # without a split all is plain


def test_test_images_given_beside_sub_folders(tmp_path: Path) -> None:
    """Training and validation folders stay what they are, and the other test folder is not trained on."""
    folder, other = tmp_path / "set", fill(tmp_path / "other", random(5, 9))
    for seed, part in enumerate(("train", "val")):
        fill(folder / part, random(6, seed))
    sets = load(DataConfig(set=str(folder), test=str(other)))
    assert (rows(sets.train), rows(sets.validation)) == (of(random(6, 0)), of(random(6, 1)))
    fill(folder / "Test", random(6, 2))
    again = load(DataConfig(set=str(folder), test=str(other)))
    assert again.protocol["train_sha256"] == sets.protocol["train_sha256"]
    assert f"images in {folder / 'Test'} are not used: data.test says which are for test" in again.notes
    assert again.test.name == "other/test"
    own = load(DataConfig(set=str(folder), test=str(folder / "Test")))
    assert (rows(own.train), rows(own.test)) == (of(random(6, 0)), of(random(6, 2)))


@pytest.mark.parametrize("deep", ["holdout", "some/where/holdout"])
def test_test_images_within_the_folder_are_not_trained_on(tmp_path: Path, deep: str) -> None:
    folder = fill(tmp_path / "all", random(8))
    fill(folder / deep, random(4, 1))
    fill(folder / f"{deep}-not", random(2, 2))  # the beginning of a name is another folder
    sets = load(DataConfig(set=str(folder), test=str(folder / deep)))
    assert (rows(sets.train), rows(sets.test)) == (of(random(8), random(2, 2)), of(random(4, 1)))
    assert (
        sets.told == "10 training and 4 test images: 14 images of all, those in holdout/ for test; no validation images"
    )
    (tmp_path / "link").symlink_to(folder / deep)
    linked = load(DataConfig(set=str(folder), test=str(tmp_path / "link")))
    assert linked.protocol["train_sha256"] == sets.protocol["train_sha256"]
    for test in (folder, tmp_path):
        with pytest.raises(UserError, match=r"data\.test: got .*, which holds all images of .*, expected other images"):
            load(DataConfig(set=str(folder), test=str(test)))


def test_copies_of_test_images_are_left_out(tmp_path: Path) -> None:
    """By content, whatever the file is called and whatever form it has; also of validation images, and while cut."""
    folder, test = fill(tmp_path / "train", random(8)), fill(tmp_path / "held", random(4, 1))
    Image.fromarray(random(4, 1)[0]).save(folder / "copy.tif")
    Image.fromarray(random(8)[2]).save(folder / "twice.png")  # within training: stays
    sets = load(DataConfig(set=str(folder), test=str(test)))
    assert sets.protocol["counts"] == {"train": 9, "validation": 0, "test": 4}
    assert rows(sets.train) == of(random(8))
    assert "1 copies of test or validation images are left out of training" in sets.notes
    cut = load(DataConfig(set=str(folder), test=str(test), patches=(3, 3), validation=0.4))
    assert cut.protocol["files"]["train"] + cut.protocol["files"]["validation"] == 9
    for part, seeds in (("train", (0, 1)), ("val", (1, 2)), ("test", (2,))):
        fill(tmp_path / "set" / part, np.concatenate([random(4, seed) for seed in seeds]))
    sets = load(DataConfig(set=str(tmp_path / "set")))
    assert [rows(part) for part in (sets.train, sets.validation, sets.test)] == [of(random(4, s)) for s in (0, 1, 2)]
    assert "; 8 copies of images of another split left out" in sets.protocol["split"]
    with pytest.raises(
        UserError, match=r"data\.test: got copies of all images that .* has for training, expected other"
    ):
        load(DataConfig(set=str(fill(tmp_path / "same", random(4, 1))), test=str(test)))


def test_copies_in_two_arrays_are_left_out(tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / f"{name}.npy") for name in ("first", "second", "third"))
    np.save(first, random(8))
    np.save(second, np.concatenate([random(3, 1), random(8)[2:4]]))
    np.save(third, np.concatenate([random(8), random(8)[:4]]))
    sets = load(DataConfig(set=first, test=second))
    assert (rows(sets.train), len(sets.test)) == (of(random(8)[[0, 1, 4, 5, 6, 7]]), 5)
    assert "2 training images are test images as well: left out of training" in sets.notes
    with pytest.raises(UserError, match=r"data\.test: got .*first\.npy, which holds all images of .*first\.npy"):
        load(DataConfig(set=first, test=first))
    # of one array the position decides; what that means is said
    assert "4 of the 4 test images are training images as well" in load(DataConfig(set=third, test_fraction=0.34)).notes


def test_repeated_images() -> None:
    pixels = torch.arange(20, dtype=torch.uint8).reshape(5, 1, 2, 2)
    images = Images(pixels, 256, "some")
    assert repeated(images, images.subset([3, 1])).tolist() == [False, True, False, True, False]
    assert not repeated(images, Images(pixels.reshape(5, 1, 1, 4), 256, "wide")).any()
    assert not repeated(images, Images(pixels, 20, "fewer levels")).any()


# All images of a set


def test_all_images_of_a_folder(tmp_path: Path) -> None:
    """Classes, and what would be refused as splits; of a folder with its own test images these, or all if asked for."""
    for seed, name in enumerate(("cats", "dogs")):
        fill(tmp_path / "classes" / name, random(4, seed))
    chosen = select(DataConfig(set=str(tmp_path / "classes")))
    assert (chosen.split, rows(chosen.images), chosen.train) == ("all", of(random(4), random(4, 1)), None)
    assert chosen.protocol["counts"] == {"all": 8}
    assert chosen.told == f"all 8 images of {tmp_path / 'classes'}"
    for seed, name in enumerate(("Train", "Test")):
        fill(tmp_path / "splits" / name, random(4, seed))
    config = DataConfig(set=str(tmp_path / "splits"))
    own = select(config)
    assert (own.split, rows(own.images)) == ("test", of(random(4, 1)))
    assert own.protocol == load(config).protocol
    whole = select(config, "all")
    assert np.array_equal(whole.images.pixels[:, 0].numpy(), np.concatenate([random(4, 1), random(4)]))  # Test, Train
    mapped = select(DataConfig(set=config.set, memory=0.0), "all")
    assert mapped.images.mapped
    assert torch.equal(mapped.images.pixels, whole.images.pixels)


def test_one_image_is_enough(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", random(1))
    fill(tmp_path / "one", random(1))
    for name in ("one.npy", "one"):
        chosen = select(DataConfig(set=str(tmp_path / name)))
        assert (chosen.images.name, chosen.split, rows(chosen.images)) == (name, "all", of(random(1)))


def test_all_images_are_drawn_as_those_of_a_test_file(tmp_path: Path) -> None:
    """So that an array of test images gives the same numbers whether it stands alone or beside training images."""
    for name, seed in (("train", 0), ("test", 1)):
        np.save(tmp_path / f"{name}.npy", random(9, seed))
    train, test = (str(tmp_path / f"{name}.npy") for name in ("train", "test"))
    beside = load(DataConfig(set=train, test=test, binarization="dynamic", binarization_seed=3))
    alone = select(DataConfig(set=test, binarization="dynamic", binarization_seed=3))
    assert torch.equal(alone.images.pixels, beside.test.pixels)
    assert alone.protocol["sha256"] == beside.protocol["test_sha256"]
    assert torch.equal(alone.stored.pixels[:, 0], torch.from_numpy(random(9, 1)))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("binarization", ["none", "static", "dynamic", "threshold"])
def test_a_split_is_that_of_load(tmp_path: Path, split: str, binarization: Any) -> None:
    np.save(tmp_path / "set.npy", random(40))
    config = DataConfig(set=str(tmp_path / "set.npy"), validation=9, binarization=binarization)
    sets, chosen = load(config), select(config, split)
    expected = getattr(sets, split)
    if split == "train" and binarization == "dynamic":  # drawn once, to be looked at
        assert chosen.images.levels == 2
        assert chosen.protocol["evaluated"] == "training images drawn once, seed 0"
        # five deviations of the sum of independent draws
        p = expected.pixels.double() / 255
        assert abs((chosen.images.pixels - p).sum()) < 5 * (p * (1 - p)).sum().sqrt()
    else:
        assert torch.equal(chosen.images.pixels, expected.pixels)
        assert chosen.protocol == sets.protocol
    places = {"train": slice(None, 27), "validation": slice(27, 36), "test": slice(36, None)}
    stored = np.load(tmp_path / "set.npy")[places[split]]
    assert sets.stored is not None
    assert len(sets.stored) == 27
    if split != "validation":
        assert np.array_equal(chosen.stored.pixels[:, 0].numpy(), stored)
    with pytest.raises(UserError, match="has no validation images"):
        select(DataConfig(set=config.set), "validation")


# Images that are binary already


BINARY = {
    "uint8": lambda x: x.astype(np.uint8),
    "uint16": lambda x: x.astype(np.uint16),
    "bool": lambda x: x.astype(bool),
    "1-bit files": lambda x: x.astype(bool),
    "8-bit files": lambda x: x.astype(np.uint8),
}


def binary(place: Path, kind: str) -> tuple[str, np.ndarray]:
    """A set that holds only 0 and 1; its path and its values."""
    bits = random(40, 3, levels=2)
    values = BINARY[kind](bits)
    if "files" in kind:
        return str(fill(place / "bits", values)), bits
    np.save(place / "bits.npy", values)
    return str(place / "bits.npy"), bits


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("binarization", ["static", "dynamic", "threshold"])
def test_what_is_binary_is_never_made_binary_again(tmp_path: Path, kind: str, binarization: Any) -> None:
    name, bits = binary(tmp_path, kind)
    with pytest.raises(UserError, match=r"data\.binarization: got .*, expected 'none': .*binary already") as caught:
        load(DataConfig(set=name, binarization=binarization))
    assert ("--data.binarization none --data.levels 2" in str(caught.value)) == (
        kind in ("uint8", "uint16", "8-bit files")
    )
    sets = load(DataConfig(set=name, levels=2))  # the remedy
    assert (sets.levels, sets.train.pixels.dtype) == (2, torch.uint8)
    assert rows(sets.train) | rows(sets.test) == of(bits)
    chosen = select(DataConfig(set=name, binarization=binarization), binary=True)
    assert (chosen.images.levels, rows(chosen.images)) == (2, of(bits))
    assert (chosen.protocol["binarization"], chosen.protocol["source_levels"]) == ("none", 2)
    assert any("holds only 0 and 1: taken as binary as it is" in note for note in chosen.notes)
    part = select(DataConfig(set=name, binarization=binarization, test_fraction=0.5), "test", binary=True)
    assert part.images.levels == 2
    assert rows(part.images) < of(bits)


@pytest.mark.parametrize("binarization", ["static", "dynamic", "threshold"])
def test_black_and_white_as_0_and_255_stays_what_it_is(tmp_path: Path, binarization: Any) -> None:
    """Bernoulli(0) and Bernoulli(255/255) are certain."""
    bits = random(20, 3, levels=2)
    np.save(tmp_path / "x.npy", bits * np.uint8(255))
    for images in (
        load(DataConfig(set=str(tmp_path / "x.npy"), binarization=binarization, test_fraction=0.9)).test,
        select(DataConfig(set=str(tmp_path / "x.npy"), binarization=binarization), binary=True).images,
    ):
        assert images.levels == 2
        assert np.array_equal(images.pixels[:, 0].numpy(), bits[-len(images) :])


# What is said about an array


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (random(9, levels=2), "holds 2 values, 0 to 1, and is read with 256 levels; .*, give --data.levels 2"),
        (random(90, levels=17), "holds 17 values, 0 to 16, and is read with 256 levels; .*, give --data.levels 17"),
        (random(90).astype(np.uint16), "holds 256 values, 0 to 255, .* 65536 levels; .*, give --data.levels 256"),
        (random(9, levels=2) * np.uint8(255), "2 values, 0 to 255, .*; .*, give --data.binarization threshold"),
        (random(90, levels=16) * np.uint8(17), "16 values, 0 to 255, .*; .* number them from 0 .* --data.levels 16"),
        (random(9)[..., None].repeat(3, 3), r"is read as \[N, H, W, C\]: 9 images, 6 wide, 6 high, 3 channels$"),
        (
            random(9, side=4)[:, None].repeat(3, 1),
            r"is read as \[N, H, W, C\]: 9 images, 4 wide, 3 high, 4 channels; if it is \[N, C, H, W\], save x\.tr",
        ),
    ],
    ids=["2", "17", "8 of 16 bits", "0 and 255", "stretched", "color", "channels first"],
)
def test_hints(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "x.npy", array)
    note = load(DataConfig(set=str(tmp_path / "x.npy"))).notes[0]
    assert note.startswith(f"{tmp_path / 'x.npy'} ")
    assert re.search(words, note)
    option, _, value = note.rpartition(" --data.")[2].partition(" ")
    if option == "binarization" or (option == "levels" and "number them" not in note):  # the remedy works
        given: dict[str, Any] = {option: int(value) if value.isdigit() else value}
        assert load(DataConfig(set=str(tmp_path / "x.npy"), **given)).levels == given.get("levels", 2)


def test_no_hint_without_a_reason(tmp_path: Path) -> None:
    for name, array, levels in (
        ("gray", random(90), None),
        ("told", random(90, levels=17), 17),
        ("few", random(2), None),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        assert load(DataConfig(set=str(tmp_path / f"{name}.npy"), levels=levels)).notes == ()


@pytest.mark.parametrize("part", ["train", "test"])
def test_binary_images_beside_gray_ones_are_refused(tmp_path: Path, part: str) -> None:
    """Each part of a set is judged by itself: a test file of zeros and ones is not drawn as 1 of 255 times one."""
    generator = np.random.default_rng(0)
    parts = {name: generator.integers(0, 256, (30, 4, 4), dtype=np.uint8) for name in ("train", "test")}
    parts[part] = parts[part] // 128
    for name, array in parts.items():
        np.save(tmp_path / f"{name}.npy", array)
    config = DataConfig(set=str(tmp_path / "train.npy"), test=str(tmp_path / "test.npy"), binarization="dynamic")
    which = "training" if part == "train" else "test"
    for read in (load, lambda config: select(config, "test", None, True)):
        with pytest.raises(UserError, match=rf"has {which} images of only 0 and 1, .* save them with 0 and 255"):
            read(config)
    np.save(tmp_path / f"{part}.npy", parts[part] * 255)  # the remedy
    assert load(config).test.levels == 2
