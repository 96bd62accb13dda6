"""What an objective keeps from step to step: saved, put back, shared by parts and processes, and refused if it is not
its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import RECIPE, same_files, sets
from torch import Tensor
from toys import register
from toys.boltzmann import Boltzmann, BoltzmannConfig
from toys.persistent import PersistentConfig, PersistentContrastiveDivergence

from davi.batch import Batch
from davi.errors import UserError
from davi.files import write_tensors
from davi.model import Network
from davi.objectives import OBJECTIVES, EvidenceConfig, Outcome, Progress
from davi.runs import checkpoint_folders
from davi.training import CheckpointConfig, Interrupted, TrainingConfig, loop, recorder, train
from davi.training.parallel import noise_seed
from davi.training.prepare import check_fit
from davi.training.sections import ScheduleConfig, StepFilterConfig
from davi.training.signals import Signals
from davi.training.stages import single
from davi.training.state import State
from davi.training.step_filter import StepFilter, Verdict

CONFIG = TrainingConfig(
    steps=8,
    batch_size=8,
    accumulate=2,
    learning_rate=0.05,
    schedule=ScheduleConfig("constant"),
    objective=PersistentConfig(),
    validate_every=0,
    checkpoints=CheckpointConfig(minutes=0.0, steps=3),
    threads=1,
)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def boltzmann() -> Boltzmann:
    torch.manual_seed(5)
    return Boltzmann((1, 4, 4), 2, BoltzmannConfig(3))


def go(run: Path, resume: bool = False, config: TrainingConfig = CONFIG) -> Boltzmann:
    model = boltzmann()
    train(model, sets(), config, run, RECIPE, resume=resume, print_fn=[].append)
    return model


def chains_of(folder: Path) -> Tensor:
    return load_file(folder / "others.safetensors")["objective/chains"]


def watch_chains(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Step -> the chains after it."""
    seen: dict[int, Tensor] = {}
    report = recorder.Recorder.report

    def watched(self: recorder.Recorder, rate: float, at: Progress) -> None:
        seen[self.state.step] = self.state.objective.state()["chains"].clone()
        report(self, rate, at)

    monkeypatch.setattr(recorder.Recorder, "report", watched)
    return seen


def test_stopped_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 15) or self)
        for _ in range(1, 8):
            with pytest.raises(Interrupted):
                go(tmp_path / "run", resume=True)
    go(tmp_path / "run", resume=True)
    folders = [checkpoint_folders(tmp_path / name)[-1] for name in ("whole", "run")]
    assert same_files(*folders)
    assert chains_of(folders[0]).shape == (8, 1, 4, 4)
    assert chains_of(folders[0]).any()


def test_a_refused_step_does_not_move_the_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, judge = watch_chains(monkeypatch), StepFilter.judge

    def refuse_the_fourth(self: StepFilter, loss: float, norm: float) -> Verdict:
        verdict = judge(self, loss, norm)
        return Verdict(False, "norm", math.inf, 0.0) if self.steps == 4 else verdict

    monkeypatch.setattr(StepFilter, "judge", refuse_the_fourth)
    go(tmp_path / "run")
    moved = [step for step in range(2, 9) if not torch.equal(seen[step], seen[step - 1])]
    assert moved == [2, 3, 5, 6, 7, 8]


def test_a_rollback_puts_the_chains_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, compute, go_back = watch_chains(monkeypatch), loop._Job._loss, loop.go_back
    back = list[tuple[int, Tensor]]()

    def spoiled(self: loop._Job, parts: Any, part: int, step: int, at: Any) -> Any:
        found = compute(self, parts, part, step, at)
        return found._replace(value=found.value * math.nan) if step >= 5 and not self.state.rollbacks else found

    def watched(failure: Any, processes: Any, state: State, *rest: Any) -> None:
        back.append((5, seen[5]))
        go_back(failure, processes, state, *rest)
        back.append((state.step, state.objective.state()["chains"].clone()))

    monkeypatch.setattr(loop._Job, "_loss", spoiled)
    monkeypatch.setattr(loop, "go_back", watched)
    config = replace(CONFIG, step_filter=StepFilterConfig(on_nan="rollback", nonfinite_limit=2))
    go(tmp_path / "run", config=replace(config, checkpoints=replace(config.checkpoints, keep=9)))
    (_, before), (step, after) = back
    assert step == 3
    assert torch.equal(after, chains_of(tmp_path / "run" / "checkpoints" / "step-00000003"))
    assert not torch.equal(after, before)


