"""Time and peak memory of a training step, and sampling speed, of small models of the family.

The configurations are those in which the original implementations were timed on a CPU: 32x32 color images in batches
of 8, float32, two threads. A step is forward, backward and optimizer. ``default`` is what ``davi train`` does (channels
innermost, optimizer calls for all tensors at once), ``plain`` is eager PyTorch without these. Every round takes one
step of each, so that whatever else the machine does hits both; medians are reported. Peak memory is that of a fresh
process.

    python benchmarks/family_step.py [--rounds 15] [--threads 2] [--models very_deep_vae ...]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import write

from davi.config import parse
from davi.model import Model
from davi.models import MODELS
from davi.objectives import EvidenceConfig, objective

BATCH, SAMPLES, SHAPE, LEVELS = 8, 64, (3, 32, 32), 256


@dataclass(frozen=True)
class Configuration:
    """A model, its options, and how many parameters the original has."""

    options: dict[str, Any]
    parameters: int
    optimizer: Callable[..., torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)


CONFIGS = {
    "nvae": Configuration(
        {
            "groups": [4],
            "latent_channels": 20,
            "encoder_width": 16,
            "decoder_width": 16,
            "halvings": 1,
            "preprocess_cells": 2,
            "postprocess_cells": 2,
            "encoder_cells": 2,
            "decoder_cells": 2,
            "likelihood": {"components": 10},
        },
        377_600,
        torch.optim.Adamax,
        {"lr": 0.01, "eps": 1e-3, "weight_decay": 3e-4},
    ),
    "very_deep_vae": Configuration(
        {
            "encoder": "32x2,32d2,16x2,16d4,4x2",
            "decoder": "4x2,16m4,16x2,32m16,32x2",
            "width": 64,
            "latent_channels": 16,
            "likelihood": {"components": 10},
        },
        324_836,
        torch.optim.AdamW,
        {"lr": 2e-4, "betas": (0.9, 0.9), "weight_decay": 0.01},
    ),
}
VARIANTS = ("plain", "default")


def build(name: str, variant: str) -> Model:
    """The model of a configuration with weights that are always the same."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    cls: Any = MODELS[name]
    model = cls(SHAPE, LEVELS, parse(cls.Config, config.options, name))
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != config.parameters:
        raise SystemExit(f"{name}: {count} parameters, expected {config.parameters}")
    if variant == "default":
        model.to(memory_format=torch.channels_last)
    built: Model = model
    return built


def speed(config: Configuration, variant: str) -> dict[str, bool]:
    """How the optimizer goes over the tensors."""
    if variant == "plain":
        return {"foreach": False}
    return {"fused": True} if config.optimizer is torch.optim.AdamW else {"foreach": True}


def stepper(name: str, variant: str) -> Callable[[], float]:
    """A function that takes one training step and returns the loss before it."""
    model, config = build(name, variant).train(), CONFIGS[name]
    optimizer = config.optimizer(model.parameters(), **speed(config, variant), **config.settings)
    images = torch.randint(0, LEVELS, (BATCH, *SHAPE))

    def step() -> float:
        torch.manual_seed(1)  # the same latent noise for both variants
        loss = objective(model(images), EvidenceConfig(), 1.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 200.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def sampler(name: str, variant: str) -> Callable[[], object]:
    """A function that draws a batch of images."""
    model = build(name, variant).eval()
    return lambda: model.sample(SAMPLES)


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each function, called in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak() -> float:
    """Peak resident memory of this process, MiB. (``getrusage`` would report the parent's if that was larger.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak_memory(name: str, variant: str, threads: int) -> float:
    """Peak resident memory of three steps in a fresh process, MiB."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", name, variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """All numbers of one configuration."""
    steppers = {variant: stepper(name, variant) for variant in VARIANTS}
    first = {variant: step() for variant, step in steppers.items()}
    step_seconds = medians(dict(steppers), rounds)
    sample_seconds = medians({variant: sampler(name, variant) for variant in VARIANTS}, max(3, rounds // 3))
    return {
        variant: {
            "first_loss": first[variant],
            "step_seconds": step_seconds[variant],
            "times_faster_than_plain": step_seconds["plain"] / step_seconds[variant],
            "peak_memory_mib": peak_memory(name, variant, threads),
            "samples_per_second": SAMPLES / sample_seconds[variant],
        }
        for variant in VARIANTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        step = stepper(*options.memory_of)
        for _ in range(3):
            step()
        print(peak())
        return
    found = {name: measure(name, options.rounds, options.threads) for name in options.models}
    for name, variants in found.items():
        for variant, row in variants.items():
            print(name, variant, {key: round(value, 4) for key, value in row.items()})
    if not options.no_file:
        settings = {"batch_size": BATCH, "samples": SAMPLES, "shape": list(SHAPE), "rounds": options.rounds}
        print(write("family_step", {**settings, "models": found}))


if __name__ == "__main__":
    main()
