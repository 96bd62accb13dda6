"""Numbers as text, for the terminal, the page and the tables: a mean with its error, both units, durations, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from davi.quantity import Quantity, Statistic

UNITS = {"nats": "nats", "bits_per_dim": "bits/dim"}
"""Key of a unit -> how it is written."""

DIGITS = {"nats": 2, "bits_per_dim": 4}
"""Decimals of a quantity in either unit."""

_OF_CLASSES = 4
"""Decimals of nats about a class: there are few of them."""

_MOST_DECIMALS = 6


def with_error(statistic: Statistic, digits: int, sign: str = "") -> str:
    """A mean and its standard error, with so many decimals.

    Arguments:
        statistic: the two.
        digits: decimals of both.
        sign: ``"+"`` writes the sign of a positive mean as well.

    Example:
        >>> with_error(Statistic(3.14159, 0.01), 2, "+")
        '+3.14 ± 0.01'
    """
    mean, error = statistic.mean, statistic.standard_error
    return f"{mean:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def in_units(quantity: Quantity, units: Iterable[str]) -> tuple[str, ...]:
    """A quantity in each of the units, with its error and without the unit's name."""
    return tuple(with_error(quantity.in_unit(unit), decimals(quantity, unit)) for unit in units)


def decimals(quantity: Quantity, unit: str) -> int:
    """How many decimals a quantity is shown with in a unit."""
    return _OF_CLASSES if quantity.bits_per_dim is None else DIGITS[unit]


def significant(statistic: Statistic, digits: int) -> str:
    """A mean and its standard error, with as many decimals as give the error two significant digits.

    Arguments:
        statistic: the two.
        digits: decimals of the mean where it has no error.

    Example:
        >>> significant(Statistic(3.14159, 0.0123), 4), significant(Statistic(250.3, 31.4), 4)
        ('3.142 ± 0.012', '250 ± 31')
    """
    error = statistic.standard_error
    if error is None or not 0.0 < error < math.inf:
        return with_error(statistic, digits)
    needed = 1 - math.floor(math.log10(float(f"{error:.1e}")))  # rounded first: 0.0996 is 0.10
    return with_error(statistic, min(max(needed, 0), _MOST_DECIMALS))


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


def listed(names: Sequence[str]) -> str:
    """Names in a row: ``1, 2 and 3``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def or_dash(value: Any, form: str = "{}") -> str:
    """A value in a form of ``str.format``; a dash for None."""
    return "-" if value is None else form.format(value)
