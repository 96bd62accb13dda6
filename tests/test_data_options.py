"""Every option of the data section with every kind of set: it changes the images, or is refused in one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import idx
from PIL import Image

from davi.data import DataConfig, DataSets, load
from davi.errors import UserError

N, SHAPE = 30, (6, 6)


def values(seed: int = 0, n: int = N, side: tuple[int, int] = SHAPE) -> np.ndarray:
    """Gray images of at most 17 levels."""
    return np.random.default_rng(seed).integers(0, 17, (n, *side), dtype=np.uint8)


def fill(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


def array(place: Path, seed: int = 0) -> str:
    np.save(place / f"set{seed}.npy", values(seed))
    return str(place / f"set{seed}.npy")


def idx_file(place: Path, seed: int = 0) -> str:
    (place / f"set{seed}-idx3-ubyte").write_bytes(idx(values(seed)))
    return str(place / f"set{seed}-idx3-ubyte")


def idx_folder(place: Path) -> str:
    for stem, seed in (("train", 0), ("t10k", 1)):
        (place / f"{stem}-images-idx3-ubyte").write_bytes(idx(values(seed)))
    return str(place)


def by_content(place: Path, seed: int = 0) -> str:
    return str(fill(place / f"set{seed}", values(seed)))


def by_name(place: Path) -> str:
    for part, seed in (("Training", 0), ("TEST", 1)):
        fill(place / "set" / part, values(seed))
    return str(place / "set")


def hub(place: Path) -> str:
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    rows = []
    for image in values():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(place / "set.parquet")
    if not bars:
        datasets.enable_progress_bars()
    return f"hub:{place}/set.parquet"


def named(place: Path) -> str:
    (place / "mnist").mkdir()
    for name, seed in (("train", 0), ("test", 1)):
        np.savez(place / "mnist" / f"{name}.npz", images=values(seed, side=(28, 28)))
    return "mnist"


def digits(place: Path) -> str:
    return "digits"


OTHERS: dict[Callable[[Path], str], Callable[[Path, int], str]] = {
    array: array,
    idx_file: idx_file,
    by_content: by_content,
}
"""Kinds of sets whose test images can be given, and what makes these."""

GRAY, WHOLE, FOLDER = (digits, named, array, idx_file, idx_folder, by_content, by_name, hub), (array, idx_file, hub), 0
KINDS: dict[str, tuple[Callable[[Path], str], ...]] = {
    "root": (named,),
    "binarization": GRAY,
    "binarization_seed": GRAY,
    "flip": GRAY,
    "random_crop": GRAY,
    "validation": GRAY,
    "levels": (array, idx_file, idx_folder, by_content, by_name, hub),
    "test": tuple(OTHERS),
    "test_fraction": (*WHOLE, by_content),
    "crop": (by_content, by_name),
    "resize": (by_content, by_name),
    "patches": (by_content, by_name),
    "skip_unreadable": (by_content, by_name),
    "max_pixels": (by_content, by_name, hub),
    "background": (by_content, by_name, hub),
    "mode": (by_content, by_name, hub),
    "cache": (by_content, by_name, hub),
    "memory": (by_content, by_name),
    "labels": (digits,),
}
"""The kinds of sets that an option is for."""

GIVEN: dict[str, Any] = {
    "binarization": "threshold",
    "binarization_seed": 5,
    "flip": "both",
    "random_crop": 2,
    "validation": 0.25,
    "levels": 18,
    "test_fraction": 0.5,
    "crop": (4, 4),
    "resize": (3, 3),
    "patches": (2, 2),
    "skip_unreadable": True,
    "max_pixels": 35,
    "background": "white",
    "mode": "rgb",
    "memory": 0.0,
    "labels": True,
}


def is_honored(option: str, given: Any, sets: DataSets, without: DataSets | None) -> bool:
    """Whether the option did to the images what it says."""
    protocol = sets.protocol
    counts = protocol["counts"]
    match option:
        case "root":
            return sets.shape == (1, 28, 28)
        case "binarization":
            return sets.levels == 2 and protocol["binarization"] == given
        case "binarization_seed":
            assert without is not None
            return protocol["test_sha256"] != without.protocol["test_sha256"]
        case "flip" | "random_crop":
            return bool(protocol[option] == given)
        case "validation":
            # A quarter of at most 30, or 1,400, images: five deviations of the split by content
            share = counts["validation"] / (counts["validation"] + counts["train"])
            return abs(share - 0.25) < 5 * (0.25 * 0.75 / (counts["validation"] + counts["train"])) ** 0.5
        case "levels":
            return sets.levels == sets.train.levels == given
        case "test":
            return counts["test"] == N and counts["train"] == N
        case "test_fraction":
            exact = counts["test"] == counts["train"] == N // 2
            return exact or ("files" in protocol and abs(counts["test"] - N / 2) < 5 * (N / 4) ** 0.5)
        case "crop" | "resize" | "patches":
            return sets.shape[1:] == given and str(protocol["fit"]).endswith(f"{given[0]}x{given[1]}")
        case "background":
            return bool(protocol["background"] == given)
        case "mode":
            return sets.shape[0] == 3
        case "cache":
            return any(Path(given).iterdir())
        case "memory":
            return sets.train.mapped
        case "labels":
            return sets.train.labels is not None and protocol["classes"] == len(sets.classes) == 10
        case "skip_unreadable":
            return bool(protocol["unreadable"] == 1)
    raise AssertionError(f"no test of {option}")


@pytest.mark.parametrize("make", GRAY, ids=lambda make: make.__name__)
@pytest.mark.parametrize("option", KINDS)
def test_an_option_is_honored_or_refused(option: str, make: Callable[[Path], str], tmp_path: Path) -> None:
    name = make(tmp_path)
    given = GIVEN.get(option)
    if option in ("root", "cache"):
        given = str(tmp_path if option == "root" else tmp_path / "cache")
    if option == "test":
        given = OTHERS.get(make, array)(tmp_path, 2)
    plain: dict[str, Any] = {"set": name, **({"root": str(tmp_path)} if make is named else {})}
    if option == "binarization_seed":
        plain["binarization"] = "static"
    if option == "skip_unreadable" and make in KINDS[option]:
        next(Path(name).rglob("*.png")).write_bytes(b"")
    if option == "root" and make is digits:  # the folder of all named sets, of which this one is not read
        assert load(DataConfig(**plain, root=given)).notes == (
            "data.root is not needed: digits comes with scikit-learn",
        )
        return
    if option == "max_pixels" and make in KINDS[option]:  # one less than the images have
        with pytest.raises(UserError, match=r"--data\.max_pixels"):
            load(DataConfig(**plain, max_pixels=given))
        assert len(load(DataConfig(**plain, max_pixels=given + 1)).train)
        return
    if make in KINDS[option]:
        without = load(DataConfig(**plain)) if option == "binarization_seed" else None
        assert is_honored(option, given, load(DataConfig(**{**plain, option: given})), without)
        return
    with pytest.raises(UserError, match=rf"^data\.{option}: got .*, expected ") as caught:
        load(DataConfig(**{**plain, option: given}))
    assert "\n" not in str(caught.value)


def test_every_option_is_in_the_table() -> None:
    assert {"set", *KINDS} == set(DataConfig.__dataclass_fields__)
    assert all(getattr(DataConfig(), option) != value for option, value in GIVEN.items())


@pytest.mark.parametrize("make", [by_content, array], ids=lambda make: make.__name__)
def test_a_fraction_is_not_given_beside_test_images(make: Callable[..., str], tmp_path: Path) -> None:
    one, other = make(tmp_path), make(tmp_path, 2)
    with pytest.raises(UserError, match=r"data\.test_fraction: got 0\.3, expected 0\.1 \(the default\): data\.test .*"):
        load(DataConfig(set=one, test=other, test_fraction=0.3))


def test_the_last_images_of_an_array_are_for_test(tmp_path: Path) -> None:
    path = array(tmp_path)
    for fraction, n in ((0.1, 3), (0.29, 8), (0.5, 15), (0.001, 1), (0.99, 29)):
        sets = load(DataConfig(set=path, test_fraction=fraction))
        assert (len(sets.test), sets.protocol["test_fraction"]) == (n, fraction)
        assert np.array_equal(sets.test.pixels[:, 0].numpy(), values()[-n:])
        assert np.array_equal(sets.train.pixels[:, 0].numpy(), values()[:-n])
    assert "the last 0.99 of all (29 images) for test" in sets.protocol["split"]
