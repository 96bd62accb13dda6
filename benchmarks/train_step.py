"""Time and peak memory of one training step: plain eager NCHW float32 beside the switches of this library.

The variants run side by side: every round takes one step of each, so that whatever else the machine does hits all of
them; medians over rounds are reported, and ratios to the plain variant. Peak memory is that of a fresh process per
variant. All variants start from the same weights and must give the same first loss.

    python benchmarks/train_step.py [--recipe NAME] [--batch-size 16] [--rounds 15] [--variants plain default]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import write
from torch import Tensor

import davi
from davi.model import Model
from davi.objectives import negative_elbo


@dataclass(frozen=True)
class Variant:
    channels_last: bool = True
    foreach: bool = True
    compile: bool = False
    bfloat16: bool = False
    recompute: bool = False


VARIANTS = {
    "plain": Variant(channels_last=False, foreach=False),
    "default": Variant(),
    "default+bfloat16": Variant(bfloat16=True),
    "default+recompute": Variant(recompute=True),
    "default+compile": Variant(compile=True),
}


def stepper(recipe: str, batch_size: int, variant: Variant) -> Callable[[], float]:
    """A function that takes one training step and returns the loss before it."""
    torch.manual_seed(0)
    model: Model = davi.build(recipe).train()
    if variant.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    for block in model.blocks():
        if variant.recompute:
            block.recompute = True  # type: ignore[assignment]
        if variant.compile:
            block.compile()
    optimizer = torch.optim.Adamax(model.parameters(), 1e-4, foreach=variant.foreach)
    images: Tensor = torch.randint(0, model.levels, (batch_size, *model.shape))

    def step() -> float:
        torch.manual_seed(1)  # the same latent noise for every variant
        with torch.autocast("cpu", torch.bfloat16, enabled=variant.bfloat16):
            evidence = model(images)
        loss = negative_elbo(evidence)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def peak() -> float:
    """Peak resident memory of this process, MiB. (``getrusage`` would report the parent's if that was larger.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak_memory(recipe: str, batch_size: int, name: str) -> float:
    """Peak resident memory of three steps in a fresh process, MiB."""
    command = [sys.executable, __file__, "--recipe", recipe, "--batch-size", str(batch_size), "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="attentive_mnist")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64
    if options.memory_of:
        step = stepper(options.recipe, options.batch_size, VARIANTS[options.memory_of])
        for _ in range(3):
            step()
        print(peak())
        return
    steppers = {name: stepper(options.recipe, options.batch_size, VARIANTS[name]) for name in options.variants}
    first = {name: step() for name, step in steppers.items()}  # compiles, too
    for step in steppers.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(options.rounds):
        for name, step in steppers.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = {
        name: {
            "first_loss": first[name],
            "median_seconds": medians[name],
            "times_faster_than_plain": medians["plain"] / medians[name],
            "peak_memory_mib": peak_memory(options.recipe, options.batch_size, name),
        }
        for name in steppers
    }
    for name, row in rows.items():
        print(name, {key: round(value, 4) for key, value in row.items()})
    settings = {"recipe": options.recipe, "batch_size": options.batch_size, "rounds": options.rounds}
    print(write(f"train_step_{options.recipe}", {**settings, "variants": rows}))


if __name__ == "__main__":
    main()
