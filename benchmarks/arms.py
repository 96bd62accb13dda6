"""Trainings that are compared: each trained once, measured once, and told in one row."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davi import measurements
from davi.evaluation.clusters import Groups, standard_error
from davi.evidence import bits_per_dim
from davi.metrics import read_metrics
from davi.records import to_json
from davi.runs import MODEL


@dataclass(frozen=True)
class Arm:
    """A recipe and what is changed of it, as on the command line.

    Arguments:
        recipe: its name.
        options: words of the command line.
        importance_samples: for this arm alone; None: as for all.
    """

    recipe: str
    options: tuple[str, ...] = ()
    importance_samples: int | None = None


def add_options(parser: argparse.ArgumentParser, samples: int) -> None:
    """The options of every comparison of arms."""
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps, in place of the recipes'")
    parser.add_argument("--importance-samples", type=int, default=samples)
    parser.add_argument("--limit", type=int, default=1000, help="N test images, spread evenly over the set")


def davi(*words: str) -> None:
    """Run the program."""
    subprocess.run([sys.executable, "-m", "davi", *words], check=True)


def train(run: Path, arm: Arm, budget: Sequence[str], seed: int) -> None:
    """Train with a budget, in words of the command line, what has not been trained yet; an interrupted training goes
    on."""
    if (run / MODEL).exists():
        return
    resume = ["--resume"] if run.exists() else []
    common = [f"--training.seed={seed}", "--training.threads=1"]
    davi("train", arm.recipe, *arm.options, *budget, *common, "--run", str(run), *resume)


def cpu_seconds(arm: Arm, budget: Sequence[str]) -> float:
    """CPU time of a whole training, the start of the program included."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        unmeasured = ["--training.validate_every=0", "--training.validation_images=1"]
        train(Path(folder) / "run", arm, [*budget, *unmeasured], 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def prepare(run: Path, arm: Arm, options: argparse.Namespace) -> None:
    """Train and measure, as far as that has not been done; an interrupted training goes on."""
    train(run, arm, [] if options.steps is None else [f"--training.steps={options.steps}"], options.seed)
    if not (run / "evaluation.safetensors").exists():
        draws = arm.importance_samples or options.importance_samples
        samples = ["--importance-samples", str(draws), "--limit", str(options.limit)]
        davi("evaluate", str(run), *samples, "--no-baselines")


def summary(run: Path) -> dict[str, Any]:
    """What a results file says of one run, nats."""
    result = measurements.load(run).result
    last = [record for record in read_metrics(run) if record.get("kind") == "train"][-1]
    return {
        "parameters": result.protocol.model.parameters,
        "steps": last["step"],
        "importance_samples": result.bound.samples,
        "training_seconds": round(last["seconds"], 1),
        "nll": {"mean": -result.bound.nats.mean, "standard_error": result.bound.nats.standard_error},
        "negative_elbo": {"mean": -result.elbo.nats.mean, "standard_error": result.elbo.nats.standard_error},
        "rate": None if result.kl is None else result.kl.total.nats.mean,
        "active_units": None if result.active_units is None else result.active_units.active,
        "measures": [to_json(measure) for measure in result.measures],
    }


def measured(arms: Mapping[str, Arm], options: argparse.Namespace) -> dict[str, Any]:
    """Name -> row, of the arms asked for; all are trained and measured."""
    chosen: Sequence[str] = options.arms or list(arms)
    rows: dict[str, Any] = {}
    for name in chosen:
        run = options.runs / f"{name}-{options.seed}"
        prepare(run, arms[name], options)
        rows[name] = {"recipe": arms[name].recipe, "options": list(arms[name].options), **summary(run)}
        row = rows[name]
        print(f"{name:<24}{row['nll']['mean']:>9.2f}{row['negative_elbo']['mean']:>9.2f}{row['rate'] or 0.0:>8.2f}")
    return rows


def spread(values: Sequence[float] | NDArray[np.float64], dims: int, groups: Groups | None = None) -> dict[str, Any]:
    """Mean and its standard error in nats, and the mean in bits/dim (positive: the first needs fewer bits)."""
    array = np.asarray(values)
    mean, error = float(array.mean()), standard_error(array, groups)
    return {"nats": mean, "standard_error": error, "bits_per_dim_saved": -bits_per_dim(mean, dims), "n": len(array)}
