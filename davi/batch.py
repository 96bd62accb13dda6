"""A batch of images and what is known about them: what a loader yields, and what an objective is computed from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of images and what is known about them.

    Arguments:
        x: ``[B, C, H, W]``, integers.
        y: ``[B]``, int64: the class number of each image; None where nobody knows them.
        start: place of the first image in the step's batch, of which this may be a part.

    Example:
        >>> import torch
        >>> batch = Batch(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 4]))
        >>> [(len(part.x), part.y.tolist(), part.start) for part in batch.parts(2)]
        [(3, [0, 1, 2], 0), (2, [3, 4], 3)]
    """

    x: Tensor
    y: Tensor | None = None
    start: int = 0

    def parts(self, n: int) -> list[Batch]:
        """The batch cut into ``n`` parts side by side, as ``x.tensor_split(n)`` cuts it: the first ones are the longer.

        Arguments:
            n: at least 1. More parts than there are images leave the last ones empty.
        """
        images = self.x.tensor_split(n)
        labels = [None] * n if self.y is None else self.y.tensor_split(n)
        found, start = [], self.start
        for x, y in zip(images, labels, strict=True):
            found.append(Batch(x, y, start))
            start += len(x)
        return found
