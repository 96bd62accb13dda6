"""``davi train`` as a user types it: short options, what is said first and last, and how often something is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from davi import recipes
from davi.cli import main
from davi.config import load_yaml
from davi.metrics import read_metrics

TINY = "attentive_digits_tiny"
Capture = pytest.CaptureFixture[str]


def say(*words: object) -> int:
    return main([str(word) for word in words])


def training(run: Path) -> dict[str, Any]:
    section: dict[str, Any] = load_yaml(run / "recipe.yaml")["training"]
    return section


def test_short_options(tmp_path: Path) -> None:
    """Each is the option that it is short for; one that is written out has the last word."""
    words = ["--steps", 2, "--lr", 0.003, "--batch-size", 8, "--seed", 5, "--device", "cpu", "--on-nan", "rollback"]
    before = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE")}
    assert say("train", TINY, "--run", tmp_path / "run", *words, "--training.seed", 6) == 0
    found = training(tmp_path / "run")
    assert (found["steps"], found["learning_rate"], found["batch_size"], found["seed"]) == (2, 0.003, 8, 6)
    assert found["step_filter"]["on_nan"] == "rollback"
    # The device was that of this run alone.
    assert {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE")} == before


def test_a_budget_takes_the_place_of_the_recipes(tmp_path: Path) -> None:
    """The recipe's steps would else end a run of 30 minutes, and its minutes a run of so many steps."""
    recipe = recipes.load(TINY)
    assert recipe.training is not None
    assert recipe.training.steps is not None
    for budget, given in (("minutes", 0.0001), ("epochs", 0.01)):
        run = tmp_path / budget
        assert say("train", TINY, "--run", run, f"--{budget}", given) == 0
        found = training(run)
        left = {key: found[key] for key in ("steps", "epochs", "minutes")}
        assert left == {"steps": None, "epochs": None, "minutes": None, budget: given}
    run = tmp_path / "minutes"
    assert say("train", "--run", run, "--resume", "--steps", 4, "--minutes", 5) == 0
    assert (training(run)["steps"], training(run)["minutes"]) == (4, 5)


def test_the_folder_comes_first_and_what_to_do_next_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert say("train", TINY, "--steps", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run runs/{TINY}-1"
    assert lines[-1] == f"next: davi evaluate runs/{TINY}-1"
    assert say("train", "--from", f"runs/{TINY}-1", "--steps", 1, "--run", "my run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("run my run", "next: davi evaluate 'my run'")
    assert say("train", TINY, "--plan") == 0
    assert not capsys.readouterr().out.startswith("run ")


def test_curves_have_enough_points(tmp_path: Path) -> None:
    assert say("train", TINY, "--run", tmp_path / "run", "--steps", 30, "--batch-size", 1) == 0
    points = [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert points == list(range(1, 31))


def test_the_device_is_not_ours_where_a_launcher_has_given_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert say("train", TINY, "--run", tmp_path / "run", "--device", "cpu") == 2
    assert capsys.readouterr().err.startswith("davi: --device: got 'cpu', expected none: the launcher")
