"""``davi evaluate``, ``reconstruct`` and ``inspect`` on images that are not those of the run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import davi
from davi.cli import main
from davi.comparison import compare, read
from davi.comparison.tables import to_terminal
from davi.data import DataConfig, select
from davi.evaluation import evaluate

Capture = pytest.CaptureFixture[str]
VERBS = ("evaluate", "reconstruct", "inspect")
QUICK = ["--training.steps", "1", "--training.validate_every", "0", "--data.validation", "0", "--training.threads", "1"]


def say(*words: object) -> int:
    return main([str(word) for word in words])


def random(n: int, seed: int = 0, levels: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (n, 8, 8), dtype=np.uint8)


def fill(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run on gray images of a folder, and one on images that are drawn black and white."""
    place = tmp_path_factory.mktemp("other")
    fill(place / "train", random(30))
    words = ["train", "attentive_digits_tiny", *QUICK]
    assert say(*words, "--data", place / "train", "--run", place / "gray") == 0
    binary = ["--data.binarization", "dynamic", "--model.likelihood.family", "bernoulli"]
    assert say(*words, *binary, "--data", place / "train", "--run", place / "binary") == 0
    fill(place / "held", random(5, 1))
    fill(place / "one", random(1, 2))
    np.save(place / "five.npy", random(5, 1))
    np.save(place / "one.npy", random(1, 2))
    fill(place / "classes" / "cats", random(3, 3))
    fill(place / "classes" / "dogs", random(3, 4))
    fill(place / "splits" / "Train", random(4, 5))
    fill(place / "splits" / "Test", random(3, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


def result(run: str) -> Any:
    return json.loads(Path(run, "evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("data", "images", "split"),
    [
        ("held", 5, "all"),
        ("one", 1, "all"),
        ("five.npy", 5, "all"),
        ("one.npy", 1, "all"),
        ("classes", 6, "all"),
        ("splits", 3, "test"),
    ],
)
def test_all_images_are_measured_and_named(place: Path, capsys: Capture, data: str, images: int, split: str) -> None:
    name = data if split == "all" else f"{data}/{split}"
    capsys.readouterr()
    assert say("evaluate", "gray", "--data", data) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{name}: {images} images, 1 x 8 x 8, 256 levels\n")
    assert f"images                      --data {data}, not the run's own\n" in said.out
    assert f"data: {name}: not the run's own test images\n" in said.err
    measured = result("gray")
    protocol = measured["protocol"]
    assert (protocol["set"], protocol["split"], protocol["images"]) == (name, split, images)
    assert (protocol["data"]["other_images"], protocol["data"]["training_images"]) == (f"--data {data}", 0)
    assert protocol["data"]["set"] == str(place / data)
    chosen = select(DataConfig(set=data))
    expected = evaluate(davi.load("gray"), chosen.images)
    assert protocol["images_sha256"] == expected.images_sha256
    # the same seed and batch size on the same machine: equal up to the decimal form
    assert measured["elbo"]["nats"]["mean"] == pytest.approx(float(expected.elbo.mean()), rel=1e-12)
    assert [b["name"] for b in measured["baselines"] if b["bits_per_dim"] is None] == []  # the run's images are at hand
    assert f"{name}: {images} images" in to_terminal(compare([read(Path("gray"))]))
    assert say("reconstruct", "gray", "--data", data) == 0
    assert f"{images} images of {name}, each beside its reconstruction" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["held", "one.npy"])
def test_a_page_about_other_images(place: Path, capsys: Capture, data: str) -> None:
    assert say("inspect", "gray", "--data", data, "--importance-samples", 2, "--no-figures") == 0
    text = Path("gray/inspection.html").read_text(encoding="utf-8")
    shown = re.sub(r"<[^>]+>", " ", text)
    assert f"images of {data}" in shown
    assert re.search(rf"data: other images\s+--data {data}", shown)


def test_the_runs_own_images_are_told_apart(place: Path, capsys: Capture) -> None:
    for words in ([], ["--data", "train"], ["--split", "test"]):
        capsys.readouterr()
        assert say("evaluate", "gray", *words) == 0
        said = capsys.readouterr()
        assert "not the run's own" not in said.out + said.err
        assert "data: 28 training and 2 test images: 30 images of train, by SHA-256" in said.err
        protocol = result("gray")["protocol"]
        assert (protocol["set"], protocol["split"], protocol["data"]["other_images"]) == ("train/test", "test", None)


def test_images_that_the_run_was_trained_on_are_counted(place: Path, capsys: Capture) -> None:
    fill(place / "mixed", np.concatenate([random(30), random(4, 7)]))
    for run in ("gray", "binary"):  # of the second before any draw
        capsys.readouterr()
        assert say("evaluate", run, "--data", "mixed") == 0
        said = capsys.readouterr()
        assert "data: 28 of these 34 images were training images of the run\n" in said.err
        assert "the model was trained on 28 of them" in " ".join(said.out.split())
        assert result(run)["protocol"]["data"]["training_images"] == 28
    for words in ([], ["--data", "train"]):
        assert say("evaluate", "gray", "--split", "all", *words) == 0
        assert "data: 28 of these 30 images were training images of the run\n" in capsys.readouterr().err
        assert result("gray")["protocol"]["data"]["other_images"].endswith("--split all")
    # another cut of the run's own folder is not its test split
    assert say("evaluate", "gray", "--data.test_fraction", 0.5) == 0
    said = capsys.readouterr()
    assert re.search(r"data: \d+ of these \d+ images were training images of the run\n", said.err)
    assert "--data.test_fraction=0.5, not the run's own" in " ".join(said.out.split())
    assert result("gray")["protocol"]["set"] == f"{place / 'train'}/test"


def test_where_the_training_images_are_gone(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = fill(tmp_path / "train", random(30))
    np.save("five.npy", random(5, 1))
    assert say("train", "attentive_digits_tiny", *QUICK, "--data", train, "--run", "run") == 0
    train.rename("moved")
    capsys.readouterr()
    assert say("evaluate", "run", "--data", "five.npy") == 0
    said = capsys.readouterr()
    assert "data: not known how many of them the run was trained on: data.set: got " in said.err
    assert "independent pixels not available: the training images of the run are not at" in " ".join(said.out.split())
    assert result("run")["protocol"]["data"]["training_images"] is None
    fill(train, random(20, 8))  # others at the same place
    assert say("evaluate", "run", "--data", "five.npy") == 0
    assert "was trained on: its training images have changed\n" in capsys.readouterr().err


def test_splits_that_are_asked_for(place: Path, capsys: Capture) -> None:
    """Of another set they are made as in training, with the defaults; what a message advises works."""
    fill(place / "many", random(40, 9))
    for words, name in (
        (["--split", "test"], "many/test"),
        (["--split", "train"], "many/train"),
        (["--data.test_fraction", 0.5], "many/test"),
        (["--data.validation", 0.3, "--split", "validation"], "many/validation"),
        (["--data.validation", 0], "many"),
        (["--split", "all"], "many"),
    ):
        assert say("evaluate", "gray", "--data", "many", *words) == 0
        protocol = result("gray")["protocol"]
        assert protocol["set"] == name
        assert (protocol["images"] == 40) == (name == "many")
    for words in (["--split", "test"], ["--data.test_fraction", 0.999]):
        assert say("evaluate", "gray", "--data", "one.npy", *words) == 2
        assert say("evaluate", "gray", "--data", "held", *words) == 0  # five images, split by count
    assert result("gray")["protocol"]["images"] == 4
    assert say("evaluate", "gray", "--data", "splits", "--split", "all") == 0
    assert (result("gray")["protocol"]["set"], result("gray")["protocol"]["images"]) == ("splits", 7)
    assert say("evaluate", "gray", "--data.test", "held") == 0
    protocol = result("gray")["protocol"]
    assert (protocol["set"], protocol["split"], protocol["images"]) == ("held/test", "test", 5)
    assert protocol["data"]["other_images"] == "--data.test=held"


@pytest.mark.parametrize("kind", ["uint8", "bool", "files"])
def test_binary_images_on_a_run_with_drawn_ones(place: Path, capsys: Capture, kind: str) -> None:
    """A 1 among 256 levels would be drawn as a one in 255 times."""
    bits, name = random(12, 3, levels=2), f"bits-{kind}"
    if kind == "files":
        fill(place / name, bits.astype(bool))
    else:
        name += ".npy"
        np.save(name, bits.astype(kind))
    for verb in VERBS:
        capsys.readouterr()
        few = ["--importance-samples", 1, "--no-figures"] if verb == "inspect" else []
        assert say(verb, "binary", "--data", name, *few) == 0
        assert "holds only 0 and 1: taken as binary as it is" in capsys.readouterr().err
    assert say("evaluate", "binary", "--data", name) == 0
    measured = result("binary")
    x = select(DataConfig(set=name, levels=2)).images
    assert np.array_equal(x.pixels[:, 0].numpy(), bits)
    expected = evaluate(davi.load("binary"), x)
    assert measured["elbo"]["nats"]["mean"] == pytest.approx(float(expected.elbo.mean()), rel=1e-12)
    assert (measured["protocol"]["data"]["binarization"], measured["protocol"]["data"]["levels"]) == ("none", 2)
    assert say("evaluate", "binary", "--data", name, "--data.levels", 2) == 0
    assert result("binary")["elbo"] == measured["elbo"]
    # asked for in so many words it is refused
    assert say("evaluate", "binary", "--data", name, "--data.binarization", "dynamic") == 2
    assert "binary already" in capsys.readouterr().err


def test_gray_images_on_a_run_with_drawn_ones(place: Path, capsys: Capture) -> None:
    """They are drawn as the run's test images are, and 0 and 255 are certain."""
    bits = random(12, 3, levels=2)
    np.save("sharp.npy", bits * np.uint8(255))
    assert say("evaluate", "binary", "--data", "sharp.npy") == 0
    assert result("binary")["protocol"]["data"]["binarization"] == "dynamic"
    expected = evaluate(davi.load("binary"), select(DataConfig(set="sharp.npy", binarization="threshold")).images)
    assert result("binary")["elbo"]["nats"]["mean"] == pytest.approx(float(expected.elbo.mean()), rel=1e-12)


def test_training_on_binary_images_advises_what_works(tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "bits.npy", random(30, 3, levels=2))
    words = ["train", "attentive_mnist", "--data", tmp_path / "bits.npy", "--run", tmp_path / "run", "--plan"]
    words += ["--model.width", 4, "--training.batch_size", 4, "--data.validation", 0]
    assert say(*words) == 2
    advice = re.findall(r"--data\.\w+ \w+", capsys.readouterr().err)
    assert advice == ["--data.binarization none", "--data.levels 2"]
    assert say(*words, *" ".join(advice).split()) == 0
    assert "27 training images of 1x8x8 with 2 levels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"), [("memory", 2.0), ("cache", "here"), ("root", "here"), ("skip_unreadable", True)]
)
def test_options_that_other_images_have_no_use_for_are_not_inherited(
    place: Path, capsys: Capture, option: str, value: object
) -> None:
    """From the run they are undone; from the user they are refused."""
    recipe = Path("gray/recipe.yaml")
    before = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        re.sub(rf"^  {option}: .*$", f"  {option}: {json.dumps(value)}", before, flags=re.M), encoding="utf-8"
    )
    try:
        assert say("evaluate", "gray", "--data", "five.npy") == 0
    finally:
        recipe.write_text(before, encoding="utf-8")
    capsys.readouterr()
    assert say("evaluate", "gray", "--data", "five.npy", f"--data.{option}", value) == 2
    assert f"data.{option}: got " in capsys.readouterr().err


