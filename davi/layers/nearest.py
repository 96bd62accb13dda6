r"""The nearest of K vectors, and the K means of a cloud of vectors.

Of :math:`\|x - e_k\|^2` what depends on k is, for any c,

.. math:: \|e_k - c\|^2 - 2 (x - c) \cdot (e_k - c)

which one matrix product computes. Were c zero, squares of numbers far from zero would hide small distances. Here it is
the mean of all :math:`e_k`, rounded to a multiple of a power of two that is as large as their spread: subtracting it
takes no digits away, so that what is equally near stays so.

References:
    Least squares quantization in PCM, S. P. Lloyd, IEEE Transactions on Information Theory 1982,
    https://doi.org/10.1109/TIT.1982.1056489
"""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 2**24
"""Distances that are held at a time."""
ROUNDS = 10
"""Of Lloyd's algorithm."""
PER_MEAN = 64
"""Vectors for each mean that are enough to find it; of more, so many are drawn."""


@torch.no_grad()
def nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """The number of the nearest vector; of several at the same distance the lowest.

    Arguments:
        x: ``[n, d]``.
        vectors: ``[K, d]``.

    Returns:
        int64 ``[n]``.

    Example:
        >>> nearest(torch.tensor([[0.5], [2.0]]), torch.tensor([[0.0], [1.0], [1.0]]))
        tensor([0, 1])
    """
    center = _center(vectors)
    centered = vectors - center
    squares = centered.square().sum(1)
    rows = max(1, CELLS // len(vectors))
    parts = x.split(rows)
    found = torch.cat([torch.addmm(squares, part - center, centered.T, alpha=-2.0).argmin(1) for part in parts])
    return _first_alike(centered)[found]


def _first_alike(vectors: Tensor) -> Tensor:
    """For each of K vectors the lowest number of one that is the same, int64 ``[K]``: a matrix product may round the
    same numbers in different ways in different columns."""
    # Cosines of whole numbers are independent of each other: sums that are the same are of vectors that are the same.
    weights = torch.arange(1, vectors.shape[1] + 1, dtype=torch.float64, device=vectors.device).cos()
    keys = (vectors * weights).sum(1).nan_to_num()
    ordered, numbers = keys.sort(stable=True)
    return numbers[torch.searchsorted(ordered, keys)]


def _center(vectors: Tensor) -> Tensor:
    """c, ``[d]``."""
    mean = vectors.mean(0)
    spread = (vectors - mean).abs().max().clamp_min(torch.finfo(vectors.dtype).tiny)
    unit = torch.ldexp(torch.ones_like(spread), torch.frexp(spread).exponent)
    return (mean / unit).round() * unit


def totals(x: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors have each code, ``[size]``, and the sums of these vectors, ``[size, d]``, in double precision.

    Arguments:
        x: ``[n, d]``.
        codes: int64 ``[n]``.
        size: K.
    """
    counts = torch.zeros(size, dtype=torch.float64, device=x.device)
    sums = counts.new_zeros(size, x.shape[1])
    return counts.index_add_(0, codes, counts.new_ones(len(codes))), sums.index_add_(0, codes, x.double())


@torch.no_grad()
def k_means(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Means of clusters by Lloyd's algorithm, which begins with vectors drawn at random, with torch's default
    generator. A cluster that becomes empty keeps its mean.

    Arguments:
        x: ``[n, d]``.
        size: K.

    Returns:
        The means ``[K, d]`` and the shares of their clusters, ``[K]``.
    """
    x = x[torch.randperm(len(x), device=x.device)[: PER_MEAN * size]]
    means = x[torch.arange(size, device=x.device) % len(x)]  # of fewer than K vectors some are taken twice
    for _ in range(ROUNDS):
        counts, sums = totals(x, nearest(x, means), size)
        found = (sums / counts.clamp_min(1.0).unsqueeze(1)).to(x.dtype)
        means = torch.where(counts.unsqueeze(1) > 0, found, means)
    counts, _ = totals(x, nearest(x, means), size)
    return means, (counts / len(x)).to(x.dtype)
