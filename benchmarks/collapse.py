"""Posterior collapse, and its remedies one at a time, on static binarized MNIST at equally many steps.

python benchmarks/collapse.py --runs FOLDER

A PixelVAE whose pixels see thirteen rows, trained plainly: it does without its latents. Every other arm changes one
switch. A table is printed; the figure shows for each arm what images cost and how many of the nats are information.
"""

from __future__ import annotations

import argparse
from typing import Any

from arms import Arm, add_options, measured
from common import RESULTS, write
from matplotlib.figure import Figure

RECIPE = "pixelvae_collapse_mnist_small"
OBJECTIVE, LIKELIHOOD = "--training.objective.", "--model.likelihood."
ARMS = {
    "plain": Arm(RECIPE),
    "warm-up": Arm(RECIPE, (f"{OBJECTIVE}kl_fraction=0.5",)),
    "free bits": Arm(RECIPE, (f"{OBJECTIVE}free_nats=8", f"{OBJECTIVE}free_group=layer")),
    "committed rate": Arm(RECIPE, ("--model.prior.name=autoregressive_1", "--model.prior.alpha=0.8")),
    # Remedies that fix a rate are given about eight nats.
    "constant rate, Normal": Arm(
        RECIPE, ("--model.constant_rate.name=fixed_normal", "--model.constant_rate.scale=0.78")
    ),
    "constant rate, sphere": Arm(
        RECIPE, ("--model.constant_rate.name=von_mises_fisher", "--model.constant_rate.kappa=33")
    ),
    "input dropout": Arm(RECIPE, (f"{LIKELIHOOD}input_dropout=0.5",)),
    "small receptive field": Arm(RECIPE, (f"{LIKELIHOOD}network.layers=2", f"{LIKELIHOOD}network.kernel=1")),
    "lagging inference": Arm(RECIPE, (f"{OBJECTIVE}name=lagging", f"{OBJECTIVE}rounds=20")),
    "mutual information": Arm(RECIPE, (f"{OBJECTIVE}mutual_information_weight=1",)),
}
INFORMATION = "I(z; x) of the posterior"
"""The measure of what the latents say: an estimate from the images that are measured."""


def information(row: dict[str, Any]) -> float | None:
    """Nats that the latents say about an image."""
    found = [measure["value"] for measure in row["measures"] if measure["name"] == INFORMATION]
    return found[0] if found else None


def figure(rows: dict[str, dict[str, Any]]) -> Figure:
    """Cost of an image, and the rate beside the information in it, one line for each arm."""
    drawn = Figure(figsize=(8, 0.45 * len(rows) + 1.2), layout="constrained")
    cost, nats = drawn.subplots(1, 2, sharey=True)
    places = range(len(rows))
    arms = list(rows.values())
    means = [row["nll"]["mean"] for row in arms]
    cost.errorbar(means, places, xerr=[row["nll"]["standard_error"] for row in arms], fmt="o", color="#4477aa")
    cost.set_xlabel("cost of an image, nats")
    nats.barh(places, [row["rate"] for row in arms], color="#bbbbbb", label="rate")
    nats.barh(places, [information(row) or 0.0 for row in arms], 0.35, color="#ee6677", label="mutual information")
    nats.set_xlabel("nats")
    nats.legend(frameon=False)
    cost.set_yticks(places, list(rows))
    cost.invert_yaxis()
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, samples=50)
    options = parser.parse_args()
    rows = measured(ARMS, options)
    for name, row in rows.items():
        said = information(row)
        print(f"{name:<24}{row['rate']:>8.2f}{row['active_units']:>6}{'' if said is None else f'{said:>8.2f}'}")
    conditions = {"importance_samples": options.importance_samples, "test_images": options.limit, "seed": options.seed}
    print(write("collapse", {**conditions, "arms": rows}))
    for ending in ("svg", "png"):
        figure(rows).savefig(RESULTS / f"collapse.{ending}", dpi=150)


if __name__ == "__main__":
    main()
