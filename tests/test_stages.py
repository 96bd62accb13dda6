"""Runs of stages: killed anywhere they end as if nothing had happened, and each stage is what its recipe says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

import forked
import killed_runs
import pytest
import torch
from safetensors.torch import load_file
from staged import FIRST, RECIPE, SECOND, STAGES, Explained, explained
from tiny import same_files, sets, vae
from torch import Generator, Tensor
from toys import register
from toys.boltzmann import Boltzmann
from toys.halves import Halves, HalvesConfig

from davi.batch import Batch
from davi.data import DataSets
from davi.errors import UserError
from davi.metrics import read_metrics
from davi.model import DataInitialized
from davi.runs import checkpoint_folders, load_network
from davi.training import Interrupted, checkpoint, loop, prepare, recorder, train
from davi.training.parallel import Processes
from davi.training.sections import ComputeConfig, OptimizerConfig, ScheduleConfig
from davi.training.signals import Signals
from davi.training.stages import Stage, check_stages
from davi.training.start import take_over
from davi.training.state import BatchLoader, State

CLOCK = {"seconds", "seconds_left", "images_per_second"}


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def go(run: Path, resume: bool = False, stages: Sequence[Stage] = STAGES, model: Any = None) -> list[str]:
    lines: list[str] = []
    model = explained() if model is None else model
    train(model, sets(), FIRST, run, RECIPE, resume=resume, print_fn=lines.append, stages=stages)
    return lines


def history(run: Path) -> list[dict[str, Any]]:
    """The records without what the clock says."""
    records = [record for record in read_metrics(run) if record["kind"] != "checkpoint"]
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in records]


def numbers(run: Path) -> list[dict[str, Any]]:
    """What the checkpoints hold besides tensors, without what the clock says."""
    found = [json.loads((folder / "state.json").read_text())["state"] for folder in checkpoint_folders(run)]
    for state in found:
        state.pop("seconds")
        state["begun"] = [step for step, _ in state["begun"]]
    return found


def check_same(run: Path, whole: Path) -> None:
    assert same_files(whole, run), run
    assert history(run) == history(whole), run
    assert numbers(run) == numbers(whole), run
    assert not [path.name for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".new"], run


POINTS = (
    *("part:5", "rename:4"),  # in the first stage
    *("between/validate:1", "between/record:1", "between/record:3", "between/record:4"),
    *(f"between/rename:{number}" for number in range(1, 9)),  # each file of the first checkpoint, and its folder
    "between/flush:13",
    *("verdict:12", "rename:24", "remove:2"),  # in the second
    "between/rename:7+part:9",
)


def test_killed_anywhere(tmp_path: Path) -> None:
    done = forked.call(killed_runs.main, tmp_path, [*POINTS], "explained", folder=tmp_path)
    assert done.status == 0, done.out + done.err
    assert done.out.splitlines() == [f"{point}: killed {1 + point.count('+')}" for point in POINTS]
    whole = tmp_path / "whole"
    expected = history(whole)
    assert {record["kind"] for record in expected} == {"train", "validation", "skip", "watch", "stage"}
    assert [record["step"] for record in expected if record["kind"] == "stage"] == [10]
    validations = [(record["stage"], record["step"]) for record in expected if record["kind"] == "validation"]
    assert validations == [*(("first", step) for step in (4, 8, 10)), *(("second", step) for step in (12, 16, 18))]
    for point in POINTS:
        check_same(tmp_path / point.replace(":", "-").replace("/", "-"), whole)


def test_stopped_by_a_signal_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of the first stage among them: its checkpoint is replaced by the first one of the second stage."""
    stages = [replace(stage, config=replace(stage.config, steps=3)) for stage in STAGES]
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole, stages=stages)
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "__enter__", lambda self: setattr(self, "received", 2) or self)
        for step in range(1, 6):
            with pytest.raises(Interrupted) as caught:
                go(run, resume=True, stages=stages)
            assert (caught.value.step, caught.value.exit_code) == (step, 130)
    lines = go(run, resume=True, stages=stages)
    assert lines[:2] == [f"resuming {run} after step 5", "stage 2 of 2: second, which trains errors"]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert same_files(checkpoint_folders(run)[-1], checkpoint_folders(whole)[-1])
    assert history(run) == history(whole)


