"""Images of any size in networks that halve the resolution: zeros around them, cut off again at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from davi.errors import OptionError


@dataclass(frozen=True)
class Padding:
    """Zeros around an image of ``height`` x ``width``."""

    height: int
    width: int
    left: int
    right: int
    top: int
    bottom: int

    @classmethod
    def to_multiple(cls, size: tuple[int, int], unit: int, each_side: int | None = None) -> Padding:
        """As few zeros as make height and width multiples of ``unit``, or ``each_side`` of them on every side.

        Raises:
            OptionError: a ``ValueError``, if ``each_side`` does not lead to multiples of ``unit``.
        """
        if each_side is None:
            rows, columns = -size[0] % unit, -size[1] % unit
            return cls(*size, columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        padding = cls(*size, each_side, each_side, each_side, each_side)
        rows, columns = padding.padded
        if rows % unit or columns % unit:
            raise OptionError("pad", f"got {each_side}, which makes {rows}x{columns}; expected multiples of {unit}")
        return padding

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width with the zeros."""
        return self.height + self.top + self.bottom, self.width + self.left + self.right

    def add(self, x: Tensor) -> Tensor:
        """[..., height, width] -> [..., padded height, padded width]."""
        sides = (self.left, self.right, self.top, self.bottom)
        return F.pad(x, sides) if any(sides) else x

    def crop(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`add`."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]
