"""davi study: reading, running in turns, being killed, and the tables of what came out."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import numpy as np
import pytest
import studied_runs

from davi import measurements
from davi.cli import child, main
from davi.comparison import Entry
from davi.errors import UserError
from davi.evidence import bits_per_dim
from davi.records import to_json
from davi.run_folder import MODEL
from davi.study import folder as folders
from davi.study import running, tables, turns
from davi.study.collecting import _difference, _number, collect
from davi.study.folder import Job
from davi.study.format import Budget, Study, find, read
from davi.study.quantities import LAYERS, METERS, Trained
from davi.study.result import StudyResult
from davi.study.running import FailedError, Runner
from davi.training.lock import locked

POINTS = ("poll:12", "ended:3")
"""Kills while an arm trains, and when one has ended that is not noted yet."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran undisturbed, and others that were killed, in one folder."""
    folder = tmp_path_factory.mktemp("studies")
    done = forked.call(studied_runs.main, folder, [*POINTS], folder=folder)
    assert done.status == 0, done.out + done.err
    assert [line for line in done.out.splitlines() if line.endswith(": killed")] == [f"{one}: killed" for one in POINTS]
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "draws.yaml"
    path.write_text(studied_runs.STUDY)
    return read(path)


def turns_of(folder: Path) -> dict[str, list[int]]:
    """Statuses of the turns of each training."""
    found = {}
    for path in sorted((folder / "runs").glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.stem] = [line["status"] for line in lines if line["what"] == "train"]
    return found


def test_arms_train_in_turns(runs: Path) -> None:
    # A turn ends when the training has been asked to save its state (143), the last one when its budget is used up.
    assert turns_of(runs / "whole") == {"01-one-draw-0": [143, 0], "02-three-draws-0": [143, 0]}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("run", ["01-one-draw-0", "02-three-draws-0"])
def test_a_study_that_was_killed_ends_bit_for_bit_as_if_it_had_not_been(runs: Path, point: str, run: str) -> None:
    whole, resumed = (runs / name / "runs" / run for name in ("whole", point.replace(":", "-")))
    weights = [(folder / MODEL).read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]
    assert np.array_equal(measurements.load(whole).bound, measurements.load(resumed).bound)


def test_numbers_are_those_of_the_evaluations(runs: Path) -> None:
    result = collect(runs / "whole")
    (table,) = result.tables
    first, second = table.rows
    one, three = (measurements.load(runs / "whole" / "runs" / name) for name in ("01-one-draw-0", "02-three-draws-0"))
    dims = 64
    bits = [-measured.bound / dims / np.log(2) for measured in (one, three)]
    assert (table.unit, table.reference, result.missing) == ("bits_per_dim", "one draw", ())
    assert first.numbers["bound"].mean == pytest.approx(bits[0].mean())
    assert first.numbers["bound"].over_images == pytest.approx(bits[0].std(ddof=1) / len(bits[0]) ** 0.5)
    assert first.numbers["bound"].over_seeds is None
    assert first.difference is None
    assert second.difference is not None
    assert second.difference.mean == pytest.approx((bits[1] - bits[0]).mean())
    assert second.difference.over_images == pytest.approx((bits[1] - bits[0]).std(ddof=1) / len(bits[0]) ** 0.5)
    assert second.numbers["steps"].mean == 3
    assert second.numbers["memory"].mean > 50
    assert len(second.layers["kl_layers"]) == 2
    elbo = -three.elbo.mean() / dims / np.log(2)
    rate = second.numbers["rate"].mean
    assert second.numbers["elbo"].mean == pytest.approx(elbo)
    assert rate == pytest.approx(sum(second.layers["kl_layers"]) / dims / np.log(2))
    assert second.published == {"nats": "3.0"}


