"""Restricted Boltzmann machines on static binarized MNIST: half an hour of one core each, with error bars.

python benchmarks/rbm_mnist.py --runs FOLDER --core 0

500 hidden units, trained by persistent chains (the recipe ``rbm_mnist``) and by CD-25, each counted in steps that take
less than half an hour of a free core. Test log-likelihoods are by
annealed importance sampling, forward and back, and, on a few images, by RAISE, which errs on the low side. The
published number is for other images: its authors binarized MNIST themselves.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from arms import Arm
from common import write
from energies import add_options, begin, evaluate, show, told, train, trained

from davi.data import DataConfig, evenly, load
from davi.evaluation import raise_estimate
from davi.model import Harmonium
from davi.quantity import Statistic
from davi.runs import load_network

BATCH = 100
ARMS = {
    "pcd": Arm("rbm_mnist"),
    "cd25": Arm(
        "rbm_mnist", ("--training.objective.steps=25", "--training.objective.chains=0", "--training.steps=22000")
    ),
}
PUBLISHED = {"cd25": -86.34}
"""Mean test log-likelihood, nats, 500 hidden units, as cited, of its authors' own binarization."""


def raised(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """RAISE on a few test images: a mean in nats, with its error over the images."""
    network, _ = load_network(run)
    assert isinstance(network, Harmonium)
    sets = load(DataConfig("binarized_mnist"))
    x = evenly(sets.test, options.raise_images).pixels
    base, generator = evenly(sets.train, 10_000).pixels, torch.Generator().manual_seed(0)
    with torch.inference_mode():
        found = raise_estimate(network, x, base, options.temperatures, options.raise_chains, generator)
    log_p = found.log_p
    statistic = Statistic(float(log_p.mean()), float(log_p.std()) / len(log_p) ** 0.5)
    with torch.inference_mode():
        own = -network.free_energy(x).double()
    return {
        "log_likelihood": asdict(statistic),
        "images": len(x),
        "chains_an_image": options.raise_chains,
        "effective_samples": float(found.effective_samples.mean()),
        "negative_free_energy_of_these_images": float(own.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--steps", type=int, help="of training, in place of each arm's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=500, help="hidden units")
    parser.add_argument("--raise-images", type=int, default=100, help="test images, spread evenly; 0: no RAISE")
    parser.add_argument("--raise-chains", type=int, default=5, help="of each of these images")
    parser.add_argument("--name", default="rbm_mnist", help="of the results file")
    options = parser.parse_args()
    begin(options)
    rows: dict[str, Any] = {}
    for name in options.arms or ARMS:
        run, arm = options.runs / f"{name}-{options.seed}", ARMS[name]
        words = [f"--training.seed={options.seed}", f"--model.hidden={options.hidden}"]
        words += [] if options.steps is None else [f"--training.steps={options.steps}"]
        train(run, arm.recipe, *arm.options, *words)
        evaluate(run, options, "--ais-reverse")
        rows[name] = {"recipe": arm.recipe, "options": list(arm.options), **trained(run, BATCH), **told(run)}
        if options.raise_images:
            rows[name]["raise"] = raised(run, options)
        show(name, rows[name])
    settings = {"seed": options.seed, "hidden": options.hidden, "set": "binarized_mnist"}
    print(write(options.name, {"settings": settings, "arms": rows, "published_as_cited": PUBLISHED}))


if __name__ == "__main__":
    main()