def test_the_second_stage_sees_the_average_of_the_first(tmp_path: Path) -> None:
    """By hand: a stage alone, whose averaged weights are what the other begins with, in a run of its own."""
    one = replace(FIRST, ema_decay=0.9, learning_rate=0.1, schedule=ScheduleConfig("constant"))
    two = replace(one, steps=5, batch_size=10, optimizer=OptimizerConfig("sgd"))
    stages = (Stage(one, "first", "top"), Stage(two, "second", "bottom"))
    model = halves()
    go(tmp_path / "both", stages=stages, model=model)
    go(tmp_path / "first", stages=stages[:1], model=halves())
    middle, _ = load_network(tmp_path / "first")
    go(tmp_path / "second", stages=stages[1:], model=middle)
    together, alone = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "second"))
    assert all(torch.equal(together[name], alone[name]) for name in together)
    # Each stage has moved its own part, and the second one neither the weights nor the average of the first.
    start, between = halves().state_dict(), load_file(tmp_path / "first" / "model.safetensors")
    pairs = ((start, between), (between, together))
    moved = [{name for name in start if not torch.equal(before[name], after[name])} for before, after in pairs]
    assert moved == [{"top.weight", "top.bias"}, {"bottom.weight", "bottom.bias"}]
    last = checkpoint_folders(tmp_path / "both")[-1]
    for name in ("model.safetensors", "average.safetensors"):
        kept = load_file(last / name)
        assert all(torch.equal(kept[key], between[key]) for key in ("top.weight", "top.bias")), name
    # It makes a difference: with the last weights in place of the average the second part is another one.
    go(tmp_path / "last", stages=(replace(stages[0], config=replace(one, ema_decay=0.0)), stages[1]), model=halves())
    assert not torch.equal(load_file(tmp_path / "last" / "model.safetensors")["bottom.bias"], together["bottom.bias"])


def halves() -> Halves:
    torch.manual_seed(3)
    return Halves((1, 4, 4), 2, HalvesConfig())


def test_each_stage_has_its_own_options(tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines = go(run)
    assert lines[0] == "stage 1 of 2: first, which trains pixels"
    assert "stage 2 of 2: second, which trains errors" in lines
    last = numbers(run)[-1]
    assert (last["optimizer"], last["order"]["batch_size"], last["parts"], last["begun"]) == ("sgd", 14, 7, [0, 10])
    chains = load_file(checkpoint_folders(run)[-1] / "others.safetensors")["objective/chains"]
    assert chains.shape == (14, 1, 4, 4)
    moments = load_file(checkpoint_folders(run)[-1] / "optimizer.safetensors")
    assert {name.partition("/")[2] for name in moments} == {"momentum_buffer"}
    assert len(moments) == 3  # of the parameters of its part alone
    records = [record for record in read_metrics(run) if record["kind"] == "train"]
    assert {(record["stage"], record["total_steps"], "nats" in record) for record in records} == {
        ("first", 10, True),
        ("second", 18, False),
    }
    assert [record["epoch"] for record in records if record["step"] in (10, 18)] == [2, 4]  # 40 images by 8, and by 14


def test_running_statistics_of_other_parts_stay(tmp_path: Path) -> None:
    """A mean over seven parts of what none has moved would be another number."""
    go(tmp_path / "both")
    go(tmp_path / "first", stages=STAGES[:1])
    between, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "both"))
    statistics = [name for name in after if "norm" in name]
    assert len(statistics) == 5
    for name in statistics:
        assert torch.equal(between[name], after[name]), name
    assert not torch.equal(after["pixels.norm.running_mean"], torch.zeros(1))


