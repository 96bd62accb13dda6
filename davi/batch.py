"""A batch of images and what is known about them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of images and what is known about them.

    Arguments:
        x: integer images, ``[B, C, H, W]``.
        y: class numbers, ``[B]``, int64; None without labels.
        start: place of the first image in the batch of the step, of which this may be a part.
    """

    x: Tensor
    y: Tensor | None = None
    start: int = 0

    def parts(self, n: int) -> list[Batch]:
        """The batch cut into ``n`` parts, the first ones one image longer where it does not divide."""
        if n == 1:
            return [self]
        images = self.x.tensor_split(n)
        labels = [None] * n if self.y is None else self.y.tensor_split(n)
        found, start = [], self.start
        for x, y in zip(images, labels, strict=True):
            found.append(Batch(x, y, start))
            start += len(x)
        return found
