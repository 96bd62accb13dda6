"""Trainings of energies that are compared: each trained once, log Z estimated once, told in one row."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import davi

from davi import measurements
from davi.metrics import read_metrics
from davi.records import to_json
from davi.runs import MODEL


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark of energies."""
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs; what is there is not done again")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--core", type=int, help="of the processor, on which everything runs")
    parser.add_argument("--temperatures", type=int, default=14_501, help="of annealed importance sampling")
    parser.add_argument("--chains", type=int, default=100, help="of annealed importance sampling")
    parser.add_argument("--limit", type=int, help="N test images, spread evenly over the set; all by default")


def begin(options: argparse.Namespace) -> None:
    """Take one core, with one thread, in this process and in those that it starts."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    options.runs.mkdir(parents=True, exist_ok=True)


def train(run: Path, *words: str) -> None:
    """Train, unless that has been done; an interrupted training goes on."""
    if not (run / MODEL).exists():
        resume = ["--resume"] if run.exists() else []
        davi("train", *words, "--training.threads=1", "--run", str(run), *resume)


def evaluate(run: Path, options: argparse.Namespace, *words: str) -> None:
    """Measure on test images, unless that has been done."""
    if not (run / "evaluation.safetensors").exists():
        annealing = [f"--ais-temperatures={options.temperatures}", f"--ais-chains={options.chains}"]
        limit = [] if options.limit is None else [f"--limit={options.limit}"]
        davi("evaluate", str(run), "--no-baselines", *annealing, *limit, *words)


def told(run: Path) -> dict[str, Any]:
    """What a results file says of the likelihood of one run, nats."""
    result = measurements.load(run).result
    error = result.bound.nats.standard_error
    return {
        "log_likelihood": {"mean": result.bound.nats.mean, "standard_error_over_images": error},
        "kind": result.kind.name,
        "log_z": None if result.log_z is None else to_json(result.log_z),
        "test_images": result.protocol.images,
        "measures": [to_json(measure) for measure in result.measures],
    }


def trained(run: Path, batch_size: int) -> dict[str, Any]:
    """What a results file says of how a run was trained: of each of its stages, the time of all."""
    last = [record for record in read_metrics(run) if record.get("kind") == "train"][-1]
    steps, seconds = last["step"], last["seconds"]
    return {
        "steps": steps,
        "training_seconds": round(seconds, 1),
        "updates_per_second": round(steps / seconds, 2),
        "images_per_second": round(steps * batch_size / seconds, 1),
    }


def effective_samples(row: Mapping[str, Any]) -> float | None:
    """Of the chains behind a row's estimate."""
    return None if row["log_z"] is None else row["log_z"].get("effective_samples")


def show(name: str, row: Mapping[str, Any]) -> None:
    """One line about a row."""
    log_z = row["log_z"] or {}
    cells: Sequence[Any] = (log_z.get("low"), log_z.get("high"), effective_samples(row))
    limits = "".join(f"{'-' if cell is None else format(cell, '.2f'):>10}" for cell in cells)
    speed = "".join(f"{row[key]:>12}" for key in ("images_per_second",) if key in row)
    print(f"{name:<28}{row['log_likelihood']['mean']:>9.2f}{limits}{speed}")
