"""Approximations of depth-wise attention in the Deep Attentive VAE: what they save, and what they cost in nats.

    python benchmarks/depth_attention_approximations.py cost
    python benchmarks/depth_attention_approximations.py loss --runs FOLDER --data-root FOLDER --steps 1000

Every approximation stands beside the exact attention, at 16 and 32 layers of the small network of ``attentive_mnist``
with maps of 7x7 pixels, in which all other options are the same.

``cost`` is of one training step with a batch of 16: processor time, the variants taking turns; bytes that the forward
pass keeps for the backward pass, parameters excepted; multiply-adds of the attention for one image, forward. In so
small a network attention is a small part, so that the readings alone are timed too, at the sizes of the published
CIFAR-10 model (maps of 16x16 pixels, keys of 20 and values of 276 channels, a batch of 2): layer i reads from i layers.

``loss`` trains all of them for as many steps and measures the averaged weights on the validation images, paired with
those of the exact attention. Test images are not looked at. Runs that FOLDER holds are measured, not trained again, and
what was interrupted goes on. Mean sizes of the gates stand beside it: near zero the attention has no influence, and
there is nothing to compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write
from numpy.typing import NDArray
from torch import Tensor

from davi import recipes
from davi.data import DataSets, load
from davi.evaluation import evaluate
from davi.layers import DepthApproximation, DepthAttention
from davi.models.attentive_vae import AttentiveVAE
from davi.objectives import negative_elbo
from davi.runs import MODEL, load_model
from davi.training import train
from davi.training.plan import saved_bytes

NAME = "depth_attention_approximations"
RECIPE = "attentive_mnist"
SMALL = ("model.latent_channels=4",)
BATCH = 16
READING = {"batch": 2, "grid": 16, "key_channels": 20, "value_channels": 276}

VARIANTS: dict[str, DepthApproximation] = {
    "exact": DepthApproximation(),
    "window 4": DepthApproximation(window=4),
    "window 8": DepthApproximation(window=8),
    "top_k 2": DepthApproximation(top_k=2),
    "top_k 4": DepthApproximation(top_k=4),
    "key_pool 2": DepthApproximation(key_pool=2),
    "share_keys": DepthApproximation(share_keys=True),
    "key_rank 1": DepthApproximation(key_rank=1),
    "key_rank 2": DepthApproximation(key_rank=2),
    "window 8, top_k 2": DepthApproximation(window=8, top_k=2),
}
"""The first is the one that the others are compared with."""


def recipe_of(name: str, layers: int, *more: str) -> recipes.Recipe:
    """The network at some depth, with an approximation on both sides."""
    given = json.dumps(dataclasses.asdict(VARIANTS[name]))
    sides = [f"model.{side}_attention.approximation={given}" for side in ("generative", "inference")]
    return recipes.load(RECIPE, [f"model.layers=[{layers}]", *SMALL, *sides, *more])


# --- what they save


def stepper(name: str, layers: int) -> tuple[AttentiveVAE, Callable[[], Tensor]]:
    """The model, and a function that makes the loss of one training step."""
    torch.manual_seed(0)
    model = recipes.build(recipe_of(name, layers), (1, 28, 28), 2)
    assert isinstance(model, AttentiveVAE)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    images = torch.randint(0, model.levels, (BATCH, *model.shape))

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same latent noise for every variant
        return negative_elbo(model(images))

    return model, loss


def multiply_adds(model: AttentiveVAE, forward: Callable[[], Tensor]) -> int:
    """Of all readings of one image: scores, mixtures and projections. Of the mixture of ``top_k`` layers those that are
    needed are counted; the layers that are left out are multiplied by zero."""
    counts: list[int] = []

    def count(module: DepthAttention, given: tuple[Tensor, Sequence[Tensor], Sequence[Tensor]], _: object) -> None:
        query, keys, values = given
        options, pixels, d = module.approximation, query.shape[2] * query.shape[3], query.shape[1]
        n = len(keys[module.span(len(keys))])
        mixed = min(n, options.top_k) if options.top_k else n
        projections = 2 * options.key_rank * d  # of a query, and of the key that a layer offers
        counts.append(pixels * (n * (options.key_rank or d) + mixed * values[0].shape[1] + projections))

    hooks = [site.attention.register_forward_hook(count) for site in model.depth_attentions()]
    forward()
    for hook in hooks:
        hook.remove()
    return sum(counts)


class Readings:
    """The readings of L layers alone: layer i reads from i others."""

    def __init__(self, name: str, layers: int) -> None:
        self.attention = DepthAttention(VARIANTS[name], READING["key_channels"])
        self.project = VARIANTS[name].projection(READING["key_channels"])
        generator = torch.Generator().manual_seed(0)

        def maps(channels: int) -> list[Tensor]:
            shape = (READING["batch"], channels, READING["grid"], READING["grid"])
            drawn = (torch.randn(shape, generator=generator) for _ in range(layers))
            return [x.to(memory_format=torch.channels_last).requires_grad_() for x in drawn]

        self.queries, self.keys = maps(READING["key_channels"]), maps(READING["key_channels"])
        self.values = maps(READING["value_channels"])

    def run(self) -> None:
        """Forward and backward."""
        grid = (READING["grid"], READING["grid"])
        keys = [self.attention.approximation.pool(self.project(key), grid) for key in self.keys]
        found = [
            self.attention(query, keys[:i], self.values[:i]).result for i, query in enumerate(self.queries[1:], start=1)
        ]
        torch.stack(found).sum().backward()


def timed(work: Callable[[], object]) -> float:
    """Processor seconds: what else the machine does matters less than on the clock."""
    began = time.process_time()
    work()
    return time.process_time() - began


def step(loss: Callable[[], Tensor]) -> None:
    """Forward and backward; weights stay as they are."""
    loss().backward()


def rounds_of(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds, all taking turns."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(timed(work))
    return {name: statistics.median(times) for name, times in found.items()}


def costs(layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Name -> row, at one depth."""
    made = {name: stepper(name, layers) for name in options.variants}
    steps = {name: partial(step, loss) for name, (_, loss) in made.items()}
    seconds = rounds_of(steps, options.rounds)
    alone = rounds_of({name: Readings(name, layers).run for name in options.variants}, options.rounds)
    return {
        name: {
            "step_seconds": seconds[name],
            "readings_seconds": alone[name],
            "kept_bytes": saved_bytes(loss, model.parameters()),
            "multiply_adds": multiply_adds(model, loss),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        for name, (model, loss) in made.items()
    }


# --- what they cost


def bounds(name: str, layers: int, options: argparse.Namespace, sets: DataSets) -> tuple[NDArray[np.float64], float]:
    """The ELBO of each validation image, nats ``[N]``, after training as far as that has not been done; and the mean
    size of the gates."""
    recipe = recipe_of(name, layers)
    assert recipe.training is not None
    config = dataclasses.replace(
        recipe.training, steps=options.steps, minutes=None, validate_every=0, threads=1, seed=options.seed
    )
    run = options.runs / f"approximation-{layers}-{name}-{options.steps}-{options.seed}".replace(", ", "-").replace(
        " ", ""
    )
    if not (run / MODEL).exists():
        torch.manual_seed(config.seed)
        model = recipes.build(recipe, sets.shape, sets.levels)
        written = dataclasses.replace(recipe, training=config).to_dict()
        train(model, sets, config, run, written, resume=run.exists(), print_fn=lambda line: None)
    model, _ = load_model(run / MODEL)
    assert isinstance(model, AttentiveVAE)
    assert sets.validation is not None
    gates = [abs(float(site.gate)) for site in model.depth_attentions()]
    return evaluate(model, sets.validation, 1).bound, statistics.fmean(gates)


def losses(layers: int, options: argparse.Namespace, sets: DataSets) -> dict[str, Any]:
    """Name -> row, at one depth; differences are paired over images, and positive where the exact attention is
    better."""
    rows: dict[str, Any] = {}
    reference: NDArray[np.float64] | None = None
    for name in options.variants:
        values, gates = bounds(name, layers, options, sets)
        reference = values if reference is None else reference
        difference = reference - values
        rows[name] = {
            "negative_elbo": -float(values.mean()),
            "worse_by_nats": float(difference.mean()),
            "standard_error": float(difference.std(ddof=1)) / math.sqrt(len(difference)),
            "mean_gate": gates,
            "validation_images": len(values),
        }
        print(f"{layers:3d} layers  {name:<18} {-values.mean():8.2f} nats", flush=True)
    return rows


# --- results


def keep(part: str, found: dict[str, Any]) -> None:
    """Write one part beside the other."""
    path = RESULTS / f"{NAME}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    other = {key: known[key] for key in ("cost", "loss") if key in known and key != part}
    print(write(NAME, {**other, part: found}))


def table(found: dict[str, Any]) -> str:
    """The rows of the documentation's table of costs."""
    lines = []
    for layers, rows in found["layers"].items():
        exact = rows["exact"]
        for name, row in rows.items():
            ratios = (row[key] / exact[key] for key in ("step_seconds", "readings_seconds", "multiply_adds"))
            shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {layers} | {name} | {shown} | {row['kept_bytes'] / 2**20:.1f} MiB |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("cost", "loss"))
    parser.add_argument("--layers", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--runs", type=Path, help="folder for the runs")
    parser.add_argument("--data-root", help="folder of the named data sets")
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.variants[0] != "exact":
        parser.error(f"--variants: got {options.variants[0]} first, expected exact, which the others are compared with")
    torch.set_num_threads(1)
    if options.part == "cost":
        rows = {str(layers): costs(layers, options) for layers in options.layers}
        found = {"batch": BATCH, "rounds": options.rounds, "reading": READING, "layers": rows}
        print(table(found))
    else:
        if options.runs is None:
            parser.error("--runs: got none, expected a folder")
        root = [] if options.data_root is None else [f"data.root={options.data_root}"]
        data = recipe_of("exact", options.layers[0], *root).data
        assert data is not None
        sets = load(data)
        rows = {str(layers): losses(layers, options, sets) for layers in options.layers}
        found = {"steps": options.steps, "seed": options.seed, "layers": rows}
    keep(options.part, found)


if __name__ == "__main__":
    main()
