"""Networks whose representations can be looked at, depth by depth."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class WithDepths(ABC):
    """A network that shows what an image becomes on its way up."""

    @abstractmethod
    def at_depths(self, x: Tensor) -> list[Tensor]:
        """The representation of integer images ``[B, C, H, W]`` after the stem and after each block, from the bottom:
        ``[B, C_l, H_l, W_l]`` each."""


def depths_of(layers: int, most: int = 12) -> tuple[int, ...]:
    """0 and ``layers`` and what fits between them at equal distances, at most ``most`` numbers altogether."""
    last = min(layers + 1, most) - 1
    return tuple(round(layers * i / last) for i in range(last + 1))
