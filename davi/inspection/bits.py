"""Bits on the pixels of the image: of the pixels themselves, and of a latent map."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from davi.inspection.views import BitMaps
from davi.inspection.walks import as_map
from davi.layers.padding import Padding
from davi.model import Autoregressive


@runtime_checkable
class _Padded(Protocol):
    """A model whose latent maps cover the image with zeros around it."""

    padding: Padding


def padding_of(model: nn.Module, size: tuple[int, int]) -> Padding:
    """The zeros that a model puts around images of ``size``; none if it does not say."""
    return model.padding if isinstance(model, _Padded) else Padding(*size, 0, 0, 0, 0)


def to_bits(nats: Tensor) -> Tensor:
    """Float64, on the CPU."""
    return nats.cpu().double() / math.log(2.0)


def pixel_bits(model: Autoregressive, x: Tensor, y: Tensor | None = None) -> BitMaps:
    """What every pixel of some images costs given those before it.

    Arguments:
        model: any.
        x: integer images, ``[n, C, H, W]``.
        y: their classes, ``[n]``, for a model that has some.
    """
    nats = model.conditionals(x, y).log_prob_map(x)
    bits = -to_bits(as_map(nats).sum(1))  # [n, H, W]
    return BitMaps(x.cpu(), bits, bits.new_zeros(len(x), 0, *bits.shape[1:]))


def spread(maps: Tensor, padding: Padding) -> Tensor:
    """Spread what every latent pixel holds evenly over the image pixels that it covers; sums are kept.

    A latent pixel that covers nothing but padding gives all it holds to the nearest image pixels.

    Arguments:
        maps: ``[..., h, w]``.
        padding: of the image that the h x w pixels cover together.

    Returns:
        ``[..., H, W]``, on the image without its padding.
    """
    rows = _shares(maps.shape[-2], padding.padded[0], padding.top, padding.height)  # [H, h]
    columns = _shares(maps.shape[-1], padding.padded[1], padding.left, padding.width)  # [W, w]
    return rows.to(maps) @ maps @ columns.to(maps).T


def _shares(cells: int, padded: int, before: int, size: int) -> Tensor:
    """Share of each latent row that each image row gets, ``[size, cells]``; columns sum to 1."""
    pixels = torch.arange(size)
    owner = (2 * (pixels + before) + 1) * cells // (2 * padded)  # the latent row over the middle of an image row
    shares = (owner[:, None] == torch.arange(cells)).double()
    for cell in range(cells):
        if not shares[:, cell].any():
            center = (2 * cell + 1) * padded // (2 * cells) - before
            shares[min(max(center, 0), size - 1), cell] = 1.0
    return shares / shares.sum(0)
