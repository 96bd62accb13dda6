"""Depth-wise attention on against off: same layers, matched parameters, same time on the clock, paired over images.

python benchmarks/attention.py --runs FOLDER --data-root FOLDER --minutes 10 --seeds 0 1 2

Runs that FOLDER already holds are measured, not trained again, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import write
from numpy.typing import NDArray

from davi import measurements
from davi.evaluation.clusters import Groups, standard_error
from davi.evidence import bits_per_dim
from davi.metrics import read_metrics
from davi.records import to_json
from davi.runs import MODEL

OFF = ["--model.generative_attention.key_channels=0", "--model.inference_attention.key_channels=0"]
ARMS: dict[str, dict[str, list[str]]] = {
    # 347,204 against 346,440 parameters
    "mnist": {
        "on": ["--model.generative_attention.key_channels=12", "--model.inference_attention.key_channels=4"],
        "off": [*OFF, "--model.width=11"],
    },
    # 569,330 against 559,559 parameters
    "photos": {"on": [], "off": [*OFF, "--model.width=23"]},
}
LIMIT = {"mnist": 1000, "photos": 130}
"""Test images that are measured: a thousand, spread evenly, and all there are."""


def davi(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "davi", *words], check=True)


def prepare(run: Path, name: str, arm: str, seed: int, options: argparse.Namespace) -> None:
    """Train and measure one run, as far as that has not been done."""
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        budget = [f"--training.minutes={options.minutes}", "--training.threads=1", f"--training.seed={seed}"]
        resume = ["--resume"] if run.exists() else []
        davi("train", f"attentive_{name}", *ARMS[name][arm], *root, *budget, "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        samples = ["--importance-samples", str(options.importance_samples), "--limit", str(LIMIT[name])]
        davi("evaluate", str(run), *samples, *root)


def summary(run: Path) -> dict[str, Any]:
    """What the results file says of one run."""
    result = measurements.load(run).result
    layers = result.active_units.layers if result.active_units else ()
    last = [record for record in read_metrics(run) if record.get("kind") == "train"][-1]
    return {
        "parameters": result.protocol.model.parameters,
        "steps": last["step"],
        "training_seconds": round(last["seconds"], 1),
        "bound": to_json(result.bound),
        "elbo": to_json(result.elbo),
        "kl_layers_nats": [layer.nats.mean for layer in result.kl.layers] if result.kl else [],
        "active_units": [layer.active for layer in layers],
        "units": [layer.units for layer in layers],
    }


def paired(on: Path, off: Path, dims: int) -> dict[str, Any]:
    """Difference of the bounds, on minus off, over the same images: mean and standard error, nats per image."""
    first, second = measurements.load(on), measurements.load(off)
    return spread(first.bound - second.bound, dims, first.groups)


def spread(values: Sequence[float] | NDArray[np.float64], dims: int, groups: Groups | None = None) -> dict[str, Any]:
    """Mean and its standard error in nats, and the mean in bits/dim (positive: the first needs fewer bits)."""
    array = np.asarray(values)
    mean, error = float(array.mean()), standard_error(array, groups)
    return {"nats": mean, "standard_error": error, "bits_per_dim_saved": -bits_per_dim(mean, dims), "n": len(array)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--importance-samples", type=int, default=100)
    options = parser.parse_args()
    measured: dict[str, Any] = {"minutes": options.minutes, "importance_samples": options.importance_samples}
    for name in options.sets:
        runs = {arm: [options.runs / f"attention-{name}-{arm}-{seed}" for seed in options.seeds] for arm in ARMS[name]}
        for index, seed in enumerate(options.seeds):
            for arm in ARMS[name]:
                prepare(runs[arm][index], name, arm, seed, options)
        dims = math.prod(measurements.load(runs["on"][0]).result.protocol.data.shape)
        pairs = [paired(on, off, dims) for on, off in zip(runs["on"], runs["off"], strict=True)]
        measured[name] = {
            "overrides": ARMS[name],
            "seeds": {
                str(seed): {**{arm: summary(runs[arm][i]) for arm in ARMS[name]}, "on_minus_off": pairs[i]}
                for i, seed in enumerate(options.seeds)
            },
            "on_minus_off_over_seeds": spread([pair["nats"] for pair in pairs], dims) if len(pairs) > 1 else None,
        }
        print(json.dumps(measured[name]["on_minus_off_over_seeds"], indent=2))
    print(write("attention", measured))


if __name__ == "__main__":
    main()
