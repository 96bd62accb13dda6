"""What is not finite is diagnosed; a run that may go back does so three times at most, and no kill forgets it."""

from __future__ import annotations

import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import CONFIG
from tiny import RECIPE, same_files, sets, vae
from torch import nn

from davi.errors import UserError
from davi.metrics import read_metrics
from davi.objectives import Loss
from davi.runs import checkpoint_folders, load_model
from davi.training import TrainingConfig, checkpoint, loop, recorder, train
from davi.training.failure import diagnosis, first_layer, spoiled
from davi.training.sections import CheckpointConfig

BACK = replace(CONFIG, step_filter=replace(CONFIG.step_filter, on_nan="rollback", nonfinite_limit=2, skip_factor=0.0))
"""Checkpoints after steps 3, 6, 9, 12; two parts a batch."""

CLOCK = {"seconds", "seconds_left", "images_per_second"}


class KilledError(Exception):
    """Stands for the end of the process."""


def go(run: Path, config: TrainingConfig = BACK, resume: bool = False) -> list[str]:
    lines: list[str] = []
    train(vae(), sets(), config, run, RECIPE, resume=resume, print_fn=lines.append)
    return lines


def history(run: Path) -> list[dict[str, Any]]:
    records = [record for record in read_metrics(run) if record["kind"] != "checkpoint"]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def spoil(monkeypatch: pytest.MonkeyPatch, cures: int, steps: range, kill: tuple[int, int] | None = None) -> None:
    """Make the loss of some steps NaN until the run has gone back ``cures`` times.

    ``kill`` is a step and a number of rollbacks at which the process ends, once.
    """
    compute, left = loop._Job._loss, [kill]

    def loss(self: loop._Job, parts: Any, part: int, step: int, at: Any) -> Loss:
        if left[0] == (step, len(self.state.rollbacks)):
            left.clear()
            left.append(None)
            raise KilledError
        found = compute(self, parts, part, step, at)
        bad = step in steps and len(self.state.rollbacks) < cures
        return found._replace(value=found.value * math.nan) if bad else found

    monkeypatch.setattr(loop._Job, "_loss", loss)


def test_stop_names_the_last_good_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, range(7, 12))
    run = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        go(run, replace(BACK, step_filter=replace(BACK.step_filter, on_nan="stop")))
    assert str(caught.value) == (
        "training: 2 steps in a row without finite loss and gradient up to step 9, the last good one was step 7, "
        f"first in the gradient of {next(name for name, _ in vae().named_parameters())}; "
        f"the last good checkpoint is {run}/checkpoints/step-00000006"
    )


@pytest.mark.parametrize("cures", [1, 3])
def test_back_with_half_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cures: int) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, cures, range(7, 12))
        lines = go(run)
    records = [record for record in read_metrics(run) if record["kind"] == "rollback"]
    assert [(r["step"], r["failed_step"], r["learning_rate_factor"]) for r in records] == [
        (6, 9, 0.5**number) for number in range(1, cures + 1)
    ]
    assert all(record["where"].startswith("first in the gradient of ") for record in records)
    said = [line for line in lines if line.startswith("rollback")]
    assert len(said) == cures
    assert said[0].startswith("rollback 1 of 3: step 9 was not finite, first in the gradient of ")
    assert said[0].endswith("; back at step 6, the learning rate is multiplied by 0.5 from here on")
    _, info = load_model(run)
    assert (info["rollbacks"], info["step"]) == (cures, 12)
    # The records are those of a run without trouble, apart from the learning rate and what follows from it.
    rates = {r["step"]: r["learning_rate"] for r in read_metrics(run) if r["kind"] == "train"}
    go(tmp_path / "plain", replace(BACK, step_filter=replace(BACK.step_filter, on_nan="stop")))
    plain = {r["step"]: r["learning_rate"] for r in read_metrics(tmp_path / "plain") if r["kind"] == "train"}
    assert rates == pytest.approx({4: plain[4], 8: plain[8] * 0.5**cures, 12: plain[12] * 0.5**cures}, rel=1e-12)
    assert load_model(tmp_path / "plain")[1]["rollbacks"] == 0


def test_the_clock_is_not_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, range(7, 12))
    monkeypatch.setattr(
        recorder.Recorder, "clock", lambda self: 2.0 * self.state.step
    )  # 12 s at step 6, 18 s at step 9
    before, go_back = list[float](), loop.go_back

    def watched(failure: Any, processes: Any, state: Any, *rest: Any) -> None:
        go_back(failure, processes, state, *rest)
        before.append(state.seconds)

    monkeypatch.setattr(loop, "go_back", watched)
    go(tmp_path / "run")
    assert before == [18.0]


def test_three_rollbacks_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 4, range(7, 12))
    with pytest.raises(UserError, match=r"^training: 2 steps in a row .*step-00000006; 3 rollbacks have not helped$"):
        go(tmp_path / "run")
    records = [record["kind"] for record in read_metrics(tmp_path / "run")]
    assert records.count("rollback") == 3
    # A resumption does not begin to count anew.
    with pytest.raises(UserError, match=r"3 rollbacks have not helped$"):
        go(tmp_path / "run", resume=True)