def test_budgets_in_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a step: each stage counts its own time."""
    monkeypatch.setattr(recorder.Recorder, "clock", lambda self: 2.0 * self.state.step)
    timed = [
        replace(stage, config=replace(stage.config, steps=None, minutes=seconds / 60))
        for stage, seconds in zip(STAGES, (9.0, 7.0), strict=True)
    ]
    go(tmp_path / "run", stages=timed)
    last = numbers(tmp_path / "run")[-1]
    assert (last["begun"], last["step"]) == ([0, 6], 11)  # 10 s are seen in the sixth step, 8 s more in the eleventh
    lines = go(tmp_path / "run", resume=True, stages=timed)
    assert "has ended with step 11, its budget of minutes is used up" in lines[-1]


def test_the_last_stage_can_be_prolonged(tmp_path: Path) -> None:
    constant = replace(SECOND, schedule=ScheduleConfig("constant"), validate_every=0)
    short, long = ((STAGES[0], Stage(replace(constant, steps=n), "second", "errors")) for n in (4, 9))
    go(tmp_path / "once", stages=long)
    go(tmp_path / "twice", stages=short)
    go(tmp_path / "twice", resume=True, stages=long)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice"))
    assert first == second
    assert [record["stage"] for record in history(tmp_path / "twice") if record["kind"] == "stage"] == ["first"]


def test_a_stage_that_has_ended_cannot_be_prolonged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    go(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    longer = (Stage(replace(FIRST, steps=11), "first", "pixels"), STAGES[1])
    with pytest.raises(UserError) as caught:
        go(run, resume=True, stages=longer)
    assert str(caught.value) == (
        "stages.first: got a larger budget, expected that with which it ended after 10 steps: "
        "only the stage that a run is in can be prolonged"
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_back_into_the_stage_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage comes to numbers that are not finite, and its first checkpoint is damaged."""
    back = replace(FIRST.step_filter, on_nan="rollback", nonfinite_limit=2)
    stages = [replace(stage, config=replace(stage.config, step_filter=back)) for stage in STAGES]
    compute, places = loop._Job._loss, list[tuple[int, int, int]]()

    def loss(self: loop._Job, parts: Any, part: int, step: int, at: Any) -> Any:
        places.append((step, self.state.place, self.state.parts))
        found = compute(self, parts, part, step, at)
        return found._replace(value=found.value * float("nan")) if step >= 10 and not self.state.rollbacks else found

    monkeypatch.setattr(loop._Job, "_loss", loss)
    run = tmp_path / "run"
    save = checkpoint.save

    def save_damaged(folder: Path, state: Any, *rest: Any) -> Path:
        target = save(folder, state, *rest)
        if state.place == 1 and not state.rollbacks:
            (target / "state.json").write_text("{}")
        return target

    monkeypatch.setattr(checkpoint, "save", save_damaged)
    lines = go(run, stages=stages)
    assert any("back at step 5" in line for line in lines)
    assert (5, 0, 2) in places[places.index((10, 1, 7)) :]  # with the parts of that stage
    assert places[-1] == (17, 1, 7)
    assert numbers(run)[-1]["begun"] == [0, 10]
    kinds = [(record["kind"], record["step"], record.get("stage")) for record in history(run)]
    assert kinds.count(("stage", 10, "first")) == 1
    assert kinds.count(("validation", 10, "first")) == 1
    assert kinds.count(("rollback", 5, "first")) == 1
    assert len(set(kinds)) == len(kinds)
    rates = learning_rates(run)
    monkeypatch.undo()
    register(monkeypatch)
    go(tmp_path / "plain", stages=stages)
    plain = learning_rates(tmp_path / "plain")
    assert rates == pytest.approx({step: rate * (0.5 if step > 5 else 1.0) for step, rate in plain.items()})


def learning_rates(run: Path) -> dict[int, float]:
    return {record["step"]: record["learning_rate"] for record in read_metrics(run) if record["kind"] == "train"}


@final
class Watching(Boltzmann, DataInitialized):
    """Its first biases are from the images that it is shown."""

    images_wanted = 16
    shown: ClassVar[list[Tensor]] = []

    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        assert self.training
        self.shown.append(images)
        if "visible" not in kept:
            self.visible.copy_(images.float().mean(0).flatten())


def watching() -> Explained:
    model = explained()
    model.errors.__class__ = Watching
    Watching.shown.clear()
    return model