def test_parts_have_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list[range]()
    compute = PersistentContrastiveDivergence.loss

    def loss(self: Any, network: Any, model: Any, batch: Batch, at: Progress) -> Any:
        rows.append(range(batch.start, batch.start + len(batch.x)))
        return compute(self, network, model, batch, at)

    monkeypatch.setattr(PersistentContrastiveDivergence, "loss", loss)
    for parts in (1, 4):
        rows.clear()
        go(tmp_path / str(parts), config=replace(CONFIG, accumulate=parts, steps=2))
        assert [len(own) for own in rows] == [8 // parts] * 2 * parts
        assert [row for own in rows for row in own] == [*range(8)] * 2
        assert (
            chains_of(checkpoint_folders(tmp_path / str(parts))[-1]).flatten(1).any(1).all()
        )  # all have begun to move
    uneven = Batch(torch.zeros(10, 1, 4, 4)).parts(4)
    assert [(part.start, len(part.x)) for part in uneven] == [(0, 3), (3, 3), (6, 2), (8, 2)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("nothing", "no state"),
        ("half as many", "chains int64 [4, 1, 4, 4]"),
        ("another type", "chains float32 [8, 1, 4, 4]"),
        ("another name", "walkers int64 [8, 1, 4, 4]"),
    ],
)
def test_a_state_of_another_objective_is_refused(tmp_path: Path, change: str, told: str) -> None:
    run = tmp_path / "run"
    go(run)
    for folder in checkpoint_folders(run):
        tensors = load_file(folder / "others.safetensors")
        chains = tensors.pop("objective/chains")
        others = {
            "nothing": {},
            "half as many": {"objective/chains": chains[:4]},
            "another type": {"objective/chains": chains.float()},
            "another name": {"objective/walkers": chains},
        }
        write_tensors(folder / "others.safetensors", {**tensors, **others[change]}, {})
    model = boltzmann()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        train(model, sets(), CONFIG, run, RECIPE, resume=True, print_fn=[].append)
    assert str(caught.value) == (
        "training.objective: got toy_persistent with chains int64 [8, 1, 4, 4] for a checkpoint with "
        f"{told}; a run goes on with the objective that it was begun with"
    )
    assert all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())


class Drawing(PersistentContrastiveDivergence):
    """Its first chains are drawn, and so is what it does after an update."""

    name = "drawing"

    def begin(self, model: Network, batch_size: int) -> None:
        super().begin(model, batch_size)
        self.chains = torch.randint(2, self.chains.shape)
        self.drawn: dict[int, float] = {}

    def end_step(self, model: Network, at: Progress, outcome: Outcome) -> None:
        self.drawn[at.step] = torch.rand(()).item()


def test_draws_of_an_objective_do_not_depend_on_what_went_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the generator's place when a stage begins, nor on which process has computed which part."""
    monkeypatch.setitem(OBJECTIVES, "drawing", Drawing)
    config = replace(CONFIG, objective=PersistentConfig("drawing"))  # type: ignore[arg-type]  # a name of the test
    chains = list[Tensor]()
    for seed in (1, 2):
        model = boltzmann()
        torch.manual_seed(seed)
        state = State(model, sets(), single(config), torch.device("cpu"))
        chains.append(state.objective.state()["chains"])
    assert torch.equal(*chains)
    kept, make = list[Drawing](), Drawing.begin

    def begin(self: Drawing, model: Network, batch_size: int) -> None:
        make(self, model, batch_size)
        kept.append(self)

    monkeypatch.setattr(Drawing, "begin", begin)
    go(tmp_path / "run", config=config)
    expected = {}
    for step in range(8):
        torch.manual_seed(noise_seed(0, step, 2))
        expected[step] = torch.rand(()).item()
    assert kept[-1].drawn == expected


def test_an_objective_for_another_kind_of_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective: got evidence for toy_boltzmann, expected a model$"):
        check_fit(boltzmann(), sets(), EvidenceConfig())


def test_a_state_is_loaded_as_a_copy_of_its_own(tmp_path: Path) -> None:
    """What a step changes in place must not reach the tensors of a checkpoint that it may have to go back to."""
    state = State(boltzmann(), sets(), single(CONFIG), torch.device("cpu"))
    others: Mapping[str, Tensor] = {name: tensor.clone() for name, tensor in state.others().items()}
    state.load_others(others)
    state.objective.state()["chains"].fill_(1)
    assert not others["objective/chains"].any()
