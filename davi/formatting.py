"""Numbers as text, for the terminal, the page and the tables: a mean with its error, both units, durations, sizes.

A *statistic* here is a mapping with ``mean`` and ``standard_error`` (None where there is none); a *quantity* has one in
``nats`` and one in ``bits_per_dim``, as :func:`davi.report.both_units` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

UNITS = {"nats": "nats", "bits_per_dim": "bits/dim"}
"""Key of a unit -> how it is written."""

DIGITS = {"nats": 2, "bits_per_dim": 4}
"""Decimals of a quantity in either unit."""


def with_error(statistic: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """A mean and its standard error, with so many decimals.

    Arguments:
        statistic: ``mean`` and ``standard_error``.
        digits: decimals of both.
        sign: ``"+"`` writes the sign of a positive mean as well.

    Example:
        >>> with_error({"mean": 3.14159, "standard_error": 0.01}, 2, "+")
        '+3.14 ± 0.01'
    """
    mean, error = statistic["mean"], statistic["standard_error"]
    return f"{mean:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def unit_order(protocol: Mapping[str, Any]) -> tuple[str, str]:
    """Keys of the units, the usual one of these images first: nats for binary images, bits per dimension for others."""
    binary = protocol.get("data", {}).get("levels") == 2
    return ("nats", "bits_per_dim") if binary else ("bits_per_dim", "nats")


def in_units(quantity: Mapping[str, Any], units: Iterable[str]) -> tuple[str, ...]:
    """A quantity in each of the units, with its error and without the unit's name."""
    return tuple(with_error(quantity[unit], DIGITS[unit]) for unit in units)


def from_bits(mean: float, error: float | None, dims: int) -> dict[str, Any]:
    """The quantity of which bits per dimension are known.

    Arguments:
        mean: bits per dimension.
        error: its standard error.
        dims: values in one image.
    """
    scale = dims * math.log(2.0)
    return {
        "nats": {"mean": -mean * scale, "standard_error": None if error is None else error * scale},
        "bits_per_dim": {"mean": mean, "standard_error": error},
    }


def duration(seconds: float) -> str:
    """Seconds in words: ``45s``, ``12m05s``, ``3h07m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(sides: Iterable[Any]) -> str:
    """Sides of a shape or a grid: ``3 x 32 x 32``."""
    return " x ".join(map(str, sides))


def or_dash(value: Any, form: str = "{}") -> str:
    """A value in a form of ``str.format``; a dash for None."""
    return "-" if value is None else form.format(value)
