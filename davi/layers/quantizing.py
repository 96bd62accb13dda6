r"""Vectors replaced by codes, and codes by vectors: what every quantizer promises.

A quantizer is given feature maps f, a vector of D numbers at each position. It assigns to each vector C integers, its
codes, and the vector e that these stand for. What comes after sees e, and learns as if it had been given f:

.. math:: \mathrm{sg}(e) + f - \mathrm{sg}(f)

with sg for what no gradient passes. The value is e, and the gradient with respect to f is the identity (the
*straight-through* gradient).

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Assigned(NamedTuple):
    """What a quantizer has made of feature maps.

    Arguments:
        codes: int64 ``[B, C, h, w]``.
        features: the maps, ``[B, D, h, w]``, as they were compared with the vectors.
        embedded: the vectors of the codes, ``[B, D, h, w]``.

    Example:
        >>> from davi.layers.quantizer import FiniteScalarConfig, make_quantizer
        >>> quantizer = make_quantizer(FiniteScalarConfig(levels=(3, 3)))
        >>> assigned = quantizer(torch.tensor([-2.0, 2.0]).view(1, 2, 1, 1))
        >>> assigned.codes.flatten(), assigned.straight_through().flatten()
        (tensor([6]), tensor([-1.,  1.]))
    """

    codes: Tensor
    features: Tensor
    embedded: Tensor

    def straight_through(self) -> Tensor:
        """Bit for bit ``embedded``; the gradient goes to the features (module docstring)."""
        return self.embedded.detach() + (self.features - self.features.detach())


@dataclass(frozen=True)
class QuantizerConfig:
    """The section ``quantizer`` of a model's options; each quantizer has its own options beside ``name``."""

    name: str


class Quantizer(nn.Module, ABC):
    """Feature maps to codes and back (module docstring).

    Arguments:
        dims: D, channels of the feature maps.
        books: C, codes at each position.
        size: K, values of a code.
    """

    name: ClassVar[str]
    """The name recipes use, as ``quantizer.name``."""
    Config: ClassVar[type[QuantizerConfig]]
    """The dataclass of the options; its ``name`` is a literal."""
    frequencies: Tensor
    """Shares of the codes in recent steps of training, ``[C, K]``, at first uniform; the objective sets them."""

    def __init__(self, dims: int, books: int, size: int) -> None:
        super().__init__()
        self.dims, self.books, self.size = dims, books, size
        self.register_buffer("frequencies", torch.full((books, size), 1.0 / size))

    def extra_repr(self) -> str:
        return f"dims={self.dims}, books={self.books}, size={self.size}"

    @property
    def initialized_from_data(self) -> bool:
        """Whether it is to be set by the first features that reach it (:mod:`davi.layers.from_data`)."""
        return False

    @abstractmethod
    def forward(self, features: Tensor) -> Assigned:
        """Assign codes; in single precision at least, whatever that of the features.

        Arguments:
            features: ``[B, D, h, w]``.
        """

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """The vectors that codes stand for, ``[B, D, h, w]``.

        Arguments:
            codes: int64 ``[B, C, h, w]``, 0 to K - 1.
        """

    @abstractmethod
    def commitment(self, assigned: Assigned) -> Tensor:
        """What is added to the loss so that features stay near the vectors that they are replaced by: a sum of squares
        over an image, ``[B]``, through which only features learn."""
