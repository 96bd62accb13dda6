"""Turns of a study: processes, their ends, budgets, and what is waited for."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import pytest
import studied_runs

from davi.cli import child, main
from davi.study import folder as folders
from davi.study import running, turns
from davi.study.folder import Job
from davi.study.format import Budget, Study, read
from davi.study.running import FailedError, Runner
from davi.training.lock import locked


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "draws.yaml"
    path.write_text(studied_runs.STUDY)
    return read(path)


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
    assert turns.last_words(tmp_path / "none.log") == "ended without a message"


def test_the_message_of_an_error_is_found_among_the_lines_of_another_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("davi: of an earlier turn\n")
    before = log.stat().st_size
    assert turns.last_words(log, before) == "ended without a message"
    with log.open("a") as file:
        file.write("davi: run: is in use by another process\nstep 1/60\n")
    assert turns.last_words(log, before) == "run: is in use by another process"


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


def test_the_last_arm_needs_no_turns(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float | None]] = []

    def train(self: Runner, job: Job, minutes: float | None = None) -> bool:
        asked.append((job.arm.name, minutes))
        return job.arm.name == "one draw" or minutes == math.inf

    monkeypatch.setattr(Runner, "_train", train)
    assert runner(study, tmp_path / "out").run() == []
    assert asked == [("one draw", None), ("three draws", math.inf)]
