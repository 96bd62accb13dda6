"""Which files of a folder are images of the set, and how large they may be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davi.cli import main
from davi.data import DataConfig, DataSets, load
from davi.data.listing import images_below, left_behind
from davi.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVI_CACHE", str(tmp_path / "cache"))


def fill(folder: Path, n: int, first: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i:03}.png")
    return folder


def read(folder: Path, **options: object) -> DataSets:
    return load(DataConfig(set=str(folder), **options))  # type: ignore[arg-type]


def test_what_other_programs_leave_is_left_out_and_said(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", 30)
    fill(folder / "@eaDir" / "000.jpg", 2, 30, (3, 3))  # as a Synology makes them: a folder for each image
    fill(folder / "@eaDir" / "001.jpg", 2, 32, (3, 3))
    fill(folder / "deeper" / "Thumbs", 1, 40, (3, 3))
    fill(folder / ".thumbnails", 5, 50, (3, 3))
    fill(folder / "__MACOSX", 1, 60, (3, 3))
    (folder / "._000.png").write_bytes(b"what macOS keeps beside a file")
    (folder / "Thumbs.db").write_bytes(b"no image")
    fill(folder / "thumbnails128", 3, 70)  # a name of its own
    assert len(list(images_below(folder))) == 33
    sets = read(folder)
    assert sets.notes == (
        f"33 images found in {folder}",
        "6 images in folders for thumbnails or deleted files left out: @eaDir (4), Thumbs (1), __MACOSX (1)",
    )
    assert sum(sets.protocol["files"].values()) == 33


def test_a_folder_of_thumbnails_may_be_asked_for(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set" / "thumbnails", 30)
    assert sum(read(folder).protocol["files"].values()) == 30
    assert left_behind(folder) is None
    with pytest.raises(UserError, match=r"found no images in .*set, .*; 30 images in folders .* left out: thumbnails"):
        read(tmp_path / "set")


def test_test_images_have_thumbnails_too(tmp_path: Path) -> None:
    folder, other = fill(tmp_path / "set", 9), fill(tmp_path / "other", 9, 9)
    fill(other / "@__thumb", 1, 90)
    assert read(folder, test=str(other)).notes[-1].startswith("1 image in folders for thumbnails or deleted files left")


def test_the_limit_on_pixels_can_be_raised(tmp_path: Path) -> None:
    """Large images are cut into patches; what is too large for one reading is not for the next."""
    folder = fill(tmp_path / "set", 20, size=(8, 6))
    big = fill(folder, 1, 20, (16, 16)) / "020.png"
    with pytest.raises(UserError, match=r"020.png: promises too many pixels, 16 wide, 16 high: 256, .* most 255"):
        read(folder, patches=(4, 4), max_pixels=255)
    skipped = read(folder, patches=(4, 4), max_pixels=255, skip_unreadable=True)
    assert (skipped.protocol["unreadable"], sum(skipped.protocol["files"].values())) == (1, 20)
    sets = read(folder, patches=(4, 4), max_pixels=256, skip_unreadable=True)
    assert (sets.protocol["unreadable"], sum(sets.protocol["files"].values())) == (0, 21)
    assert len(sets.train) + len(sets.test) == 20 * 2 + 16
    big.unlink()
    with pytest.raises(UserError, match=r"data\.max_pixels: got 0, expected a number of pixels from 1"):
        read(folder, max_pixels=0)
    with pytest.raises(UserError, match=r"data\.max_pixels: got 9, expected 89478485 .*: digits is no folder"):
        load(DataConfig(max_pixels=9))


def test_the_remedy_in_the_message_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an image above the limit that a run has without any option."""
    folder = fill(tmp_path / "set", 25)
    Image.new("1", (9500, 9500)).convert("L").save(folder / "large.png")
    words = ["train", "attentive_digits_tiny", "--data", str(folder), "--run", str(tmp_path / "run"), "--plan"]
    words += ["--data.crop", "[4, 4]"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "large.png: promises too many pixels, 9500 wide, 9500 high: 90250000, expected at most 89478485" in said
    assert "--data.max_pixels" in said
    assert main([*words, "--data.max_pixels", "90250000"]) == 0