def test_what_shows_a_part_its_first_images_knows_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sets(binarization="none", flip="none")
    known, *others = (
        replace(images, labels=torch.arange(len(images)) % 3, classes=("a", "b", "c"))
        for images in (found.train, found.validation, found.test)
        if images is not None
    )
    told: list[Batch] = []

    def view(self: Explained, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        told.append(batch)
        return batch

    monkeypatch.setattr(Explained, "view", view)
    processes, stage = Processes(), STAGES[1]
    loader = BatchLoader(DataSets(known, *others, found.protocol), stage.config, torch.device("cpu"))
    prepare.initialize(watching(), loader, stage, processes)
    (batch,) = told
    assert batch.y is not None
    assert known.labels is not None
    places = [int((known.pixels == image).flatten(1).all(1).nonzero()) for image in batch.x]
    assert batch.y.tolist() == known.labels[places].tolist()


def test_a_part_sees_its_view_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[tuple[Tensor, Tensor]]()
    enter = State.enter

    def watched(self: State, place: int) -> None:
        enter(self, place)
        if place:
            begun.append((self.model.errors.visible.clone(), self.average.model.errors.visible.clone()))

    monkeypatch.setattr(State, "enter", watched)
    go(tmp_path / "run", model=watching())
    (images,) = Watching.shown
    assert len(images) == 16
    mean = images.float().mean(0).flatten()
    assert torch.equal(begun[-1][0], mean)
    assert torch.equal(begun[-1][1], mean)  # so that an average over few steps does not remember another beginning
    # They are not the images: a draw of the first part, with its trained weights, is taken off.
    assert not any(torch.equal(images[0], image) for image in sets(binarization="threshold").train.pixels.long())
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000018")
    (tmp_path / "run" / "model.safetensors").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("checkpoints/*/model.safetensors")}
    go(tmp_path / "run", resume=True, model=watching())
    assert not Watching.shown
    assert before


def test_a_first_part_sees_its_view_as_well(tmp_path: Path) -> None:
    """Whatever shows it its images is not in training, although it has yet to be trained."""
    go(tmp_path / "run", stages=(STAGES[1], STAGES[0]), model=watching())
    assert len(Watching.shown) == 1


def test_weights_of_another_run_stay(tmp_path: Path) -> None:
    """What ``--from`` has lent to a part is not replaced when the part's turn comes."""
    source, model = explained(), watching()
    with torch.no_grad():
        source.errors.visible.fill_(0.25)
    start, _ = take_over(model, source, "other")
    train(model, sets(), FIRST, tmp_path, RECIPE, print_fn=[].append, start=start, stages=STAGES[:1])
    still = replace(STAGES[1], config=replace(SECOND, learning_rate=0.0, schedule=ScheduleConfig("constant")))
    run = tmp_path / "run"
    train(model, sets(), FIRST, run, RECIPE, print_fn=[].append, start=start, stages=(STAGES[0], still))
    assert len(Watching.shown) == 1
    assert torch.equal(load_file(run / "model.safetensors")["errors.visible"], torch.full((16,), 0.25))


def test_unstaged_checkpoints_are_as_before(tmp_path: Path) -> None:
    train(vae(), sets(), replace(FIRST, steps=2), tmp_path, RECIPE, print_fn=[].append)
    (folder,) = checkpoint_folders(tmp_path)
    state = json.loads((folder / "state.json").read_text())["state"]
    assert list(state) == [
        *("format", "step", "optimizer", "seconds", "skipped", "updates", "order", "guard", "meters"),
        *("accumulate", "parts", "rollbacks", "started_from"),
    ]
    assert list(load_file(folder / "others.safetensors")) == ["random/feed"]
    assert not any("stage" in record for record in read_metrics(tmp_path))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            (Stage(FIRST, "a", "pixels"), Stage(FIRST, "a", "errors")),
            r"^stages: got the names 'a', 'a', expected one for",
        ),
        ((Stage(FIRST), Stage(FIRST, "b")), r"^stages: got the names '', 'b', expected one for each, no two alike$"),
        ((Stage(FIRST, "a", "both"),), r"^stages.a.part: got both, expected pixels or errors$"),
        (
            (Stage(FIRST, "a"), Stage(replace(FIRST, threads=2), "b")),
            r"^stages.b.threads: got 2, expected 1 as in the first stage$",
        ),
        (
            (Stage(FIRST, "a"), Stage(replace(FIRST, compute=ComputeConfig(channels_last=False)), "b")),
            r"^stages.b.compute.channels_last: got false, expected true as in the first stage$",
        ),
        (
            (Stage(replace(FIRST, compute=ComputeConfig(shard=True)), "a", "pixels"),),
            r"^stages.a.compute.shard: got true, expected false in a run of stages$",
        ),
    ],
)
def test_stages_that_cannot_be_trained(stages: Sequence[Stage], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_stages(explained(), stages)


def test_a_model_without_parts_is_refused() -> None:
    with pytest.raises(UserError, match=r"^stages.a.part: got pixels for attentive_vae, which has no parts$"):
        check_stages(vae(), [Stage(FIRST, "a", "pixels")])
