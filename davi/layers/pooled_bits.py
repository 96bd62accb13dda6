r"""Binary units in blocks of which at most one unit is on: probabilistic max-pooling.

The units of a channel lie in blocks of C x C. With natural parameters :math:`\eta`, for a block B

.. math:: A(\eta) = \log\Bigl(1 + \sum_{i \in B} e^{\eta_i}\Bigr), \qquad
          P(u_i = 1) = e^{\eta_i - A(\eta)}, \qquad P(p = 0) = e^{-A(\eta)}

where the pooled unit p is on if a unit of its block is. Where a height or a width is no multiple of C, the last blocks
are smaller: no unit is left out.

References:
    Convolutional Deep Belief Networks for Scalable Unsupervised Learning of Hierarchical Representations, H. Lee,
    R. Grosse, R. Ranganath, A. Ng, ICML 2009, https://doi.org/10.1145/1553374.1553453
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from davi.layers.units import Units


@final
@dataclass(frozen=True)
class PooledBits(Units):
    """Binary units, at most one of a block on (module docstring).

    Arguments:
        shape: (K, H, W), channels and their height and width.
        block: C, the height and width of a block; 1: units that are independent of each other.

    Example:
        >>> units = PooledBits((1, 2, 2), 2)
        >>> natural = torch.tensor([[[[0.3, -1.0], [2.0, 0.5]]]])
        >>> units.mean(natural)
        tensor([[[[0.1148, 0.0313],
                  [0.6286, 0.1403]]]])
        >>> units.pooled_mean(natural)
        tensor([[[[0.9149]]]])
    """

    block: int = 2

    @property
    def pooled_shape(self) -> tuple[int, int, int]:
        """(K, h, w) of the pooled units, one for each block."""
        channels, height, width = self.shape
        return channels, -(-height // self.block), -(-width // self.block)

    def log_partition(self, natural: Tensor) -> Tensor:
        return self._log_z(natural).flatten(1).sum(1)

    def log_partition_change(self, natural: Tensor, lower: float, upper: float) -> Tensor:
        # Relative to the highest parameter, or to the 0 of a block that is off, no exponent is positive: nothing
        # overflows, and the argument of the logarithm is at least the probability of what is highest.
        there = self._blocks(natural.new_ones(1, *self.shape), 0.0)
        inputs = self._blocks(natural, 0.0)
        highest = self._blocks(natural, -math.inf).amax(2).relu()
        below = torch.cat([inputs - highest[:, :, None], -highest[:, :, None]], 2)
        weights = torch.cat([there, torch.ones_like(there[:, :, :1])], 2) * (lower * below).exp()
        rest = (weights * torch.expm1((upper - lower) * below)).sum(2) / weights.sum(2)
        return ((upper - lower) * highest + torch.log1p(rest)).flatten(1).sum(1)

    def mean(self, natural: Tensor) -> Tensor:
        return self._units(self._probabilities(natural))

    def natural(self, mean: Tensor) -> Tensor:
        return mean.log() - self.spread(torch.log1p(-self._blocks(mean, 0.0).sum(2)))

    def sample(self, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        cumulative = self._probabilities(natural / temperature).cumsum(2)
        return self._units(self._drawn(cumulative, generator))

    @property
    def log2_states(self) -> float:
        return float((self._sizes() + 1).double().log2().sum())

    def states(self, first: int, count: int, like: Tensor) -> Tensor:
        radix = self._sizes().flatten().to(like.device) + 1  # a block is off, or one of its units is on
        below = torch.cat([radix.new_ones(1), radix[:-1]]).cumprod(0)
        digits = torch.arange(first, first + count, device=like.device)[:, None] // below % radix
        columns = self._lengths(self.shape[2]).to(like.device).repeat(len(radix) // self.pooled_shape[2])
        row, column = (digits - 1).div(columns, rounding_mode="floor"), (digits - 1) % columns
        places = torch.where(digits > 0, row * self.block + column, -1)
        return self._units(self._one_hot(places.view(count, *self.pooled_shape), like.dtype))

    # The pooled units

    def pool(self, states: Tensor) -> Tensor:
        """Which blocks have a unit that is on: ``[B, K, H, W]`` to ``[B, K, h, w]``."""
        return self._blocks(states, 0.0).sum(2)

    def pooled_mean(self, natural: Tensor) -> Tensor:
        """P(p = 1) of natural parameters ``[B, K, H, W]``: ``[B, K, h, w]``."""
        return self._blocks(natural, -math.inf).logsumexp(2).sigmoid()

    def spread(self, pooled: Tensor) -> Tensor:
        """A number of each block for each of its units: ``[B, K, h, w]`` to ``[B, K, H, W]``."""
        return self._units(pooled[:, :, None].expand(-1, -1, self.block**2, -1, -1))

    def unpool(self, pooled: Tensor, generator: Generator | None = None) -> Tensor:
        """Units given pooled units ``[B, K, h, w]``: one of each block that is on, all equally probable."""
        alike = self._blocks(pooled.new_ones(1, *self.shape), 0.0).cumsum(2)
        cumulative = (alike / alike[:, :, -1:]).expand(len(pooled), -1, -1, -1, -1)
        return self._units(self._drawn(cumulative, generator) * pooled[:, :, None])

    def log_unpool(self, pooled: Tensor) -> Tensor:
        """log p(units | pooled units) of :meth:`unpool`, whichever units are on: ``[B]``, nats."""
        return -(pooled * self._sizes().to(pooled).log()).flatten(1).sum(1)

    # Blocks, with their units in a dimension of their own

    def _blocks(self, x: Tensor, missing: float) -> Tensor:
        """``[B, K, H, W]`` to ``[B, K, C * C, h, w]``, a number for the units that smaller blocks do not have."""
        channels, rows, columns = self.pooled_shape
        below, beside = rows * self.block - self.shape[1], columns * self.block - self.shape[2]
        if below or beside:
            x = pad(x, (0, beside, 0, below), value=missing)
        return pixel_unshuffle(x, self.block).unflatten(1, (channels, -1))

    def _units(self, blocks: Tensor) -> Tensor:
        """The way back from :meth:`_blocks`."""
        return pixel_shuffle(blocks.flatten(1, 2), self.block)[..., : self.shape[1], : self.shape[2]]

    def _log_z(self, natural: Tensor) -> Tensor:
        """A of each block, ``[B, K, h, w]``."""
        total = self._blocks(natural, -math.inf).logsumexp(2)
        return torch.logaddexp(total, torch.zeros_like(total))

    def _probabilities(self, natural: Tensor) -> Tensor:
        """Of each unit of a block, ``[B, K, C * C, h, w]``; 0 where a smaller block has none."""
        return (self._blocks(natural, -math.inf) - self._log_z(natural)[:, :, None]).exp()

    def _drawn(self, cumulative: Tensor, generator: Generator | None) -> Tensor:
        """Units of each block by inversion: the first whose cumulative probability lies above a uniform number, as 1
        among zeros; zeros alone if none does."""
        like = cumulative[:, :, 0]
        u = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        return self._one_hot((u[:, :, None] >= cumulative).to(like.dtype).sum(2), like.dtype)

    def _one_hot(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """Places in blocks, ``[B, K, h, w]``, as ``[B, K, C * C, h, w]``; zeros alone where there is no such place."""
        units = torch.arange(self.block**2, device=places.device)[:, None, None]
        return (places[:, :, None] == units).to(dtype)

    def _lengths(self, length: int) -> Tensor:
        """Units of each block along a dimension of that many."""
        begins = torch.arange(0, length, self.block)
        return (length - begins).clamp(max=self.block)

    def _sizes(self) -> Tensor:
        """Units of each block, ``[K, h, w]``."""
        rows, columns = (self._lengths(length) for length in self.shape[1:])
        return torch.outer(rows, columns).expand(self.shape[0], -1, -1)
