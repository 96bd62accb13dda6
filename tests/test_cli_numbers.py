"""What ``davi evaluate``, ``inspect``, ``reconstruct`` and ``compare`` measure: which images, and of which weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davi
from davi import data, files, measurements, runs
from davi.cli import main
from davi.comparison import trained_on_these
from davi.data.subsets import positions
from davi.evaluation import evaluate
from davi.evaluation.baselines import baselines
from davi.evaluation.clusters import standard_error
from davi.evaluation.result import Protocol, Result
from davi.records import read

Capture = pytest.CaptureFixture[str]
TINY = "attentive_digits_tiny"


def say(*words: object) -> int:
    return main([str(word) for word in words])


def evaluation(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one recipe that differ by their seed alone, ``a/run`` and ``b/run``; not to be changed."""
    folder = tmp_path_factory.mktemp("numbers")
    for seed, name in enumerate("ab"):
        words = ["--training.steps", 2, "--training.seed", seed, "--training.checkpoints.steps=1"]
        assert say("train", TINY, "--run", folder / name / "run", *words) == 0
        assert say("evaluate", folder / name / "run", "--limit", 20) == 0
    return folder


@pytest.fixture
def pair(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of these runs."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs" / "a" / "run", tmp_path / "runs" / "b" / "run"


def test_model_and_baselines_are_asked_about_the_same_images(trained: Path) -> None:
    found = evaluation(trained / "a" / "run")
    sets = data.load(data.DataConfig(set="digits"))
    chosen = sets.test.subset(positions(397, 20))
    expected = evaluate(davi.load(trained / "a" / "run"), chosen)
    assert found["bound"]["nats"]["mean"] == pytest.approx(float(expected.bound.mean()), rel=1e-12)
    assert found["protocol"]["subset"] == "20 of 397 images, spread evenly, seed 0"
    assert found["protocol"]["images_sha256"] == data.protocol.digest(chosen)
    training = data.load(data.DataConfig(**_section(trained / "a" / "run"))).train
    numbers = {line.name: line.bits_per_dim for line in baselines(training, chosen)}
    told = {line["name"]: line["bits_per_dim"] for line in found["baselines"]}
    assert told == pytest.approx(numbers, rel=1e-12)
    whole = {line.name: line.bits_per_dim for line in baselines(training, sets.test)}
    assert all(told[name] != pytest.approx(whole[name], rel=1e-6) for name in whole)


def _section(run: Path) -> dict[str, Any]:
    from davi.config import load_yaml

    section: dict[str, Any] = load_yaml(run / "recipe.yaml")["data"]
    return section


def test_reconstructions_are_spread_over_the_set(pair: tuple[Path, Path], capsys: Capture) -> None:
    assert say("reconstruct", pair[0], "--n", 3) == 0
    some = "3 of 397 images, spread evenly, seed 0, of digits/test, each beside its reconstruction"
    assert some in capsys.readouterr().out
    assert say("reconstruct", pair[0], "--n", 400) == 0
    assert "397 images of digits/test, each beside its reconstruction" in capsys.readouterr().out


def test_an_evaluation_says_which_weights_it_is_of(trained: Path) -> None:
    for name in "ab":
        run = trained / name / "run"
        digest = evaluation(run)["protocol"]["model"]["weights_sha256"]
        assert digest == files.digest(davi.load(run).state_dict()) == runs.weights_of(run)
    assert evaluation(trained / "a" / "run")["protocol"]["model"]["weights_sha256"] != digest


def test_a_page_takes_no_numbers_of_other_weights(pair: tuple[Path, Path], capsys: Capture) -> None:
    first, second = pair
    for name in ("evaluation.json", "evaluation.safetensors"):
        shutil.copy(first / name, second / name)
    assert say("inspect", second, "--no-figures") == 0
    said = capsys.readouterr().out
    assert "evaluation.json is of other weights than the run holds now; measuring anew\n" in said
    assert "100 of 397 images" in said
    page = (second / "inspection.html").read_text(encoding="utf-8")
    assert "evaluation.json is of other weights than the run holds now" in page
    assert say("inspect", first, "--no-figures") == 0
    assert "20 of 397 images" in capsys.readouterr().out
    assert "for these very weights" in (first / "inspection.html").read_text(encoding="utf-8")


def without(run: Path, *keys: str) -> None:
    """Make the evaluation one of an older version, which did not know some keys of the protocol."""
    values = evaluation(run)
    del values["format"]
    for key in keys:
        values["protocol"].pop(key, None)
        values["protocol"]["model"].pop(key, None)
    model, sets = davi.load(run), data.load(data.DataConfig(set="digits"))
    again = evaluate(model, sets.test.subset(slice(20)))
    values["protocol"]["images_sha256"] = again.images_sha256
    measurements.save(run, read(Result, values, "old"), again)


def test_evaluations_of_older_versions_are_of_the_first_images(pair: tuple[Path, Path], capsys: Capture) -> None:
    first, second = pair
    without(first, "subset", "files", "weights_sha256")
    capsys.readouterr()
    assert say("inspect", first, "--no-figures") == 0
    said = capsys.readouterr().out
    assert "evaluation.json does not say which weights it is of, since an older version wrote it" in said
    assert "the first 20 of 397 images" in said
    assert say("compare", first, second) == 0  # the same number of images, and not the same images
    said = " ".join(capsys.readouterr().out.split())
    assert "not ranked across groups, since their protocols differ in images_sha256" in said
    assert "chosen: the first ones (A), spread evenly (B)" in said
    assert say("compare", first, "--json") == 0
    (note,) = json.loads(capsys.readouterr().out)["groups"][0]["rows"][0]["notes"]
    assert note == "its evaluation, of an older version, does not say which weights it is of; evaluate again to be sure"


def test_runs_are_not_compared_by_numbers_of_other_weights(pair: tuple[Path, Path], capsys: Capture) -> None:
    first, second = pair
    shutil.copy(second / "model.safetensors", first / "model.safetensors")
    assert say("compare", first, second) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"davi: {first}: got an evaluation of weights ")
    assert said.err.endswith(f"; davi evaluate {first} measures these\n")
    assert said.err.count("\n") == 1
    assert say("evaluate", first, "--limit", 20) == 0
    assert say("compare", first, second) == 0
    (second / "model.safetensors").unlink()  # still in training: its newest checkpoint stands for it
    assert say("compare", second) == 0
    shutil.rmtree(runs.checkpoint_folders(second)[-1])
    assert say("compare", second) == 2
    shutil.rmtree(second / "checkpoints")
    capsys.readouterr()
    assert say("compare", second) == 0
    assert "the run holds no weights now" in " ".join(capsys.readouterr().out.split())


