"""Are the learning rates of the small recipes right? A third, one and three times the rate, on validation images.

python benchmarks/learning_rates.py --runs FOLDER --data-root FOLDER --seconds 45

All rates get as many steps as one free core makes in so many seconds at the speeds below, so that what else the machine
does distorts nothing; schedules and warm-ups follow the steps. Then the averaged weights are measured on the validation
images (the ELBO, or L_k where k draws are trained) and compared image by image with those of the recipe's own rate.
Test images are not looked at. So short a training prefers a higher rate than a long one: what seems better is to be
tried for longer before a recipe is changed.

Options of the recipes can be overridden as with ``davi train``. Runs that FOLDER holds are measured, not trained
again; the results are written after every recipe, beside those of other times, seeds and overrides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, commit, write
from numpy.typing import NDArray

from davi import recipes
from davi.data import DataSets, load
from davi.evaluation import evaluate
from davi.evidence import bits_per_dim
from davi.objectives import EvidenceConfig
from davi.runs import MODEL, load_model
from davi.training import train
from davi.training.failure import NotFiniteError

NAME = "learning_rates"
FACTORS = (1.0, 1 / 3, 3.0)
"""The first is the one that the others are compared with."""

SPEED: dict[str, float] = {
    "attentive_mnist": 12.0,
    "biva_mnist_small": 17.9,
    "iaf_vae_mnist_small": 21.9,
    "iwae_mnist_small": 145.0,
    "ladder_vae_mnist_small": 32.1,
    "nvae_mnist_small": 4.7,
    "vae_mnist_small": 203.6,
    "very_deep_vae_mnist": 13.0,
    "attentive_photos": 1.7,
    "biva_photos": 6.5,
    "iaf_vae_photos": 7.9,
    "ladder_vae_photos": 11.1,
    "nvae_photos": 4.7,
    "vae_photos": 9.9,
    "very_deep_vae_photos": 5.0,
    "nvae_cifar10_small": 4.7,
    "very_deep_vae_cifar10_small": 4.6,
}
"""Steps a second of one free core, as ``family_mnist.json``, ``family_photos.json`` and ``iwae.json`` have them."""


def bound(run: Path, recipe: recipes.Recipe, rate: float, steps: int, sets: DataSets) -> NDArray[np.float64] | None:
    """The bound of each validation image, nats ``[N]``, after training as far as that has not been done; None if it
    diverges."""
    assert recipe.training is not None
    assert sets.validation is not None
    config = dataclasses.replace(
        recipe.training, learning_rate=rate, steps=steps, minutes=None, epochs=None, validate_every=0, threads=1
    )
    if not (run / MODEL).exists():
        torch.manual_seed(config.seed)
        model = recipes.build(recipe, sets.shape, sets.levels)
        written = dataclasses.replace(recipe, training=config).to_dict()
        try:
            train(model, sets, config, run, written, resume=run.exists(), print_fn=lambda line: None)
        except NotFiniteError:
            return None
    model, _ = load_model(run / MODEL)
    draws = config.objective.draws if isinstance(config.objective, EvidenceConfig) else 1
    return evaluate(model, sets.validation, draws).bound


def compare(values: NDArray[np.float64], reference: NDArray[np.float64], dims: int) -> dict[str, Any]:
    """One rate beside the recipe's own, over the same images; positive: better."""
    difference = values - reference
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
    better = {"better_by_nats": mean, "standard_error": error, "better_by_bits_per_dim": -bits_per_dim(mean, dims)}
    return {**better, "clearly_better": mean > 2 * error}


def trial(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One recipe at the three rates."""
    root = [] if options.data_root is None else [f"data.root={options.data_root}"]
    recipe = recipes.load(name, [*options.override, *root])
    assert recipe.data is not None
    assert recipe.training is not None
    sets, steps, own = load(recipe.data), round(options.seconds * SPEED[name]), recipe.training.learning_rate
    dims = math.prod(sets.shape)
    rows: dict[str, Any] = {}
    reference: NDArray[np.float64] | None = None
    for factor in options.factors:
        rate = float(f"{factor * own:.3g}")
        label = "-".join(["rates", name, *options.override, f"{options.seconds:g}s", f"{rate:g}"]).replace("/", "_")
        values = bound(options.runs / label, recipe, rate, steps, sets)
        if values is None:
            rows[f"{rate:g}"] = {"diverged": True}
            continue
        reference = values if reference is None else reference
        row = {"nats": -float(values.mean()), "bits_per_dim": bits_per_dim(float(values.mean()), dims)}
        rows[f"{rate:g}"] = row if values is reference else {**row, **compare(values, reference, dims)}
    assert reference is not None
    told = {"recipe": name, "seconds": options.seconds, "overrides": options.override, "rate": own}
    return {**told, "steps": steps, "validation_images": len(reference), "rates": rows, "commit": commit()}


def keep(found: dict[str, Any]) -> None:
    """Write one trial beside the others."""
    path = RESULTS / f"{NAME}.json"
    trials = json.loads(path.read_text())["trials"] if path.exists() else []
    same = ("recipe", "seconds", "overrides", "rate")
    others = [old for old in trials if any(old[key] != found[key] for key in same)]
    write(NAME, {"trials": sorted([*others, found], key=lambda one: [str(one[key]) for key in same])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--recipes", nargs="+", choices=list(SPEED), default=list(SPEED))
    parser.add_argument("--seconds", type=float, default=45.0, help="of one free core")
    parser.add_argument("--factors", nargs="+", type=float, default=list(FACTORS))
    options, override = parser.parse_known_args()
    options.override = [word.removeprefix("--") for word in override]
    for name in options.recipes:
        found = trial(name, options)
        keep(found)
        shown = "  ".join(
            f"{rate}: diverged" if "diverged" in row else f"{rate}: {row['nats']:.2f} ({row['bits_per_dim']:.3f})"
            for rate, row in found["rates"].items()
        )
        better = [rate for rate, row in found["rates"].items() if row.get("clearly_better")]
        print(f"{name}  {found['steps']} steps  {shown}  clearly better: {', '.join(better) or 'none'}", flush=True)


if __name__ == "__main__":
    main()
