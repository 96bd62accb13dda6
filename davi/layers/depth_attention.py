r"""Attention between the layers of a hierarchy, for every pixel on its own.

Layer :math:`i` forms a query :math:`s_i(n)` at pixel :math:`n` and reads from earlier layers :math:`j`, each of which
offers a key :math:`k_j(n)` and a value :math:`v_j(n)`:

.. math:: w_{ij}(n) = \mathrm{softmax}_j(a\, s_i(n)^\top k_j(n)), \qquad r_i(n) = \sum_j w_{ij}(n)\, v_j(n)

Memory. Stacking the earlier values anew at every layer would keep :math:`O(L^2)` feature maps for the backward pass.
Here a layer keeps *references* to the maps that exist anyway, and recomputes its weights, so the memory is
:math:`O(L)`.

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Attended(NamedTuple):
    """Result of an attention: the mixture of values ``[B, M, H, W]`` and the weights ``[B, layers, H, W]``."""

    result: Tensor
    weights: Tensor


def _weights(query: Tensor, keys: Sequence[Tensor]) -> Tensor:
    scores = torch.einsum("bdhw,bjdhw->bjhw", query, torch.stack(list(keys), 1))
    return scores.softmax(1)


class _Read(torch.autograd.Function):
    """The reading, with a backward pass that needs nothing but its inputs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, n: int, *entries: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = entries[:n], entries[n:]
        weights = _weights(query, keys)
        result = weights[:, :1] * values[0]
        for j in range(1, n):  # one pass over each map; a stacked product would first copy all of them
            result.addcmul_(weights[:, j : j + 1], values[j])
        ctx.save_for_backward(query, *entries)
        ctx.mark_non_differentiable(weights)
        ctx.set_materialize_grads(False)
        return result, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        query, *entries = ctx.saved_tensors
        n = len(entries) // 2
        if grad is None:
            return (None,) * (2 + 2 * n)
        keys, values = entries[:n], entries[n:]
        weights = _weights(query, keys)
        grad_weights = torch.stack([(grad * value).sum(1) for value in values], 1)  # [B, n, H, W]
        grad_scores = weights * (grad_weights - (weights * grad_weights).sum(1, keepdim=True))
        grad_query = torch.einsum("bjhw,bjdhw->bdhw", grad_scores, torch.stack(keys, 1))
        grad_keys = [grad_scores[:, j : j + 1] * query for j in range(n)]
        grad_values = [weights[:, j : j + 1] * grad for j in range(n)]
        return (grad_query, None, *grad_keys, *grad_values)


@final
class DepthAttention(nn.Module):
    """Read from earlier layers (module docstring). The learned scalar ``scale`` is *a*; it starts at 1.

    Example:
        >>> keys = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)]  # two layers, equal keys
        >>> values = [torch.zeros(1, 6, 8, 8), torch.ones(1, 6, 8, 8)]
        >>> result, weights = DepthAttention()(torch.randn(2, 4, 8, 8), keys, values)
        >>> result.shape, weights.shape, result.unique().item()
        (torch.Size([2, 6, 8, 8]), torch.Size([2, 2, 8, 8]), 0.5)
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Attended:
        """Mix the values.

        Arguments:
            query: ``[B, d, H, W]``.
            keys: one ``[B or 1, d, H, W]`` per layer that is read.
            values: one ``[B or 1, M, H, W]`` per layer that is read.
        """
        batch = query.shape[0]
        dtype = values[0].dtype  # under autocast queries and keys may come in another precision
        keys = [key.to(dtype).expand(batch, -1, -1, -1) for key in keys]
        values = [value.to(dtype).expand(batch, -1, -1, -1) for value in values]
        return Attended(*_Read.apply((query * self.scale).to(dtype), len(keys), *keys, *values))  # type: ignore[no-untyped-call]  # torch ships no annotation


class AttentionSite(NamedTuple):
    """A place in a hierarchy where a layer reads from others."""

    side: Literal["generative", "inference"]
    layer: int
    """The layer that reads, 0: the top."""
    sources: tuple[int, ...]
    """The layers it reads from, in the order of the weights. The number of layers stands for what lies below the last
    one: the features of the image itself."""
    attention: DepthAttention
    gate: Tensor
    """Factor on what was read, a scalar; 0: the attention has no influence."""


class DepthAttentive(ABC):
    """A hierarchy whose layers read from one another, and which says where."""

    @abstractmethod
    def depth_attentions(self) -> Iterator[AttentionSite]:
        """All places, side by side and layer by layer from the top; a layer that reads nothing has none."""


def resize_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``x`` on another grid: nearest neighbor when enlarging, the mean of the pixels covered when shrinking."""
    if tuple(x.shape[2:]) == size:
        return x
    if x.shape[2] <= size[0]:
        return F.interpolate(x, size=size, mode="nearest")
    return F.adaptive_avg_pool2d(x, size)


class LayerMemory:
    """The keys and values that layers have offered, on whatever grid a reader asks for.

    A map is resized once per grid and then shared by all readers, so memory grows with (layers x grids), not with
    (layers x readers).
    """

    def __init__(self) -> None:
        self._entries: list[dict[tuple[int, int], tuple[Tensor, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def offer(self, key: Tensor, value: Tensor) -> None:
        """Add a layer's key ``[B, d, h, w]`` and value ``[B, M, h, w]``."""
        self._entries.append({(value.shape[2], value.shape[3]): (key, value)})

    def read(self, size: tuple[int, int], start: int = 0) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of the layers from ``start`` on, on a grid of ``size``."""
        chosen = [self._on_grid(entry, size) for entry in self._entries[start:]]
        return [key for key, _ in chosen], [value for _, value in chosen]

    def repeat_images(self, times: int) -> LayerMemory:
        """A memory of the same layers, with the maps of each image ``times`` times, side by side."""
        repeated = LayerMemory()
        for entry in self._entries:
            key, value = next(iter(entry.values()))
            repeated.offer(key.repeat_interleave(times, 0), value.repeat_interleave(times, 0))
        return repeated

    @staticmethod
    def _on_grid(entry: dict[tuple[int, int], tuple[Tensor, Tensor]], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if size not in entry:
            key, value = next(iter(entry.values()))
            entry[size] = (resize_to(key, size), resize_to(value, size))
        return entry[size]
