"""The importance-weighted against the plain bound at equal draws, over training time, on dynamically binarized MNIST.

python benchmarks/iwae_over_time.py --runs FOLDER --data-root FOLDER

The paper's dense model of one layer with its optimizer and its staircase of learning rates, shortened in proportion:
every length is a training of its own, from the first rate to the last. Both objectives see the same images in the same
order; their negative log-likelihoods are compared image by image. One length has several seeds. ``--only`` makes a
share of the runs, for a second process. Runs that FOLDER already holds are measured, not trained again, so an
interrupted benchmark goes on where it stopped; the table is of those that are there.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write
from iwae import davi, summary

from davi import measurements
from davi.runs import MODEL

RECIPE = "iwae_mnist"
OBJECTIVES = ("elbo", "importance_weighted")
SHORT = 20_000
"""Steps of the length that has several seeds."""
LENGTHS = {5: (SHORT, 60_000, 130_000), 50: (SHORT, 40_000)}
"""Steps by draws; the longest take some fifteen minutes of one core."""
PASS = 2980
"""Steps of one pass over the 59,600 training images."""


@dataclass(frozen=True)
class Arm:
    """One training."""

    draws: int
    steps: int
    seed: int
    objective: str

    def run(self, folder: Path) -> Path:
        """Where it is."""
        return folder / f"iwae-{self.objective}-{self.draws}-{self.steps}-{self.seed}"


def arms(seeds: int) -> list[Arm]:
    """All trainings, the short ones first."""
    found = []
    for draws, lengths in LENGTHS.items():
        for steps in lengths:
            own = range(seeds if steps == SHORT else 1)
            found += [Arm(draws, steps, *rest) for rest in itertools.product(own, OBJECTIVES)]
    return sorted(found, key=lambda arm: (arm.steps * (arm.draws + 15), arm.seed))


def prepare(arm: Arm, options: argparse.Namespace) -> None:
    """Train and measure one run, as far as that has not been done."""
    run = arm.run(options.runs)
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        objective = [f"--training.objective.bound={arm.objective}", f"--training.objective.draws={arm.draws}"]
        budget = ["--training.epochs=null", f"--training.steps={arm.steps}", f"--training.seed={arm.seed}"]
        resume = ["--resume"] if run.exists() else []
        davi("train", RECIPE, *objective, *root, *budget, "--training.threads=1", "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        samples = ["--importance-samples", str(options.importance_samples), "--limit", str(options.limit)]
        davi("evaluate", str(run), *samples, *root, "--no-baselines")


def compared(pairs: list[tuple[Path, Path]]) -> dict[str, Any]:
    """Negative log-likelihood of the importance-weighted runs minus that of the plain ones, nats, image by image."""
    differences = []
    for plain, weighted in pairs:
        first, second = measurements.load(plain), measurements.load(weighted)
        if first.result.protocol.images_sha256 != second.result.protocol.images_sha256:
            raise SystemExit(f"{weighted}: measured on other images than {plain}")
        differences.append(first.bound - second.bound)
    images = np.mean(differences, 0)
    found: dict[str, Any] = {"mean": float(images.mean())}
    found |= {"standard_error": float(images.std(ddof=1) / len(images) ** 0.5)}
    if len(differences) > 1:
        means = [float(difference.mean()) for difference in differences]
        found["seeds"] = means
        found["standard_error_over_seeds"] = float(np.std(means, ddof=1) / len(means) ** 0.5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--seeds", type=int, default=3, help="of the short length")
    parser.add_argument("--only", type=int, nargs=2, metavar=("I", "N"), default=(0, 1), help="every Nth run from I")
    parser.add_argument("--importance-samples", type=int, default=5000)
    parser.add_argument("--limit", type=int, default=1000, help="N test images, spread evenly over the set")
    options = parser.parse_args()
    first, of = options.only
    for arm in arms(options.seeds)[first::of]:
        prepare(arm, options)
    rows = []
    for draws, lengths in LENGTHS.items():
        for steps in lengths:
            own = range(options.seeds if steps == SHORT else 1)
            runs = [tuple(Arm(draws, steps, seed, name).run(options.runs) for name in OBJECTIVES) for seed in own]
            pairs = [(a, b) for a, b in runs if all((run / "evaluation.json").exists() for run in (a, b))]
            if not pairs:
                continue
            row: dict[str, Any] = {"draws": draws, "steps": steps, "passes": round(steps / PASS, 1)}
            row["importance_weighted_minus_elbo"] = compared(pairs)
            row["runs"] = [dict(zip(OBJECTIVES, map(summary, pair), strict=True)) for pair in pairs]
            rows.append(row)
            print(draws, steps, row["importance_weighted_minus_elbo"])
    conditions = {"recipe": RECIPE, "importance_samples": options.importance_samples, "test_images": options.limit}
    print(write("iwae_over_time", {**conditions, "lengths": rows}))


if __name__ == "__main__":
    main()
