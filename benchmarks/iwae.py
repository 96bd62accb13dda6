"""The table of the IWAE paper in small: draws and objectives after equally many steps, on dynamically binarized MNIST.

python benchmarks/iwae.py --runs FOLDER --data-root FOLDER --steps 20000 --seeds 0

The paper's dense model with one stochastic layer. With one draw both objectives have the same mean: one run. As in the
paper all runs see the same number of images; more draws take more time, which the table says (one thread).
Runs that FOLDER already holds are measured, not trained again, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import write

from davi import measurements
from davi.metrics import read_metrics
from davi.runs import MODEL

RECIPE = "iwae_mnist_small"
ARMS: dict[str, tuple[str, int, float, int]] = {
    # objective, draws; the paper's negative log-likelihood (nats, 5,000 samples, all test images) and active units
    "vae-1": ("elbo", 1, 86.76, 19),
    "vae-5": ("elbo", 5, 86.47, 20),
    "vae-50": ("elbo", 50, 86.35, 20),
    "iwae-5": ("importance_weighted", 5, 85.54, 22),
    "iwae-50": ("importance_weighted", 50, 84.78, 25),
}


def davi(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "davi", *words], check=True)


def prepare(run: Path, arm: str, seed: int, options: argparse.Namespace) -> None:
    """Train and measure one run, as far as that has not been done."""
    bound, draws, _, _ = ARMS[arm]
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        objective = [f"--training.objective.bound={bound}", f"--training.objective.draws={draws}"]
        budget = ["--training.minutes=null", f"--training.steps={options.steps}"]
        budget += ["--training.threads=1", f"--training.seed={seed}"]
        resume = ["--resume"] if run.exists() else []
        davi("train", RECIPE, *objective, *root, *budget, "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        samples = ["--importance-samples", str(options.importance_samples), "--limit", str(options.limit)]
        davi("evaluate", str(run), *samples, *root)


def summary(run: Path) -> dict[str, Any]:
    """What the results file says of one run."""
    result = measurements.load(run).result
    units = result.active_units
    assert units is not None
    last = [record for record in read_metrics(run) if record.get("kind") == "train"][-1]
    return {
        "nll": {"mean": -result.bound.nats.mean, "standard_error": result.bound.nats.standard_error},
        "negative_elbo": -result.elbo.nats.mean,
        "active_units": units.active,
        "units": units.units,
        "steps": last["step"],
        "epochs": last["epoch"],
        "training_seconds": round(last["seconds"], 1),
    }


def row(arm: str, found: list[dict[str, Any]]) -> str:
    """One line of the table, means over the seeds."""
    bound, draws, nll, active = ARMS[arm]
    ours = statistics.fmean(run["nll"]["mean"] for run in found)
    units = statistics.fmean(run["active_units"] for run in found)
    minutes = statistics.fmean(run["training_seconds"] for run in found) / 60
    name = "VAE" if bound == "elbo" else "IWAE"
    return f"{name:<5}{draws:>4}{ours:>10.2f}{units:>8.1f}{minutes:>10.1f}{nll:>10.2f}{active:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--steps", type=int, default=20_000, help="training steps of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--importance-samples", type=int, default=5000)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--results", default="iwae", help="name of the results file")
    parser.add_argument("--limit", type=int, default=1000, help="N test images, spread evenly over the set")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm, found in runs.items():
            run = options.runs / f"iwae-{arm}-{seed}"
            prepare(run, arm, seed, options)
            found.append(summary(run))
    print(f"{'':<5}{'k':>4}{'NLL':>10}{'active':>8}{'minutes':>10}{'paper NLL':>10}{'active':>8}")
    print("\n".join(row(arm, found) for arm, found in runs.items()))
    measured = {
        "recipe": RECIPE,
        "steps": options.steps,
        "importance_samples": options.importance_samples,
        "test_images": options.limit,
        "seeds": options.seeds,
        "arms": {
            arm: {"objective": bound, "draws": draws, "paper": {"nll": nll, "active_units": active}, "runs": runs[arm]}
            for arm, (bound, draws, nll, active) in ARMS.items()
            if arm in runs
        },
    }
    print(write(options.results, measured))


if __name__ == "__main__":
    main()