def test_runs_of_older_versions_may_hold_options_of_no_use(tmp_path: Path, capsys: Capture) -> None:
    """They were ignored when the run was begun, so that they change nothing when it is measured or goes on."""
    np.save(tmp_path / "set.npy", random(30))
    run = tmp_path / "run"
    assert say("train", "attentive_digits_tiny", *QUICK, "--data", tmp_path / "set.npy", "--run", run) == 0
    text = (run / "recipe.yaml").read_text(encoding="utf-8")
    for option, value in (("root", "/nowhere"), ("memory", "3.0"), ("cache", "/nowhere"), ("skip_unreadable", "true")):
        text = re.sub(rf"^  {option}: .*$", f"  {option}: {value}", text, flags=re.MULTILINE)
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    assert say("evaluate", run) == 0
    assert say("train", "--run", run, "--resume", "--training.steps", 2) == 0
    assert "memory 3.0 -> 1.0" in capsys.readouterr().out


def data_of(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text())["protocol"]["data"]


def test_the_same_images_kept_as_gray_or_as_binary(tmp_path: Path, capsys: Capture) -> None:
    """What the model saw counts, not how it is stored; where that cannot be told, nothing is claimed."""
    bits = random(40, levels=2)
    for name, array in (("gray", bits * 255), ("bits", bits)):
        np.save(tmp_path / f"{name}.npy", array)
    words = ["train", "vae_digits_tiny", *QUICK, "--data", tmp_path / "gray.npy", "--data.binarization"]
    for binarization, found in (("threshold", 36), ("dynamic", None)):
        run = tmp_path / binarization
        assert say(*words, binarization, "--run", run, "--model.likelihood.family", "bernoulli") == 0
        capsys.readouterr()
        assert say("evaluate", run, "--data", tmp_path / "bits.npy") == 0
        err = capsys.readouterr().err
        assert data_of(run)["training_images"] == found
        assert ("36 of these 40 images" in err) == (found == 36)
        assert ("not known how many of them the run was trained on" in err) == (found is None)
        assert "--data.levels" not in err  # a hint that was followed


