"""Trains, is killed at a chosen instant, trains on: run as a program by the tests of resuming.

    python killed_runs.py FOLDER POINT...

A point ``NAME:N`` kills the process (SIGKILL) at the N-th call of that function. For each point a process is forked
that trains until it is killed, then others that resume until the run ends. Forking spares the import of torch each
time; it is safe as long as no thread has been started, so everything is computed by one thread.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every first optimiser step imports it: once here is enough for all forks
from tiny import RECIPE, sets, vae

from davi import runs
from davi.training import TrainingConfig, checkpoint, loop, train
from davi.training.guard import Guard
from davi.training.optimizer import Average

CONFIG = TrainingConfig(
    steps=12,
    batch_size=8,
    accumulate=2,
    checkpoint_steps=3,
    checkpoint_minutes=0.0,
    validate_every=5,
    log_every=4,
    warmup_steps=3,
    skip_factor=0.9,
    skip_quantile=0.0,
    skip_window=4,
    skip_limit=2,
    ema_decay=0.9,
    threads=1,
)
"""Everything that a checkpoint must carry is in play; the guard is so strict that it skips some steps."""

TARGETS: dict[str, tuple[Any, str]] = {
    "part": (loop, "negative_elbo"),  # between the parts of a batch
    "verdict": (Guard, "judge"),  # after the backward pass
    "average": (Average, "update"),  # after the weights moved, before the average did
    "validate": (loop, "validate"),
    "tensors": (checkpoint, "write_tensors"),  # within a checkpoint
    "flush": (os, "fsync"),  # a file is there under its temporary name
    "rename": (Path, "replace"),  # files, and the folders of checkpoints
    "remove": (checkpoint, "remove_folder"),
    "record": (runs.Metrics, "write"),
}


def run_once(folder: Path, point: str | None) -> int:
    """Train or resume in a forked process; what ``os.waitpid`` says of its end."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        if point is not None:
            arm(point)
        train(vae(), sets(), CONFIG, folder, RECIPE, resume=True, echo=lambda line: None)
        os._exit(0)
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
            if name == "record":  # half a line is on the disk
                args[0]._file.write('{"kind": "train", "st')
                args[0]._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, counted)


def main(folder: Path, points: list[str]) -> None:
    torch.set_num_threads(1)
    if run_once(folder / "whole", None) != 0:
        sys.exit("the uninterrupted run failed")
    for point in points:
        run = folder / point.replace(":", "-")
        status = run_once(run, point)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{point}: was not killed")
        if run_once(run, None) != 0:
            sys.exit(f"{point}: could not be resumed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
