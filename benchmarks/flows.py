"""Flows on pixels at equal time on the clock: NICE, Real NVP, Glow and Flow++.

python benchmarks/flows.py --runs FOLDER --minutes 15

Flow++ has uniform and learned noise of dequantization, with which all else is equal; the two are also compared at
equally many steps. These, unless given, are as many as the slower of the two has made in its time. Every run is
measured on the first images of the test set, by one draw of the noise each, and with ``davi evaluate`` on as many
spread over the set, as in the leagues of ``davi study``. Runs and measurements that FOLDER already holds are not made
again, so an interrupted benchmark goes on where it stopped. The data sets' folder is that of the environment variable
DAVI_DATA.

A core that does other work as well distorts the clock. With --cpu-time the minutes are CPU time: a short training of
each arm tells how many steps they hold, and the arm is trained with so many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from arms import Arm, cpu_seconds, davi, spread, train
from common import write
from numpy.typing import NDArray

from davi import Run, measurements
from davi.data import load
from davi.evaluation import evaluate
from davi.evidence import bits_per_dim

UNIFORM = "--model.dequantization={name: uniform}"
SETS = ("cifar10", "fashion_mnist")
ARMS = {
    "nice": ("nice", ()),
    "real_nvp": ("real_nvp", ()),
    "glow": ("glow", ()),
    "flowpp_uniform": ("flowpp", (UNIFORM,)),
    "flowpp_variational": ("flowpp", ()),
}
"""Name -> model, and what is changed of its recipe."""
NOISES = ("flowpp_uniform", "flowpp_variational")
"""The arms that are compared at equally many steps."""
PUBLISHED = {"nice": 4.48, "real_nvp": 3.49, "glow": 3.35, "flowpp_variational": 3.08}
"""CIFAR-10, bits/dim, whole test set: other sizes of these models, trained for days on several GPUs."""
PROBE = 30
"""Steps whose CPU time is measured."""


def arm_of(name: str, images: str) -> Arm:
    """The recipe of an arm for a set of images."""
    model, options = ARMS[name]
    return Arm(f"{model}_{images}_small", options)


def first_images(run: Path, limit: int, samples: int) -> NDArray[np.float64]:
    """Bounds of the first images of the test set, ``[N]``, nats; kept in the run's folder."""
    kept = run / f"first-{limit}-{samples}.npy"
    if not kept.exists():
        opened = Run(run)
        data = opened.recipe.data
        assert data is not None
        test = load(data).test
        np.save(kept, evaluate(opened.model, test.subset(slice(limit)), samples).bound)
    found: NDArray[np.float64] = np.load(kept)
    return found


def dims_of(run: Path) -> int:
    """Values of an image."""
    return int(np.prod(measurements.load(run).result.protocol.data.shape))


