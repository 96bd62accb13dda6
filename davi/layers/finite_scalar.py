"""Each number of a vector rounded to one of a few levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from davi.layers.codebook import QuantizerConfig


@dataclass(frozen=True)
class FiniteScalarConfig(QuantizerConfig):
    name: Literal["finite_scalar"] = "finite_scalar"
    levels: tuple[int, ...] = (8, 5, 5, 5)
