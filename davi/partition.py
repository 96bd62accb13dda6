"""Partition functions of a run's energies, which turn them into models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from davi import derived
from davi.errors import UserError
from davi.evidence import Kind
from davi.files import digest
from davi.model import Model, Partition, Summable, Unnormalized

NAME = "partition"
MOST_STATES = 24
"""Base-2 logarithm of the longest sum that is made without being asked."""
_NUMBERS = ("low", "high", "effective_samples", "chains", "temperatures")


def normalized(network: Unnormalized, run: Path) -> Model:
    """The model that an energy and its partition function are.

    The partition function is that of the run's folder (:mod:`davi.derived`), if it is of these weights; else it is
    summed, and left there if that can be done, where the energy allows it (:class:`davi.model.Summable`, with at most
    2^24 terms). If it is not known, the model can be drawn from, and says so when it is asked for a likelihood.

    Raises:
        UserError: if the partition function is not finite, or its file holds something else.
    """
    energy = network.energy
    weights = digest(energy.state_dict())
    for kind in (Kind.EXACT, Kind.ESTIMATE):
        found = derived.read(run, NAME, weights, {"kind": kind.name})
        if found is not None:
            return network.normalized(_partition(found, kind, run)).eval()
    if not isinstance(energy, Summable) or energy.log2_states > MOST_STATES:
        return network.normalized(None).eval()
    with torch.no_grad():
        log_z = float(energy.log_partition())
    if not math.isfinite(log_z):
        raise UserError(f"{run}: got the partition function exp({log_z}), expected a finite one")
    partition = Partition(log_z, Kind.EXACT)
    with suppress(UserError):  # a run may be read-only, and then it is summed every time
        write(network, run, partition)
    return network.normalized(partition).eval()


def write(network: Unnormalized, run: Path, partition: Partition) -> Path:
    """Keep a partition function in the folder of a run; its file.

    Raises:
        UserError: if it cannot be written.
    """
    numbers = {name: getattr(partition, name) for name in ("log_z", *_NUMBERS)}
    tensors = {name: torch.tensor(float(x), dtype=torch.float64) for name, x in numbers.items() if x is not None}
    return derived.write(run, NAME, digest(network.energy.state_dict()), {"kind": partition.kind.name}, tensors)


def _partition(tensors: Mapping[str, Tensor], kind: Kind, run: Path) -> Partition:
    """A partition function, as a file gives it."""
    log_z = tensors.get("log_z")
    if log_z is None or log_z.ndim or not bool(log_z.isfinite()):
        got = "nothing" if log_z is None else f"{log_z.tolist()}"[:50]
        raise UserError(f"{derived.path_of(run, NAME)}: got log_z {got}, expected one finite number; delete it")
    more = {name: float(tensors[name]) for name in _NUMBERS if name in tensors and not tensors[name].ndim}
    counts = {name: int(more.pop(name)) for name in ("chains", "temperatures") if name in more}
    return Partition(float(log_z), kind, **more, **counts)
