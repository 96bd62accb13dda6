"""Depth study: 2, 4, 8 and 16 latent layers, with and without depth-wise attention, at equal steps; one figure.

python benchmarks/depth.py --runs FOLDER --data-root FOLDER --steps 1500

The claim it looks at: a plain hierarchy gains less and less from more layers, one with attention across its layers goes
on gaining (Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
https://openreview.net/forum?id=T4-65DNlDij). Parameters are not matched here: a layer with attention is larger.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from attention import OFF, davi, summary
from common import RESULTS, write
from matplotlib.figure import Figure

from davi.runs import MODEL

LAYERS = (2, 4, 8, 16)


def prepare(run: Path, layers: int, overrides: list[str], options: argparse.Namespace) -> None:
    """Train and measure one run, as far as that has not been done."""
    root = [] if options.data_root is None else [f"--data.root={options.data_root}"]
    if not (run / MODEL).exists():
        budget = ["--training.minutes=null", f"--training.steps={options.steps}", f"--training.seed={options.seed}"]
        shape = [f"--model.layers=[{layers}]", "--training.threads=1", *overrides]
        resume = ["--resume"] if run.exists() else []
        davi("train", "attentive_mnist", *shape, *root, *budget, "--run", str(run), *resume)
    if not (run / "evaluation.safetensors").exists():
        davi("evaluate", str(run), "--importance-samples", "20", "--limit", "500", *root)


def draw(measured: dict[str, dict[int, dict[str, Any]]], steps: int, path: Path) -> None:
    """Negative bound against depth, both arms, with standard errors over the test images."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for arm, marker in (("with depth-wise attention", "o"), ("without", "s")):
        rows = measured[arm]
        values = [-rows[layers]["bound"]["nats"]["mean"] for layers in LAYERS]
        errors = [rows[layers]["bound"]["nats"]["standard_error"] for layers in LAYERS]
        axes.errorbar(LAYERS, values, errors, marker=marker, capsize=3, label=arm)
    axes.set_xscale("log", base=2)
    axes.set_xticks(LAYERS, [str(layers) for layers in LAYERS])
    axes.set_xlabel("latent layers")
    axes.set_ylabel("negative bound, nats per image (lower is better)")
    axes.set_title(f"Dynamic MNIST after {steps} steps, 500 test images, K = 20", fontsize="medium")
    axes.legend()
    for suffix in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for arm, overrides in (("with depth-wise attention", []), ("without", OFF)):
        measured[arm] = {}
        for layers in LAYERS:
            run = options.runs / f"depth-{'on' if not overrides else 'off'}-{layers}-{options.seed}"
            prepare(run, layers, overrides, options)
            measured[arm][layers] = summary(run)
    draw(measured, options.steps, RESULTS / "depth")
    print(write("depth", {"steps": options.steps, "seed": options.seed, "arms": measured}))


if __name__ == "__main__":
    main()
