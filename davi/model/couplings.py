"""Harmoniums whose couplings are one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import nn


class Couplings(NamedTuple):
    """Parameters of v W h + b v + c h.

    Arguments:
        weight: W, ``[V, H]``, in the order in which the units lie in their tensors.
        b: fields of the visible units, ``[*visible.shape]``.
        c: fields of the hidden units, ``[*hidden.shape]``.
    """

    weight: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter


class WithCouplings(ABC):
    """A harmonium in which every pair of units has a coupling of its own, and every unit a field."""

    @property
    @abstractmethod
    def couplings(self) -> Couplings:
        """Its parameters."""
