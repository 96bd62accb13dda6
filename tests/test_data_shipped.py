"""The static binarized MNIST that comes with DAVI: which images it is, that it is whole, and that it needs nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from davi.data import DataConfig, Images, load
from davi.data.shipped import FOLDER, SHA256, binarized_mnist
from davi.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DAVI_DATA") or ROOT.parent / "shared" / "data")


def mean(images: Images) -> float:
    return images.pixels.double().mean().item()


def test_it_is_the_published_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mean pixels as published, to five decimals; and a run that was begun when the files were in a folder of the
    user's goes on: what its protocol said is what is said now."""
    monkeypatch.delenv("DAVI_DATA", raising=False)
    data = load(DataConfig(set="binarized_mnist"))
    assert data.validation is not None
    assert [mean(part) for part in (data.train, data.validation, data.test)] == pytest.approx(
        [0.13056, 0.13113, 0.13251], abs=5e-6
    )
    assert (data.levels, data.shape, data.notes) == (2, (1, 28, 28), ())
    # Written by the version before, which read the set from a folder.
    assert data.protocol == {
        "set": "binarized_mnist",
        "split": "the set's own: train.npz (50000 images) for training, valid.npz (10000 images) for validation, "
        "test.npz (10000 images) for test",
        "counts": {"train": 50000, "validation": 10000, "test": 10000},
        "shape": [1, 28, 28],
        "levels": 2,
        "source_levels": 2,
        "binarization": "none",
        "binarization_seed": None,
        "evaluated": "values as stored",
        "flip": "none",
        "test_order": "sorted by class",
        "train_sha256": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
        "validation_sha256": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
        "test_sha256": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
    }


@pytest.mark.skipif(not (DATA / "binarized_mnist").is_dir(), reason="needs the files of binarized_mnist in a folder")
def test_the_files_are_those_that_were_in_a_folder() -> None:
    for name in SHA256:
        assert (FOLDER / name).read_bytes() == (DATA / "binarized_mnist" / name).read_bytes()


def test_bits_are_pixels_row_by_row() -> None:
    packed = np.load(FOLDER / "test.npz")["images_packed"]
    image = binarized_mnist().test.pixels[17, 0].numpy()
    bits = [packed[17, i // 8] >> (7 - i % 8) & 1 for i in range(784)]  # the highest bit first
    assert image.flatten().tolist() == bits


def test_a_folder_is_not_needed(tmp_path: Path) -> None:
    assert load(DataConfig(set="binarized_mnist", root=str(tmp_path))).notes == (
        "data.root is not needed: binarized_mnist comes with DAVI",
    )


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "set"))
    content = bytearray((folder / "valid.npz").read_bytes())
    content[1000] ^= 1
    (folder / "valid.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"valid\.npz: got SHA-256 \w{12}\.\.\., expected 166721831ebb\.\.\."):
        binarized_mnist(folder)
    (folder / "valid.npz").unlink()
    with pytest.raises(UserError, match=r"valid\.npz: found no such file, expected it with DAVI"):
        binarized_mnist(folder)


def test_the_notice_and_the_package_say_what_is_in_it() -> None:
    notice = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+\.npz)` .* `(\w{64})` \|$", notice, re.MULTILINE)) == SHA256
    for name, digest in SHA256.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0 AND CC-BY-SA-3.0"
    for file in project["license-files"]:
        assert (ROOT / file).is_file()
    assert "Attribution-ShareAlike 3.0" in notice
    assert "davi/data/binarized_mnist" in (ROOT / "NOTICE").read_text(encoding="utf-8")
