r"""Every vector replaced by the nearest of K, its code.

.. math:: z = \arg\min_k \|f - e_k\|^2

With C books, f is cut into C vectors, and each book has a list of its own for its part of f: C codes of
:math:`K^C` combinations in place of one code of as many values.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937

    Product Quantization for Nearest Neighbor Search, H. Jegou, M. Douze, C. Schmid, IEEE TPAMI 2011,
    https://doi.org/10.1109/TPAMI.2010.57 (several books)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from davi.errors import OptionError
from davi.layers.codebook import Codebook, Initialize, Update, as_rows, at_least, embedding
from davi.layers.nearest import k_means, nearest
from davi.layers.quantizing import Assigned, QuantizerConfig


@dataclass(frozen=True)
class VectorQuantizerConfig(QuantizerConfig):
    """Nearest vectors.

    Arguments:
        name: ``vector``.
        codes: K, vectors in a list.
        dims: D, channels of the feature maps.
        books: C, codes at each position; D is a multiple of it.
        update: how the vectors are learned, by moving averages (``ema``) or by ``gradient``.
        initialize: where they begin, at means of clusters of the features of some images (``k_means``) or at draws from
            a standard ``normal``.
    """

    name: Literal["vector"] = "vector"
    codes: int = 512
    dims: int = 64
    books: int = 1
    update: Update = "ema"
    initialize: Initialize = "k_means"

    def __post_init__(self) -> None:
        at_least("codes", self.codes, 2)
        at_least("books", self.books, 1)
        at_least("dims", self.dims, 1)
        if self.dims % self.books:
            raise OptionError("dims", f"got {self.dims}, expected a multiple of books, {self.books}")


@final
class VectorQuantizer(Codebook):
    """See the module docstring.

    Example:
        >>> quantizer = VectorQuantizer(VectorQuantizerConfig(codes=4, dims=2))
        >>> quantizer(torch.zeros(1, 2, 8, 8)).codes.shape
        torch.Size([1, 1, 8, 8])
    """

    name: ClassVar[str] = "vector"
    Config: ClassVar[type[QuantizerConfig]] = VectorQuantizerConfig

    def __init__(self, config: VectorQuantizerConfig) -> None:
        width = config.dims // config.books
        lists = config.books
        super().__init__(config.dims, config.books, config.codes, lists, width, config.update, config.initialize)

    def _cut(self, features: Tensor) -> Tensor:
        """The part of each book, ``[C, B h w, d]``."""
        return torch.stack(as_rows(features).chunk(self.books, 1))

    def assign(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        found = [nearest(x, own) for x, own in zip(self._cut(features), self.vectors.detach(), strict=True)]
        return torch.stack(found).view(self.books, batch, height, width).transpose(0, 1).contiguous()

    def embed(self, codes: Tensor) -> Tensor:
        return embedding(codes, self.vectors).flatten(1, 2).contiguous()

    def replaced(self, assigned: Assigned) -> tuple[Tensor, Tensor]:
        return self._cut(assigned.features.detach()), assigned.codes.transpose(0, 1).flatten(1)

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        if not self.initialized_from_data:
            return
        for book, own in enumerate(self._cut(x.to(self.vectors.dtype))):
            means, shares = k_means(own, self.size)
            self.vectors[book].copy_(means)
            self.frequencies[book].copy_(shares)
