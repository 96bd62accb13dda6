"""Stages and objectives in recipes and through the program: what is read, refused, planned and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspected import contents
from staged import FIRST, STAGES, explained
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tiny import sets
from toys import TRAINING, recipe, register

from davi import recipes
from davi.cli import main
from davi.config import load_yaml
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.page.blocks import Fold, Table
from davi.page.curves import curves
from davi.runs import RECIPE
from davi.training import train

Capture = pytest.CaptureFixture[str]

KNOWN = "contrastive, cross_entropy, evidence, lagging, up_down, vector_quantized, toy_persistent"
"""Objectives."""


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    return recipe(tmp_path, "toy_halves")


def test_a_section_and_a_budget_of_a_stage_replace_the_shared_ones(halves: Path) -> None:
    found = recipes.load(halves, ["--stages.first.minutes", "3", "--training.optimizer.weight_decay", "0.1"])
    first, second = found.stages
    assert (first.name, first.part, second.name, second.part) == ("first", "top", "second", "bottom")
    assert (first.config.steps, first.config.minutes, first.config.batch_size) == (None, 3.0, 16)
    assert (second.config.steps, second.config.minutes, second.config.batch_size) == (7, None, 12)
    assert (first.config.optimizer.name, first.config.optimizer.weight_decay) == ("adamax", 0.1)
    assert (second.config.optimizer.name, second.config.optimizer.weight_decay) == ("sgd", 0.0)
    assert first.config.learning_rate == second.config.learning_rate == 0.05


def test_round_trip(halves: Path) -> None:
    """Whatever was laid over it, what a run writes is read as the same."""
    found = recipes.load(halves, ["--stages.second.steps", "9", "--stages.first.epochs=2"])
    copy = halves.with_name("copy.yaml")
    copy.write_text(yaml.safe_dump(found.to_dict()))
    assert recipes.load(copy) == found
    assert [stage.config.steps for stage in found.stages] == [None, 9]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["--stages.third.steps", "9"], r"^stages.third.steps: stages.third is nothing, expected a section of keys$"),
        (["--stages.second.stepss", "9"], r"stages.second: unknown key stepss; did you mean steps\?$"),
        (["--stages.second.steps", "0"], r"stages.second: steps: got 0, expected a number above 0"),
        (["--stages", "[]"], r"stages: got \[\], expected a list of stages$"),
        (["--stages", "3"], r"stages: got 3, expected a list of stages$"),
        (["--stages", "[3]"], r"stages: got the name nothing, expected a word for each, no two alike$"),
        (["--stages.second.name", "first"], r"stages: got the name 'first', expected a word for each, no two alike$"),
        (["--stages.second.name", "a b"], r"stages: got the name 'a b', expected a word for each, no two alike$"),
        (["--stages.second.part", "3"], r"stages.second.part: got 3, expected the name of a part, or null$"),
        (["--training", "null"], r"stages: got \[.*, expected a list of stages beside a section training$"),
        (
            ["--stages.second.objective.name", "elbo"],
            rf"stages.second: objective.name: got 'elbo', expected one of {KNOWN}$",
        ),
    ],
)
def test_mistakes_cost_one_line(halves: Path, assignments: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipes.load(halves, assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "objective", "message"),
    [
        (
            "toy_boltzmann",
            {"name": "persistent"},
            rf"training.objective.name: got 'persistent', expected one of {KNOWN}$",
        ),
        (
            "toy_boltzmann",
            {"name": 3},
            rf"training.objective.name: got 3, expected one of {KNOWN}$",
        ),
        (
            "toy_boltzmann",
            {"name": "toy_persistent", "free_nats": 1.0},
            r"unknown key training.objective.free_nats; it is an option of another training.objective.name$",
        ),
        (
            "toy_halves",
            {"steps": 2},
            r"unknown key training.objective.steps; it is an option of another training.objective.name$",
        ),
        ("toy_halves", {"drows": 2}, r"unknown key training.objective.drows; did you mean training.objective.draws\?$"),
    ],
)
def test_objectives_that_do_not_exist(tmp_path: Path, name: str, objective: Mapping[str, Any], message: str) -> None:
    path = recipe(tmp_path, name, training={**TRAINING, "objective": objective})
    with pytest.raises(UserError, match=message) as caught:
        recipes.load(path)
    assert "\n" not in str(caught.value)


def test_the_program(halves: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    assert main(["train", str(halves), "--run", str(run), "--stages.second.steps", "9"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "stage 1 of 2: first, which trains top" in said
    assert "stage 2 of 2: second, which trains bottom" in said
    assert any(line.startswith("second: step 21/21  epoch 0  ") for line in said)
    assert any(line.startswith("second: validation at step 18: ") for line in said)
    written = recipes.load(run / RECIPE)
    assert written == recipes.load(halves, ["--stages.second.steps", "9"])
    assert load_yaml(run / RECIPE)["stages"][1]["steps"] == 9
    before = (run / RECIPE).read_bytes()
    assert main(["train", "--run", str(run), "--resume", "--stages.first.steps", "13"]) == 2
    assert capsys.readouterr().err.startswith("davi: stages.first: got a larger budget, expected that with which")
    assert main(["train", "--run", str(run), "--resume", "--stages.second.part", "top"]) == 2
    assert "stages: got [('first', 'top'), ('second', 'top')], expected" in capsys.readouterr().err
    assert (run / RECIPE).read_bytes() == before
    assert main(["train", "--run", str(run), "--resume", "--stages.second.steps", "11"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "stage 2 of 2: second, which trains bottom" in said
    assert any(line.startswith("trained 23 steps") for line in said)
    assert [record["stage"] for record in read_metrics(run) if record["kind"] == "stage"] == ["first"]


def test_a_plan_for_each_stage(halves: Path, capsys: Capture) -> None:
    assert main(["train", str(halves), "--plan"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("stage")] == [
        "stage first, which trains top:",
        "stage second, which trains bottom:",
    ]
    sizes = [line.split(", ")[1] for line in said if line.startswith("memory on")]
    assert sizes == ["16 images a step:", "12 images a step:"]
    budgets = [line.split(":")[0].strip() for line in said if "the budget of" in line]
    assert budgets == ["the budget of 12 steps", "the budget of 7 steps"]


def test_a_plan_of_parts_that_do_not_exist(halves: Path, capsys: Capture) -> None:
    assert main(["train", str(halves), "--plan", "--stages.second.part", "middle"]) == 2
    told = capsys.readouterr()
    assert told.err == "davi: stages.second.part: got middle, expected top or bottom\n"
    assert "memory" not in told.out


def test_curves_of_each_stage_and_of_losses(tmp_path: Path) -> None:
    """The first stage makes a claim; the second has a loss alone."""
    train(explained(), sets(), FIRST, tmp_path, {"model": {"name": "explained"}}, print_fn=[].append, stages=STAGES)
    section = curves(contents(records=read_metrics(tmp_path)), 96)
    figures = {figure.name: figure for figure in section.figures()}
    assert list(figures) == ["curve-bits-1", "curve-kl-1", "curve-loss-2", "curve-rate-1", "curve-rate-2"]
    first, second = "Stage first", "Stage second"
    assert [figure.title for figure in figures.values()] == [first, first, second, first, second]
    (loss,) = figures["curve-loss-2"].charts()
    records = [r for r in read_metrics(tmp_path) if r["kind"] == "train" and r["stage"] == "second"]
    (step, value), *_, (end, last) = [(record["step"], record["loss"]) for record in records]
    assert f"training goes from {value:.4g} at step {step} to {last:.4g} at step {end}; validation goes" in loss.alt
    (bits,) = figures["curve-bits-1"].charts()
    assert " at step 10" in bits.alt
    fold = section.blocks[-1]
    assert isinstance(fold, Fold)
    (table,) = fold.blocks
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == [str(r["step"]) for r in read_metrics(tmp_path) if r["kind"] == "watch"]


def test_tensorboard_tells_stages_apart(tmp_path: Path) -> None:
    stages = [replace(stage, config=replace(stage.config, tensorboard=True, steps=5)) for stage in STAGES]
    train(explained(), sets(), FIRST, tmp_path, {"model": {"name": "explained"}}, print_fn=[].append, stages=stages)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = {tag: [event.step for event in accumulator.Tensors(tag)] for tag in accumulator.Tags()["tensors"]}
    assert steps["train/first/bits_per_dim"] == [4, 5]
    assert steps["train/second/loss"] == [8, 10]
    assert "train/second/bits_per_dim" not in steps
    assert steps["validation/second/data"] == [8, 10]
    assert steps["events/stage/text_summary"] == [5]
