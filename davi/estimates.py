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
_ENDLESS = {"low": -math.inf, "reverse_low": -math.inf, "high": math.inf, "reverse_high": math.inf}
"""Limits are infinite where there is none."""
_COUNTS = (*(name for name in _WHOLE if name != "seed"), "effective_samples")
_LARGEST = 1e38
"""Nats that a file may give: models compute with them in float32."""
_ROUNDING = 1e-3
"""Nats by which limits of weights that are all alike may lie on the wrong side."""


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
    path = derived.path_of(run, NAME)
    several = (_estimate(found, i, path) for i in range(counts.pop()))
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


def _estimate(tensors: Mapping[str, Tensor], i: int, path: Path) -> Partition:
    numbers = {name: float(tensors[name][i]) for name in _FIELDS if name in tensors}
    known = {name: x for name, x in numbers.items() if name == "log_z" or not math.isnan(x)}
    return partition_of(known, Kind.ESTIMATE, path)


def partition_of(numbers: Mapping[str, float], kind: Kind, path: Path) -> Partition:
    """A partition function from the numbers of a file, which anything may have written.

    Arguments:
        numbers: by the names that :class:`davi.model.Partition` gives them.
        kind: exact, or an estimate.
        path: of the file.

    Raises:
        UserError: if one of them cannot be what it is said to be, or log Z is missing.
    """

    def wrong(name: str, got: object, expected: str) -> UserError:
        return UserError(f"{path}: got {name} {got}, expected {expected}; delete it")

    if "log_z" not in numbers:
        raise wrong("log_z", "nothing", "one finite number")
    for name, value in numbers.items():
        if value != _ENDLESS.get(name) and not abs(value) < _LARGEST:
            raise wrong(name, value, "one finite number")
        if name in _WHOLE and value != int(value):
            raise wrong(name, value, "a whole number")
        if name in _COUNTS and value < 0:
            raise wrong(name, value, "a number from 0")
    for name, below, above in (("log_z", "low", "high"), ("reverse", "reverse_low", "reverse_high")):
        if name in numbers:
            middle = numbers[name]
            low, high = numbers.get(below, middle), numbers.get(above, middle)
            if not low - _ROUNDING <= middle <= high + _ROUNDING:
                raise wrong(f"{below} {low}, {above}", high, f"limits on both sides of {middle}")
    more: dict[str, Any] = {name: int(x) if name in _WHOLE else x for name, x in numbers.items()}
    return Partition(kind=kind, **more)
