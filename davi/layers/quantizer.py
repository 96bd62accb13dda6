"""Quantizers: a recipe names one under ``model.quantizer.name``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from davi.config import Named
from davi.layers.codebook import Assigned, Quantizer, QuantizerConfig
from davi.layers.finite_scalar import FiniteScalarConfig
from davi.layers.residual_quantizer import ResidualQuantizerConfig
from davi.layers.vector_quantizer import VectorQuantizerConfig

QUANTIZERS: dict[str, type[Quantizer]] = {}
"""Name in recipes -> class."""


def quantizer_configs() -> Mapping[str, type[QuantizerConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {"vector": VectorQuantizerConfig, "residual": ResidualQuantizerConfig, "finite_scalar": FiniteScalarConfig}


QuantizerSection = Annotated[QuantizerConfig, Named(quantizer_configs)]
"""The options of any of the quantizers; the key ``name`` says of which."""


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of a section."""
    return QUANTIZERS[config.name](config)  # type: ignore[call-arg, arg-type]


def perplexity(counts: Tensor) -> Tensor:  # noqa: F821
    """exp of the entropy of shares proportional to counts ``[..., K]``."""


__all__ = [
    "QUANTIZERS",
    "Assigned",
    "FiniteScalarConfig",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerSection",
    "ResidualQuantizerConfig",
    "VectorQuantizerConfig",
    "make_quantizer",
    "perplexity",
    "quantizer_configs",
]
