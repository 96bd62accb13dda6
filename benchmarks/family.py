"""The hierarchical family at equal time on the clock: one small recipe of each model, paired over the same test images.

python benchmarks/family.py --runs FOLDER --data-root FOLDER --sets mnist photos --minutes 15

Runs that FOLDER already holds are measured, not trained again, so an interrupted benchmark goes on where it stopped.
The models' sizes and learning rates are those of the recipes; parameters are not matched. A core that does other work
as well distorts the clock: then train with ``davi train --steps``, as many as a free core makes in the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from attention import LIMIT, davi, summary
from common import RESULTS, write

from davi.runs import MODEL

RECIPES: dict[str, tuple[str, ...]] = {
    "mnist": (
        "attentive_mnist",
        "vae_mnist_small",
        "ladder_vae_mnist_small",
        "iaf_vae_mnist_small",
        "biva_mnist_small",
        "nvae_mnist_small",
        "very_deep_vae_mnist",
    ),
    "photos": (
        "attentive_photos",
        "vae_photos",
        "ladder_vae_photos",
        "iaf_vae_photos",
        "biva_photos",
        "nvae_photos",
        "very_deep_vae_photos",
    ),
    "binarized_mnist": (
        "gated_pixelcnn_mnist",
        "pixelcnn_pp_mnist",
        "pixelsnail_mnist",
        "pixelvae_mnist_small",
        "vlae_mnist_small",
        "attentive_mnist_autoregressive",
        "attentive_mnist_demo",
    ),
    "cifar10": (
        "pixelcnn_pp_cifar10_small",
        "pixelsnail_cifar10_small",
        "gated_pixelcnn_cifar10_small",
        "very_deep_vae_cifar10_small",
    ),
}
"""The first is the one that the others are compared with."""

MEASURED = {**LIMIT, "binarized_mnist": 1000, "cifar10": 2000}
"""Test images that are measured, spread evenly over the set."""

DRAWS = {"cifar10": 1}
"""Importance samples of sets where a hundred would take hours; they change nothing for exact models."""


def prepare(run: Path, recipe: str, name: str, options: argparse.Namespace) -> None:
    """Train and measure one run, as far as that has not been done."""
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        budget = [f"--training.minutes={options.minutes}", "--training.threads=1", f"--training.seed={options.seed}"]
        if recipe == "attentive_mnist_demo":
            budget.append("--training.steps=null")  # the demonstration stops earlier
        resume = ["--resume"] if run.exists() else []
        davi("train", recipe, *root, *budget, "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        samples = ["--importance-samples", str(draws(name, options)), "--limit", str(MEASURED[name])]
        davi("evaluate", str(run), *samples, *root)


def draws(name: str, options: argparse.Namespace) -> int:
    """Importance samples on the images of a set."""
    return DRAWS.get(name, options.importance_samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--sets", nargs="+", choices=list(RECIPES), default=["mnist", "photos"])
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--importance-samples", type=int, default=100)
    options = parser.parse_args()
    for name in options.sets:
        rows: dict[str, Any] = {}
        runs = {recipe: options.runs / f"family-{recipe}-{options.seed}" for recipe in RECIPES[name]}
        for recipe, run in runs.items():
            prepare(run, recipe, name, options)
            rows[recipe] = summary(run)
            rows[recipe]["steps_per_second"] = rows[recipe]["steps"] / rows[recipe]["training_seconds"]
        measured = {"minutes": options.minutes, "seed": options.seed, "importance_samples": draws(name, options)}
        print(write(f"family_{name}", {**measured, "limit": MEASURED[name], "recipes": rows}))
        davi("compare", *map(str, runs.values()), "--markdown", "--out", str(RESULTS / f"family_{name}.md"))


if __name__ == "__main__":
    main()
