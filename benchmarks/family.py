"""The hierarchical family at equal time on the clock: one small recipe of each model, paired over the same test images.

python benchmarks/family.py --runs FOLDER --data-root FOLDER --sets mnist photos --minutes 15

Runs that FOLDER already holds are measured, not trained again, so an interrupted benchmark goes on where it stopped.
The models' sizes and learning rates are those of the recipes; parameters are not matched.
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
}
"""The first is the one that the others are compared with."""


def prepare(run: Path, recipe: str, name: str, options: argparse.Namespace) -> None:
    """Train and measure one run, as far as that has not been done."""
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        budget = [f"--training.minutes={options.minutes}", "--training.threads=1", f"--training.seed={options.seed}"]
        resume = ["--resume"] if run.exists() else []
        davi("train", recipe, *root, *budget, "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        samples = ["--importance-samples", str(options.importance_samples), "--limit", str(LIMIT[name])]
        davi("evaluate", str(run), *samples, *root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--sets", nargs="+", choices=list(RECIPES), default=list(RECIPES))
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
        measured = {"minutes": options.minutes, "seed": options.seed, "importance_samples": options.importance_samples}
        print(write(f"family_{name}", {**measured, "limit": LIMIT[name], "recipes": rows}))
        davi("compare", *map(str, runs.values()), "--markdown", "--out", str(RESULTS / f"family_{name}.md"))


if __name__ == "__main__":
    main()
