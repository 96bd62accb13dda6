r"""Vectors replaced by codes, and codes by vectors: what every quantizer promises.

A quantizer is given feature maps f, one vector of D numbers at each position, and replaces each by C integers, its
codes, which stand for a vector e. What comes after sees e, and learns as if it had been given f:

.. math:: \mathrm{sg}(e) + f - \mathrm{sg}(f)

whose value is e and whose gradient with respect to f is the identity (the *straight-through* gradient).

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
        features: the maps, ``[B, D, h, w]``.
        embedded: the vectors of the codes, ``[B, D, h, w]``.
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
    """Feature maps to codes and back (module docstring)."""

    name: ClassVar[str]
    """The name recipes use, as ``quantizer.name``."""
    Config: ClassVar[type[QuantizerConfig]]
    """The dataclass of the options; its ``name`` is a literal."""

    dims: int
    """D, channels of the feature maps."""
    books: int
    """C, codes at each position."""
    size: int
    """K, values of a code."""
    frequencies: Tensor
    """Shares of the codes over recent steps of training, ``[C, K]``, at first uniform; the objective sets them."""

    def __init__(self, dims: int, books: int, size: int) -> None:
        super().__init__()
        self.dims, self.books, self.size = dims, books, size
        self.register_buffer("frequencies", torch.full((books, size), 1.0 / size))

    @abstractmethod
    def forward(self, features: Tensor) -> Assigned:
        """Assign codes.

        Arguments:
            features: ``[B, D, h, w]``.
        """

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """The vectors that codes ``[B, C, h, w]`` stand for, ``[B, D, h, w]``."""

    @abstractmethod
    def commitment(self, assigned: Assigned) -> Tensor:
        """Squared distance of the features from what they were replaced by, through which only the features learn,
        summed over an image, ``[B]``."""

    @property
    def initialized_from_data(self) -> bool:
        """Whether its vectors are to be set from the first features that reach it
        (:func:`davi.layers.from_data.set_from_data`)."""
        return False