def trained(runs: Path, name: str, seed: int, shift: float) -> Trained:
    """A training of the study, whose bounds are moved by so many nats, by another amount for every image."""
    job = next(job for job in folders.jobs(runs / "whole", folders.begun(runs / "whole")) if job.stem.endswith(name))
    measured = measurements.load(job.run)
    bound = measured.bound + shift * np.linspace(0.5, 1.5, len(measured.bound))
    result = measured.result
    nats = dataclasses.replace(result.bound.nats, mean=float(bound.mean()))
    bits = dataclasses.replace(result.bound.in_unit("bits_per_dim"), mean=bits_per_dim(float(bound.mean()), 64))
    moved = dataclasses.replace(result, bound=dataclasses.replace(result.bound, nats=nats, bits_per_dim=bits))
    return Trained(seed, Entry(name, dataclasses.replace(measured, result=moved, bound=bound)), {}, [], "bits_per_dim")


def test_errors_over_seeds(runs: Path) -> None:
    shifts = (0.0, 3.0, -1.0)
    arms = [trained(runs, "three-draws", seed, shift) for seed, shift in enumerate(shifts)]
    against = [trained(runs, "one-draw", seed, 0.0) for seed in range(3)]
    each = [-arm.entry.measured.bound / 64 / np.log(2) for arm in arms]
    other = -against[0].entry.measured.bound / 64 / np.log(2)
    number = _number("bound", arms)
    assert number is not None
    assert number.mean == pytest.approx(np.mean(each))
    assert number.over_seeds == pytest.approx(np.std([one.mean() for one in each], ddof=1) / 3**0.5)
    of_images = np.mean(each, 0)
    assert number.over_images == pytest.approx(of_images.std(ddof=1) / len(of_images) ** 0.5)
    notes: list[str] = []
    difference = _difference(arms, against, notes)
    assert difference is not None
    assert not notes
    assert difference.mean == pytest.approx((of_images - other).mean())
    assert difference.over_images == pytest.approx((of_images - other).std(ddof=1) / len(other) ** 0.5)
    assert difference.over_seeds == pytest.approx(number.over_seeds)
    assert difference.interval is not None
    assert difference.interval[0] < difference.mean < difference.interval[1]
    assert difference.significant == (abs(difference.mean) > max(2 * (difference.over_images or 0.0), 0.0))


def test_other_images_are_not_compared(runs: Path) -> None:
    arm, reference = trained(runs, "three-draws", 0, 0.0), trained(runs, "one-draw", 0, 0.0)
    result = arm.entry.measured.result
    protocol = dataclasses.replace(result.protocol, images_sha256="0" * 64)
    measured = dataclasses.replace(arm.entry.measured, result=dataclasses.replace(result, protocol=protocol))
    other = dataclasses.replace(arm, entry=dataclasses.replace(arm.entry, measured=measured))
    notes: list[str] = []
    assert _difference([other], [reference], notes) is None
    assert notes == ["not compared with the reference: other images_sha256"]
    assert _difference([dataclasses.replace(arm, seed=1)], [reference], notes) is None
    assert "no seed that both have" in notes[1]


