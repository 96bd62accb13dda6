"""Trains, is killed at a chosen instant, trains on: run as a program by the tests of resuming.

    python killed_runs.py [--explained | --quantized] FOLDER POINT...

A point ``NAME:N`` kills the process (SIGKILL) at the N-th call of that function, ``between/NAME:N`` at the N-th since
the end of the first of two stages; ``at:F`` after that fraction of the time that an uninterrupted run takes, wherever
it is then. ``NAME:N+at:F`` kills one run twice. For each point a process is forked that trains until it is killed, then
others that resume until the run ends; a line says how often it was killed. Images in FOLDER/images are streamed from a
cache that each run makes for itself; without, random ones are used. The two other models have two parts, which are
trained in two stages.

Forking spares the import of torch each time; it is safe as long as no thread has been started, so everything is
computed by one thread.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # every first optimizer step imports it: once here is enough for all forks
from staged import CODE_STAGES, CODES, STAGES, explained, quantized
from staged import RECIPE as STAGED
from tiny import RECIPE, sets, vae
from toys.persistent import PersistentContrastiveDivergence

from davi import metrics
from davi.data import DataConfig, DataSets, load
from davi.data.cache import Writer
from davi.model import Network
from davi.objectives import OBJECTIVES
from davi.training import TrainingConfig, checkpoint, loop, recorder, train
from davi.training.optimizer import Average
from davi.training.sections import CheckpointConfig, MonitorConfig, ScheduleConfig, StepFilterConfig
from davi.training.stages import Stage
from davi.training.step_filter import StepFilter

CONFIG = TrainingConfig(
    steps=12,
    batch_size=8,
    accumulate=2,
    schedule=ScheduleConfig(warmup_steps=3),
    step_filter=StepFilterConfig(skip_factor=0.9, skip_quantile=0.0, skip_window=4, skip_limit=2),
    ema_decay=0.9,
    validate_every=5,
    checkpoints=CheckpointConfig(minutes=0.0, steps=3),
    log_every=4,
    monitor=MonitorConfig(collapse_nats=0.5, plateau_validations=1),
    threads=1,
)
"""Everything that a checkpoint must carry is in play; the guard is so strict that it skips some steps."""

TARGETS: dict[str, tuple[Any, str]] = {
    "part": (loop._Job, "_loss"),  # between the parts of a batch
    "verdict": (StepFilter, "judge"),  # after the backward pass
    "average": (Average, "update"),  # after the weights moved, before the average did
    "validate": (recorder, "validate"),
    "tensors": (checkpoint, "write_tensors"),  # within a checkpoint
    "flush": (os, "fsync"),  # a file is there under its temporary name
    "rename": (Path, "replace"),  # files, and the folders of checkpoints
    "remove": (checkpoint, "remove_folder"),
    "record": (metrics.Metrics, "write"),
    "decode": (Writer, "append"),  # while the cache of streamed images is made
}


def images(run: Path) -> DataSets:
    """What a run is trained on."""
    folder = run.parent / "images"
    if not folder.is_dir():
        return sets()
    cache = str(run.parent / "caches" / run.name)
    return load(
        DataConfig(str(folder), binarization="dynamic", flip="horizontal", validation=0.2, cache=cache, memory=0.0)
    )


KINDS: dict[str, tuple[Callable[[], Network], dict[str, Any], tuple[Stage, ...]]] = {
    "vae": (vae, RECIPE, ()),
    "explained": (explained, STAGED, STAGES),
    "quantized": (quantized, CODES, CODE_STAGES),
}
"""What can be trained: model, recipe, stages."""


def go_on(run: Path, kind: str) -> None:
    """Train, or go on."""
    model, recipe, stages = KINDS[kind]
    train(model(), images(run), CONFIG, run, recipe, resume=True, print_fn=lambda line: None, stages=stages)


def run_once(folder: Path, point: str | None, seconds: float = 0.0, kind: str = "vae") -> int:
    """Train or resume in a forked process; what ``os.waitpid`` says of its end."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        if point is not None and point.startswith("at:"):
            return kill_after(child, float(point.removeprefix("at:")) * seconds)
        return os.waitpid(child, 0)[1]
    try:
        if point is not None and not point.startswith("at:"):
            arm(point)
        go_on(folder, kind)
        os._exit(0)
    except BaseException as error:
        print(f"{folder.name}: {error!r}", flush=True)
        os._exit(1)


def kill_after(child: int, seconds: float) -> int:
    """Kill a process unless it ends before; what ``os.waitpid`` says of its end."""
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(min(left, 0.005))
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def arm(point: str) -> None:
    """Die at the N-th call of a function."""
    name, _, count = point.removeprefix("between/").partition(":")
    owner, attribute = TARGETS[name]
    original: Callable[..., Any] = getattr(owner, attribute)
    left, counting = int(count), not point.startswith("between/")
    end_stage = recorder.Recorder.end_stage

    def begin_to_count(self: recorder.Recorder) -> None:
        nonlocal counting
        counting = True
        end_stage(self)

    recorder.Recorder.end_stage = begin_to_count

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= counting
        if left == 0:
            if name == "record":  # half a line is on the disk
                args[0]._file.write('{"kind": "train", "st')
                args[0]._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, attribute, counted)


def main(folder: Path, points: list[str], kind: str = "vae") -> None:
    torch.set_num_threads(1)
    os.fsync = lambda file: None  # no kill of a process loses what it has written; waiting for the disk takes most time
    OBJECTIVES[PersistentContrastiveDivergence.name] = PersistentContrastiveDivergence
    began = time.perf_counter()
    if run_once(folder / "whole", None, kind=kind) != 0:
        sys.exit("the uninterrupted run failed")
    seconds = time.perf_counter() - began
    for point in points:
        run, kills = folder / point.replace(":", "-").replace("/", "-"), 0
        for number, one in enumerate(point.split("+")):
            began = time.perf_counter()
            status = run_once(run, one, seconds, kind)
            if status == 0 and number == 0:  # a whole run, and faster than the first: others are doing less now
                seconds = time.perf_counter() - began
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if status != 0 and not killed:
                sys.exit(f"{point}: failed before it was killed")
            kills += killed
        print(f"{point}: killed {kills}", flush=True)
        if run_once(run, None, kind=kind) != 0:
            sys.exit(f"{point}: could not be resumed")


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    kinds = [argument.removeprefix("--") for argument in sys.argv[1:] if argument.startswith("--")]
    main(Path(given[0]), given[1:], *kinds)
