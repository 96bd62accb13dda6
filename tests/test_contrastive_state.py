"""What contrastive divergence keeps from step to step: over kills, refused steps, and in what a run writes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inspected import contents
from safetensors.torch import load_file
from tiny import RECIPE, same_files, sets
from torch import Tensor

from davi.metrics import read_metrics
from davi.models.rbm import RBM, RBMConfig
from davi.objectives import ContrastiveConfig, Progress, trajectory
from davi.objectives import chains as chains_module
from davi.page.curves import curves
from davi.runs import checkpoint_folders
from davi.training import CheckpointConfig, Interrupted, TrainingConfig, recorder, train
from davi.training.sections import OptimizerConfig, ScheduleConfig
from davi.training.signals import Signals
from davi.training.step_filter import StepFilter, Verdict

CONFIG = TrainingConfig(
    steps=5,
    batch_size=8,
    accumulate=2,
    learning_rate=0.2,
    optimizer=OptimizerConfig("sgd", weight_decay=1e-3),
    schedule=ScheduleConfig("linear", final_learning_rate=0.0),
    objective=ContrastiveConfig(
        chains=12, tempering_levels=4, centered=True, sparsity_target=0.1, trajectory_chains=5, steps=2
    ),
    ema_decay=0.9,
    validate_every=4,
    log_every=1,
    checkpoints=CheckpointConfig(minutes=0.0, steps=3),
    threads=1,
)


@pytest.fixture(autouse=True)
def _adapt_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains_module, "ADAPT_EVERY", 2)


def go(run: Path, config: TrainingConfig = CONFIG) -> list[str]:
    torch.manual_seed(5)
    lines: list[str] = []
    model = RBM((1, 4, 4), 2, RBMConfig(6, weight_std=1.0))
    train(model, sets(), config, run, RECIPE, resume=True, print_fn=lines.append)
    return lines


def received(self: Signals) -> Signals:
    """As if SIGTERM had come at once."""
    self.received = 15
    return self


def test_stopped_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "__enter__", received)
        for _ in range(1, 5):
            with pytest.raises(Interrupted):
                go(tmp_path / "run")
    go(tmp_path / "run")
    folders = [checkpoint_folders(tmp_path / name)[-1] for name in ("whole", "run")]
    assert same_files(*folders)
    kept = load_file(folders[0] / "others.safetensors")
    assert kept["objective/chains"].shape == (4, 12, 1, 4, 4)
    assert kept["objective/acceptance"].isfinite().any()
    assert kept["objective/trajectory/log_weights"].dtype == torch.float64


def test_a_refused_step_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, Tensor]] = {}
    report, judge = recorder.Recorder.report, StepFilter.judge

    def watched(self: recorder.Recorder, rate: float, at: Progress) -> None:
        seen[self.state.step] = {name: tensor.clone() for name, tensor in self.state.objective.state().items()}
        report(self, rate, at)

    def refuse_the_third(self: StepFilter, loss: float, norm: float) -> Verdict:
        verdict = judge(self, loss, norm)
        return Verdict(False, "norm", math.inf, 0.0) if self.steps == 3 else verdict

    monkeypatch.setattr(recorder.Recorder, "report", watched)
    monkeypatch.setattr(StepFilter, "judge", refuse_the_third)
    go(tmp_path / "run")
    names = ("chains", "trajectory/states", "trajectory/log_weights", "centering/mean/visible")
    for name in (*names, "sparsity/mean/hidden"):
        same = [step for step in range(2, 6) if torch.equal(seen[step][name], seen[step - 1][name])]
        assert same == [3], name
    assert all(torch.equal(tensor.nan_to_num(), seen[2][name].nan_to_num()) for name, tensor in seen[3].items())


@pytest.fixture
def _any_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five chains of these runs tell what they have, however little it is worth."""
    monkeypatch.setattr(trajectory, "LARGEST_ERROR", math.inf)


@pytest.mark.usefixtures("_any_error")
def test_what_is_told(tmp_path: Path) -> None:
    lines = go(tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    last = [record for record in records if record["kind"] == "train"][-1]
    assert last["terms"].keys() == {"free_energy"}
    assert last["log_likelihood"] < 0.0 < last["log_z_error"]
    assert {"log_z", "log_z_error", "effective_samples", "swap_acceptance", "levels", "hidden_mean"} <= last.keys()
    assert "nats" not in last
    assert last["learning_rate"] == pytest.approx(0.2 / 5)
    told = next(line for line in lines if line.startswith("step 5/5"))
    for words in ("free energy ", "log p(x) ", "log Z ", "effective chains ", "swaps accepted ", "levels "):
        assert words in told
    validation = [record for record in records if record["kind"] == "validation"][-1]
    assert validation["gap"] == pytest.approx(validation["loss"] - validation["training_loss"])
    assert abs(validation["gap"]) > 1e-3
    assert any("gap to training images" in line for line in lines)
    assert not [record for record in records if record["kind"] == "watch"]  # losses say nothing over time


@pytest.mark.usefixtures("_any_error")
def test_curves_of_the_likelihood_and_the_gap(tmp_path: Path) -> None:
    go(tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    figures = {figure.name: figure for figure in curves(contents(records=records), 96).figures()}
    assert list(figures) == ["curve-likelihood", "curve-gap", "curve-rate"]
    train_records = [record for record in records if record["kind"] == "train"]
    gaps = [record["gap"] for record in records if record["kind"] == "validation"]
    (likelihood,), (gap,) = (figures[name].charts() for name in ("curve-likelihood", "curve-gap"))
    unit = contents(records=records).unit
    first, last = (unit.of_nats(-train_records[place]["log_likelihood"]) for place in (0, -1))
    assert f"from {first:.4g} at step 1 to {last:.4g} at step 5" in likelihood.alt
    assert f"from {unit.of_nats(gaps[0]):.4g} at step 4 to {unit.of_nats(gaps[-1]):.4g} at step 5" in gap.alt
    plain = [{**record, "log_likelihood": None, "gap": None} for record in records]
    assert "curve-loss" in [figure.name for figure in curves(contents(records=plain), 96).figures()]


def test_without_chains_nothing_is_kept(tmp_path: Path) -> None:
    go(tmp_path / "run", replace(CONFIG, objective=ContrastiveConfig(trajectory_chains=0)))
    kept = load_file(checkpoint_folders(tmp_path / "run")[-1] / "others.safetensors")
    assert not [name for name in kept if name.startswith("objective")]
