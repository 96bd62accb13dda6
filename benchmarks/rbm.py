"""Restricted Boltzmann machines of three programs on static binarized MNIST, at equal time on one core.

python benchmarks/rbm.py --runs FOLDER --seconds 600 --core 0

The same images, 784 visible and 500 hidden units, batches of 100, persistent contrastive divergence with one step and
100 chains, one learning rate, which stays as it is: scikit-learn's BernoulliRBM, the package rbms (where it is
installed: ``pip install rbms``) and DAVI. Each has the same seconds of training, and is measured in the same way: its
arrays become a run, and ``davi evaluate`` estimates log Z by annealed importance sampling. The arm ``davi_falling`` is
DAVI with the centered gradient, which rbms has as well, a rate that falls to 0, and averaged weights. What FOLDER holds
is not done again, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import write
from energies import add_options, begin, effective_samples, evaluate, show, told, train, trained
from rbm_peers import PEERS

import davi

RECIPE = "rbm_mnist"
BATCH, CHAINS = 100, 100
OURS: dict[str, tuple[str, ...]] = {
    "davi": ("--training.schedule={name: constant}", "--training.ema_decay=0"),
    "davi_falling": (
        "--training.schedule={name: cosine, final_learning_rate: 0}",
        "--training.ema_decay=0.999",
        "--training.objective.centered=true",
    ),
}
"""Options of our arms."""


def ours(run: Path, name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with DAVI; how that went."""
    objective = f"{{name: contrastive, steps: 1, chains: {CHAINS}, trajectory_chains: 0}}"
    common = [f"--training.objective={objective}", f"--training.batch_size={BATCH}", f"--training.seed={seed}"]
    common += [f"--training.learning_rate={options.rate}", "--training.optimizer={name: sgd, momentum: 0}"]
    # Nothing but training: one validation at the end, and no checkpoint before it.
    common += ["--training.validate_every=0", "--training.validation_images=100", f"--model.hidden={options.hidden}"]
    train(run, RECIPE, *common, *OURS[name], f"--minutes={options.seconds / 60}")
    return trained(run, BATCH)


def theirs(run: Path, name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with another program, in a process of its own, and import what it has learned; how that went."""
    arrays, facts = run.with_suffix(".npz"), run.with_suffix(".json")
    if not facts.exists():
        words = [name, str(arrays), str(facts), str(options.seconds), str(seed), str(options.rate), str(options.hidden)]
        subprocess.run([sys.executable, str(Path(__file__).with_name("rbm_peers.py")), *words], check=True)
    if not run.exists():
        davi.import_rbm(arrays, run, data="binarized_mnist")
    return json.loads(facts.read_text())


def row(run: Path, name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train and measure one arm, as far as that has not been done."""
    how = ours(run, name, options, seed) if name in OURS else theirs(run, name, options, seed)
    evaluate(run, options)
    return {**how, "seed": seed, **told(run)}


def installed(name: str) -> bool:
    """Whether the program of an arm is."""
    return name in OURS or find_spec(PEERS[name].package) is not None


def ratios(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Our arms against each other program: nats ahead, and images per second as a ratio, of each seed."""
    found: dict[str, Any] = {}
    for name in rows.keys() & OURS.keys():
        for other in rows.keys() & PEERS.keys():
            pairs = list(zip(rows[name], rows[other], strict=True))
            nats = [a["log_likelihood"]["mean"] - b["log_likelihood"]["mean"] for a, b in pairs]
            speed = [a["images_per_second"] / b["images_per_second"] for a, b in pairs]
            found.setdefault(name, {})[other] = {"nats_ahead": nats, "speed_ratio": speed}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, of each arm and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate, per image of a batch's mean")
    parser.add_argument("--hidden", type=int, default=500, help="hidden units")
    parser.add_argument("--name", default="rbm", help="of the results file")
    options = parser.parse_args()
    begin(options)
    rows: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for name in options.arms or [*OURS, *PEERS]:
        if not installed(name):
            missing.append(name)
            print(f"{name:<28} not installed")
    print(f"{'':<28}{'nats':>9}{'log Z low':>10}{'high':>10}{'effective':>10}{'images/s':>12}")
    for seed in options.seeds:  # programs take turns, so that a slow hour of the machine is shared
        for name in [name for name in options.arms or [*OURS, *PEERS] if name not in missing]:
            one = row(options.runs / f"{name}-{seed}", name, options, seed)
            rows.setdefault(name, []).append(one)
            show(f"{name}, seed {seed}", one)
    settings = {"seconds": options.seconds, "batch_size": BATCH, "chains": CHAINS, "gibbs_steps": 1}
    settings |= {"learning_rate": options.rate, "hidden": options.hidden, "set": "binarized_mnist"}
    low = [name for name, own in rows.items() if any((effective_samples(one) or 100) < 10 for one in own)]
    result: dict[str, Any] = {
        "settings": settings,
        "versions_of_others": {name: PEERS[name].version() for name in rows if name in PEERS},
    }
    result |= {"not_installed": missing, "fewer_than_10_effective_samples": low, "against_others": ratios(rows)}
    print(write(options.name, {**result, "arms": rows}))


if __name__ == "__main__":
    main()