def test_ours_and_published_never_share_a_column(runs: Path) -> None:
    result = collect(runs / "whole")
    lines = [line for line in tables.to_markdown(result).splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    published = [i for i, name in enumerate(head) if name.startswith("published: ")]
    assert [head[i] for i in published] == ["published: nats"]
    assert published == [len(head) - 1]
    assert [row[-1] for row in rows] == ["3.5", "3.0"]
    assert {"3.5", "3.0"}.isdisjoint(cell for row in rows for cell in row[:-1])
    assert re.fullmatch(r"[-+]0\.\d{3} ± 0\.\d{3}\*?", rows[1][head.index("minus one draw, bits/dim")])


def test_tables_json_and_page_are_written(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "whole"
    assert main(["study", "table", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "three draws" in told
    assert "Not measured yet" not in told
    loaded: StudyResult = tables.load(folder / "table.json")
    assert loaded == collect(folder)
    assert json.loads((folder / "table.json").read_text())["format"] == 1
    page = (folder / "study.html").read_text()
    assert page.count("<svg") == 2  # ours, and what is published
    assert "2 of 2 trainings measured" in page
    assert "Made by <code>davi study</code>" in page
    assert {path.name for path in (folder / "figures").iterdir()} >= {"table-1-1.png", "table-1-2.svg"}


def test_a_table_of_what_is_there(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "part"
    shutil.copytree(runs / "whole", folder)
    shutil.rmtree(folder / "runs" / "02-three-draws-0")
    result = collect(folder)
    assert result.missing == ("three draws",)
    assert result.tables[0].rows[1].numbers == {}
    assert "Not measured yet: three draws." in tables.to_terminal(result)


def test_a_newer_file_is_refused(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**to_json(collect(runs / "whole")), "format": 2}))
    with pytest.raises(UserError, match="format: got 2, expected 1"):
        tables.load(path)


def test_every_quantity_is_read(runs: Path) -> None:
    arm = trained(runs, "three-draws", 0, 0.0)
    entry = dataclasses.replace(arm.entry, seconds=120.0, pace=2.5)
    turn = {"what": "train", "cpu_seconds": 30.0, "peak_mib": 400.0}
    probe = {"what": "probe", "cpu_seconds": 99.0, "peak_mib": 999.0}
    arm = dataclasses.replace(arm, entry=entry, last={"bits_per_dim": 3.25}, turns=[turn, turn, probe])
    read = {name: meter.read(arm) for name, meter in METERS.items()}
    assert read["training"] == 3.25
    assert (read["minutes"], read["cpu_minutes"], read["memory"], read["steps_per_second"]) == (2.0, 1.0, 400.0, 2.5)
    nats = dataclasses.replace(arm, unit="nats")
    assert METERS["training"].read(nats) == pytest.approx(3.25 * 64 * np.log(2))
    assert read["error_rate"] is None
    units = arm.result.active_units
    assert units is not None
    assert read["utilization"] == pytest.approx(100 * units.active / 7)
    assert sum(LAYERS["active_layers"](arm)) == units.active


# What is asked for


BROKEN: list[tuple[str, str, str]] = [
    ("recipe: vae", "recpe: vae", r"unknown key tables\.0\.arms\.0\.recpe; did you mean tables\.arms\.recipe\?"),
    (
        "vae_digits_tiny",
        "vae_digit_tiny",
        "Digits: one draw: recipe: got 'vae_digit_tiny', .* did you mean vae_digits_tiny",
    ),
    ("budget: {steps: 3}", "budget: {steps: 3, minutes: 1}", "budget.minutes: got minutes and steps, expected one of"),
    ("budget: {steps: 3}", "budget: {minutes: 0}", "budget.minutes: got 0, expected a number above 0"),
    ("[bound, elbo", "[bond, elbo", "measured: got 'bond', expected some of bound, elbo"),
    ("name: three draws", "name: one draw", "arms: got the names one draw, one draw, expected some, no two alike"),
    ("published: {nats: 3.5}", "published: [3.5]", r"arms\.0\.published: got \[3\.5\], expected a mapping"),
    (
        "    published: digits",
        "    reference: four\n    published: digits",
        "reference: got 'four', expected the name of an arm",
    ),
    ("images: 40", "images: 0", "images: got 0, expected a whole number from 1"),
    ("title: Draws of a small VAE\n", "", "missing key title"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_mistakes_in_a_file_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert old in studied_runs.STUDY
    path.write_text(studied_runs.STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as refused:
        read(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_study_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"study: got 'atention', .*; did you mean attention"):
        find("atention")


def test_a_folder_keeps_its_study(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folders.begin(folder, study)
    assert folders.begun(folder) == study
    more = folders.changed(study, {"seeds": 3, "images": None})
    folders.begin(folder, more)  # more seeds can be asked for later
    folders.begin(folder, study)  # and fewer change nothing
    assert folders.begun(folder).seeds == 3
    with pytest.raises(UserError, match=r'budget: got \{"minutes": 2.*expected \{"minutes": null.*was begun'):
        folders.begin(folder, folders.changed(study, {"budget": Budget(minutes=2)}))
    with pytest.raises(UserError, match="expected a new folder, or one in which this study is run"):
        folders.begin(tmp_path, study)
    with pytest.raises(UserError, match=r"found no study\.yaml there"):
        folders.begun(tmp_path)
    with pytest.raises(UserError, match="where draws is run, expected the folder of attention"):
        folders.same(study, read(find("attention")), folder)


def test_jobs_of_an_array_begin_at_the_same_time(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "runs").mkdir(parents=True)  # another job has come so far
    (folder / ".temporary").touch()
    folders.begin(folder, study)
    assert folders.begun(folder) == study


def test_images_may_move(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "start", Scripted(2).start)
    words = ["study", "run", str(tmp_path / "draws.yaml"), "--out", str(tmp_path / "out")]
    told = []
    for more in (["--training.threads=1", "--data.root=here"], ["--data.root=there"], ["--training.threads=1"], []):
        assert main([*words, *more]) == 2  # every arm has failed
        told.append(folders.begun(tmp_path / "out").overrides[1:])
    assert told[0] == ("training.threads=1", "data.root=here")
    assert told[1:] == [("training.threads=1", "data.root=there")] * 3
    assert folders.begun(tmp_path / "out").overrides[0] == study.overrides[0]


def test_jobs_of_several_tables_are_told_apart(tmp_path: Path) -> None:
    jobs = list(folders.jobs(tmp_path, read(find("attention"))))
    assert str(jobs[0]) == "MNIST, dynamically binarized: both attentions, seed 0"
    assert len({str(job) for job in jobs}) == len({job.run for job in jobs}) == len(jobs)


def test_the_last_arm_needs_no_turns(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float | None]] = []

    def train(self: Runner, job: Job, minutes: float | None = None) -> bool:
        asked.append((job.arm.name, minutes))
        return job.arm.name == "one draw" or minutes == math.inf

    monkeypatch.setattr(Runner, "_train", train)
    assert runner(study, tmp_path / "out").run() == []
    assert asked == [("one draw", None), ("three draws", math.inf)]


def test_images_and_samples_replace_those_of_all_tables(tmp_path: Path) -> None:
    changed = folders.changed(read(find("attention")), {"images": 7, "importance_samples": 3, "seeds": None})
    jobs = list(folders.jobs(tmp_path, changed))
    assert {(job.images, job.samples) for job in jobs} == {(7, 3)}
    assert len(jobs) == 18 * 3


def test_jobs_are_numbered_as_they_are_shown(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "draws.yaml"
    assert main(["study", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    for job in folders.jobs(tmp_path, study):
        assert f"{job.number:>3}  {job.arm.name}: vae_digits_tiny" in shown
    assert [job.arm.name for job in folders.jobs(tmp_path, study, 2)] == ["three draws"]
    with pytest.raises(UserError, match="--arm: got 3, expected 1 to 2"):
        list(folders.jobs(tmp_path, study, 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "study run: got no name, expected the name of a study"),
        (["table"], "study table: got no name, expected the folder of a study"),
        (["walk"], "got 'walk', expected one of list, show, run, table"),
        (["show", "attention", "--seeds", "2"], "--seeds: got it with davi study show, expected davi study run"),
        (["list", "--data.root", "x"], "--data.root: got it with davi study list"),
        (["list", "attention"], "study list: got 'attention', expected no name"),
        (["run", "attention", "--minutes", "0"], "--minutes: got '0', expected a number above 0"),
        (
            ["run", "attention", "--minutes", "1", "--steps", "5"],
            "--steps: got it beside --minutes, expected one budget",
        ),
        (["run", "training_cost"], "training_cost: got a study of published numbers alone"),
        (["run", "attention", "--arm", "19"], "--arm: got 19, expected 1 to 18"),
        (["table", "nowhere"], r"study: got nowhere, found no study.yaml there"),
        (["run", "dbn_layers", "--minutes", "5"], "budget: got 5 minutes for DBN, .*, which is trained in stages"),
    ],
)
def test_the_program_refuses(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())  # nothing was begun


def test_published_numbers_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "published"
    assert main(["study", "table", "league_six_sets", "--out", str(out)]) == 0
    assert "CelebA-HQ 256" in (out / "table.md").read_text()
    assert "Published numbers alone" in (out / "study.html").read_text()
    head = next(line for line in capsys.readouterr().out.splitlines() if "published: " in line)
    assert re.findall(r"published: (\S+)", head) == [
        "MNIST,",
        "CIFAR-10",
        "ImageNet32",
        "CelebA64",
        "CelebA-HQ",
        "FFHQ",
    ]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "list"]) == 0
    told = capsys.readouterr().out
    assert "attention  " in told
    assert "published numbers alone" in told


# Turns


class Scripted:
    """In place of a process: it ends with a status, and does something when it is begun."""

    def __init__(self, status: int, does: Callable[[list[str]], None] = lambda words: None) -> None:
        self.status, self.does, self.asked, self.words = status, does, False, [""]

    def start(self, words: list[str], log: Path) -> Scripted:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write("training\ndavi: data.root: not given, expected a directory\n")
        self.words = words
        self.does(words)
        return self

    def ended(self, wait: bool = False) -> turns.Ended:
        return turns.Ended(self.status, 10.0, 8.0, 100.0)

    def stop(self) -> None:
        self.asked = True

    def close(self) -> None:
        pass


def runner(study: Study, folder: Path) -> Runner:
    folders.begin(folder, study)
    return Runner(folder, study, say=lambda line: None)


def test_an_arm_that_fails_does_not_stop_the_others(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "start", Scripted(2).start)
    failures = runner(study, tmp_path / "out").run()
    assert failures == [f"{name}: data.root: not given, expected a directory" for name in ("one draw", "three draws")]


@pytest.mark.parametrize(
    ("status", "raised"), [(-9, FailedError), (2, FailedError), (130, KeyboardInterrupt), (143, KeyboardInterrupt)]
)
def test_ends_that_nobody_asked_for(
    status: int, raised: type[BaseException], study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "start", Scripted(status).start)
    one = runner(study, tmp_path / "out")
    job = next(iter(folders.jobs(one.folder, study)))
    with pytest.raises(raised):
        one._turn(job, ["train"])
    assert [line["status"] for line in job.costs()] == [status]


def test_the_budget_comes_last_and_alone(study: Study, tmp_path: Path) -> None:
    one = runner(folders.changed(study, {"budget": Budget(minutes=0.5)}), tmp_path / "out")
    job = next(iter(folders.jobs(one.folder, one.study)))
    assert one._budget(job) == ["--training.steps=null", "--training.epochs=null", "--training.minutes=0.5"]
    assert "--training.seed=0" in one._words(job)
    assert dataclasses.replace(one, study=folders.changed(study, {"budget": Budget()}))._budget(job) == []


@pytest.mark.parametrize(("minutes", "turn"), [(15.0, 3.75), (1.0, 0.5), (100.0, 10.0), (None, 5.0)])
def test_length_of_a_turn(minutes: float | None, turn: float, study: Study, tmp_path: Path) -> None:
    changed = dataclasses.replace(study, budget=Budget(minutes=minutes))
    assert Runner(tmp_path, changed)._minutes() == turn
    assert Runner(tmp_path, changed, turn=2.0)._minutes() == 2.0


def test_cpu_minutes_are_counted_in_steps(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step costs 5 seconds of CPU time with the start of the program, 101 steps cost 15: 0.1 each."""
    one = runner(folders.changed(study, {"budget": Budget(cpu_minutes=1.0)}), tmp_path / "out")
    job = next(iter(folders.jobs(one.folder, one.study)))
    costs = {True: (1, 5.0), False: (101, 15.0)}

    def probe(self: Runner, job: Job, budget: list[str]) -> tuple[turns.Ended, int]:
        steps, seconds = costs["--training.steps=1" in budget]
        return turns.Ended(0, seconds, seconds, 0.0), steps

    monkeypatch.setattr(Runner, "_probe", probe)
    assert one._budget(job)[-1] == "--training.steps=600"
    monkeypatch.setattr(Runner, "_probe", None)  # it is measured once
    assert one._budget(job)[-1] == "--training.steps=600"


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_ENDING", 0.0)
    running.wait_until_free(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "run").mkdir()
    running.wait_until_free(tmp_path / "run")
    done = forked.call(held, tmp_path / "run", folder=tmp_path)
    assert done.out.strip() == "waited in vain"
    with locked(tmp_path / "run"):
        pass


def held(run: Path) -> None:
    """Lock a run, and wait for it in another process."""
    with locked(run):
        if os.fork() == 0:
            running._ENDING = 0.0
            try:
                running.wait_until_free(run)
            except FailedError:
                print("waited in vain", flush=True)
            os._exit(0)
        os.wait()


@pytest.mark.parametrize("verb", ["evaluate", "train"])
def test_a_process_ends_with_its_study(verb: str, tmp_path: Path) -> None:
    done = forked.call(orphan, verb, tmp_path / "log", folder=tmp_path)
    # What cannot be gone on with ends at once; a training first begins to listen, and then saves its state.
    assert done.out.strip() == f"ended {-signal.SIGTERM if verb == 'evaluate' else 143}"


def orphan(verb: str, log: Path) -> None:
    """A process that would work for long, when its pipe is closed."""

    def work(words: Sequence[str]) -> int:
        time.sleep(0.2)
        if words[0] == "train":
            signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))
        time.sleep(60)
        return 0

    setattr(child, "main", work)  # noqa: B010  # it does not offer this name
    process = studied_runs.forked([verb], log)
    process.close()
    ended = process.ended()
    assert ended is not None
    print(f"ended {ended.status}")


def test_a_training_that_saves_its_state_is_not_disturbed(tmp_path: Path) -> None:
    done = forked.call(asked_twice, tmp_path / "log", folder=tmp_path)
    assert done.out.strip() == "ended 143, saved"


def asked_twice(log: Path) -> None:
    """A scheduler asks all processes to end, the study closes its pipe, and the training takes a while to save."""

    def work(words: Sequence[str]) -> int:
        time.sleep(0.5)
        log.with_name("saved").touch()
        return 143

    setattr(child, "main", work)  # noqa: B010  # it does not offer this name
    process = studied_runs.forked(["train"], log)
    process.close()
    ended = process.ended()
    assert ended is not None
    print(f"ended {ended.status}, {'saved' if log.with_name('saved').exists() else 'lost'}")


def test_a_scheduler_ends_a_study(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(words: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(turns, "start", Scripted(0, terminated).start)
    assert main(["study", "run", str(tmp_path / "draws.yaml"), "--out", str(tmp_path / "out")]) == 143
    assert folders.begun(tmp_path / "out") == study
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_of_its_own(tmp_path: Path) -> None:
    """The real thing, with a verb that needs no torch."""
    log = tmp_path / "logs" / "one.log"
    process = turns.start(["recipes", "show"], log)
    ended = process.ended(wait=True)
    process.close()
    assert ended is not None
    assert ended.status == 2
    assert ended.cpu_seconds > 0.01
    assert ended.peak_mib > 5
    assert turns.last_words(log) == "recipes show: got no name, expected one (davi recipes lists them)"
    assert turns.last_words(tmp_path / "none.log") == "it has said nothing"
