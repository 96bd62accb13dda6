r"""Attention between the layers of a hierarchy, for every pixel on its own.

Layer :math:`i` forms a query :math:`s_i(n)` at pixel :math:`n` and reads from earlier layers :math:`j`, each of which
offers a key :math:`k_j(n)` and a value :math:`v_j(n)`:

.. math:: w_{ij}(n) = \mathrm{softmax}_j(a\, s_i(n)^\top k_j(n)), \qquad r_i(n) = \sum_j w_{ij}(n)\, v_j(n)

Memory. Stacking the earlier values anew at every layer would keep :math:`O(L^2)` feature maps for the backward pass.
Here a layer keeps *references* to the maps that exist anyway, and recomputes its weights, so the memory is
:math:`O(L)` (:mod:`davi.layers.depth_reading`). What can be left out is said in :mod:`davi.layers.depth_approximation`.

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.depth_approximation import EXACT, DepthApproximation
from davi.layers.depth_reading import Attended, read, read_approximately


@dataclass(frozen=True)
class DepthWiseAttention:
    """Attention across the layers of a network whose features carry the keys.

    Arguments:
        key_channels: width of keys and queries; 0 switches the attention off.
        layer_norm: whether values and results pass residual layer norms.
        approximation: what is left out; nothing by default.

    Raises:
        ValueError: if the width is negative, or the approximation does not fit it.
    """

    key_channels: int = 0
    layer_norm: bool = True
    approximation: DepthApproximation = field(default_factory=DepthApproximation)

    def __post_init__(self) -> None:
        if self.key_channels < 0:
            raise ValueError(f"key_channels: got {self.key_channels}, expected at least 0")
        self.approximation.check(self.key_channels)


@final
class DepthAttention(nn.Module):
    """Read from earlier layers (module docstring). The learned scalar ``scale`` is *a*; it starts at 1.

    Arguments:
        approximation: what is left out; nothing by default.
        key_channels: width of keys and queries, which a projection to fewer channels must know.
        nearest_first: whether the layers that are offered begin with the nearest one, and do not end with it.

    Raises:
        ValueError: if the rank of the projection is larger than the width of the keys.

    Example:
        >>> keys = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)]  # two layers, equal keys
        >>> values = [torch.zeros(1, 6, 8, 8), torch.ones(1, 6, 8, 8)]
        >>> result, weights = DepthAttention()(torch.randn(2, 4, 8, 8), keys, values)
        >>> result.shape, weights.shape, result.unique().item()
        (torch.Size([2, 6, 8, 8]), torch.Size([2, 2, 8, 8]), 0.5)
        >>> near = DepthAttention(DepthApproximation(window=1))  # the last layer alone
        >>> near(torch.randn(2, 4, 8, 8), keys, values).result.unique().item()
        1.0
    """

    def __init__(
        self, approximation: DepthApproximation = EXACT, key_channels: int = 0, nearest_first: bool = False
    ) -> None:
        super().__init__()
        if approximation.key_rank:
            approximation.check(key_channels)
        self.approximation = approximation
        self.nearest_first = nearest_first
        self.scale = nn.Parameter(torch.ones(()))
        self.project = approximation.projection(key_channels)

    def span(self, layers: int) -> slice:
        """Which of so many layers on offer are read."""
        return self.approximation.span(layers, self.nearest_first)

    def forward(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Attended:
        """Mix the values.

        Arguments:
            query: ``[B, d, H, W]``.
            keys: one ``[B or 1, d, H, W]`` per layer that is on offer; with a rank, projected already. They may be
                pooled already, as :class:`LayerMemory` has them.
            values: one ``[B or 1, M, H, W]`` per layer that is on offer.

        Returns:
            The mixture, and the weights of the layers in :meth:`span`.
        """
        span = self.span(len(values))
        batch, size = query.shape[0], (query.shape[2], query.shape[3])
        dtype = values[0].dtype  # under autocast queries and keys may come in another precision
        keys = [self.approximation.pool(key, size).to(dtype).expand(batch, -1, -1, -1) for key in keys[span]]
        values = [value.to(dtype).expand(batch, -1, -1, -1) for value in values[span]]
        query = (self.project(query) * self.scale).to(dtype)
        cell, top_k = self.approximation.cell(size), self.approximation.top_k
        if cell == (1, 1) and not 0 < top_k < len(values):
            return read(query, keys, values)
        return read_approximately(query, keys, values, cell, top_k if top_k < len(values) else 0)


Side = Literal["generative", "inference", "classifier"]
"""What reads: prior and posterior, which read from the layers above; the posterior, from features of the layers below;
a classifier, whose layers read from those before them."""


class AttentionSite(NamedTuple):
    """A place in a network where a layer reads from others."""

    side: Side
    layer: int
    """The layer that reads, 0: the top of a hierarchy, or the bottom of a classifier."""
    sources: tuple[int, ...]
    """The layers it reads from, in the order of the weights. The number of layers of a hierarchy stands for what lies
    below the last one: the features of the image itself. In a classifier layer 0 is the output of the stem, and the
    last layer what makes the logits."""
    attention: DepthAttention
    gate: Tensor
    """Factor on what was read, a scalar; 0: the attention has no influence."""


class DepthAttentive(ABC):
    """A network whose layers may read from one another, and which says where."""

    @abstractmethod
    def depth_attentions(self) -> Iterator[AttentionSite]:
        """All places, side by side and layer by layer from the first; a layer that reads nothing has none."""


def resize_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``x`` on another grid: nearest neighbor when enlarging, the mean of the pixels covered when shrinking."""
    if tuple(x.shape[2:]) == size:
        return x
    if x.shape[2] <= size[0]:
        return F.interpolate(x, size=size, mode="nearest")
    return F.adaptive_avg_pool2d(x, size)


class LayerMemory:
    """The keys and values that layers have offered, on whatever grid a reader asks for.

    A map is resized, and a key pooled, once per grid and then shared by all readers, so memory grows with (layers x
    grids), not with (layers x readers).

    Arguments:
        approximation: that of the readers, which says how keys are pooled.
    """

    def __init__(self, approximation: DepthApproximation = EXACT) -> None:
        self._approximation = approximation
        self._offered: list[tuple[Tensor, Tensor]] = []
        self._on_grids: list[dict[tuple[int, int], tuple[Tensor, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._offered)

    def offer(self, key: Tensor, value: Tensor) -> None:
        """Add a layer's key ``[B, d, h, w]`` and value ``[B, M, h, w]``."""
        self._offered.append((key, value))
        self._on_grids.append({})

    def read(self, size: tuple[int, int], start: int = 0, stop: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of the layers from ``start`` on and before ``stop``, on a grid of ``size``; keys are
        pooled."""
        chosen = [self._on_grid(layer, size) for layer in range(len(self))[start:stop]]
        return [key for key, _ in chosen], [value for _, value in chosen]

    def repeat_images(self, times: int) -> LayerMemory:
        """A memory of the same layers, with the maps of each image ``times`` times, side by side."""
        repeated = LayerMemory(self._approximation)
        for key, value in self._offered:
            repeated.offer(key.repeat_interleave(times, 0), value.repeat_interleave(times, 0))
        return repeated

    def _on_grid(self, layer: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        known = self._on_grids[layer]
        if size not in known:
            key, value = self._offered[layer]
            known[size] = (self._approximation.pool(resize_to(key, size), size), resize_to(value, size))
        return known[size]