def test_another_part_of_a_training_file_is_no_new_image(place: Path, tmp_path: Path, capsys: Capture) -> None:
    """Patches and crops of the same files are equal nowhere, and yet the run was trained on them."""
    fill(tmp_path / "big" / "train", np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8))
    fill(tmp_path / "big" / "test", np.random.default_rng(1).integers(0, 256, (6, 16, 16), dtype=np.uint8))
    run = tmp_path / "run"
    words = ["train", "attentive_digits_tiny", *QUICK, "--data", tmp_path / "big", "--data.patches", "[8, 8]"]
    assert say(*words, "--run", run) == 0
    crop = ["--data.patches", "null", "--data.crop", "[8, 8]", "--split", "train"]
    assert say("evaluate", run, *crop) == 0
    assert "they are cut from the files in another way" in capsys.readouterr().err
    assert data_of(run)["training_images"] is None
    assert compare([read(run)]).groups[0].rows[0].rank is None


def test_what_is_replaced_is_said(place: Path, capsys: Capture) -> None:
    run = place / "gray"
    assert say("evaluate", run, "--data", place / "held") == 0
    capsys.readouterr()
    assert say("evaluate", run, "--data", place / "held") == 0
    assert "in place of" not in capsys.readouterr().out
    assert say("evaluate", run, "--data", place / "one") == 0
    assert f"in place of the evaluation on {place / 'held'} with K = 1" in capsys.readouterr().out