def measured(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    nats = first_images(run, options.limit, options.importance_samples)
    if not (run / "evaluation.safetensors").exists():
        samples = ["--importance-samples", str(options.importance_samples), "--limit", str(options.limit)]
        davi("evaluate", str(run), *samples, "--no-baselines")
    result = measurements.load(run).result
    last = [record for record in Run(run).metrics if record.get("kind") == "train"][-1]
    dims = dims_of(run)
    spread_over_set = result.bound.in_unit("bits_per_dim")
    return {
        "parameters": result.protocol.model.parameters,
        "steps": last["step"],
        "training_seconds": round(last["seconds"], 1),
        "bits_per_dim": bits_per_dim(float(nats.mean()), dims),
        "standard_error": -bits_per_dim(float(nats.std(ddof=1) / len(nats) ** 0.5), dims),
        "spread_over_set": {"bits_per_dim": spread_over_set.mean, "standard_error": spread_over_set.standard_error},
    }


def compared(runs: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any] | None:
    """Learned noise against uniform noise, over the same images; None unless there are both."""
    pair = [runs[name] for name in NOISES if name in runs]
    if len(pair) < 2:
        return None
    uniform, variational = (first_images(run, options.limit, options.importance_samples) for run in pair)
    return spread(variational - uniform, dims_of(pair[0]))


def steps_of(arm: Arm, options: argparse.Namespace) -> int:
    """Steps of the minutes in CPU time, kept in the folder; starting the program costs both trainings alike."""
    options.runs.mkdir(parents=True, exist_ok=True)
    kept = options.runs / "flows-steps.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    key = " ".join([arm.recipe, *arm.options, f"{options.minutes:g} minutes"])
    if key not in known:
        second = (cpu_seconds(arm, in_steps(10 + PROBE)) - cpu_seconds(arm, in_steps(10))) / PROBE
        known[key] = max(1, round(60.0 * options.minutes / second))
        kept.write_text(json.dumps(known, indent=2))
    return int(known[key])


def in_steps(steps: int) -> list[str]:
    """A budget in steps."""
    return ["--training.minutes=null", f"--training.steps={steps}"]


def in_time(arm: Arm, options: argparse.Namespace) -> list[str]:
    """A budget in minutes, of the clock or of CPU time."""
    if options.cpu_time:
        return in_steps(steps_of(arm, options))
    return ["--training.steps=null", f"--training.minutes={options.minutes}"]


def folder_of(images: str, budget: str, arm: str, options: argparse.Namespace) -> Path:
    """Where a run is."""
    folder: Path = options.runs / f"flows-{images}-{budget}-{arm}-{options.seed}"
    return folder


def at_equal_time(images: str, options: argparse.Namespace) -> dict[str, Any]:
    """All arms on one set: trained and measured."""
    budget = f"{options.minutes:g}-{'cpu-' if options.cpu_time else ''}minutes"
    runs = {arm: folder_of(images, budget, arm, options) for arm in options.arms}
    rows: dict[str, Any] = {}
    for arm, run in runs.items():
        recipe = arm_of(arm, images)
        train(run, recipe, in_time(recipe, options), options.seed)
        rows[arm] = measured(run, options)
    table(f"{images}, {budget}", rows)
    return {"arms": rows, "variational_minus_uniform": compared(runs, options)}


def at_equal_steps(images: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both noises of Flow++ on one set. Of a budget in CPU time the slower one has made its steps already."""
    pair = {name: arm_of(name, images) for name in NOISES}
    made = {name: steps_of(arm, options) for name, arm in pair.items()} if options.cpu_time else {}
    steps = options.steps or min(made.values())
    runs, rows = {}, {}
    for name, arm in pair.items():
        budget = f"{options.minutes:g}-cpu-minutes" if made.get(name) == steps else f"{steps}-steps"
        runs[name] = folder_of(images, budget, name, options)
        train(runs[name], arm, in_steps(steps), options.seed)
        rows[name] = measured(runs[name], options)
    table(f"{images}, {steps} steps", rows)
    return {"arms": rows, "variational_minus_uniform": compared(runs, options)}


def table(title: str, rows: Mapping[str, Any]) -> None:
    """Print a line for each arm."""
    print(f"\n{title}\n{'':<22}{'bits/dim':>9}{'±':>8}{'parameters':>13}{'steps':>8}{'seconds':>9}")
    for arm, row in rows.items():
        size = f"{row['parameters']:>13,}{row['steps']:>8}{row['training_seconds']:>9}"
        print(f"{arm:<22}{row['bits_per_dim']:>9.3f}{row['standard_error']:>8.3f}{size}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--budgets", nargs="+", choices=("time", "steps"), default=["time", "steps"])
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of each run at equal time")
    parser.add_argument("--steps", type=int, help="of both noises of Flow++ at equal steps")
    parser.add_argument("--limit", type=int, default=2000, help="test images")
    parser.add_argument("--importance-samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="minutes of CPU time, not of the clock")
    options = parser.parse_args()
    if "steps" in options.budgets and options.steps is None and not options.cpu_time:
        parser.error("--steps: got none, expected a number, or --cpu-time, which tells how many fit into the minutes")
    found: dict[str, Any] = {}
    for images in options.sets:
        found[images] = {}
        if "time" in options.budgets:
            found[images]["equal_time"] = at_equal_time(images, options)
        if "steps" in options.budgets:
            found[images]["equal_steps"] = at_equal_steps(images, options)
    asked = {"minutes": options.minutes, "clock": "CPU time" if options.cpu_time else "wall time", "seed": options.seed}
    kept = {"first_test_images": options.limit, "importance_samples": options.importance_samples}
    print(write("flows", {**asked, **kept, "sets": found, "published_cifar10": PUBLISHED}))


if __name__ == "__main__":
    main()
