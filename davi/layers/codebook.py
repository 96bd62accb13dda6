r"""Quantizers whose vectors are learned.

There are several ways to learn the vectors e of a list. By *moving averages* of what they replace, which an objective
keeps (:mod:`davi.objectives.vector_averages`), they are no parameters and have no gradient. By *gradient*, they are
parameters that minimize :math:`\|\mathrm{sg}(f) - e\|^2`.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937 (both ways, section 3.2 and appendix A.1)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.errors import OptionError
from davi.layers.from_data import SetFromData
from davi.layers.quantizing import Assigned, Quantizer

Update = Literal["ema", "gradient"]
Initialize = Literal["k_means", "normal"]


class Codebook(Quantizer, SetFromData, ABC):
    """A quantizer that has lists of K vectors of d numbers.

    The vectors are drawn from a standard Normal distribution, and replaced by means of clusters of the first features
    if ``initialize`` is ``k_means``.

    Arguments:
        dims, books, size: as of every quantizer.
        lists: L, how many lists there are.
        width: d.
        update: ``ema``, by averages; or ``gradient``.
        initialize: ``k_means`` or ``normal``.
    """

    vectors: Tensor
    """``[L, K, d]``: a parameter if they are learned by gradient, else a buffer."""

    def __init__(
        self, dims: int, books: int, size: int, lists: int, width: int, update: Update, initialize: Initialize
    ) -> None:
        super().__init__(dims, books, size)
        vectors = torch.randn(lists, size, width)
        if update == "gradient":
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
        self.initialize = initialize

    @property
    def initialized_from_data(self) -> bool:
        return self.initialize == "k_means"

    @property
    def has_gradient(self) -> bool:
        """Whether the vectors are learned by gradient."""
        return isinstance(self.vectors, nn.Parameter)

    def forward(self, features: Tensor) -> Assigned:
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.vectors.dtype)
            codes = self.assign(features.detach())
            return Assigned(codes, features, self.embed(codes))

    @abstractmethod
    def assign(self, features: Tensor) -> Tensor:
        """The codes of features ``[B, D, h, w]``, int64 ``[B, C, h, w]``."""

    @abstractmethod
    def replaced(self, assigned: Assigned) -> tuple[Tensor, Tensor]:
        """What the vectors of each list have been put in place of: vectors ``[L, n, d]`` without gradient, image after
        image, perhaps several times over; and which of the list replaces each, int64 ``[L, n]``."""

    def distortion(self, assigned: Assigned) -> Tensor:
        """Squared distance of features from the vectors of their codes, a sum over an image, ``[B]``, through which
        only the vectors learn; it is minimized where they are learned by gradient."""
        return (assigned.embedded - assigned.features.detach()).square().sum((1, 2, 3))

    def commitment(self, assigned: Assigned) -> Tensor:
        return (assigned.features - assigned.embedded.detach()).square().sum((1, 2, 3))


def embedding(codes: Tensor, vectors: Tensor) -> Tensor:
    """Vectors of codes, each from the list of its book: ``[B, C, d, ...]``.

    Arguments:
        codes: int64 ``[B, C, ...]``.
        vectors: ``[C, K, d]``, or ``[1, K, d]`` if all books have the same list.
    """
    lists, size, _ = vectors.shape
    begin = size * torch.arange(lists, device=codes.device)  # where each list begins
    places = codes + begin.view(-1, *[1] * (codes.ndim - 2))
    return F.embedding(places, vectors.flatten(0, 1)).movedim(-1, 2)


def as_rows(x: Tensor) -> Tensor:
    """Maps ``[B, D, h, w]`` as one vector for each position, ``[B h w, D]``."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def at_least(name: str, value: int, least: int) -> None:
    """Refuse an option that is too small.

    Raises:
        OptionError: a ``ValueError``.
    """
    if value < least:
        raise OptionError(name, f"got {value}, expected at least {least}")
