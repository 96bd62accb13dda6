"""Ways to divide the variables of an image into two parts, and to put them together again.

A coupling changes one part by what the other one says; a flow that divides its variables in many ways lets each of them
depend on all others. Nothing is computed here: every split is a permutation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor


class Split(ABC):
    """x -> (a, b), and back. A coupling changes b and looks at a.

    Arguments:
        flipped: exchange the two parts.
    """

    def __init__(self, flipped: bool = False) -> None:
        self.flipped = flipped

    @final
    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The part that is looked at, and the part that is changed."""
        a, b = self._split(x)
        return (b, a) if self.flipped else (a, b)

    @final
    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """What :meth:`split` has divided."""
        return self._merge(b, a) if self.flipped else self._merge(a, b)

    @abstractmethod
    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _merge(self, a: Tensor, b: Tensor) -> Tensor: ...


@final
class Channels(Split):
    """a: the first half of the channels of ``[B, C, ...]``, the smaller one if C is odd."""

    def __init__(self, channels: int, flipped: bool = False) -> None:
        super().__init__(flipped)
        self.first = channels // 2

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self.first], x[:, self.first :]

    def _merge(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), 1)


@final
class Alternating(Split):
    """a: every second number of ``[B, D]``, from the first."""

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, ::2], x[:, 1::2]

    def _merge(self, a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat((a, b), 1)
        x[:, ::2], x[:, 1::2] = a, b
        return x


@final
class Flattened(Split):
    """A split of numbers ``[B, D]``, taken of images whose channels, rows and columns are put in a row.

    Arguments:
        split: of the numbers; both parts are as it has them.
        shape: of one image.
    """

    def __init__(self, split: Split, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = split
        self.shape = shape

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.split(x.flatten(1))

    def _merge(self, a: Tensor, b: Tensor) -> Tensor:
        return self.inner.merge(a, b).unflatten(1, self.shape)


@final
class Columns(Split):
    """a: the even columns of ``[B, C, H, W]``, b: the odd ones, each ``[B, C, H, W / 2]``."""

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = x.unflatten(3, (-1, 2))
        return pairs[..., 0], pairs[..., 1]

    def _merge(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack((a, b), 4).flatten(3)


@final
class Checkerboard(Split):
    """a: positions of ``[B, C, H, W]`` whose row and column have an even sum, b: the others, each ``[B, C, H, W / 2]``:
    of every two neighbors in a row, one. With an odd W both are ``[B, C, N]``, in the order in which one reads.

    Arguments:
        flipped: exchange the two parts.
        size: (H, W); needed if W is odd.
    """

    def __init__(self, flipped: bool = False, size: tuple[int, int] | None = None) -> None:
        super().__init__(flipped)
        self.size = size

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[3] % 2:
            return x.flatten(2)[..., ::2], x.flatten(2)[..., 1::2]
        pairs = x.unflatten(3, (-1, 2))
        return self._even_rows_as_they_are(pairs[..., 0], pairs[..., 1])

    def _merge(self, a: Tensor, b: Tensor) -> Tensor:
        if a.ndim == 3:
            if self.size is None:
                raise ValueError("size: got None, expected (H, W) of the images, whose width is odd")
            x = torch.cat((a, b), 2)
            x[..., ::2], x[..., 1::2] = a, b
            return x.unflatten(2, self.size)
        return torch.stack(self._even_rows_as_they_are(a, b), 4).flatten(3)

    def _even_rows_as_they_are(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, exchanged in odd rows."""
        even = (torch.arange(a.shape[2], device=a.device) % 2 == 0)[:, None]
        return torch.where(even, a, b), torch.where(even, b, a)
