"""A run that was killed or stopped anywhere ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import killed_runs
import pytest
import torch
from killed_runs import CONFIG
from tiny import RECIPE, same_files, sets, vae

from davi import recipes
from davi.config import to_dict
from davi.data import load
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.runs import checkpoint_folders, load_model
from davi.training import Interrupted, TrainingConfig, train
from davi.training.sections import OptimizerConfig, ScheduleConfig
from davi.training.signals import Signals

CLOCK = {"seconds", "seconds_left", "images_per_second"}


def history(run: Path) -> list[dict[str, Any]]:
    """The records without what the clock says. Checkpoints leave one only if the run lived long enough to write it."""
    records = [record for record in read_metrics(run) if record["kind"] != "checkpoint"]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def go(run: Path, resume: bool = False, config: TrainingConfig = CONFIG) -> list[str]:
    lines: list[str] = []
    train(vae(), sets(), config, run, RECIPE, resume=resume, print_fn=lines.append)
    return lines


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums are the same bit for bit only with the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


POINTS = (
    *("part:1", "part:10", "verdict:5", "average:7", "validate:1", "record:3", "record:6"),
    *("tensors:1", "tensors:7", "flush:4", "flush:12", "rename:5", "rename:9", "rename:14", "remove:2"),
)


def test_killed_anywhere(tmp_path: Path) -> None:
    """SIGKILL between the parts of a batch, before the average, within and after checkpoints, within a line."""
    done = forked.call(killed_runs.main, tmp_path, [*POINTS], folder=tmp_path)
    assert done.status == 0, done.out + done.err
    assert done.out.splitlines() == [f"{point}: killed 1" for point in POINTS]
    whole = tmp_path / "whole"
    expected = history(whole)
    assert {record["kind"] for record in expected} == {"train", "validation", "skip", "watch"}
    for point in POINTS:
        run = tmp_path / point.replace(":", "-")
        assert same_files(whole, run), point  # the model, and weights, moments, random states of two checkpoints
        assert history(run) == expected, point
        left = [path.name for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".new"]
        assert not left, point


def test_stopped_by_a_signal_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole)
    monkeypatch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 15) or self)
    for step in range(1, CONFIG.steps):
        with pytest.raises(Interrupted) as caught:
            go(run, resume=True)
        assert caught.value.step == step
    monkeypatch.undo()
    lines = go(run, resume=True)
    assert lines[0] == f"resuming {run} after step 11"
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    newest = checkpoint_folders(run)[-1]
    assert same_files(newest, checkpoint_folders(whole)[-1])
    assert history(run) == history(whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", "cut"),
        ("optimizer.safetensors", "flip"),
        ("average.safetensors", "remove"),
        ("others.safetensors", "empty"),
        ("state.json", "cut"),
        ("state.json", "edit"),
    ],
)
def test_damaged_newest_checkpoint_falls_back(tmp_path: Path, name: str, damage: str) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole)
    shutil.copytree(whole, run)
    (run / "model.safetensors").unlink()
    path = checkpoint_folders(run)[-1] / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    if damage == "edit":
        document = json.loads(content)
        document["state"]["guard"]["skips"] += 1
        content = bytearray(json.dumps(document).encode())
    path.write_bytes({"cut": content[: len(content) // 2], "empty": bytearray()}.get(damage, content))
    if damage == "remove":
        path.unlink()
    lines = go(run, resume=True)
    assert name in lines[0]
    assert "trying the checkpoint before it" in lines[0]
    assert lines[1] == f"resuming {run} after step 9"
    assert same_files(whole, run)
    assert history(run) == history(whole)


def test_no_checkpoint_can_be_used(tmp_path: Path) -> None:
    go(tmp_path / "run")
    for folder in checkpoint_folders(tmp_path / "run"):
        (folder / "state.json").write_text("[]")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be used") as caught:
        go(tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_an_ended_run_resumes_to_itself(tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(run)
    before = (run / "model.safetensors").read_bytes()
    records = (run / "metrics.jsonl").read_text()
    for _ in range(2):
        lines = go(run, resume=True)
        assert lines[0] == f"resuming {run} after step 12"
        assert lines[1:] == [
            f"{run} has ended with step 12, its budget of steps is used up; a larger one would prolong it; "
            f"the model is {run / 'model.safetensors'}"
        ]
        assert (run / "model.safetensors").read_bytes() == before
        assert (run / "metrics.jsonl").read_text() == records


def test_a_run_killed_at_its_very_end_is_completed(tmp_path: Path) -> None:
    """All but the model is there, or the last validation is missing as well."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole)
    for lines in (None, -2):  # the last two records are the validation and the checkpoint
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        (run / "model.safetensors").unlink()
        kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:lines]
        (run / "metrics.jsonl").write_text("".join(kept))
        go(run, resume=True)
        assert same_files(whole, run)
        assert history(run) == history(whole)


