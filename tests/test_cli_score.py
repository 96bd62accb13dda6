"""``davi score`` and ``davi encode``."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import davi
from davi.cli import main
from davi.data import DataConfig, select
from davi.files import read_tensors, write_tensors
from davi.model import LatentModel

Capture = pytest.CaptureFixture[str]
QUICK = ["--training.steps", "1", "--training.validate_every", "0", "--training.threads", "1"]


def say(*words: object) -> int:
    return main([str(word) for word in words])


def fill(folder: Path, n: int, seed: int = 0, side: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(source.integers(0, 256, (side, side), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run on patches of a folder."""
    place = tmp_path_factory.mktemp("score")
    words = [
        "--data",
        fill(place / "own", 12),
        "--data.patches",
        "8",
        "--data.validation",
        "0.2",
        "--data.test_fraction",
        "0.4",
    ]
    assert say("train", "attentive_digits_tiny", *words, *QUICK, "--run", place / "run") == 0
    odd = fill(place / "odd", 3, 1)
    Image.new("L", (24, 16)).save(odd / "=black, \n.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_scored(place: Path, capsys: Capture) -> None:
    words = ["--importance-samples", 2, "--out", "found.csv", "--top", 2, "--patches"]
    assert say("score", "run", "--data", "odd", *words) == 0
    said = capsys.readouterr()
    found = rows("found.csv")
    assert {row["file"]: row["images"] for row in found} == {
        **dict.fromkeys(("00.png", "01.png", "02.png"), "4"),
        "./=black, \n.png": "6",
    }
    values = [float(row["complexity"]) for row in found]
    assert values == sorted(values, reverse=True)
    patches = rows("found-patches.csv")
    for row in found:
        own = [patch for patch in patches if patch["file"] == row["file"]]
        for name in ("bits_per_dim", "llr_1", "llr_2", "complexity"):
            assert float(row[name]) == pytest.approx(np.mean([float(patch[name]) for patch in own]), abs=2e-6)
            assert 0 < float(row[f"{name}_p"]) <= 1
    corners = [(patch["top"], patch["left"]) for patch in patches if patch["file"].startswith("./=")]
    assert corners == [(str(top), str(left)) for top in (0, 8) for left in (0, 8, 16)]
    with Image.open("found.png") as sheet, Image.open("found-histogram.png") as bars:
        assert min(sheet.width, sheet.height, bars.width) > 150
    assert len([line for line in said.out.splitlines() if line.startswith(("   1 ", "   2 ", "   3 "))]) == 2
    n = 1 + int(said.out.split("among all ")[1].split()[0])
    assert f"no p is below {1 / n:.2g}" in said.out
    assert "all 18 patches of 4 files of" in said.err


def test_the_own_test_images_are_ranked_among_the_others(place: Path, capsys: Capture) -> None:
    assert say("score", "run", "--importance-samples", 1, "--by", "llr_1") == 0
    found = rows("run/scores.csv")
    ranks = sorted(int(row["llr_1_rank"]) for row in found)
    assert ranks == list(range(1, len(found) + 1))
    assert [float(row["llr_1_p"]) for row in found] == pytest.approx([i / len(found) for i in ranks], rel=1e-5)
    assert say("score", "run", "--importance-samples", 1, "--calibrate-on", "validation", "--llr", "2") == 0
    assert "of own/validation" in capsys.readouterr().out
    assert "llr_1" not in rows("run/scores.csv")[0]


def test_one_file_is_scored(place: Path) -> None:
    assert say("score", "run", "--data", "odd/00.png", "--out", "one.csv") == 0
    assert [row["file"] for row in rows("one.csv")] == ["00.png"]


def test_without_held_out_images_it_is_said(place: Path, capsys: Capture) -> None:
    shutil.copytree("run", "foreign")
    tensors, info = read_tensors(Path("foreign/model.safetensors"))
    del info["protocol"]
    write_tensors(Path("foreign/model.safetensors"), tensors, info)
    shutil.copytree("own", "moved")
    assert say("score", "foreign", "--data", "odd") == 0
    said = capsys.readouterr()
    assert "data: no p-values: it is not known which test images were held out when the run was trained" in said.err
    assert {row["bits_per_dim_p"] for row in rows("foreign/scores.csv")} == {""}
    fill(place / "own", 1, 9)  # another first image
    try:
        assert say("score", "run", "--data", "odd") == 0
        assert "data: no p-values: the test images of the run have changed" in capsys.readouterr().err
    finally:
        shutil.copy("moved/00.png", "own/00.png")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--data", "odd", "--by", "beauty"], "--by: got 'beauty', expected one of bits_per_dim, llr_1, llr_2, compl"),
        (["--data", "odd", "--llr", "3"], "llr: got k = 3, expected 1 to 2"),
        (["--data", "odd", "--llr", "a"], "--llr: got 'a', expected a whole number from 1"),
        (["--data", "odd", "--out", "x.txt"], "--out: got 'x.txt', expected the path of a .csv file"),
        (["--data", "odd", "--out", "absent/x.csv"], "absent/x.csv: cannot be written, no such folder absent"),
        (["--data", "odd", "--top", "0"], "--top: got '0', expected a whole number from 1"),
        (["--data", "absent/"], "data.set: got "),
        (["--data", "odd", "--data.patches", "40"], "data.patches: got 40 wide, 40 high, expected no more than"),
        (["--data", "odd", "--data.patches", "4"], "data: got images [1, 4, 4] with 256 levels, expected [1, 8, 8]"),
    ],
)
def test_mistakes_are_one_line(place: Path, capsys: Capture, words: list[str], complaint: str) -> None:
    assert say("score", "run", *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"davi: {complaint}"), said
    assert sum(line.startswith("davi: ") for line in said) == 1


