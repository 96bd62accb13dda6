"""Quantizers; a recipe names one under ``model.quantizer.name``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from davi.config import Named
from davi.layers.codebook import Codebook
from davi.layers.finite_scalar import FiniteScalarConfig, FiniteScalarQuantizer
from davi.layers.quantizing import Assigned, Quantizer, QuantizerConfig
from davi.layers.residual_quantizer import ResidualQuantizer, ResidualQuantizerConfig
from davi.layers.vector_quantizer import VectorQuantizer, VectorQuantizerConfig

QUANTIZERS: dict[str, type[Quantizer]] = {
    VectorQuantizer.name: VectorQuantizer,
    ResidualQuantizer.name: ResidualQuantizer,
    FiniteScalarQuantizer.name: FiniteScalarQuantizer,
}
"""Name in recipes -> class."""


def quantizer_configs() -> Mapping[str, type[QuantizerConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {name: quantizer.Config for name, quantizer in QUANTIZERS.items()}


QuantizerSection = Annotated[QuantizerConfig, Named(quantizer_configs)]
"""The options of any of the quantizers; the key ``name`` says of which."""


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of a section."""
    make: type = QUANTIZERS[config.name]
    quantizer: Quantizer = make(config)
    return quantizer


def perplexity(counts: Tensor) -> Tensor:
    r"""How many codes, used equally often, would be as hard to tell as these are:

    .. math:: \exp\Bigl(-\sum_k p_k \ln p_k\Bigr), \qquad p_k = n_k \big/ \sum_j n_j

    Arguments:
        counts: n, ``[..., K]``.

    Returns:
        ``[...]`` in double precision, from 1 to K; 1 where nothing has been counted.

    Example:
        >>> perplexity(torch.tensor([3, 1]))
        tensor(1.7548, dtype=torch.float64)
    """
    counts = counts.double()
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(shares).sum(-1).exp()


def usage(counts: Tensor) -> Tensor:
    """Share of the codes that occur, ``[...]``, given counts ``[..., K]``."""
    return (counts > 0).double().mean(-1)


__all__ = [
    "QUANTIZERS",
    "Assigned",
    "Codebook",
    "FiniteScalarConfig",
    "FiniteScalarQuantizer",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerSection",
    "ResidualQuantizer",
    "ResidualQuantizerConfig",
    "VectorQuantizer",
    "VectorQuantizerConfig",
    "make_quantizer",
    "perplexity",
    "quantizer_configs",
    "usage",
]