def test_figures_that_cannot_be_written_cost_one_line_at_once(pair: tuple[Path, Path], capsys: Capture) -> None:
    (pair[0] / "inspection").write_text("no folder", encoding="utf-8")
    page = pair[0].parent / "page.html"
    capsys.readouterr()
    assert say("inspect", pair[0], "--out", page) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"davi: {pair[0] / 'inspection'}: cannot be written (")
    assert "--no-figures writes the page alone" in said.err
    assert said.err.count("\n") == 1
    assert not page.exists()
    assert say("inspect", pair[0], "--out", page, "--no-figures") == 0  # the remedy works
    assert page.is_file()


def test_patches_of_two_photographs_claim_nothing(tmp_path: Path, capsys: Capture) -> None:
    for width in (4, 5):
        run = tmp_path / str(width)
        words = ["--data", "photos", "--model.likelihood.family", "logistic_mixture", "--model.width", width]
        words += ["--model.spatial_attention", "{}"]  # which on 32x32 pixels takes most of the time
        assert say("train", TINY, "--run", run, "--training.steps", 1, "--training.validate_every=0", *words) == 0
        capsys.readouterr()
        assert say("evaluate", run, "--limit", 30) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "30 of 130 images, spread evenly, seed 0 (30 patches of 2 files)" in said
        assert "from fewer than 5 files no interval and no significance follows" in said
    groups = measurements.load(run).groups
    assert groups is not None
    test = data.load(data.DataConfig(set="photos")).test
    assert torch.equal(torch.from_numpy(groups), test.groups[positions(130, 30)])
    assert say("compare", tmp_path / "4", tmp_path / "5") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "errors are clustered by file: 30 patches of 2 files; from fewer than 5 files" in said
    assert say("inspect", run, "--no-figures", "--limit", 30, "--importance-samples", 1) == 0
    page = " ".join((run / "inspection.html").read_text(encoding="utf-8").split())
    assert "clustered by file (30 patches of 2 files; from fewer than 5 files no interval" in page


def test_validation_images_of_one_run_that_another_was_trained_on(tmp_path: Path, capsys: Capture) -> None:
    """The first run keeps out 100 images, which are training images of the second one."""
    fair, unfair = tmp_path / "fair", tmp_path / "unfair"
    for run, kept in ((fair, 100), (unfair, 0)):
        words = ["--training.steps", 1, "--training.validate_every=0", "--data.validation", kept]
        assert say("train", TINY, "--run", run, *words) == 0
    assert say("evaluate", fair, "--split", "validation") == 0
    assert say("evaluate", unfair, "--split", "validation", "--data.validation", 100) == 0
    both = [evaluation(run)["protocol"] for run in (fair, unfair)]
    assert both[0]["images_sha256"] == both[1]["images_sha256"]
    assert both[0]["split"] == both[1]["split"] == "validation"
    capsys.readouterr()
    assert say("compare", fair, unfair, "--json") == 2
    said = capsys.readouterr()
    groups = json.loads(said.out)["groups"]
    assert [[(row["run"], row["rank"]) for row in group["rows"]] for group in groups] == [
        [(str(fair), 1)],
        [(str(unfair), None)],
    ]
    assert said.err == (
        f"davi: {unfair}: not ranked; got an evaluation on images that the run was trained on, expected images that "
        "training has not seen, such as --split test\n"
    )
    for old in (both[0], both[1]):  # an older version did not count: its hashes tell as much
        old["data"] = {k: v for k, v in old["data"].items() if k not in ("other_images", "training_images")}
    assert [trained_on_these(read(Protocol, protocol, "old")) for protocol in both] == [False, True]


def test_patches_of_a_folder_are_of_their_files(tmp_path: Path, capsys: Capture) -> None:
    """All 60 patches of six files, as another set: clustered by file, and enough files for an interval."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        values = np.random.default_rng(i).integers(256, size=(16, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(pictures / f"{i}.png")
    words = ["--data", pictures, "--data.patches", "[8, 8]", "--data.test_fraction", "0.5"]
    run = tmp_path / "run"
    likelihood = ["--model.likelihood.family", "logistic_mixture", "--training.validate_every=0", "--data.validation=0"]
    assert say("train", TINY, "--run", run, "--training.steps", 1, *words, *likelihood) == 0
    capsys.readouterr()
    assert say("evaluate", run, "--data", pictures, "--split", "all") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "60 patches of 6 files" in said
    assert "clustered by file" in said
    assert "fewer than" not in said
    measured = measurements.load(run)
    assert measured.groups is not None
    assert np.unique(measured.groups, return_counts=True)[1].tolist() == [10] * 6
    bound = measured.result.bound.nats.standard_error
    assert bound == pytest.approx(standard_error(measured.bound, measured.groups), rel=1e-12)
    assert bound != pytest.approx(standard_error(measured.bound), rel=1e-3)
