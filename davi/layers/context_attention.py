r"""Depth-wise attention as a module for any network whose layers have contexts.

The layer i of a hierarchy has a context :math:`c_i`, the feature map from which its prior and its posterior are made.
With this part it reads from the contexts of all layers above,

.. math:: \hat c_i = c_i + \gamma_i U_i \sum_{j<i} w_{ij}\, V_j c_j, \qquad
          w_{ij}(n) = \mathrm{softmax}_j\bigl(a\, Q_i c_i(n)^\top K_j c_j(n)\bigr)

with 1x1 convolutions Q, K, V, U, so that contexts of any width can be read; those of other scales are resized first.
Gates :math:`\gamma` start at 0: a network that is given the part computes at first exactly what it computed without.
Prior and posterior see :math:`\hat c_i`; the recurrence from layer to layer keeps :math:`c_i`, as in the paper.

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from davi.layers.depth_approximation import EXACT, DepthApproximation
from davi.layers.depth_attention import AttentionSite, DepthAttention, LayerMemory, Side


@final
class ContextAttention(nn.Module):
    """One layer's share in the attention: what it reads, and what it offers to the layers below.

    Arguments:
        channels: width of the layer's context.
        key_channels: width of keys and queries.
        value_channels: width of what is read.
        reads: whether there are layers above.
        offers: whether there are layers below.
        approximation: what is left out; nothing by default. A memory must know of it, too.

    Raises:
        ValueError: if a width is not positive, or the approximation does not fit it.

    Example:
        >>> memory = LayerMemory()
        >>> top = ContextAttention(8, 4, 6, reads=False, offers=True)
        >>> below = ContextAttention(16, 4, 6, reads=True, offers=False)
        >>> _ = top(torch.randn(1, 8, 2, 2), memory)
        >>> c = torch.randn(3, 16, 4, 4)
        >>> torch.equal(below(c, memory), c)  # the gate is closed at first
        True
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        value_channels: int,
        *,
        reads: bool,
        offers: bool,
        approximation: DepthApproximation = EXACT,
    ) -> None:
        super().__init__()
        if min(channels, key_channels, value_channels) < 1:
            raise ValueError(
                f"widths: got {channels}, {key_channels} and {value_channels} channels, expected positive numbers"
            )
        self.attention = DepthAttention(approximation, key_channels) if reads else None
        self.gate = nn.Parameter(torch.zeros(())) if reads else None
        self.query = nn.Conv2d(channels, key_channels, 1) if reads else None
        self.result = nn.Conv2d(value_channels, channels, 1) if reads else None
        self.key = nn.Conv2d(channels, key_channels, 1) if offers else None
        self.value = nn.Conv2d(channels, value_channels, 1) if offers else None
        self.project_key = approximation.projection(key_channels) if offers else None

    def forward(self, context: Tensor, memory: LayerMemory) -> Tensor:
        """Read, then offer.

        Arguments:
            context: c_i, ``[B, channels, h, w]``.
            memory: what the layers above have offered; this layer adds its own.

        Returns:
            The context with what was read, for prior and posterior.
        """
        attended = context
        if self.attention is not None and self.query is not None and self.result is not None:
            span = self.attention.span(len(memory))
            keys, values = memory.read((context.shape[2], context.shape[3]), span.start, span.stop)
            attended = context + self.gate * self.result(self.attention(self.query(context), keys, values).result)
        if self.key is not None and self.value is not None and self.project_key is not None:
            memory.offer(self.project_key(self.key(context)), self.value(context))
        return attended


@dataclass(frozen=True)
class ContextAttentionOptions:
    """Attention of each layer over the contexts of all layers above, at every pixel.

    Arguments:
        key_channels: width of keys and queries; 0 switches the attention off.
        value_channels: width of what is read; 0: as many as ``key_channels``.
        approximation: what is left out; nothing by default.

    Raises:
        ValueError: if a width is negative, or the approximation does not fit the keys.
    """

    key_channels: int = 0
    value_channels: int = 0
    approximation: DepthApproximation = field(default_factory=DepthApproximation)

    def __post_init__(self) -> None:
        for name, channels in (("key_channels", self.key_channels), ("value_channels", self.value_channels)):
            if channels < 0:
                raise ValueError(f"{name}: got {channels}, expected at least 0")
        self.approximation.check(self.key_channels)

    def memory(self) -> LayerMemory:
        """An empty memory for the parts."""
        return LayerMemory(self.approximation)

    def parts(self, widths: Sequence[int]) -> list[ContextAttention]:
        """The shares of layers whose contexts have these widths, the top first; none if no layer reads."""
        last = len(widths) - 1
        if not self.key_channels or not last:
            return []
        values = self.value_channels or self.key_channels
        return [
            ContextAttention(
                width, self.key_channels, values, reads=i > 0, offers=i < last, approximation=self.approximation
            )
            for i, width in enumerate(widths)
        ]


def sites(parts: Iterable[nn.Module | None], side: Side = "generative") -> Iterator[AttentionSite]:
    """Where layers read from those before them, given the layers' shares, the first layer's first."""
    for i, part in enumerate(parts):
        if isinstance(part, ContextAttention) and part.attention is not None and part.gate is not None:
            sources = tuple(range(i))[part.attention.span(i)]
            yield AttentionSite(side, i, sources, part.attention, part.gate)