def test_back_to_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, range(3))
    run = tmp_path / "run"
    go(run)
    record = next(record for record in read_metrics(run) if record["kind"] == "rollback")
    assert (record["step"], record["failed_step"]) == (0, 2)
    assert load_model(run)[1]["rollbacks"] == 1


def test_failures_before_the_checkpoint_do_not_count_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 5 and 7 are bad, two of four; the checkpoint of step 6 remembers the first, and step 7 stays bad."""
    spoil(monkeypatch, 9, range(4, 8, 2))
    run = tmp_path / "run"
    go(run)
    (record,) = [record for record in read_metrics(run) if record["kind"] == "rollback"]
    assert (record["step"], record["failed_step"]) == (6, 7)
    assert load_model(run)[1]["rollbacks"] == 1


@pytest.mark.parametrize("kill", [(8, 0), (6, 1), (7, 1), (10, 2)])
def test_a_kill_forgets_no_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: tuple[int, int]) -> None:
    """Killed before the first rollback, right after it, a step later, and after the second."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, 2, range(7, 12))
        go(whole)
    with monkeypatch.context() as patch:
        spoil(patch, 2, range(7, 12), kill)
        with pytest.raises(KilledError):
            go(run)
        go(run, resume=True)
    assert same_files(whole, run)
    assert history(run) == history(whole)


@pytest.mark.parametrize("where", ["save", "record"])
def test_killed_within_a_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Before the rollback is saved, and before it is recorded."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    spoil(monkeypatch, 1, range(7, 12))
    go(whole)

    def save(run: Path, state: Any, *rest: Any) -> Path:
        if state.rollbacks:
            raise KilledError
        return checkpoint_save(run, state, *rest)

    def event(self: Any, kind: str, step: int, **values: Any) -> None:
        if kind == "rollback":
            raise KilledError
        shared_event(self, kind, step, **values)

    checkpoint_save, shared_event = checkpoint.save, loop.SharedLog.event
    with monkeypatch.context() as patch:
        if where == "save":
            patch.setattr(checkpoint, "save", save)
        else:
            patch.setattr(loop.SharedLog, "event", event)
        with pytest.raises(KilledError):
            go(run)
    go(run, resume=True)
    assert same_files(whole, run)
    assert history(run) == history(whole)


def test_spoiled_weights_go_back_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update of step 6 makes a weight infinite; it is found when the checkpoint of step 6 is due."""
    step, calls = torch.optim.Adamax.step, []

    def poke(self: torch.optim.Adamax, closure: None = None) -> None:
        step(self)
        calls.append(1)
        if len(calls) == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = math.inf

    monkeypatch.setattr(torch.optim.Adamax, "step", poke)
    run = tmp_path / "run"
    go(run)
    first = next(name for name, _ in vae().named_parameters())
    (record,) = [record for record in read_metrics(run) if record["kind"] == "rollback"]
    assert (record["step"], record["failed_step"], record["where"]) == (3, 6, f"first in {first}")


def test_diagnosis() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    names = ["loss", "reconstruction", "kl/00"]
    assert diagnosis(names, [math.nan, 1.0, math.inf], model) == "first in the term kl/00"
    assert diagnosis(names, [math.nan, 1.0, 1.0], model) == "in the objective alone"
    model[1].weight.grad = torch.tensor([[math.inf]])
    assert diagnosis(names, [math.nan, 1.0, 1.0], model) == "first in the gradient of 1.weight"
    assert spoiled(model.state_dict()) is None
    with torch.no_grad():
        model[1].bias.fill_(-math.inf)
    assert spoiled(model.state_dict()) == "1.bias"
    computed: list[int] = []
    assert first_layer(model, 2, lambda part: (computed.append(part), model(torch.ones(1, 1)))) == "1"
    assert computed == [0]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("tensorboard", "file"), [(False, "metrics.jsonl"), (True, "tensorboard")])
def test_no_room_for_the_records(tmp_path: Path, tensorboard: bool, file: str) -> None:
    """What cannot be written is still waiting when the files are closed, and must not be a second error then."""
    run = tmp_path / "run"
    config = replace(CONFIG, checkpoints=CheckpointConfig(minutes=0.0), steps=3, tensorboard=tensorboard, log_every=1)
    go(run, config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError) as caught:
            go(run, replace(config, steps=40), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"{run / file}: cannot be written (File too large)"
    go(run, config, resume=True)
    assert load_model(run)[1]["step"] == 3


def test_a_really_full_disk(tmp_path: Path) -> None:
    """The kernel refuses to let any file grow beyond what the records need but a checkpoint does not fit in."""
    run = tmp_path / "run"
    config = replace(CONFIG, checkpoints=CheckpointConfig(minutes=0.0), steps=3)
    go(run, config)
    (good,) = checkpoint_folders(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError) as caught:
            go(run, replace(config, steps=6), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"checkpoint {run}/checkpoints/step-00000006: cannot be written (")
    assert str(caught.value).endswith(f"last good checkpoint: {good}")
    assert "\n" not in str(caught.value)
    assert checkpoint_folders(run) == [good]
    assert not [path for path in run.rglob("*") if path.suffix == ".new" or path.name.startswith(".new")]
    go(run, replace(config, steps=6), resume=True)
    assert load_model(run)[1]["step"] == 6
