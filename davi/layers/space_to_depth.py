"""Blocks of pixels as channels, the place within the block changing slowest."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Every ``block x block`` pixels become one, ``[B, C, H, W] -> [B, block^2 C, H/block, W/block]``.

    Channel ``(row * block + column) * C + c`` of the result is channel c of the pixels in that row and column of their
    block: TensorFlow's order, where torch's ``pixel_unshuffle`` has ``c * block^2 + row * block + column``.
    """
    if block == 1:
        return x
    return F.pixel_unshuffle(x, block).unflatten(1, (x.shape[1], -1)).transpose(1, 2).flatten(1, 2)


def depth_to_space(y: Tensor, block: int) -> Tensor:
    """The inverse of :func:`space_to_depth`, ``[B, block^2 C, h, w] -> [B, C, block h, block w]``."""
    if block == 1:
        return y
    return F.pixel_shuffle(y.unflatten(1, (block**2, -1)).transpose(1, 2).flatten(1, 2), block)
