"""The one unit of a page: nats for binary images, bits per dimension for others.

Everything on the page is a cost in this unit, lower is better: minus log-likelihoods, and KL divergences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from davi.evaluation.result import Result
from davi.formatting import UNITS, significant
from davi.quantity import Quantity, Statistic

_DECIMALS = {"nats": 2, "bits_per_dim": 4}
"""Of a number without an error; the most there are."""


@dataclass(frozen=True)
class Unit:
    """Nats per image or bits per dimension.

    Arguments:
        key: ``"nats"`` or ``"bits_per_dim"``.
        dims: values in one image.
    """

    key: str
    dims: int

    @classmethod
    def of(cls, result: Result) -> Unit:
        """The usual unit of the images of a result."""
        return cls(result.units[0], result.protocol.dims)

    @classmethod
    def usual(cls, levels: int, dims: int) -> Unit:
        """The usual unit of images of so many levels and values: nats for binary ones."""
        return cls("nats" if levels == 2 else "bits_per_dim", dims)

    @property
    def name(self) -> str:
        """As it is written."""
        return UNITS[self.key]

    @property
    def per_pixel(self) -> str:
        """The unit of a map over pixels: maps in nats sum to the cost of the image, those in bits/dim average to it."""
        return "nats per pixel" if self.key == "nats" else self.name

    def of_nats(self, nats: float) -> float:
        """A cost in nats per image."""
        return nats if self.key == "nats" else nats / (self.dims * math.log(2.0))

    def of_bits(self, bits_per_dim: float) -> float:
        """A cost in bits per dimension."""
        return bits_per_dim if self.key == "bits_per_dim" else bits_per_dim * self.dims * math.log(2.0)

    def cost(self, quantity: Quantity) -> Statistic:
        """A log-likelihood, or a part of one, as a cost."""
        found = quantity.in_unit(self.key)
        return Statistic(-found.mean, found.standard_error) if self.key == "nats" else found

    def loss(self, quantity: Quantity) -> Statistic:
        """What counts positive where something is lost."""
        return quantity.in_unit(self.key)

    def text(self, statistic: Statistic) -> str:
        """A cost with its error, without the unit."""
        return significant(statistic, _DECIMALS[self.key])

    def short(self, value: float) -> str:
        """A cost of a single image, without the unit."""
        return f"{value:.1f}" if self.key == "nats" else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
