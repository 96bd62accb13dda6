"""``davi train --from``: fine-tuning from runs and from original checkpoints, by the words of the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from davi import recipes
from davi.cli import main
from davi.config import load_yaml
from davi.files import read_tensors
from davi.runs import create_whole, load_model
from davi.training import Interrupted, prepare
from davi.training.signals import Signals

Need = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
BUDGET = ("--training.steps", "3", "--training.batch_size", "8", "--training.threads", "1", "--data.validation", "0")
ROWS = (
    *("--model.encoder", "32x2,32d2,16x2,16d2,8x2,8d2,4x1,4d4,1x1"),
    *("--model.decoder", "1x1,4m1,4x1,8m4,8x2,16m8,16x2,32m16,32x2"),
)
NORMALIZATION = ("--model.input_mean", "0.47309169", "--model.input_deviation", "0.25163671")


def say(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, not to be changed."""
    run = tmp_path_factory.mktemp("from") / "trained"
    assert say("train", "nvae_digits_tiny", "--run", run, *BUDGET, "--training.steps", 2) == 0
    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Color images of 8x8."""
    np.save(tmp_path / "rgb.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    return tmp_path / "rgb.npy"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(path)[0]


@pytest.mark.parametrize("source", [".", "model.safetensors", "checkpoints/step-00000002/average.safetensors"])
def test_from_a_run_or_a_file_of_ours(trained: Path, tmp_path: Path, capsys: Capture, source: str) -> None:
    path, run = trained if source == "." else trained / source, tmp_path / "run"
    recipe = [] if source.startswith((".", "model")) else ["nvae_digits_tiny"]
    assert say("train", *recipe, "--from", path, "--run", run, *BUDGET) == 0
    said = capsys.readouterr().out
    assert f"begins with the weights of {path}\n" in said
    assert "drawn anew" not in said
    own, theirs = weights(run / "start.safetensors"), weights(trained / "model.safetensors")
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    _, info = load_model(run)
    with safe_open(trained / "model.safetensors", "pt") as file:
        there = json.loads(file.metadata()["davi"])["sha256"]
    assert info["protocol"]["started_from"] == str(path)
    assert info["protocol"]["started_from_sha256"] == there
    if not recipe:
        old, new = (load_yaml(each / "recipe.yaml") for each in (trained, run))
        assert new["description"] == f"begun from {path}"
        assert (new["name"], new["model"], new["data"]) == (old["name"], old["model"], old["data"])
        assert new["training"] == {**old["training"], "steps": 3}


def test_other_images_get_other_ends(trained: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    assert say("train", "--from", trained, "--data", images, "--run", run, *BUDGET) == 0
    ends = "drawn anew, since images have 3 channels in place of 1 and 256 levels in place of 17: stem, output"
    assert f"begins with the weights of {trained}; {ends}\n" in capsys.readouterr().out
    assert load_yaml(run / "recipe.yaml")["data"]["set"] == str(images)
    assert say("evaluate", run, "--limit", 2, "--json") == 0
    assert f'"started_from": "{trained}"' in capsys.readouterr().out
    assert say("inspect", run, "--limit", 2, "--no-figures") == 0
    assert str(trained) in (run / "inspection.html").read_text()


def test_a_resumed_run_needs_no_source(
    trained: Path, images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each step, with the source gone, it ends with the weights of an uninterrupted one."""
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    words = ("train", "--from", source, "--data", images, *BUDGET)
    assert say(*words, "--run", tmp_path / "whole") == 0
    run, receive = tmp_path / "run", Signals.__enter__
    monkeypatch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 2) or self)
    assert say(*words, "--run", run) == 130
    shutil.rmtree(source)
    assert say("train", "--run", run, "--resume") == 130
    monkeypatch.setattr(Signals, "__enter__", receive)
    words = ("train", "--from", f"{source}/", "--data", images, *BUDGET)
    assert say(*words, "--run", run, "--resume") == 0  # the same command again goes on as well
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert say("train", "--from", trained, "--run", run, "--resume") == 2
    assert f"--from: got {trained}, expected {source}, with which {run} was begun" in capsys.readouterr().err
    assert say("train", "--from", source, "--run", trained, "--resume") == 2
    assert f"--from: got {source}, expected no such option, without which" in capsys.readouterr().err