def test_a_run_can_be_prolonged(tmp_path: Path) -> None:
    """With a constant learning rate the longer budget changes nothing about the first steps."""
    constant = ScheduleConfig("constant")
    short, long = (TrainingConfig(steps=n, batch_size=8, schedule=constant, threads=1) for n in (5, 9))
    go(tmp_path / "once", config=long)
    go(tmp_path / "twice", config=short)
    go(tmp_path / "twice", resume=True, config=long)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice"))
    assert first == second


def test_nothing_to_resume_begins(tmp_path: Path) -> None:
    lines = go(tmp_path / "run", resume=True)
    assert lines[0] == f"nothing to resume in {tmp_path / 'run'}: from the beginning"
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 10), ("optimizer", OptimizerConfig("adamw")), ("seed", 7)]
)
def test_what_no_resumption_may_change_is_refused(tmp_path: Path, option: str, value: Any) -> None:
    run = tmp_path / "run"
    go(run)
    before = (run / "recipe.yaml").read_bytes()
    other = replace(CONFIG, steps=20, **{option: value})
    changed = {**RECIPE, "training": {option: to_dict(value) if option == "optimizer" else value}}
    with pytest.raises(UserError, match=option):
        train(vae(), sets(), other, run, changed, resume=True, print_fn=[].append)
    assert (run / "recipe.yaml").read_bytes() == before
    assert go(run, resume=True)[0] == f"resuming {run} after step 12"  # as if nobody had tried


def test_the_only_checkpoint_outlives_its_replacement(tmp_path: Path) -> None:
    """Killed between the two renames by which a checkpoint replaces another one of the same step."""
    run = tmp_path / "run"
    go(run, config=replace(CONFIG, checkpoints=replace(CONFIG.checkpoints, keep=1)))
    (only,) = checkpoint_folders(run)
    shutil.copytree(only, only.with_name(f".new-{only.name}"))
    only.rename(only.with_name(f".was-{only.name}"))
    assert go(run, resume=True)[0] == f"resuming {run} after step 12"
    assert [path.name for path in only.parent.iterdir()] == [only.name]


def test_another_model_is_refused(tmp_path: Path) -> None:
    go(tmp_path / "run")
    with pytest.raises(UserError, match="weights of another model"):
        train(vae(width=6), sets(), CONFIG, tmp_path / "run", RECIPE, resume=True, print_fn=[].append)


def test_other_images_are_refused(tmp_path: Path) -> None:
    run, data = tmp_path / "run", sets()
    known = replace(data, protocol={**data.protocol, "train_sha256": "a" * 64})
    train(vae(), known, CONFIG, run, RECIPE, print_fn=[].append)
    other = replace(data, protocol={**data.protocol, "train_sha256": "b" * 64})
    before = (run / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"^data: got train_sha256 b{12}\.\.\., expected a{12}\.\.\. as when") as caught:
        train(vae(), other, replace(CONFIG, steps=20), run, RECIPE, resume=True, print_fn=[].append)
    assert "\n" not in str(caught.value)
    assert (run / "recipe.yaml").read_bytes() == before


def test_time_is_kept(tmp_path: Path) -> None:
    """The clock of a resumed run goes on from the checkpoint's time: a spent budget stays spent."""
    run = tmp_path / "run"
    config = TrainingConfig(minutes=0.01, batch_size=8)
    go(run, config=config)
    steps = max(record["step"] for record in read_metrics(run))
    go(run, resume=True, config=config)
    assert max(record["step"] for record in read_metrics(run)) == steps


def test_a_run_without_a_model_yet_loads_its_average(tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(run)
    final, _ = load_model(run)
    (run / "model.safetensors").unlink()
    lines: list[str] = []
    model, info = load_model(run, lines.append)
    assert "using the checkpoint of step 12" in lines[0]
    assert info["source"].endswith("step-00000012/average.safetensors")
    pairs = zip(model.state_dict().values(), final.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("_tiny")])
def test_every_model_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By signals after the first and the second of four steps, with two stages before and between these. Kept are
    moments, averages, statistics, vectors of penalties, chains."""
    recipe = recipes.load(name)
    assert recipe.data is not None
    assert recipe.training is not None
    images = load(recipe.data)
    classes = len(images.train.classes)
    config = replace(CONFIG, steps=4, batch_size=16, objective=recipe.training.objective)
    stages = [
        replace(stage, config=replace(config, steps=4 // len(recipe.stages), objective=stage.config.objective))
        for stage in recipe.stages
    ]

    def run(folder: Path, resume: bool = False) -> None:
        torch.manual_seed(4)
        network = recipes.build(recipe, images.shape, images.levels, classes)
        train(network, images, config, folder, RECIPE, resume=resume, print_fn=lambda line: None, stages=stages)

    run(tmp_path / "whole")
    monkeypatch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 15) or self)
    for step in (1, 2):
        with pytest.raises(Interrupted) as caught:
            run(tmp_path / "run", resume=step > 1)
        assert caught.value.step == step
    monkeypatch.undo()
    run(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert same_files(checkpoint_folders(tmp_path / "run")[-1], checkpoint_folders(tmp_path / "whole")[-1])
