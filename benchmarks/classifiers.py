"""Small classifiers of CIFAR-10, three epochs each: ResNet, RevNet, i-RevNet, and ResNet with depth-wise attention.

python benchmarks/classifiers.py --runs FOLDER

Each is trained once and measured on the test set: errors with their interval, nats of log p(y | x), calibration. What a
training step keeps in memory, the most that is alive during one, and its CPU time are measured beside that, on random
images, a step of each arm in turn; there RevNet is an arm without re-creating its activations as well. Runs and
measurements that FOLDER already holds are not made again, so an interrupted benchmark goes on where it stopped. The
data sets' folder is that of the environment variable DAVI_DATA.

In seconds, to try it: --steps 2 --limit 50 --batch-size 8 --repeats 1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from arms import Arm, davi
from common import write
from reversible_memory import DEVICE, Step, memory, times
from torch import nn

import davi as library
from davi import Run, measurements
from davi.runs import MODEL

ARMS = {
    "resnet": Arm("resnet_cifar10_small"),
    "revnet": Arm("revnet_cifar10_small"),
    "i_revnet": Arm("i_revnet_cifar10_small"),
    "resnet_attention": Arm("resnet_attention_cifar10_small"),
}
STEPS = {**ARMS, "revnet_kept": Arm("revnet_cifar10_small", ("--model.recompute=false",))}
"""Whose memory and time are measured."""
CLASSES = 10


def prepare(run: Path, arm: Arm, options: argparse.Namespace) -> None:
    """Train and measure, as far as that has not been done; an interrupted training goes on."""
    if not (run / MODEL).exists():
        changed = [] if options.steps is None else [f"--training.steps={options.steps}"]
        resume = ["--resume"] if run.exists() else []
        seed = f"--training.seed={options.seed}"
        davi("train", arm.recipe, *arm.options, seed, *changed, "--run", str(run), *resume)
    if not (run / "evaluation.json").exists():
        limit = [] if options.limit is None else ["--limit", str(options.limit)]
        davi("evaluate", str(run), "--no-baselines", *limit)


def row(run: Path) -> dict[str, Any]:
    """What a results file says of one run."""
    result = measurements.load(run).result
    found = {measure.name: measure for measure in result.measures}
    error = found["classification error"]
    last = [record for record in Run(run).metrics if record.get("kind") == "train"][-1]
    return {
        "parameters": result.protocol.model.parameters,
        "steps": last["step"],
        "training_seconds": round(last["seconds"], 1),
        "images": result.protocol.images,
        "error_percent": error.value,
        "interval": error.interval,
        "nats": {"mean": result.bound.nats.mean, "standard_error": result.bound.nats.standard_error},
        "calibration_percent": {name: m.value for name, m in found.items() if name.startswith("calibration")},
    }


@dataclass(frozen=True)
class Batch:
    """Random images to take a training step with."""

    size: int

    def build(self, arm: str, depth: int) -> tuple[nn.Module, Step]:
        """The network of an arm, and its loss; the depth is that of the recipe."""
        torch.manual_seed(depth)
        recipe = library.recipes.load(STEPS[arm].recipe, STEPS[arm].options)
        network = library.recipes.build(recipe, (3, 32, 32), 256, CLASSES).to(DEVICE).train()
        x = torch.randint(256, (self.size, 3, 32, 32), device=DEVICE)
        y = torch.randint(CLASSES, (self.size,), device=DEVICE)
        return network, lambda: F.cross_entropy(network(x), y)


def steps_of(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Memory and CPU time of a training step of each arm."""
    batch = Batch(options.batch_size)
    seconds = times(batch.build, names, 0, options.repeats)
    return {name: {**memory(batch.build, name, 0), **seconds[name]} for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--arms", nargs="+", choices=list(STEPS), default=list(STEPS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps, in place of three epochs")
    parser.add_argument("--limit", type=int, help="N test images, spread evenly over the set, in place of all")
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step that is measured")
    parser.add_argument("--repeats", type=int, default=5, help="steps whose time is measured")
    parser.add_argument("--name", default="classifiers", help="of the file of results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name in (name for name in options.arms if name in ARMS):
        run = options.runs / f"{name}-{options.seed}"
        prepare(run, ARMS[name], options)
        rows[name] = {"recipe": ARMS[name].recipe, **row(run)}
        print(f"{name:<20}{rows[name]['error_percent']:>8.2f} %{rows[name]['nats']['mean']:>9.4f} nats")
    steps = steps_of(options.arms, options)
    for name, step in steps.items():
        print(f"{name:<20}{step['kept_mib']:>8.1f} MiB kept{step['seconds']:>9.3f} s a step")
    measured = {"seed": options.seed, "batch_size": options.batch_size, "classifiers": rows, "training_step": steps}
    print(write(options.name, measured))


if __name__ == "__main__":
    main()
