"""Which score finds images of another set: Fashion-MNIST to a model of MNIST, and back.

Two small Deep Attentive VAEs (the recipe ``attentive_mnist``, dynamically binarized, as the models of the paper on the
likelihood ratio are) are trained, one on each set, where ``--runs`` does not hold them already. Of each set some test
images are scored by both models. For each model and score:

- AUROC: how often an image of the other set has the higher score than one of the model's own set, ties half; of the
  two-sided raw likelihood also that of its p-value among further held-out images;
- its standard error, from bootstrap samples of both sets;
- the share of own images with p <= 0.05, which must not exceed 0.05 by more than chance.

    python benchmarks/scores.py --runs runs/scores
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write
from numpy.typing import NDArray
from scipy.stats import rankdata

from davi.cli import main as program
from davi.data import DataConfig, Images, load
from davi.data.subsets import positions
from davi.evaluation.conformal import conformal
from davi.evaluation.scores import RAW, measure, ratios
from davi.model import Hierarchy
from davi.runs import load_model

SETS = ("fashion_mnist", "mnist")
Values = NDArray[np.float64]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder with the runs fashion_mnist and mnist")
    parser.add_argument("--steps", type=int, default=2500, help="of training, where a run has to be made")
    parser.add_argument("--images", type=int, default=500, help="scored of each set, and as many held out beside them")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 10], help="K, draws of each image")
    parser.add_argument(
        "--own", choices=SETS, nargs="+", default=SETS, help="models to measure; others stay as they are"
    )
    return parser.parse_args()


def trained(runs: Path, name: str, steps: int) -> Path:
    """The run on a set, made if it is not there."""
    run = runs / name
    if not (run / "model.safetensors").exists():
        budget = ["--training.minutes", "null", "--training.steps", str(steps)]
        if program(["train", "attentive_mnist", "--data.set", name, *budget, "--run", str(run)]):
            raise SystemExit(1)
    return run


def auroc(own: Values, other: Values) -> float:
    """Probability that a value of the other set is the higher one, ties half (Mann and Whitney)."""
    ranks = rankdata(np.concatenate([own, other]))
    n, m = len(own), len(other)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def with_error(own: Values, other: Values, draws: int = 1000) -> dict[str, float]:
    """AUROC and its bootstrap standard error."""
    source = np.random.default_rng(0)
    again = [auroc(source.choice(own, len(own)), source.choice(other, len(other))) for _ in range(draws)]
    return {"auroc": round(auroc(own, other), 4), "standard_error": round(float(np.std(again)), 4)}


def directions(model: Hierarchy, own: Images, other: Images, held: Images, samples: int) -> dict[str, Any]:
    """All scores of one model."""
    known, theirs, calibration = (measure(model, images, ratios(model), samples) for images in (own, other, held))
    found: dict[str, Any] = {}
    for name in known:
        two_sided = name == RAW
        p = [conformal(values[name], calibration[name], two_sided).p for values in (known, theirs)]
        means = {"own_mean": float(known[name].mean()), "other_mean": float(theirs[name].mean())}
        found[name] = {
            **with_error(known[name], theirs[name]),
            **({"two_sided": with_error(-p[0], -p[1])} if two_sided else {}),
            "own_share_p_at_most_0.05": float((p[0] <= 0.05).mean()),
            "other_share_p_at_most_0.05": float((p[1] <= 0.05).mean()),
            **{key: round(value, 4) for key, value in means.items()},
        }
    return found


def main() -> None:
    options = arguments()
    tests = {name: load(DataConfig(set=name, binarization="dynamic")).test for name in SETS}
    chosen = {name: positions(len(images), 2 * options.images) for name, images in tests.items()}
    scored = {name: tests[name].subset(chosen[name][::2]) for name in SETS}
    held = {name: tests[name].subset(chosen[name][1::2]) for name in SETS}
    path = RESULTS / "scores.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    for own, other in (SETS, SETS[::-1]):
        if own not in options.own:
            continue
        model, _ = load_model(trained(options.runs, own, options.steps))
        assert isinstance(model, Hierarchy)
        for samples in options.samples:
            found = directions(model, scored[own], scored[other], held[own], samples)
            results.setdefault(f"model of {own}", {})[f"K={samples}"] = found
            for name, values in found.items():
                print(
                    own, "->", other, f"K={samples}", name, values["auroc"], "+-", values["standard_error"], flush=True
                )
    steps = {name: load_model(options.runs / name)[1]["step"] for name in SETS if (options.runs / name).exists()}
    about = {"recipe": "attentive_mnist", "steps": steps, "images": options.images, "binarization": "dynamic"}
    print(write("scores", {**about, "results": results}))


if __name__ == "__main__":
    main()
