"""Several codes, each for what those before it leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from davi.layers.codebook import QuantizerConfig


@dataclass(frozen=True)
class ResidualQuantizerConfig(QuantizerConfig):
    name: Literal["residual"] = "residual"
    codes: int = 512
    dims: int = 64
    depth: int = 4
    shared: bool = False
    initialize: Literal["k_means", "normal"] = "k_means"
