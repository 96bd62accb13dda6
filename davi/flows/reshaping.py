"""Bijections that only move the variables of an image: their log-determinant is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional as F

from davi.flows.base import Bijection
from davi.layers.space_to_depth import depth_to_space, space_to_depth

Order = Literal["channels", "offsets"]
"""What changes slowest among the channels of a squeezed image: the channel, as torch's pixel_unshuffle has it, or the
place within a block of pixels, as TensorFlow's space_to_depth has it."""


@final
class Squeeze(Bijection):
    """Every block of f x f pixels becomes one with f * f times the channels, ``[B, C, H, W] -> [B, f f C, H/f, W/f]``.

    Arguments:
        order: of the new channels.
        factor: f; it must divide the height and the width.
    """

    def __init__(self, order: Order = "channels", factor: int = 2) -> None:
        super().__init__()
        self.order = order
        self.factor = factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = space_to_depth(x, self.factor) if self.order == "offsets" else F.pixel_unshuffle(x, self.factor)
        return y, torch.zeros_like(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = depth_to_space(y, self.factor) if self.order == "offsets" else F.pixel_shuffle(y, self.factor)
        return x, torch.zeros_like(y)


@final
class Flatten(Bijection):
    """``[B, C, H, W] -> [B, C H W]``.

    Arguments:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), torch.zeros_like(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.unflatten(1, self.shape), torch.zeros_like(y)


@final
class Reorder(Bijection):
    """The channels of ``[B, C, ...]`` in another order.

    Arguments:
        order: numbers of the input's channels, as the output has them.

    Raises:
        ValueError: if it has not every number once.
    """

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order: got {list(order)}, expected every number from 0 to {len(order) - 1} once")
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], torch.zeros_like(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y[:, self.order.argsort()], torch.zeros_like(y)
