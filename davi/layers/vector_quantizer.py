"""The nearest of K learned vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from davi.layers.codebook import QuantizerConfig


@dataclass(frozen=True)
class VectorQuantizerConfig(QuantizerConfig):
    name: Literal["vector"] = "vector"
    codes: int = 512
    dims: int = 64
    books: int = 1
    update: Literal["ema", "gradient"] = "ema"
    initialize: Literal["k_means", "normal"] = "k_means"
