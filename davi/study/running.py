"""Running a study: the arms of a seed are trained in turns, then measured.

An arm trains for a few minutes, saves its state and lets the next one go on, so that a machine that is slower for an
hour is slower for all of them. The clock of a training stands still meanwhile, and it goes on bit for bit where it was.
The order of the arms is reversed from round to round.

All that is done is in the folder of the study (:mod:`davi.study.folder`). Whatever is killed is done again from the
last state that was saved, and what is done is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from davi.errors import UserError
from davi.files import replace_text, writing
from davi.formatting import duration
from davi.metrics import read_metrics
from davi.study import turns
from davi.study.folder import Job, jobs
from davi.study.format import ROOT, Study
from davi.study.turns import Ended
from davi.training.lock import locked

POLL = 0.5
"""Seconds between two looks at a training."""

_ENDING = 60.0
"""Seconds for which a training that lost its study may still be saving its state."""

_STOPPED, _INTERRUPTED = (143, -15), (130, -2)
"""Statuses of a process that was asked to end."""

_SHORTEST, _LONGEST = 0.5, 10.0
"""Minutes of a turn."""

_PROBED = 1.0
"""Minutes of the training from which the CPU time of a step is found."""

_PROBE = ("--training.validate_every=0", "--training.validation_images=1", "--training.checkpoints.minutes=0")


class FailedError(Exception):
    """An arm cannot be trained or measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs a study in a folder.

    Arguments:
        folder: of the study, begun (:func:`davi.study.folder.begin`).
        study: that is run.
        turn: minutes of training of a turn; None: a quarter of the budget, from half a minute to ten.
        device: where to compute; None: where the program would.
        say: takes lines for the user.
    """

    folder: Path
    study: Study
    turn: float | None = None
    device: str | None = None
    say: Callable[[str], None] = print

    def run(self, number: int | None = None) -> list[str]:
        """Train and measure what has not been.

        Arguments:
            number: of the only arm to run; None: all.

        Returns:
            For each arm that failed, a line.

        Raises:
            UserError: if there is no such arm.
            KeyboardInterrupt: if a training was asked to end by somebody else.
        """
        failures = []
        every = list(jobs(self.folder, self.study, number))
        for seed in range(self.study.seeds):
            of_seed = [job for job in every if job.seed == seed]
            left = [job for job in of_seed if not job.is_trained]
            while left:
                failures += self._round(left)
                left.reverse()
            for job in of_seed:
                if job.is_trained and not job.is_measured:
                    failures += self._attempt(job, self._measure)[0]
        return failures

    def _round(self, left: list[Job]) -> list[str]:
        """A turn for each job; those that have ended or failed are taken from the list."""
        failures = []
        for job in list(left):
            failed, ended = self._attempt(job, self._train if len(left) > 1 else self._train_to_its_end)
            failures += failed
            if failed or ended:
                left.remove(job)
        return failures

    def _attempt(self, job: Job, do: Callable[[Job], bool]) -> tuple[list[str], bool]:
        try:
            return [], do(job)
        except FailedError as error:
            line = f"{job}: {error}"
            self.say(f"{line}; its output is in {job.log}")
            return [line], False

    def _train_to_its_end(self, job: Job) -> bool:
        """All that is left, where no other arm waits for its turn."""
        return self._train(job, math.inf)

    def _train(self, job: Job, minutes: float | None = None) -> bool:
        """One turn of training, of so many minutes; whether the training has ended."""
        wait_until_free(job.run)
        if job.is_trained:  # by another process, which was given the same arm
            return True
        minutes = self._minutes() if minutes is None else minutes
        words = [*self._words(job), *self._budget(job), "--run", str(job.run), "--resume"]
        before = job.progress()

        def is_over() -> bool:
            step, seconds = job.progress()
            # A step on record is one that the training itself has made: it takes signals then.
            return step > before[0] and seconds - before[1] >= 60.0 * minutes

        ended = self._turn(job, words, is_over)
        step, seconds = job.progress()
        done = job.is_trained
        self.say(f"{job}: {'trained,' if done else 'at'} step {step:,}, {duration(seconds)}, {_pace(ended)}")
        return done

    def _measure(self, job: Job) -> bool:
        limit = [] if job.images is None else ["--limit", str(job.images)]
        root = [f"--{word}" for word in self.study.overrides if word.startswith(ROOT)]
        samples = ["--importance-samples", str(job.samples)]
        words = ["evaluate", str(job.run), *samples, *limit, "--no-baselines", *root, *self._device()]
        ended = self._turn(job, words)
        self.say(f"{job}: measured, {_pace(ended)}")
        return True

    def _words(self, job: Job) -> list[str]:
        """The verb, and all that is asked of an arm but its budget and its folder."""
        assert job.arm.recipe is not None
        changes = [f"--{word}" for word in (*self.study.overrides, *job.arm.overrides)]
        return ["train", job.arm.recipe, *changes, f"--training.seed={job.seed}", *self._device()]

    def _device(self) -> list[str]:
        return [] if self.device is None else ["--device", self.device]

    def _budget(self, job: Job) -> list[str]:
        """The budget, in place of the recipe's."""
        given = self.study.budget.given
        if "cpu_minutes" in given:
            given = {"steps": self._steps(job)}
        if not given:
            return []
        undone = [f"--training.{name}=null" for name in ("minutes", "steps", "epochs") if name not in given]
        return [*undone, *(f"--training.{name}={value:.15g}" for name, value in given.items())]

    def _minutes(self) -> float:
        """Length of a turn."""
        if self.turn is not None:
            return self.turn
        whole = self.study.budget.minutes or self.study.budget.cpu_minutes
        return _LONGEST / 2 if whole is None else min(max(whole / 4.0, _SHORTEST), _LONGEST)

    def _steps(self, job: Job) -> int:
        """How many steps the CPU minutes hold: measured once, from one step and from a short training."""
        whole = self.study.budget.cpu_minutes
        assert whole is not None
        if not job.steps.exists():
            one, none = self._probe(job, ["--training.steps=1", "--training.minutes=null"])
            many, steps = self._probe(job, [f"--training.minutes={_PROBED:g}", "--training.steps=null"])
            each = max(many.cpu_seconds - one.cpu_seconds, 1e-3) / max(steps - none, 1)
            found = max(1, round(60.0 * whole / each))
            with writing(str(job.steps)):
                replace_text(job.steps, f"{found}\n")
            self.say(f"{job.arm.name}: {self.study.budget} are {found:,} steps")
        return int(job.steps.read_text())

    def _probe(self, job: Job, budget: Sequence[str]) -> tuple[Ended, int]:
        """A training that is thrown away: what it cost, and its steps."""
        run = job.folder / "runs" / f"{job.stem}-probe"
        shutil.rmtree(run, ignore_errors=True)
        probe = dataclasses.replace(job, seed=0)
        words = [*self._words(probe), "--training.epochs=null", *budget, *_PROBE, "--run", str(run)]
        ended = self._turn(job, words, what="probe")
        steps = [record["step"] for record in read_metrics(run) if record["kind"] == "train"]
        shutil.rmtree(run, ignore_errors=True)
        if not steps:
            raise FailedError("made no step in the time from which its CPU time is measured")
        return ended, steps[-1]

    def _turn(
        self, job: Job, words: Sequence[str], is_over: Callable[[], bool] = lambda: False, what: str = ""
    ) -> Ended:
        """A process that works until it ends or the turn is over.

        Raises:
            FailedError: if it has failed.
            KeyboardInterrupt: if somebody else has asked it to end.
        """
        before = job.log.stat().st_size if job.log.exists() else 0
        with writing(str(job.log)):
            child = turns.start(words, job.log)
        asked = False
        try:
            while (ended := child.ended()) is None:
                if not asked and is_over():
                    child.stop()
                    asked = True
                time.sleep(POLL)
        finally:
            child.close()
        _write_down(job, what or words[0], ended)
        if ended.status in _INTERRUPTED or (ended.status in _STOPPED and not asked):
            raise KeyboardInterrupt
        if ended.status < 0 and ended.status not in _STOPPED:
            raise FailedError(f"was killed by signal {-ended.status}, perhaps for lack of memory")
        if ended.status and ended.status not in _STOPPED:
            raise FailedError(turns.last_words(job.log, before))
        return ended


def wait_until_free(run: Path) -> None:
    """Wait for a training that has lost its study, and saves its state still.

    Raises:
        FailedError: if another process goes on training there.
    """
    end = time.monotonic() + _ENDING
    while run.exists():
        try:
            with locked(run):
                return
        except UserError as error:
            if time.monotonic() > end:
                raise FailedError(str(error)) from None
            time.sleep(POLL)


def _write_down(job: Job, what: str, ended: Ended) -> None:
    """A line about a turn."""
    with writing(str(job.turns)), job.turns.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"what": what, **dataclasses.asdict(ended)}) + "\n")


def _pace(ended: Ended) -> str:
    return f"a turn of {duration(ended.seconds)}, {duration(ended.cpu_seconds)} of CPU time"
