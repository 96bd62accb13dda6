"""What is measured of a trained arm, by the keys of :data:`davi.study.format.QUANTITIES`.

Costs are in the unit of the table, nats or bits per dimension, lower is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from davi.comparison import Entry
from davi.evaluation.classification import ERROR_RATE
from davi.evaluation.result import Result
from davi.quantity import Quantity, Statistic

_INFORMATION = "I(z; x) of the posterior"
_COSTS = {"nats": 2, "bits_per_dim": 3}
"""Decimals of a cost."""


@dataclass(frozen=True, eq=False)
class Trained:
    """An arm with one seed that was trained and measured.

    Arguments:
        seed: of its training.
        entry: its evaluation, and how long it was trained.
        last: the last record of its training.
        turns: what its turns have cost (:attr:`davi.study.folder.Job.costs`).
        unit: of costs.
    """

    seed: int
    entry: Entry
    last: Mapping[str, Any]
    turns: Sequence[Mapping[str, Any]]
    unit: str

    @property
    def result(self) -> Result:
        """Its evaluation."""
        return self.entry.measured.result


@dataclass(frozen=True)
class Meter:
    """How a quantity is found.

    Arguments:
        read: its value, with an error over images where it has one; None where an arm has no such quantity.
        decimals: that it is shown with; None: those of a cost.
    """

    read: Callable[[Trained], Statistic | float | None]
    decimals: int | None = None


def cost(quantity: Quantity, unit: str) -> Statistic:
    """A log-probability as what it costs: nats of it are negative, bits are not."""
    found = quantity.in_unit(unit)
    return Statistic(-found.mean, found.standard_error) if unit == "nats" else found


def decimals(name: str, unit: str) -> int:
    """How many decimals a quantity is shown with."""
    own = METERS[name].decimals
    return _COSTS[unit] if own is None else own


def _rate(arm: Trained) -> Statistic | None:
    kl = arm.result.kl
    return None if kl is None else kl.total.in_unit(arm.unit)


def _reconstruction(arm: Trained) -> float | None:
    kl = arm.result.kl
    return None if kl is None else cost(arm.result.elbo, arm.unit).mean - kl.total.in_unit(arm.unit).mean


def _training(arm: Trained) -> float | None:
    """What the last images of the training have cost, as the record says it in bits."""
    bits, scale = arm.last.get("bits_per_dim"), arm.result.bound
    if not isinstance(bits, (int, float)) or scale.bits_per_dim is None:
        return None
    return float(bits) * (1.0 if arm.unit == "bits_per_dim" else -scale.nats.mean / scale.bits_per_dim.mean)


def _measure(name: str) -> Callable[[Trained], float | None]:
    def read(arm: Trained) -> float | None:
        found = arm.result.measure(name)
        return None if found is None else found.value

    return read


def _active(arm: Trained) -> float | None:
    units = arm.result.active_units
    return None if units is None else units.active


def _utilization(arm: Trained) -> float | None:
    units = arm.result.active_units
    return None if units is None or not units.units else 100.0 * units.active / units.units


def _minutes(arm: Trained) -> float | None:
    return None if arm.entry.seconds is None else arm.entry.seconds / 60.0


def _of_training(arm: Trained, key: str) -> list[float]:
    return [turn[key] for turn in arm.turns if turn.get("what") == "train"]


def _cpu_minutes(arm: Trained) -> float | None:
    found = _of_training(arm, "cpu_seconds")
    return sum(found) / 60.0 if found else None


METERS: dict[str, Meter] = {
    "bound": Meter(lambda arm: cost(arm.result.bound, arm.unit)),
    "elbo": Meter(lambda arm: cost(arm.result.elbo, arm.unit)),
    "rate": Meter(_rate),
    "reconstruction": Meter(_reconstruction),
    "training": Meter(_training),
    "information": Meter(_measure(_INFORMATION), 2),
    "error_rate": Meter(_measure(ERROR_RATE), 2),
    "active_units": Meter(_active, 0),
    "utilization": Meter(_utilization, 1),
    "parameters": Meter(lambda arm: arm.result.protocol.model.parameters, 0),
    "steps": Meter(lambda arm: arm.result.protocol.model.step, 0),
    "minutes": Meter(_minutes, 1),
    "cpu_minutes": Meter(_cpu_minutes, 1),
    "steps_per_second": Meter(lambda arm: arm.entry.pace, 1),
    "memory": Meter(lambda arm: max(_of_training(arm, "peak_mib"), default=None), 0),
}
"""Quantities that are one number."""


def _kl_layers(arm: Trained) -> tuple[float, ...]:
    kl = arm.result.kl
    return () if kl is None else tuple(layer.nats.mean for layer in kl.layers)


def _active_layers(arm: Trained) -> tuple[float, ...]:
    units = arm.result.active_units
    return () if units is None else tuple(float(layer.active) for layer in units.layers)


LAYERS: dict[str, Callable[[Trained], tuple[float, ...]]] = {"kl_layers": _kl_layers, "active_layers": _active_layers}
"""Quantities that each latent layer has, top first."""

LAYER_DECIMALS = {"kl_layers": 2, "active_layers": 0}
