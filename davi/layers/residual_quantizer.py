r"""Several codes for a vector, each for what those before it leave.

.. math:: r_1 = f, \qquad z_d = \arg\min_k \|r_d - e_{d,k}\|^2, \qquad r_{d+1} = r_d - e_{d,z_d}, \qquad
          e = \sum_{d=1}^{C} e_{d,z_d}

All depths may share one list. The features are kept near every partial sum,

.. math:: \sum_{d=1}^{C} \Bigl\| f - \mathrm{sg} \sum_{j \le d} e_{j,z_j} \Bigr\|^2

The vectors are learned by moving averages.

References:
    Autoregressive Image Generation using Residual Quantization, D. Lee, C. Kim, S. Kim, M. Cho, W.-S. Han, CVPR 2022,
    https://arxiv.org/abs/2203.01941
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from davi.layers.codebook import Codebook, Initialize, as_rows, at_least, embedding
from davi.layers.nearest import k_means, nearest
from davi.layers.quantizing import Assigned, QuantizerConfig


@dataclass(frozen=True)
class ResidualQuantizerConfig(QuantizerConfig):
    """Residual quantization.

    Arguments:
        name: ``residual``.
        codes: K, vectors in a list.
        dims: D, channels of the feature maps.
        depth: C, codes at each position.
        shared: one list for all depths.
        initialize: where the vectors begin, at means of clusters of what they are to replace in some images
            (``k_means``) or at draws from a standard ``normal``.
    """

    name: Literal["residual"] = "residual"
    codes: int = 512
    dims: int = 64
    depth: int = 4
    shared: bool = False
    initialize: Initialize = "k_means"

    def __post_init__(self) -> None:
        at_least("codes", self.codes, 2)
        at_least("dims", self.dims, 1)
        at_least("depth", self.depth, 1)


@final
class ResidualQuantizer(Codebook):
    """See the module docstring.

    Example:
        >>> quantizer = ResidualQuantizer(ResidualQuantizerConfig(codes=4, dims=2, depth=3))
        >>> quantizer(torch.zeros(1, 2, 8, 8)).codes.shape
        torch.Size([1, 3, 8, 8])
    """

    name: ClassVar[str] = "residual"
    Config: ClassVar[type[QuantizerConfig]] = ResidualQuantizerConfig

    def __init__(self, config: ResidualQuantizerConfig) -> None:
        lists = 1 if config.shared else config.depth
        super().__init__(config.dims, config.depth, config.codes, lists, config.dims, "ema", config.initialize)
        self.shared = config.shared

    def _list(self, depth: int) -> Tensor:
        return self.vectors[0 if self.shared else depth]

    def assign(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        residual, found = as_rows(features), []
        for depth in range(self.books):
            found.append(nearest(residual, self._list(depth)))
            residual = residual - self._list(depth)[found[-1]]
        return torch.stack(found).view(self.books, batch, height, width).transpose(0, 1).contiguous()

    def embed(self, codes: Tensor) -> Tensor:
        return embedding(codes, self.vectors).sum(1)

    def replaced(self, assigned: Assigned) -> tuple[Tensor, Tensor]:
        codes = assigned.codes.transpose(0, 1).flatten(1)  # [C, n]
        residuals = [as_rows(assigned.features.detach())]
        for depth in range(self.books - 1):
            residuals.append(residuals[-1] - self._list(depth)[codes[depth]])
        x = torch.stack(residuals)
        return (x.flatten(0, 1)[None], codes.flatten()[None]) if self.shared else (x, codes)

    def commitment(self, assigned: Assigned) -> Tensor:
        sums = embedding(assigned.codes, self.vectors).detach().cumsum(1)  # [B, C, D, h, w]
        return (assigned.features.unsqueeze(1) - sums).square().sum((1, 2, 3, 4))

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        if not self.initialized_from_data:
            return
        residual = features = as_rows(x.to(self.vectors.dtype))
        for depth in range(self.books):
            means, shares = k_means(residual, self.size)
            self._list(depth).copy_(means)
            self.frequencies[depth].copy_(shares)
            if self.shared:
                break
            residual = residual - means[nearest(residual, means)]
        if self.shared:
            self._share(features)

    def _share(self, x: Tensor) -> None:
        """Means for all depths, given those of the first: of the features and of what these leave of them."""
        residuals = [x]
        for depth in range(self.books - 1):
            residuals.append(residuals[-1] - self._list(depth)[nearest(residuals[-1], self._list(depth))])
        means, shares = k_means(torch.cat(residuals), self.size)
        self.vectors[0].copy_(means)
        self.frequencies.copy_(shares.expand_as(self.frequencies))
