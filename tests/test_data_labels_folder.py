"""Labels of folders, by the names of their sub-folders, and of sets in the form of Hugging Face's datasets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from with_labels import of, refused, values

from davi.data import DataConfig, DataSets, Images, select

NAMES = ("bird", "Cat", "dog")


def image(label: int, seed: int, side: int = 6) -> np.ndarray:
    """An image whose every pixel tells its class."""
    return np.random.default_rng(seed).integers(80 * label, 80 * label + 80, (side, side), dtype=np.uint8)


def fill(folder: Path, n: int = 8, seed: int = 0, names: tuple[str, ...] = NAMES) -> Path:
    """``n`` images of each class, some of them in a folder below that of the class."""
    for name in names:
        for i in range(n):
            path = folder / name / ("more" if i % 3 == 2 else "") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(NAMES.index(name), seed + 100 * NAMES.index(name) + i)).save(path)
    return folder


def is_right(images: Images | None) -> bool:
    """Whether every label is the class that the pixels tell."""
    assert images is not None
    assert images.classes == ("Cat", "bird", "dog")  # capitals come first, wherever it is sorted
    told = [NAMES[int(pixels.min()) // 80] for pixels in images.pixels]
    return [images.classes[label] for label in values(images)] == told


def all_right(sets: DataSets) -> bool:
    return all(is_right(part) for part in (sets.train, sets.validation, sets.test) if part is not None)


@pytest.mark.parametrize(
    "options", [{}, {"patches": (3, 2)}, {"crop": (2, 2), "memory": 0.0}], ids=["", "patches", "mapped"]
)
def test_split_by_content(tmp_path: Path, options: dict[str, Any]) -> None:
    folder, cache = fill(tmp_path / "set"), tmp_path / "cache"
    plain = of(folder, labels=False, validation=0.3, test_fraction=0.3, cache=str(cache), **options)
    made = sorted(cache.rglob("*"))
    sets = of(folder, validation=0.3, test_fraction=0.3, cache=str(cache), **options)
    assert all_right(sets)
    assert sets.protocol["counts"]["validation"] > 0
    assert sorted(cache.rglob("*")) == made  # nothing is decoded again
    assert plain.classes == ()
    assert plain.protocol.items() <= sets.protocol.items()


def test_sub_folders_of_the_splits(tmp_path: Path) -> None:
    for seed, part in enumerate(("Train", "val", "test")):
        fill(tmp_path / "set" / part, seed=1000 * seed)
    sets = of(tmp_path / "set")
    assert all_right(sets)
    assert sets.protocol["counts"] == {"train": 24, "validation": 24, "test": 24}
    assert is_right(select(DataConfig(str(tmp_path / "set"), labels=True), "all").images)
    fill(tmp_path / "set" / "val" / "new", 1, 9, ("dog",))
    path = tmp_path / "set" / "val" / "new"
    refused(
        rf"data\.labels: {path}/dog/0\.png is of class 'new', which has no training images; expected one of Cat, b",
        path.parents[1],
    )


def test_a_split_lacks_a_class(tmp_path: Path) -> None:
    fill(tmp_path / "set" / "train")
    fill(tmp_path / "set" / "test", seed=1000, names=("dog",))
    sets = of(tmp_path / "set")
    assert all_right(sets)
    assert set(values(sets.test)) == {2}


@pytest.mark.parametrize("place", ["inside/held", "other/set"])
def test_another_folder_for_test(tmp_path: Path, place: str) -> None:
    folder = fill(tmp_path / "inside" if place.startswith("inside") else tmp_path / "set")
    test = fill(tmp_path / place, 4, seed=1000)  # other/set has the names of set/, folder and files
    sets = of(folder, test=str(test), validation=0.3)
    assert all_right(sets)
    assert sets.protocol["counts"]["test"] == 12
    assert of(folder, labels=False, test=str(test), validation=0.3).protocol.items() <= sets.protocol.items()
    fill(test / "unknown", 1, 9, ("dog",))
    refused("is of class 'unknown', which has no training images", folder, test=str(test))


def test_a_linked_split(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere")
    fill(tmp_path / "set" / "test", seed=1000)
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    assert all_right(of(tmp_path / "set"))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path / "set")
    (tmp_path / "set" / "dog").rename(tmp_path / "set" / "train")
    config = DataConfig(str(tmp_path / "set"), labels=True)
    for classes in (of(config.set, test_fraction=0.3).classes, select(config, "all").images.classes):
        assert classes == ("Cat", "bird", "train")


def test_an_image_in_no_class(tmp_path: Path) -> None:
    fill(tmp_path / "set")
    Image.fromarray(image(0, 5)).save(tmp_path / "set" / "loose.png")
    match = r".*set/loose\.png is in no class folder, expected .*set/CLASS/loose\.png"
    refused(rf"data\.labels: got true, expected false: {match}", tmp_path / "set", test_fraction=0.3)
    assert len(of(tmp_path / "set", labels=False, test_fraction=0.3).train)


def test_the_same_image_in_two_classes_is_kept_and_told(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set")
    for name in ("copy", "again"):
        (folder / "bird" / f"{name}.png").write_bytes((folder / "dog" / "0.png").read_bytes())
    (folder / "Cat" / "twin.png").write_bytes((folder / "Cat" / "1.png").read_bytes())  # of one class: nothing to tell
    sets = of(folder, test_fraction=0.3)
    told = "3 images are in the folders of several classes: each is kept with its own label"
    assert told in sets.notes
    assert sum(sets.protocol["counts"].values()) == 27
    kept = [part for part in (sets.train, sets.test) if not is_right(part)]
    assert len(kept) == 1  # equal images are in one split
    plain = of(folder, labels=False, test_fraction=0.3)
    assert told not in plain.notes
    assert plain.protocol.items() <= sets.protocol.items()
    assert not any("several classes" in note for note in of(fill(tmp_path / "other"), test_fraction=0.3).notes)


def test_images_that_are_left_out_leave_no_label(tmp_path: Path) -> None:
    fill(tmp_path / "set" / "train")
    fill(tmp_path / "set" / "test", 2, seed=1000)
    (tmp_path / "set" / "train" / "dog" / "copy.png").write_bytes((tmp_path / "set/test/dog/0.png").read_bytes())
    (tmp_path / "set" / "train" / "bird" / "0.png").write_bytes(b"")
    sets = of(tmp_path / "set", skip_unreadable=True)
    assert all_right(sets)
    assert sets.protocol["counts"] == {"train": 23, "validation": 0, "test": 6}


# Hugging Face


def parquet(path: Path, columns: dict[str, tuple[Any, list[Any]]], n: int = 12) -> str:
    """A table of images that tell their class, n % 3, and some columns, each with its type."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    rows: dict[str, list[Any]] = {"image": []}
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(image(i % 3, i)).save(buffer, "PNG")
        rows["image"].append({"bytes": buffer.getvalue(), "path": None})
    kinds = {"image": datasets.Image(), **{name: kind for name, (kind, _) in columns.items()}}
    rows |= {name: given for name, (_, given) in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(path)
    if not bars:
        datasets.enable_progress_bars()
    return f"hub:{path}"


def test_the_column_of_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    label, right = datasets.ClassLabel(names=[*NAMES, "fish"]), [i % 3 for i in range(12)]
    number = datasets.Value("int64")
    cache = {"cache": str(tmp_path / "cache"), "test_fraction": 0.25}
    for i, columns in enumerate(
        (
            {"kind": (label, right), "other": (number, [7] * 12)},
            {"label": (label, right), "kind": (label, [0] * 12)},
            {"coarse_label": (label, [0] * 12), "fine_label": (label, right)},
        )
    ):
        sets = of(parquet(tmp_path / f"{i}.parquet", columns), **cache)
        assert sets.classes == (*NAMES, "fish")
        for images in (sets.train, sets.test):
            assert values(images) == [int(pixels.min()) // 80 for pixels in images.pixels]
    spec = parquet(tmp_path / "none.parquet", {"label": (number, right)})
    refused(
        r"data\.labels: .*none.parquet/train has the columns image \(Image\), label \(Value\), of which", spec, **cache
    )
    spec = parquet(tmp_path / "two.parquet", {"one": (label, right), "two": (label, right)})
    refused(r"data\.labels: .*one \(ClassLabel\), two \(ClassLabel\)", spec, **cache)
    spec = parquet(tmp_path / "hole.parquet", {"label": (label, [*right[:4], None, *right[5:]])})
    refused("row 4: got no label, expected one of label", spec, **cache)
    spec = parquet(tmp_path / "hidden.parquet", {"label": (label, [-1] * 12)})
    refused("got label -1, expected 0 to 3", spec, **cache)


def test_all_splits_of_a_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    label = datasets.ClassLabel(names=list(NAMES))
    for part, n in (("train", 12), ("validation", 4), ("test", 5)):
        parquet(tmp_path / "set" / f"{part}.parquet", {"label": (label, [i % 3 for i in range(n)])}, n)
    sets = of(f"hub:{tmp_path}/set", cache=str(tmp_path / "cache"))
    for images, n in ((sets.train, 12), (sets.validation, 4), (sets.test, 5)):
        assert values(images) == [i % 3 for i in range(n)]
    whole = select(DataConfig(f"hub:{tmp_path}/set", labels=True, cache=str(tmp_path / "cache")), "all").images
    assert values(whole) == [i % 3 for n in (12, 4, 5) for i in range(n)]
