"""Networks whose hidden units look for something that can be seen: filters, and what units above them look for."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from davi.layers.units import Potts, Units


class WithFilters(ABC):
    r"""A network with layers of hidden units above an image, each of which sums what it sees by its weights.

    What a unit of the first layer looks for is its weights, a filter. What a unit of a layer above looks for is shown
    as a linear combination of what the units below it look for, by its weights,

    .. math:: R^{(1)}_j = W^{(1)}_{\cdot j}, \qquad R^{(l)}_j = \sum_i W^{(l)}_{ij}\, R^{(l-1)}_i

    which leaves out everything that is not linear on the way.

    References:
        Sparse deep belief net model for visual area V2, H. Lee, C. Ekanadham, A. Ng, NeurIPS 2007,
        https://papers.nips.cc/paper/2007/hash/4daa3db355ef2b0e64b472968cb70f0d-Abstract.html

        Convolutional Deep Belief Networks for Scalable Unsupervised Learning of Hierarchical Representations, H. Lee,
        R. Grosse, R. Ranganath, A. Ng, ICML 2009, https://doi.org/10.1145/1553374.1553453
    """

    @property
    @abstractmethod
    def filter_layers(self) -> int:
        """How many layers of hidden units there are."""

    @abstractmethod
    def receptive_fields(self, layer: int) -> Tensor:
        """What every unit of a layer looks for, ``[units, C, H, W]``, without gradients; only ratios have a meaning.

        Arguments:
            layer: 1, next to the image, to :attr:`filter_layers`.

        The height and the width are those of an image, or of the part of it that a unit sees where units share weights.
        """


def combined(weights: Tensor, below: Tensor) -> Tensor:
    """Receptive fields of units that see other units alone: linear combinations, ``[n, C, H, W]``.

    Arguments:
        weights: of each unit for each of those below, ``[n, m]``.
        below: receptive fields of these, ``[m, C, H, W]``.
    """
    return torch.tensordot(weights, below, 1)


def per_level(weights: Tensor, visible: Units) -> Tensor:
    r"""Weights as pictures, ``[n, C, H, W]``: those of one-hot units as the slope over levels.

    The slope of the line through the weights of all L levels, by least squares,

    .. math:: \frac{\sum_l (l - m)\, W_l}{\sum_l (l - m)^2}, \qquad m = \frac{L - 1}{2},

    is in proportion to how a small weight changes the expected level of a pixel whose levels are equally probable. It
    does not change with the gauge, and for two levels it is :math:`W_1 - W_0`, the weight of a binary unit.

    Arguments:
        weights: of hidden units for the visible ones, ``[n, *visible.shape]``.
        visible: units in the order of an image, ``[C, H, W]``, or ``[C, H, W, L]``.
    """
    if not isinstance(visible, Potts):
        return weights
    levels = torch.arange(visible.shape[-1], dtype=weights.dtype, device=weights.device)
    distance = levels - levels.mean()
    return weights @ (distance / distance.square().sum())
