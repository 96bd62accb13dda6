r"""Attention between the pixels of one feature map.

.. math:: y = x + \gamma \sum_m \mathrm{softmax}_m(s\, q_n^\top k_m)\, v_m

with 1x1 convolutions for queries, keys and values, a learned scalar :math:`s` (1 at the start) in place of
:math:`1/\sqrt d`, and a learned gate :math:`\gamma` (0 at the start): the block begins as the identity.

References:
    Non-local Neural Networks, X. Wang, R. Girshick, A. Gupta, K. He, CVPR 2018, https://arxiv.org/abs/1711.07971

    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.convolution import ChannelLayerNorm, WeightNormConv2d


@final
class NonLocalBlock(nn.Module):
    """Spatial self-attention with a gate that starts at zero (module docstring).

    Arguments:
        channels: width of the feature map, kept.
        key_channels: width of keys and queries.
        bias: whether the three convolutions have biases.
        subsample: halve the grid of keys and values by 2x2 max-pooling; a quarter of the scores.
        layer_norm: the variant ``x + W LN(gamma A v(LN(x)) + x)``.
    """

    def __init__(
        self, channels: int, key_channels: int, bias: bool = True, subsample: bool = False, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.query = WeightNormConv2d(channels, key_channels, 1, bias=bias)
        self.key = WeightNormConv2d(channels, key_channels, 1, bias=bias)
        self.value = WeightNormConv2d(channels, channels, 1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))
        self.subsample = subsample
        self.norm_in = ChannelLayerNorm(channels) if layer_norm else None
        self.norm_out = ChannelLayerNorm(channels) if layer_norm else None
        self.project = WeightNormConv2d(channels, channels, 1, bias=bias) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        source = x if self.norm_in is None else self.norm_in(x)
        keys, values = self.key(source), self.value(source)
        if self.subsample:
            keys, values = F.max_pool2d(keys, 2), F.max_pool2d(values, 2)
        queries = self.query(source) * self.scale
        attended = F.scaled_dot_product_attention(_rows(queries), _rows(keys), _rows(values), scale=1.0)  # [B, 1, N, C]
        attended = attended.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])  # [B, C, H, W]
        if self.norm_out is None or self.project is None:
            return x + self.gamma * attended
        return x + self.project(self.norm_out(self.gamma * attended + x))

    def weights(self, x: Tensor, pixels: Sequence[tuple[int, int]]) -> Tensor:
        """What some pixels attend to in :meth:`forward`; only their rows of the weights are computed.

        Arguments:
            x: the block's input, ``[B, C, H, W]``.
            pixels: rows and columns of Q pixels.

        Returns:
            ``[B, Q, h, w]`` on the grid of the keys (half of H x W when they are subsampled); every map sums to 1.
        """
        source = x if self.norm_in is None else self.norm_in(x)
        keys = self.key(source)
        if self.subsample:
            keys = F.max_pool2d(keys, 2)
        rows, columns = zip(*pixels, strict=True)
        queries = self.query(source)[:, :, rows, columns] * self.scale  # [B, d, Q]
        scores = torch.einsum("bdq,bdhw->bqhw", queries, keys)
        return scores.flatten(2).softmax(2).view_as(scores)


def _rows(x: Tensor) -> Tensor:
    """One row per pixel: [B, C, H, W] -> [B, 1, H * W, C]."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1)
