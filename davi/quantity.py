"""A mean over images with its error, in one unit and in both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Statistic:
    """A mean over images.

    Arguments:
        mean: over the images.
        standard_error: of that mean; None where there is none, as for a single image.
    """

    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class Quantity:
    """The same in both units.

    Arguments:
        nats: per image.
        bits_per_dim: per value of an image; None of what says nothing about these values, such as log p(y | x).
    """

    nats: Statistic
    bits_per_dim: Statistic | None

    def in_unit(self, unit: str) -> Statistic:
        """The statistic in ``"nats"`` or in ``"bits_per_dim"``.

        Raises:
            ValueError: if it has no bits per dimension.
        """
        return self.nats if unit == "nats" else in_bits(self.bits_per_dim)


T = TypeVar("T", bound=Statistic)


def in_bits(statistic: T | None) -> T:
    """What is known in bits per dimension.

    Raises:
        ValueError: if it has no such unit.
    """
    if statistic is None:
        raise ValueError("unit: got bits_per_dim, expected nats: this is not about the values of an image")
    return statistic


def from_bits(mean: float, error: float | None, dims: int) -> Quantity:
    """The quantity of which bits per dimension are known.

    Arguments:
        mean: bits per dimension.
        error: its standard error.
        dims: values in one image.
    """
    scale = dims * math.log(2.0)
    nats = Statistic(-mean * scale, None if error is None else error * scale)
    return Quantity(nats, Statistic(mean, error))
