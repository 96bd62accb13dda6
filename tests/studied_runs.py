"""Runs a study, is killed at a chosen instant, runs it on: called in a forked process by the tests of studies.

A point ``NAME:N`` kills the process of the study (SIGKILL) at the N-th call of that function; a training that it had
begun is left alone, and has to notice. Everything is forked from one process that has imported torch and computed
nothing. Trainings are slowed down, so that a turn ends after the first step that is seen, and every arm takes two.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every first optimizer step imports it: once here is enough for all forks

from davi.cli import child as program
from davi.study import folder as folders
from davi.study import running, turns
from davi.study.format import Study, read
from davi.study.running import Runner
from davi.training.recorder import Recorder

TARGETS: dict[str, tuple[Any, str]] = {
    "start": (turns, "start"),  # between two turns
    "poll": (time, "sleep"),  # while an arm trains, which then has lost its study
    "ended": (running, "_write_down"),  # after a turn, before it is noted
    "measure": (Runner, "_measure"),
}
STUDY = """
title: Draws of a small VAE
question: Do more draws help?
budget: {steps: 3}
importance_samples: 3
images: 40
overrides: [training.validate_every=0]
measured: [bound, elbo, rate, active_units, kl_layers, steps, memory]
tables:
  - title: Digits
    published: digits, in another unit
    arms:
      - {name: one draw, recipe: vae_digits_tiny, overrides: [training.objective.draws=1], published: {nats: 3.5}}
      - {name: three draws, recipe: vae_digits_tiny, published: {nats: "3.0"}}
"""


def forked(words: Sequence[str], log: Path) -> turns.Child:
    """In place of :func:`davi.study.turns.start`: a process without imports."""
    log.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        os.close(writing)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        time.sleep = sleep  # as it was before any point was set
        report = Recorder.report

        def slowly(self: Recorder, *given: Any) -> None:
            report(self, *given)
            sleep(0.1)

        setattr(Recorder, "report", slowly)  # noqa: B010  # a method cannot be assigned to
        os._exit(program.run(words, reading))
    os.close(reading)
    return turns.Child(number, os.fdopen(writing, "wb"))


sleep = time.sleep


def run_once(folder: Path, study: Study, point: str | None) -> int:
    """Run or go on with a study in a forked process; what ``os.waitpid`` says of its end."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return os.waitpid(number, 0)[1]
    try:
        if point is not None:
            arm(point)
        folders.begin(folder, study)
        failures = Runner(folder, study, turn=1e-9, say=lambda line: print(f"{folder.name}: {line}")).run()
        os._exit(bool(failures))
    except BaseException as error:
        print(f"{folder.name}: {error!r}", flush=True)
        os._exit(1)


def arm(point: str) -> None:
    """Die at the N-th call of a function."""
    name, _, count = point.partition(":")
    owner, attribute = TARGETS[name]
    original: Callable[..., Any] = getattr(owner, attribute)
    left = int(count)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, counted)


def main(folder: Path, points: Sequence[str]) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # no kill of a process loses what it has written
    turns.start = forked
    running.POLL = 0.01
    path = folder / "draws.yaml"
    path.write_text(STUDY)
    study = read(path)
    if run_once(folder / "whole", study, None) != 0:
        sys.exit("the uninterrupted study failed")
    for point in points:
        where = folder / point.replace(":", "-")
        status = run_once(where, study, point)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{point}: was not killed")
        print(f"{point}: killed", flush=True)
        if run_once(where, study, None) != 0:
            sys.exit(f"{point}: could not be resumed")
