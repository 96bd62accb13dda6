"""Quantized models: what pixels and codes take together, on three sets, autoencoder and prior in one run.

python benchmarks/quantized.py --runs FOLDER --minutes 15

The minutes are for both stages, divided as the recipes divide them. Every run is measured with ``davi evaluate`` on
test images spread over the set, as the other families are (family.py). Of each row: the bound and its parts, what the
codes would take with a uniform and with a unigram prior, perplexity of the codes and how many are in use. On CIFAR-10
there are further arms: two layers of codes, and the same model with other quantizers. Runs and measurements that FOLDER
already holds are not made again. The data sets' folder is that of the environment variable DAVI_DATA.

A core that does other work as well distorts the clock. With --cpu-time the minutes are CPU time: short trainings of
each stage tell how many steps they hold, and the stages are trained with so many.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arms import Arm, cpu_seconds, davi, train
from common import write

from davi import measurements, recipes
from davi.metrics import read_metrics
from davi.quantity import Quantity

SETS = ("mnist", "fashion_mnist", "cifar10")
ARMS = {
    "vq_vae": ("vq_vae", ()),
    "vq_vae2": ("vq_vae2", ()),
    "residual": ("vq_vae", ("--model.quantizer={name: residual, codes: 256, dims: 64, depth: 4}",)),
    "gradient": ("vq_vae", ("--model.quantizer.update=gradient",)),
}
"""Name -> model, and what is changed of its recipe."""
EVERYWHERE = ("vq_vae",)
"""Arms of all sets; the others are of CIFAR-10."""
PUBLISHED = {"vq_vae": 4.67}
"""CIFAR-10, bits/dim, whole test set: another size of the model, trained for days."""
PROBE = 20
"""Steps whose CPU time is measured."""


def arm_of(name: str, images: str) -> Arm:
    """The recipe of an arm for a set of images."""
    model, options = ARMS[name]
    return Arm(f"{model}_{images}_small", options)


def shares(arm: Arm) -> dict[str, float]:
    """Each stage's share of the minutes in the recipe."""
    minutes = {stage.name: stage.config.minutes or 0.0 for stage in recipes.load(arm.recipe).stages}
    return {name: value / sum(minutes.values()) for name, value in minutes.items()}


def in_steps(steps: Mapping[str, int]) -> list[str]:
    """A budget of each stage in steps."""
    return [f"--stages.{name}.{key}" for name, n in steps.items() for key in (f"steps={n}", "minutes=null")]


def steps_of(arm: Arm, options: argparse.Namespace) -> dict[str, int]:
    """Steps of the minutes in CPU time, kept in the folder; starting the program costs all trainings alike."""
    options.runs.mkdir(parents=True, exist_ok=True)
    kept = options.runs / "quantized-steps.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    key = " ".join([arm.recipe, *arm.options, f"{options.minutes:g} minutes"])
    if key not in known:
        few = dict.fromkeys(shares(arm), 10)
        base = cpu_seconds(arm, in_steps(few))
        seconds = {name: (cpu_seconds(arm, in_steps({**few, name: 10 + PROBE})) - base) / PROBE for name in few}
        known[key] = {
            name: max(1, round(60.0 * options.minutes * share / seconds[name])) for name, share in shares(arm).items()
        }
        kept.write_text(json.dumps(known, indent=2))
    return {name: int(steps) for name, steps in known[key].items()}


def budget(arm: Arm, options: argparse.Namespace) -> list[str]:
    """Of both stages, in minutes of the clock or in steps."""
    if options.cpu_time:
        return in_steps(steps_of(arm, options))
    return [f"--stages.{name}.minutes={options.minutes * share:.4f}" for name, share in shares(arm).items()]


def in_bits(quantity: Quantity) -> dict[str, float | None]:
    """Mean and standard error, bits per dimension."""
    statistic = quantity.in_unit("bits_per_dim")
    return {"mean": statistic.mean, "standard_error": statistic.standard_error}


def measured(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    if not (run / "evaluation.safetensors").exists():
        davi("evaluate", str(run), "--importance-samples", "1", "--limit", str(options.limit), "--no-baselines")
    result = measurements.load(run).result
    assert result.kl is not None
    last = [record for record in read_metrics(run) if record.get("kind") == "train"][-1]
    codes = [measure for measure in result.measures if "code" in measure.name]
    return {
        "parameters": result.protocol.model.parameters,
        "steps": last["step"],
        "training_seconds": round(last["seconds"], 1),
        "nll": {"mean": -result.bound.nats.mean, "standard_error": result.bound.nats.standard_error},
        "bits_per_dim": in_bits(result.elbo),
        "reconstruction": in_bits(result.terms["reconstruction"]),
        "codes": in_bits(result.kl.total),
        "measures": [{"name": one.name, "unit": one.unit, "value": one.value, "layers": one.layers} for one in codes],
    }


def table(title: str, rows: Mapping[str, Any]) -> None:
    """Print a line for each arm."""
    print(f"\n{title}\n{'':<16}{'bits/dim':>9}{'pixels':>9}{'codes':>9}{'nats':>10}{'parameters':>13}{'steps':>8}")
    for arm, row in rows.items():
        parts = "".join(f"{row[name]['mean']:>9.3f}" for name in ("bits_per_dim", "reconstruction", "codes"))
        print(f"{arm:<16}{parts}{row['nll']['mean']:>10.2f}{row['parameters']:>13,}{row['steps']:>8}")
        for measure in row["measures"]:
            print(f"  {measure['name']}: {measure['value']:.4g} {measure['unit']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--minutes", type=float, default=15.0, help="training time of both stages together")
    parser.add_argument("--limit", type=int, default=1000, help="test images, spread evenly over the set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="minutes of CPU time, not of the clock")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for images in options.sets:
        rows = found[images] = {}
        for name in options.arms:
            if images != "cifar10" and name not in EVERYWHERE:
                continue
            clock = "cpu-" if options.cpu_time else ""
            run = options.runs / f"quantized-{images}-{options.minutes:g}-{clock}minutes-{name}-{options.seed}"
            arm = arm_of(name, images)
            train(run, arm, budget(arm, options), options.seed)
            rows[name] = measured(run, options)
        table(images, rows)
    asked = {"minutes": options.minutes, "clock": "CPU time" if options.cpu_time else "wall time", "seed": options.seed}
    print(write("quantized", {**asked, "test_images": options.limit, "sets": found, "published_cifar10": PUBLISHED}))


if __name__ == "__main__":
    main()
