"""Learned vectors of codes: integers whose order means nothing enter a network by a table.

References:
    A Neural Probabilistic Language Model, Y. Bengio, R. Ducharme, P. Vincent, C. Jauvin, JMLR 2003,
    https://www.jmlr.org/papers/v3/bengio03a.html
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from davi.layers.codebook import embedding


@final
class CodeVectors(nn.Module):
    """A vector of every code, in a table of its own for each channel. They begin as draws from N(0, 1).

    Arguments:
        channels: C.
        levels: codes of each channel.
        dims: length E of the vectors.

    Example:
        >>> CodeVectors(2, 512, 8)(torch.zeros(3, 2, 4, 4, dtype=torch.long)).shape
        torch.Size([3, 16, 4, 4])
    """

    def __init__(self, channels: int, levels: int, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.weight = nn.Parameter(torch.randn(channels, levels, dims))

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))

    def forward(self, codes: Tensor) -> Tensor:
        """Integers ``[B, C, ...]`` -> ``[B, C * E, ...]``, the vector of the first channel first."""
        return embedding(codes.long(), self.weight).flatten(1, 2)
