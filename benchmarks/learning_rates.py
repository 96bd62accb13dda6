"""Are the learning rates of the small recipes right? A third, one and three times the rate, on validation images.

python benchmarks/learning_rates.py --runs FOLDER --data-root FOLDER --seconds 60

The recipe's own rate is trained for that many seconds of one thread, the other two for as many steps, so that what else
the machine does distorts nothing. Then all three are measured on the validation images, one draw (as many as the
objective has), averaged weights, and compared image by image. Nothing here looks at test images. So short a training
prefers a higher rate than a long one: what seems better is to be tried again for longer before a recipe is changed.

Runs that FOLDER already holds are measured, not trained again, and the results are written after every recipe, beside
those of other times and recipes.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import RESULTS, commit, write

from davi import measurements, recipes
from davi.evidence import bits_per_dim
from davi.runs import MODEL, read_metrics

NAME = "learning_rates"
FACTORS = (1.0, 1 / 3, 3.0)
"""The first is the one whose time sets the number of steps."""

MNIST = (
    "attentive_mnist",
    "biva_mnist_small",
    "iaf_vae_mnist_small",
    "iwae_mnist_small",
    "ladder_vae_mnist_small",
    "nvae_mnist_small",
    "vae_mnist_small",
    "very_deep_vae_mnist",
)
COLOR = (
    "attentive_photos",
    "biva_photos",
    "iaf_vae_photos",
    "ladder_vae_photos",
    "nvae_photos",
    "vae_photos",
    "very_deep_vae_photos",
    "nvae_cifar10_small",
    "very_deep_vae_cifar10_small",
)


def davi(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "davi", *words], check=True, stdout=subprocess.DEVNULL)


def trained(
    run: Path, recipe: str, rate: float, budget: list[str], options: argparse.Namespace
) -> measurements.Measured:
    """The run and its measurement, as far as they have not been made."""
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        one = ["--training.threads=1", "--training.validate_every=0", f"--training.seed={options.seed}"]
        resume = ["--resume"] if run.exists() else []
        words = [f"--training.learning_rate={rate:.6g}", *budget, *one, *root, *options.override]
        davi("train", recipe, *words, "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        draws = recipes.load(recipe).training.objective.draws  # type: ignore[union-attr]
        davi("evaluate", str(run), "--split", "validation", "--importance-samples", str(draws), *root)
    return measurements.load(run)


def trial(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """One recipe at the three rates."""
    training = recipes.load(recipe, options.override).training
    assert training is not None
    rows: dict[str, Any] = {}
    reference: measurements.Measured | None = None
    budget = [f"--training.minutes={options.seconds / 60}", "--training.steps=null"]
    steps = 0
    for factor in FACTORS:
        rate = factor * training.learning_rate
        run = options.runs / f"rates-{recipe}-{options.label}{options.seconds:g}s-{rate:.3g}-{options.seed}"
        found = trained(run, recipe, rate, budget, options)
        protocol = found.result["protocol"]
        dims = math.prod(protocol["data"]["shape"])
        row = {"nats": -float(found.bound.mean()), "bits_per_dim": bits_per_dim(float(found.bound.mean()), dims)}
        if reference is None:
            reference = found
            last = [record for record in read_metrics(run) if record.get("kind") == "train"][-1]
            steps = last["step"]
            budget = ["--training.minutes=null", f"--training.steps={steps}"]
        else:
            difference = found.bound - reference.bound  # nats of each image; positive: better than the recipe's rate
            error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
            row |= {"better_by_nats": float(difference.mean()), "standard_error": error}
            row["better_by_bits_per_dim"] = -bits_per_dim(float(difference.mean()), dims)
            row["clearly_better"] = bool(difference.mean() > 2 * error)
        rows[f"{rate:.3g}"] = row
    assert reference is not None
    return {
        "recipe": recipe,
        "seconds": options.seconds,
        "overrides": options.override,
        "seed": options.seed,
        "steps": steps,
        "validation_images": len(reference),
        "rate_of_the_recipe": training.learning_rate,
        "rates": rows,
        "commit": commit(),
    }


def keep(found: dict[str, Any]) -> None:
    """Write one trial beside the others."""
    path = RESULTS / f"{NAME}.json"
    trials = json.loads(path.read_text())["trials"] if path.exists() else []
    identity = ("recipe", "seconds", "overrides", "seed", "rate_of_the_recipe")
    others = [old for old in trials if any(old[key] != found[key] for key in identity)]
    write(NAME, {"trials": [*others, found]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--recipes", nargs="+", choices=[*MNIST, *COLOR], default=[*MNIST, *COLOR])
    parser.add_argument("--seconds", type=float, default=60.0, help="training time at the recipe's own rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="", help="part of the runs' names, where overrides are given")
    options, override = parser.parse_known_args()
    options.override = override
    for recipe in options.recipes:
        found = trial(recipe, options)
        keep(found)
        shown = "  ".join(
            f"{rate}: {row['nats']:.2f} ({row['bits_per_dim']:.3f})" for rate, row in found["rates"].items()
        )
        better = [rate for rate, row in found["rates"].items() if row.get("clearly_better")]
        print(f"{recipe}  {found['steps']} steps  {shown}  clearly better: {', '.join(better) or 'none'}", flush=True)


if __name__ == "__main__":
    main()
