r"""Attention of every position to the positions before it, and to no other.

With queries :math:`q_i`, keys :math:`k_i` of width d and values :math:`v_i` at the positions :math:`i = 0, 1, \dots`,

.. math:: s_{ij} = \frac{q_i \cdot k_j}{\sqrt d}, \qquad m_i = \max_{j < i} s_{ij}, \qquad
          a_{ij} = \frac{e^{s_{ij} - m_i}}{\epsilon + \sum_{l < i} e^{s_{il} - m_i}}, \qquad
          o_i = \sum_{j < i} a_{ij} v_j

with :math:`\epsilon = 10^{-6}`. Position 0 has nothing before it, and :math:`o_0` is exactly zero. With
:math:`S_i = \sum_{l<i} e^{s_{il} - m_i} \ge 1` the weights of all others sum to :math:`S_i / (S_i + \epsilon)`, which
differs from 1 by one millionth at most: in double precision the formula is computed as it stands, in single and lower
precision, where that is rounding, by torch's fused attention, which does not store the weights.

References:
    PixelSNAIL: An Improved Autoregressive Generative Model, X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel, ICML 2018,
    https://arxiv.org/abs/1712.09763
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-6
_LANES = 8
"""Fused attention wants one width for keys and values, a multiple of this."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What each position reads from those before it (module docstring), ``[B, N, v]``.

    Arguments:
        query: ``[B, N, d]``.
        key: ``[B, N, d]``.
        value: ``[B, N, v]``.
    """
    if query.shape[1] == 1:
        return torch.zeros_like(value)
    if query.dtype == torch.float64:
        return attention_weights(query, key) @ value
    # Query i + 1 may see the keys 0 .. i: without the first query and the last key that is the usual causal mask.
    queries, keys, values = query[:, None, 1:], key[:, None, :-1], value[:, None, :-1]
    scale = query.shape[-1] ** -0.5
    width = -(-max(query.shape[-1], value.shape[-1]) // _LANES) * _LANES
    queries, keys, values = (F.pad(x, (0, width - x.shape[-1])) for x in (queries, keys, values))
    read = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
    return F.pad(read[:, 0, :, : value.shape[-1]], (0, 0, 1, 0))


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """The weights a_ij (module docstring), ``[B, N, N]``, zero for j >= i.

    Arguments:
        query: ``[B, N, d]``.
        key: ``[B, N, d]``.
    """
    n = query.shape[1]
    if n == 1:
        return query.new_zeros(len(query), 1, 1)
    allowed = torch.ones(n - 1, n - 1, dtype=torch.bool, device=query.device).tril()
    scores = query[:, 1:] @ key[:, :-1].mT  # [B, N - 1, N - 1]
    weights = _normalized(scores.masked_fill(~allowed, -torch.inf), query.shape[-1])
    return F.pad(weights, (0, 1, 1, 0))


def attend_from(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What a single position reads from those before it, ``[B, v]``.

    Arguments:
        query: of the position, ``[B, d]``.
        key: of the positions before it, ``[B, n, d]``.
        value: of the positions before it, ``[B, n, v]``.
    """
    if not key.shape[1]:
        return value.new_zeros(len(value), value.shape[-1])
    weights = weights_from(query, key)
    return (weights[:, None] @ value)[:, 0]


def weights_from(query: Tensor, key: Tensor) -> Tensor:
    """The weights with which a single position reads those before it, ``[B, n]``.

    Arguments:
        query: of the position, ``[B, d]``.
        key: of the positions before it, ``[B, n, d]``.
    """
    if not key.shape[1]:
        return key.new_zeros(len(key), 0)
    return _normalized((key @ query[..., None])[..., 0], query.shape[-1])


def _normalized(scores: Tensor, width: int) -> Tensor:
    """Products of queries and keys, of which at least one in each row is finite -> weights."""
    shares = ((scores - scores.amax(-1, keepdim=True)) * width**-0.5).exp()
    return shares / (shares.sum(-1, keepdim=True) + _EPSILON)


class SpatialAttentive(ABC):
    """A model whose pixels read from other pixels of the image by attention."""

    @abstractmethod
    def attention_maps(self, x: Tensor, pixel: tuple[int, int], y: Tensor | None = None) -> Tensor:
        """The weights with which one pixel reads from all others, ``[B, blocks, H, W]``, without gradients.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
            pixel: row and column of the pixel.
            y: classes, ``[B]``, of a model that has some.

        Raises:
            ValueError: if there is no such pixel.
        """
