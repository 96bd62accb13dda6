"""Options and layout of the quantizers of Sonnet, in ours.

Sonnet (TensorFlow; ``VectorQuantizer`` and ``VectorQuantizerEMA``, versions 1 and 2) has a vector of a codebook in a
column, and takes any array whose last dimension is that of the vectors. Its loss is a mean over all numbers, ours a sum
over those of an image.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davi.errors import UserError
from davi.layers.codebook import Update
from davi.layers.vector_quantizer import VectorQuantizer, VectorQuantizerConfig
from davi.objectives.vector_averages import AverageOptions


def build(facts: Mapping[str, Any], vectors: Tensor, update: Update, dtype: torch.dtype) -> VectorQuantizer:
    """Our quantizer with their vectors.

    Arguments:
        facts: content of the fixture's JSON file.
        vectors: theirs, ``[D, K]``.
        update: how vectors are learned.
        dtype: of the numbers.

    Raises:
        UserError: if the vectors are others than configured.
    """
    options = facts["config"]
    dims, codes = int(options["embedding_dim"]), int(options["num_embeddings"])
    if vectors.shape != (dims, codes):
        raise UserError(f"embeddings_initial: got {list(vectors.shape)}, expected [{dims}, {codes}] as configured")
    quantizer = VectorQuantizer(VectorQuantizerConfig(codes=codes, dims=dims, update=update, initialize="normal"))
    quantizer.to(dtype)
    with torch.no_grad():
        quantizer.vectors.copy_(vectors.T[None])
    return quantizer


def averages(facts: Mapping[str, Any]) -> AverageOptions:
    """How Sonnet keeps its moving averages."""
    options = facts["config"]
    return AverageOptions(decay=float(options["decay"]), debias=True, smoothing=float(options["epsilon"]))


def maps(x: Tensor) -> Tensor:
    """Their array ``[B, ..., D]`` as feature maps ``[B, D, n, 1]``."""
    return x.flatten(1, -2).transpose(1, 2).unsqueeze(3) if x.ndim > 2 else x[:, :, None, None]


def array(x: Tensor, like: Tensor) -> Tensor:
    """Our maps ``[B, ?, n, 1]`` in the form of one of their arrays, whatever the size of the last dimension."""
    return x.squeeze(3).transpose(1, 2).reshape(*like.shape[:-1], -1)


def columns(x: Tensor) -> Tensor:
    """Vectors, or sums of vectors, of our only list, ``[1, K, D]``, in their columns."""
    return x[0].T
