"""Deep belief networks on MNIST: bound and estimates of one, errors of another before and after up-down.

python benchmarks/dbn_mnist.py --runs FOLDER --data-root FOLDER --core 0

``dbn`` is 784-500-2000 on static binarized MNIST, layer by layer: its variational bound, the importance sampling of K
draws from q, and the Chib-style estimate, all with an estimated log Z of the top. ``labels`` is 784-500-500-(2000+10)
on digits with classes, first layer by layer, then also up-down, from the very same weights: errors by free energy.
Published numbers, as cited, are those of much longer trainings, the first on another binarization.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from common import write
from energies import add_options, begin, evaluate, show, told, train, trained

from davi import recipes
from davi.config import load_yaml
from davi.run_folder import MODEL, RECIPE

BATCH = 100
PUBLISHED = {
    "dbn": {"bound": -85.97, "chib_style_estimate": -84.55},
    "labels": {"error_before_up_down": 0.0249, "error_after_up_down": 0.0125},
}
GREEDY = ("first", "second", "third")
"""Stages before up-down."""


def sizes(hidden: list[int] | None) -> list[str]:
    """The option for other hidden layers."""
    return [] if hidden is None else [f"--model.hidden={hidden}"]


def budgets(stages: tuple[str, ...], steps: int | None) -> list[str]:
    """Options for other budgets than the recipe's."""
    words = [f"--stages.{stage}.{budget}" for stage in stages for budget in ("epochs=null", f"steps={steps}")]
    return [] if steps is None else words


def up_down(steps: int | None) -> list[str]:
    """Options of the last stage as the recipe has them, or with another budget."""
    stage = load_yaml(recipes.find("dbn_mnist_labels"))["stages"][-1]
    budget = {"epochs": stage["epochs"], "steps": "null"} if steps is None else {"epochs": "null", "steps": steps}
    given = {**budget, "learning_rate": stage["learning_rate"]}
    return [f"--stages.up_down.{key}={value}" for key, value in given.items()]


def bound(options: argparse.Namespace) -> dict[str, Any]:
    """784-500-2000: the bound, then the importance-weighted estimate, each with the measures of its evaluation."""
    run = options.runs / f"dbn-{options.seed}"
    common = [f"--training.seed={options.seed}", *sizes(options.hidden and options.hidden[-2:])]
    train(run, "dbn_mnist", *common, *budgets(GREEDY[:2], options.steps))
    evaluate(run, options)
    row = {"recipe": "dbn_mnist", **trained(run, BATCH), "bound": told(run)}
    weighted = options.runs / f"dbn-{options.seed}-weighted"
    if not (weighted / MODEL).exists():  # an evaluation replaces the one before it
        shutil.copytree(run, weighted, ignore=shutil.ignore_patterns("evaluation*", "checkpoints"))
    samples = f"--importance-samples={options.importance_samples}"
    evaluate(weighted, options, samples)
    show("dbn", row["bound"])
    return {**row, "importance_samples": options.importance_samples, "weighted": told(weighted)}


def labels(options: argparse.Namespace) -> dict[str, Any]:
    """With classes, before and after up-down."""
    before, after = (options.runs / f"labels-{options.seed}-{when}" for when in ("before", "after"))
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    common = [f"--training.seed={options.seed}", *root, *sizes(options.hidden), *budgets(GREEDY, options.steps)]
    # One step of up-down at a rate of 0 changes nothing, and the run can be prolonged.
    still = ["--stages.up_down.epochs=null", "--stages.up_down.steps=1", "--stages.up_down.learning_rate=0"]
    train(before, "dbn_mnist_labels", *common, *still)
    if not (after / RECIPE).exists():
        shutil.copytree(before, after, ignore=shutil.ignore_patterns("evaluation*", "derived"))
        (after / MODEL).unlink()
    train(after, *root, *up_down(options.steps))
    rows = {}
    for name, run in (("before", before), ("after", after)):
        evaluate(run, options)
        rows[name] = {**trained(run, BATCH), **told(run)}
        show(f"labels, {name}", rows[name])
    return {"recipe": "dbn_mnist_labels", **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--data-root", type=Path, help="folder of the named data sets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each stage, in place of the recipes' epochs")
    parser.add_argument("--hidden", type=int, nargs=3, help="other sizes of the three layers; the last two for dbn")
    parser.add_argument("--importance-samples", type=int, default=100)
    parser.add_argument("--name", default="dbn_mnist", help="of the results file")
    options = parser.parse_args()
    begin(options)
    both = {"dbn": bound, "labels": labels}
    rows = {name: both[name](options) for name in options.arms or both}
    settings = {"seed": options.seed, "steps_a_stage": options.steps, "temperatures": options.temperatures}
    print(write(options.name, {"settings": settings, "arms": rows, "published_as_cited": PUBLISHED}))


if __name__ == "__main__":
    main()
