"""Memory of a training step against depth, with activations kept and with activations created again; one figure.

python benchmarks/reversible_memory.py [--quick]

Of a row of reversible units (two steps each: batch norm, ReLU, 3x3 convolution), and of an NVAE whose groups have more
and more cells, it measures the bytes of the tensors that autograd keeps, the most bytes of tensors that are alive at
once between the beginning of the forward and the end of the backward pass, beyond those alive before, and CPU time, a
step of each arm in turn, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from common import RESULTS, write
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from davi.layers import LikelihoodConfig
from davi.layers.checkpointed import Checkpointed
from davi.layers.reversible import AdditiveStep, Reversible
from davi.models import NVAE
from davi.models.nvae import NVAEConfig
from davi.training.plan import SavedTensors

MODEL_ARMS = (
    *("cells, kept", "cells, created again one by one"),
    *("reversible, kept", "reversible, created again"),
)
UNITS, CELLS = (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16)
MIB = 2**20
Step = Callable[[], Tensor]
Build = Callable[[str, int], tuple[nn.Module, Step]]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Function(nn.Module):
    """Of a unit's steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.norm(x).relu())
        return result


def layer(arm: str, units: int) -> tuple[nn.Module, Step]:
    """A row on two halves of 32 channels, batch 8, 32 x 32 pixels."""
    torch.manual_seed(0)
    row = Reversible([AdditiveStep(Function(32)) for _ in range(2 * units)]).to(DEVICE)
    row.recompute = arm == "created again"
    x1, x2 = (torch.randn(8, 32, 32, 32, device=DEVICE, requires_grad=True) for _ in range(2))

    def loss() -> Tensor:
        y1, y2 = row(x1, x2)
        return (y1.square() + y2).mean()

    return row, loss


def model(arm: str, cells: int) -> tuple[nn.Module, Step]:
    """An NVAE of two groups with so many cells each, on the way up and on the way down; batch 8, 32 x 32 pixels."""
    torch.manual_seed(0)
    config = NVAEConfig((2,), 8, 16, 16, 1, 1, 1, cells, cells, likelihood=LikelihoodConfig("logistic_mixture", 2))
    network = NVAE((3, 32, 32), 256, replace(config, reversible=arm.startswith("reversible"))).to(DEVICE).train()
    for block in network.blocks():
        if isinstance(block, Checkpointed):
            block.recompute = arm in MODEL_ARMS[1::2]
    x = torch.randint(256, (8, 3, 32, 32), device=DEVICE)
    return network, lambda: -network(x).log_px.mean()


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as these are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch ships no annotation
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in known | self.sizes.keys():
                storage = x.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


def memory(build: Build, arm: str, depth: int) -> dict[str, float]:
    """Of one training step."""
    network, step = build(arm, depth)
    with Alive() as alive:
        step().backward()
    network.zero_grad()
    saved = SavedTensors(network.parameters())
    with saved:
        loss = step()  # while it lasts no address is given away again
    result = {"kept_mib": saved.most / MIB, "peak_mib": alive.most / MIB, "loss": float(loss.detach())}
    del loss
    if isinstance(network, Reversible) and network.recompute:
        network.monitored = True
        step().backward()
        result["drift"] = network.drift() or 0.0
    return result


def times(build: Build, arms: Sequence[str], depth: int, repeats: int) -> Any:
    """CPU seconds of a step of each arm, all in turn: the medians, of seconds and of ratios to the first arm."""
    steps = {arm: build(arm, depth)[1] for arm in arms}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(repeats + 1):
        for arm, step in steps.items():
            begin = time.process_time()
            step().backward()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds[arm].append(time.process_time() - begin)
    result = {}
    for arm, each in seconds.items():
        ratios = [own / first for own, first in zip(each[1:], seconds[arms[0]][1:], strict=True)]  # all warmed up
        result[arm] = {"seconds": statistics.median(each[1:]), "ratio": statistics.median(ratios)}
    return result


def study(build: Build, arms: Sequence[str], depths: Sequence[int], repeats: int) -> dict[str, Any]:
    """Memory at all depths, time at one of them."""
    found = {arm: {str(depth): memory(build, arm, depth) for depth in depths} for arm in arms}
    return {"arms": found, "seconds": {"depth": depths[-2], "arms": times(build, arms, depths[-2], repeats)}}


def draw(axes: Axes, measured: dict[str, dict[str, dict[str, float]]], what: str, label: str) -> None:
    """Peak memory against depth."""
    for (arm, values), marker in zip(measured.items(), "osv^", strict=False):
        axes.plot(
            [int(depth) for depth in values], [each["peak_mib"] for each in values.values()], marker, label=arm, ls="-"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    depths = [int(depth) for depth in next(iter(measured.values()))]
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(label)
    axes.set_ylabel("peak memory of a training step, MiB")
    axes.set_title(what, fontsize="medium")
    axes.legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two depths and one repetition, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    depths, repeats = ((2, 2), 1) if options.quick else ((len(UNITS), len(CELLS)), 9)
    measured: dict[str, Any] = {
        "device": str(DEVICE),
        "layer": study(layer, ("kept", "created again"), UNITS[: depths[0]], repeats),
        "model": study(model, MODEL_ARMS, CELLS[: depths[1]], repeats),
    }
    if options.quick:
        print(json.dumps(measured, indent=2))
        return
    path = write("reversible_memory", measured)
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, measured["layer"]["arms"], "A row of reversible units, 64 channels", "units")
    draw(right, measured["model"]["arms"], "An NVAE of two groups", "cells between two latents")
    for suffix in ("png", "svg"):
        figure.savefig((RESULTS / "reversible_memory").with_suffix(f".{suffix}"), dpi=150)
    print(path)


if __name__ == "__main__":
    main()
