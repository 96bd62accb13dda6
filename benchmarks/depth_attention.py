"""Depth-wise attention beside the obvious version, which stacks all earlier layers anew at each layer.

L layers read from all layers above them: layer i forms a query and mixes the values of layers 0 .. i - 1. Both versions
get the same queries, keys and values and the derivatives of all of them are computed. Reported for each depth:

* the largest difference of outputs and of gradients, relative to the largest value (must be at most 1e-5);
* the median time of a forward and backward pass, the two versions taking turns in one process;
* the bytes that a forward pass keeps for the backward pass, beyond queries, keys and values themselves;
* the peak resident memory that the two passes add, each version in a fresh process.

    python benchmarks/depth_attention.py [--layers 8 16 32] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import conditions
from torch import Tensor

from davi.layers import DepthAttention
from davi.training.plan import saved_bytes

BATCH, SIZE, VALUE_CHANNELS, KEY_CHANNELS = 8, 16, 276, 20  # the paper's CIFAR-10 model, a batch of 8
TOLERANCE = 1e-5

Read = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]


def stacked(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The reading with all earlier entries stacked; autograd keeps the stacks."""
    weights = torch.einsum("bdhw,bndhw->bnhw", query, torch.stack(list(keys), 1)).softmax(1)
    return torch.einsum("bnhw,bnmhw->bmhw", weights, torch.stack(list(values), 1))


def referring() -> Read:
    """The library's reading; its scale stays at 1."""
    attention = DepthAttention()
    return lambda query, keys, values: attention(query, keys, values).result


VERSIONS: dict[str, Callable[[], Read]] = {"davi": referring, "stacked": lambda: stacked}


class Workload:
    """Queries, keys and values of ``layers`` layers, the same for every version."""

    def __init__(self, layers: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def maps(channels: int) -> list[Tensor]:
            shape = (BATCH, channels, SIZE, SIZE)
            return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(layers)]

        self.queries, self.keys, self.values = maps(KEY_CHANNELS), maps(KEY_CHANNELS), maps(VALUE_CHANNELS)
        self.target = torch.randn(BATCH, VALUE_CHANNELS, SIZE, SIZE, generator=generator)

    @property
    def leaves(self) -> list[Tensor]:
        # the top layer reads no other, and no other reads the last
        return [*self.queries[1:], *self.keys[:-1], *self.values[:-1]]

    def forward(self, read: Read) -> list[Tensor]:
        """What layers 1 .. L - 1 read."""
        return [read(self.queries[i], self.keys[:i], self.values[:i]) for i in range(1, len(self.queries))]

    def run(self, read: Read) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Results and gradients."""
        results = self.forward(read)
        gradients = torch.autograd.grad(results, self.leaves, [self.target] * len(results))
        return results, gradients


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference of all pairs, relative to the largest value of all; not a number where one of them is none."""
    differences = torch.stack([(a - b).detach().abs().max() for a, b in zip(ours, theirs, strict=True)])
    return float(differences.max() / torch.stack([b.detach().abs().max() for b in theirs]).max())


def peak() -> int:
    """Peak resident memory of this process, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says here includes the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def added_peak(version: str, layers: int) -> int:
    """Peak resident memory that a fresh process adds for one forward and backward pass, bytes."""
    command = [sys.executable, __file__, "--memory-of", version, "--layers", str(layers)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_added_peak(version: str, layers: int) -> None:
    Workload(2).run(VERSIONS[version]())  # libraries that are loaded at the first use
    work = Workload(layers)
    before = peak()
    work.run(VERSIONS[version]())
    print(peak() - before)


def measure(layers: int, repeats: int) -> dict[str, Any]:
    """All numbers for one depth."""
    # The fresh processes first: this one is small still.
    rows: dict[str, dict[str, Any]] = {name: {"peak_bytes": added_peak(name, layers)} for name in VERSIONS}
    work, reads = Workload(layers), {name: make() for name, make in VERSIONS.items()}
    outputs = {name: work.run(read) for name, read in reads.items()}
    differences = [difference(outputs["davi"][i], outputs["stacked"][i]) for i in range(2)]
    del outputs
    seconds: dict[str, list[float]] = {name: [] for name in VERSIONS}
    for _ in range(repeats):
        for name, read in reads.items():
            began = time.perf_counter()
            work.run(read)
            seconds[name].append(time.perf_counter() - began)
    for name, read in reads.items():
        rows[name]["kept_bytes"] = saved_bytes(partial(work.forward, read), [*work.queries, *work.keys, *work.values])
        rows[name]["seconds"] = statistics.median(seconds[name])
    return {"layers": layers, "output_difference": differences[0], "gradient_difference": differences[1], **rows}


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = ["layers  version   seconds   kept MiB   peak MiB   outputs differ   gradients differ"]
    for row in results:
        for name in VERSIONS:
            numbers = row[name]
            line = f"{row['layers']:6d}  {name:8s} {numbers['seconds']:8.3f} {numbers['kept_bytes'] / 2**20:10.1f}"
            line += f" {numbers['peak_bytes'] / 2**20:10.1f}"
            if name == "davi":
                line += f" {row['output_difference']:16.1e} {row['gradient_difference']:18.1e}"
            lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32], help="depths, each at least 2")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each version")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, hardware and versions there")
    parser.add_argument("--memory-of", choices=VERSIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.layers) < 2:
        parser.error(f"--layers: got {min(options.layers)}, expected at least 2")
    if options.repeats < 1:
        parser.error(f"--repeats: got {options.repeats}, expected at least 1")
    if options.memory_of:
        print_added_peak(options.memory_of, options.layers[0])
        return 0
    results = [measure(layers, options.repeats) for layers in options.layers]
    print(table(results))
    if options.json:
        sizes = {"batch": BATCH, "grid": [SIZE, SIZE], "value_channels": VALUE_CHANNELS, "key_channels": KEY_CHANNELS}
        command = f"python benchmarks/depth_attention.py --layers {' '.join(map(str, options.layers))}"
        command += f" --repeats {options.repeats}"  # not where the numbers were written
        measured = {**conditions(), "command": command, **sizes, "results": results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    differences = [row[of] for row in results for of in ("output_difference", "gradient_difference")]
    if not all(value <= TOLERANCE for value in differences):  # false for what is not a number, too
        print(f"the versions differ by more than {TOLERANCE:.0e} of the largest value", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