def test_hostile_files_are_named(tmp_path: Path, place: Path, capsys: Capture) -> None:
    folder = fill(tmp_path / "set", 2)
    for name, content in (("empty", b""), ("cut", b"\x89PNG\r\n\x1a\nxxxx"), ("other", b"P6 1 1 255 abc")):
        (folder / f"{name}.png").write_bytes(content)
    for verb in ("score", "encode"):
        assert say(verb, "run", "--data", folder) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert all(f"{name}.png" in said for name in ("empty", "cut", "other"))
    assert say("encode", "run", "--data", folder, "--skip-unreadable", "--out", tmp_path / "z.npz") == 0
    with np.load(tmp_path / "z.npz") as found:
        assert list(found["files"]) == ["00.png"] * 4 + ["01.png"] * 4


def test_latents_make_the_round_trip(place: Path, capsys: Capture) -> None:
    assert say("encode", "run", "--data", "odd", "--batch-size", 5, "--out", "z.npz") == 0
    said = capsys.readouterr().out
    model = davi.load("run")
    assert isinstance(model, LatentModel)
    images = select(DataConfig(set="odd", patches=(8, 8)), "all").images
    with np.load("z.npz") as found:
        layers = [torch.from_numpy(found[f"layer_{i:02d}"]) for i in range(3)]
        for i, (layer, grid) in enumerate(zip(layers, found["grids"], strict=True)):
            assert tuple(layer.shape[2:]) == tuple(grid)
            assert found[f"active_{i:02d}"].shape == layer.shape[1:]
            assert f"{found[f'active_{i:02d}'].sum()} of {layer[0].numel()} units active" in said
        assert tuple(found["files"]) == images.files
        assert images.corners is not None
        assert found["corners"].tolist() == images.corners.tolist()
        assert "layer_03" not in found
    with torch.no_grad():
        assert torch.equal(model.decode(layers).mode(), model.reconstruct(images.pixels))
    assert not list(Path().glob("tmp*"))


def test_the_own_images_of_a_run_may_have_moved(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAVI_DATA", raising=False)
    folder, source = tmp_path / "before" / "fashion_mnist", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, n in (("train", 30), ("test", 7)):
        np.savez(folder / f"{part}.npz", images=source.integers(0, 256, (n, 28, 28), dtype=np.uint8))
    words = ["--data", "fashion_mnist", "--data.root", tmp_path / "before", "--data.validation", 3]
    assert say("train", "vae_digits_tiny", *words, *QUICK, "--run", tmp_path / "run") == 0
    (tmp_path / "before").rename(tmp_path / "after")
    capsys.readouterr()
    words = ["--importance-samples", 1, "--data.root", tmp_path / "after"]
    assert say("score", tmp_path / "run", *words) == 0, capsys.readouterr().err
    assert "among all 7 files of fashion_mnist/test" in capsys.readouterr().out


def test_a_folder_is_no_file_to_write(place: Path, capsys: Capture) -> None:
    for verb, ending in (("score", "csv"), ("encode", "npz")):
        Path(f"taken.{ending}").mkdir()
        assert say(verb, "run", "--data", "odd", "--out", f"taken.{ending}") == 2
        assert capsys.readouterr().err == f"davi: taken.{ending}: cannot be written, it is a folder\n"