def test_killed_before_anything_was_saved(
    trained: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first weights are in the folder before its recipe is: random ones are never taken in their place."""

    def killed(*args: Any) -> None:
        raise Interrupted(2, 0, tmp_path)

    assert say("train", "--from", trained, "--run", tmp_path / "whole", *BUDGET) == 0
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "initialize", killed)
        assert say("train", "--from", trained, "--run", tmp_path / "run", *BUDGET) == 130
    assert say("train", "--run", tmp_path / "run", "--resume") == 0
    assert "from the beginning" in capsys.readouterr().out
    whole, run = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == run


def test_an_imported_run_takes_the_training_of_a_recipe(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    model, _ = load_model(trained)
    recipe = recipes.load("nvae_digits_tiny")
    sections = recipe.to_dict()
    del sections["training"]
    create_whole(tmp_path / "imported", sections, model, {"imported": "a.pt"})
    assert say("train", "--run", tmp_path / "imported", "--resume") == 2
    assert f"davi train --from {tmp_path / 'imported'}" in capsys.readouterr().err
    assert say("train", "--from", tmp_path / "imported", "--run", tmp_path / "run", "--training.steps", 1) == 0
    assert "training: that of nvae_digits_tiny, whose model has such weights\n" in capsys.readouterr().out
    assert recipe.training is not None
    rate = load_yaml(tmp_path / "run" / "recipe.yaml")["training"]["learning_rate"]
    assert rate == recipe.training.learning_rate


def test_from_original_checkpoints(need_shared: Need, images: Path, tmp_path: Path, capsys: Capture) -> None:
    vdvae, nvae = (need_shared(f"fixtures/checkpoints/{name}") for name in ("vdvae_a-model-ema.th", "nvae_mnist.pt"))
    x = np.random.default_rng(0).integers(0, 2, (20, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "binary.npy", x)
    words = ("--data", tmp_path / "binary.npy", "--data.levels", 2, "--data.binarization", "none", *BUDGET)
    assert say("train", "--from", nvae, "--run", tmp_path / "nvae", *words[:-2]) == 0
    assert "drawn anew" not in capsys.readouterr().out
    assert say("train", "--from", nvae, "--run", tmp_path / "none", *words[:6]) == 2  # no recipe fits it
    assert "got no section training, expected one in a recipe that is to be trained, or a budget" in (
        capsys.readouterr().err
    )
    np.save(tmp_path / "rgb32.npy", np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    one = ("--training.steps", 1, "--training.batch_size", 1, "--training.threads", 1)
    color = ("--data", tmp_path / "rgb32.npy", *one)
    assert say("train", "--from", vdvae, "--run", tmp_path / "vdvae", *color, *ROWS) == 2
    assert "--model.input_mean and --model.input_deviation: not given" in capsys.readouterr().err
    assert say("train", "--from", vdvae, "--run", tmp_path / "vdvae", *color, *ROWS, *NORMALIZATION) == 0
    assert "not in the file, and taken from the options given" in capsys.readouterr().out
    model, info = load_model(tmp_path / "vdvae")
    assert model.config.input_mean == 0.47309169
    assert info["protocol"]["started_from"] == str(vdvae)
    np.save(tmp_path / "gray32.npy", np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8))
    gray = ("--data", tmp_path / "gray32.npy", *one, *ROWS, *NORMALIZATION)
    assert say("train", "--from", vdvae, "--run", tmp_path / "gray", *gray) == 0
    assert "since images have 1 channel in place of 3: stem, output" in capsys.readouterr().out
    assert say("train", "--from", need_shared("fixtures/attentive_h5/att_cifar_trained.h5"), "--plan", *color) == 0
    assert "begins with the weights of " in capsys.readouterr().out


def test_a_form_that_is_no_likelihood_is_not_trained(need_shared: Need, tmp_path: Path, capsys: Capture) -> None:
    file = need_shared("fixtures/checkpoints/vdvae_a-model-ema.th")
    words = (*ROWS, *NORMALIZATION, "--model.likelihood.form", "openai")
    assert say("import", "vdvae", file, "--run", tmp_path / "imported", *words) == 0
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    train = ("train", "--from", tmp_path / "imported", "--data", tmp_path / "a.npy", "--run", tmp_path / "run")
    assert say(*train, "--training.steps", 1, "--training.batch_size", 2) == 2
    assert "model.likelihood.form: got openai, expected exact" in capsys.readouterr().err
    exact = ("--training.steps", 1, "--training.batch_size", 2, "--model.likelihood.form", "exact")
    assert say(*train, *exact) == 0


ERRORS = [
    (
        "--from {tmp}/absent",
        "--from: got {tmp}/absent, found nothing there, expected a run, its model.safetensors",
    ),
    ("--from {tmp}/empty", "no model.safetensors and no checkpoint in this folder"),
    ("--from {tmp}/words.txt", "words.txt: not a file of weights that torch.save wrote, or damaged"),
    ("--from {tmp}/list.pt", "--from: got {tmp}/list.pt, which holds other things than weights, expected a run or"),
    ("--from {tmp}/cut.safetensors", "cut.safetensors: not a complete safetensors file"),
    ("vae_digits_tiny --from {run}", "model.name: got vae, expected nvae as in {run}"),
    ("nvae_digits_tiny --from {run} --model.encoder_width 6", "what differs: model.encoder_width 4 -> 6"),
    ("--from {run} --model.encoder_width 6", "what differs: model.encoder_width 4 -> 6"),
    ("--from {run} --data photos", "what differs: images of 1x8x8 -> images of 3x32x32"),
    ("--from {run} --model.encoder_with 6", "unknown key model.encoder_with; did you mean model.encoder_width?"),
    ("--from {run} --model.likelihood.family categorical", "model.likelihood.family logistic_mixture -> categorical"),
    ("--from {tmp}/bare", "bare: got no section data, expected one in a recipe that is to be trained, or --data SET"),
    ("--from", "--from: expected one argument"),
]


@pytest.mark.parametrize(("line", "message"), ERRORS, ids=[line for line, _ in ERRORS])
def test_mistakes_cost_one_line(trained: Path, tmp_path: Path, capsys: Capture, line: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("hello")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "cut.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:-9])
    model, _ = load_model(trained)
    sections = {key: x for key, x in load_yaml(trained / "recipe.yaml").items() if key in ("name", "model")}
    create_whole(tmp_path / "bare", {**sections, "name": "bare"}, model, {})
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp=tmp_path, run=trained) for word in line.split()]
    assert say("train", *words, "--run", tmp_path / "new") == 2
    said = capsys.readouterr()
    assert message.format(tmp=tmp_path, run=trained) in said.err
    assert said.err.startswith("davi: ")
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
