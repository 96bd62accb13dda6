"""Partition functions of a run's energies, which turn them into models."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from davi import derived
from davi.errors import UserError
from davi.evidence import Kind
from davi.files import digest
from davi.model import Energy, Normalized, Partition, Summable

NAME = "partition"


def normalized(energy: Energy, run: Path) -> Normalized:
    """The model that an energy and its partition function are.

    The partition function is that of the run's folder (:mod:`davi.derived`), if it is of these weights; else it is
    summed, and left there if that can be done, where the energy allows it (:class:`davi.model.Summable`).

    Raises:
        UserError: if the partition function is not known, or its file holds something else.
    """
    weights = digest(energy.state_dict())
    for kind in (Kind.EXACT, Kind.ESTIMATE):
        known = derived.read(run, NAME, weights, {"kind": kind.name})
        if known is not None:
            return Normalized(energy, Partition(_number(known.get("log_z"), run), kind)).eval()
    if not isinstance(energy, Summable):
        raise UserError(
            f"{run}: got the energy {energy.name} without a partition function, expected {derived.path_of(run, NAME)}: "
            "without it there is no likelihood"
        )
    with torch.no_grad():
        log_z = energy.log_partition().double().cpu()
    if not bool(log_z.isfinite()):
        raise UserError(f"{run}: got the partition function exp({float(log_z)}), expected a finite one")
    with suppress(UserError):  # a run may be read-only, and then it is summed every time
        derived.write(run, NAME, weights, {"kind": Kind.EXACT.name}, {"log_z": log_z.reshape(())})
    return Normalized(energy, Partition(float(log_z), Kind.EXACT)).eval()


def _number(log_z: Tensor | None, run: Path) -> float:
    """The log of a partition function, as a file gives it."""
    if log_z is None or log_z.ndim or not bool(log_z.isfinite()):
        got = "nothing" if log_z is None else f"{log_z.tolist()}"[:50]
        raise UserError(f"{derived.path_of(run, NAME)}: got log_z {got}, expected one finite number; delete it")
    return float(log_z)
