"""Estimates of a run's partition function by annealed importance sampling, one for each number of temperatures.

The one that likelihoods are computed with is in ``RUN/derived/partition.safetensors`` (:mod:`davi.partition`); all that
were made of the same weights are in ``RUN/derived/estimates.safetensors``, so that they can be compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi import derived
from davi.errors import UserError
from davi.evidence import Kind
from davi.files import digest
from davi.model import Partition, Unnormalized

NAME = "estimates"

TEMPERATURES = (100, 300, 1000, 3000, 14_501)
"""Numbers of temperatures whose estimates are compared; the last is the standard schedule."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Partition) if field.name != "kind")
_WHOLE = tuple(field.name for field in dataclasses.fields(Partition) if field.type == "int | None")


def kept(network: Unnormalized, run: Path) -> tuple[Partition, ...]:
    """The estimates of these weights, by rising numbers of temperatures.

    Arguments:
        network: with the weights.
        run: its folder.

    Raises:
        UserError: if the file is damaged.
    """
    found = derived.read(run, NAME, digest(network.energy.state_dict()), {})
    if found is None:
        return ()
    counts = {len(tensor) if tensor.ndim == 1 else -1 for tensor in found.values()}
    if not {"log_z", "temperatures"} <= set(found) or len(counts) != 1 or -1 in counts:
        raise UserError(f"{derived.path_of(run, NAME)}: got no list of estimates, expected one; delete it")
    several = (_estimate(found, i) for i in range(counts.pop()))
    return tuple(sorted(several, key=lambda one: one.temperatures or 0))


def keep(network: Unnormalized, run: Path, estimate: Partition) -> Path:
    """Keep an estimate, in place of an earlier one with as many temperatures; the file.

    Raises:
        UserError: if it cannot be written.
    """
    others = [one for one in kept(network, run) if one.temperatures != estimate.temperatures]
    several = [*others, estimate]
    tensors = {name: torch.tensor([_number(one, name) for one in several], dtype=torch.float64) for name in _FIELDS}
    return derived.write(run, NAME, digest(network.energy.state_dict()), {}, tensors)


def _number(one: Partition, name: str) -> float:
    value = getattr(one, name)
    return math.nan if value is None else float(value)


def _estimate(tensors: Mapping[str, Tensor], i: int) -> Partition:
    numbers = {name: float(tensors[name][i]) for name in _FIELDS if name in tensors}
    known: dict[str, Any] = {name: int(x) if name in _WHOLE else x for name, x in numbers.items() if not math.isnan(x)}
    return Partition(kind=Kind.ESTIMATE, **known)
