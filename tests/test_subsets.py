"""Images in place of all: spread over the set, every one as likely as the other, and always the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davi.data import DataConfig, Images, evenly, load
from davi.data.subsets import positions, rule


@pytest.mark.parametrize(("total", "n"), [(10_000, 1000), (397, 20), (10, 7), (7, 6), (5, 1)])
def test_one_image_of_each_part(total: int, n: int) -> None:
    chosen = positions(total, n)
    assert chosen.dtype == torch.int64
    assert len(chosen.unique()) == n
    assert chosen.tolist() == sorted(chosen.tolist())
    assert 0 <= int(chosen[0]) <= int(chosen[-1]) < total
    gaps = torch.cat([chosen.diff(), chosen[:1] + total - chosen[-1:]])  # around the end as well
    assert int(gaps.max()) < 2 * (total // n + 1)  # neighbors are of neighboring parts
    assert chosen.tolist() == positions(total, n).tolist()
    assert total < 20 or chosen.tolist() != positions(total, n, seed=1).tolist()


def test_every_image_is_as_likely_as_any_other() -> None:
    """Seven of ten, whose parts hold one image or two: 4,000 choices, 0.7 each within four standard errors."""
    counts = torch.zeros(10)
    for seed in range(4000):
        counts[positions(10, 7, seed)] += 1
    assert float((counts / 4000 - 0.7).abs().max()) < 4 * np.sqrt(0.7 * 0.3 / 4000)


def test_the_choice_is_that_of_every_version() -> None:
    """Numbers measured on a subset are compared with those of years ago: written down here, once and for all."""
    assert positions(397, 5).tolist() == [19, 126, 179, 245, 345]
    digest = hashlib.sha256(positions(10_000, 1000).numpy().astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("4f95ac6a1855a1e0")


def test_all_images_are_the_set_itself() -> None:
    images = Images(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), 2, "x", sha256="ab")
    assert evenly(images, None) is images
    assert evenly(images, 3) is images
    assert evenly(images, 4) is images
    assert (rule(3, None), rule(3, 3), rule(3, 2)) == (None, None, "2 of 3 images, spread evenly, seed 0")
    assert positions(3, None).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="limit: got 0"):
        positions(3, 0)


def test_files_of_patches_go_where_their_patches_go() -> None:
    groups = torch.tensor([4, 4, 1, 1, 9])
    images = Images(torch.zeros(5, 1, 1, 1, dtype=torch.uint8), 2, "x", groups=groups)
    for chosen in (images.subset(slice(1, 4)), images.subset([1, 2, 3]), images.subset(slice(1, 4)).to("cpu")):
        assert chosen.groups is not None
        assert chosen.groups.tolist() == [4, 1, 1]
    for wrong in (groups[:4], groups.float()):
        with pytest.raises(ValueError, match="x: got groups torch"):
            Images(images.pixels, 2, "x", groups=wrong)


def test_the_two_photographs_are_two_files() -> None:
    sets = load(DataConfig("photos", validation=0.1))
    assert sets.validation is not None
    for images, counts in ((sets.test, [65, 65]), (sets.validation, [270, 300])):
        assert images.groups is not None
        assert images.groups.bincount().tolist() == counts
    assert sets.train.groups is not None


def save(folder: Path, name: str, size: tuple[int, int]) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    values = np.random.default_rng(len(name)).integers(256, size=size, dtype=np.uint8)
    Image.fromarray(values).save(folder / name)


def test_patches_of_a_folder_know_their_file(tmp_path: Path) -> None:
    save(tmp_path / "train", "a.png", (8, 8))
    save(tmp_path / "train", "bb.png", (4, 12))
    save(tmp_path / "test", "ccc.png", (8, 4))
    for _ in range(2):  # decoded, then from the cache
        sets = load(DataConfig(str(tmp_path), patches=(4, 4), cache=str(tmp_path / "cache")))
        assert sets.train.groups is not None
        assert sets.test.groups is not None
        counts = [len(set(images.tolist())) for images in (sets.train.groups, sets.test.groups)]
        assert counts == [2, 1]
        assert sets.train.groups.unique(return_counts=True)[1].tolist() == [4, 3]
        assert not set(sets.train.groups.tolist()) & set(sets.test.groups.tolist())
    whole = load(DataConfig(str(tmp_path), resize=(4, 4), cache=str(tmp_path / "cache")))
    assert whole.train.groups is None


def test_binarized_patches_keep_their_files(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part, f"{part}.png", (4, 8))
    for binarization in ("static", "dynamic", "threshold"):
        config = DataConfig(str(tmp_path), patches=(4, 4), binarization=binarization, cache=str(tmp_path / "cache"))
        groups = load(config).test.groups
        assert groups is not None
        assert len(groups) == 2
