r"""Cheaper readings of depth-wise attention.

A layer that reads from n others at P pixels, with keys of d and values of M channels, needs

.. math:: n P d \text{ multiply-adds for the scores } s(p)^\top k_j(p), \qquad
          n P M \text{ for the mixture } \sum_j w_j(p)\, v_j(p),

so L layers need :math:`\tfrac12 L^2 P (d + M)`. For the backward pass it keeps references, to keys of :math:`L P d` and
values of :math:`L P M` numbers in all; these are alive anyway where they are views of maps that the network keeps.
The approximations, each of which is exact at its full setting, may be combined. They act in this order.

``window`` W
    A layer reads the W layers that are nearest to it: n becomes min(n, W), and L layers need
    :math:`L W P (d + M)`, linear in L. The parameters stay the same.
``key_rank`` r
    Scores are :math:`(E s)^\top F k` with learned r x d matrices, which begin as the first r rows of the identity. The
    scores cost n P r and the projections 2 P r d more, once for a query and once for a key; r = d begins as the exact
    attention does, 0 has no matrices. Kept are P r numbers of a key more.
``key_pool`` f
    :math:`k_j(p)` becomes the mean over the f x f cell that holds p; cells at the border are cut off. Queries and
    weights stay as fine as they were. The scores cost n P d as before. Kept are P d / f² numbers of a key, and not P d.
``share_keys``
    :math:`k_j` is the mean over all pixels: a layer has one key for each image. Cost as before; d numbers are kept.
``top_k`` k
    At each pixel the softmax runs over the k layers with the highest scores, and the others have weight zero; ties are
    broken anyhow. The scores cost n P d as before. k P M multiply-adds would do for the mixture, yet all n P M are
    made: unless few of many wide maps are chosen, fetching single pixels from n maps takes a CPU longer. Kept are k P
    numbers of 2 bytes more, to choose the same layers in the backward pass. A layer has no gradient from pixels that do
    not choose it.

Where M is much larger than d, as in the published models (276 and 20), all but the window change little.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DepthApproximation:
    """How depth-wise attention is made cheaper (module docstring); by default it is exact.

    Arguments:
        window: read only so many layers, the nearest ones; 0: all.
        top_k: mix only so many layers at each pixel, those with the highest scores; 0: all.
        key_pool: side of the cells of pixels that share a key; 1: each pixel has its own.
        share_keys: all pixels of a map share one key.
        key_rank: channels in which queries and keys are compared; 0: all, without a projection.

    Raises:
        ValueError: if a number is too small, or ``key_pool`` is given although all pixels share a key.

    Example:
        >>> DepthApproximation(window=8, top_k=2).exact, DepthApproximation().exact
        (False, True)
    """

    window: int = 0
    top_k: int = 0
    key_pool: int = 1
    share_keys: bool = False
    key_rank: int = 0

    def __post_init__(self) -> None:
        for name, least in (("window", 0), ("top_k", 0), ("key_pool", 1), ("key_rank", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.share_keys and self.key_pool > 1:
            raise ValueError(f"key_pool: got {self.key_pool}, expected 1 where share_keys leaves one key for a map")

    @property
    def exact(self) -> bool:
        return self == DepthApproximation()

    def check(self, key_channels: int) -> None:
        """Refuse what does not fit keys of so many channels; 0: there is no attention.

        Raises:
            ValueError: if there is nothing to approximate, or the rank is larger than the number of channels.
        """
        if not key_channels and not self.exact:
            given = [f"{field.name} {getattr(self, field.name)}" for field in fields(self) if self._differs(field)]
            raise ValueError(f"approximation: got {', '.join(given)}, expected none where key_channels is 0")
        if self.key_rank > key_channels:
            expected = f"at most key_channels, {key_channels}"
            raise ValueError(f"approximation.key_rank: got {self.key_rank}, expected {expected}")

    def _differs(self, field: Field[Any]) -> bool:
        return bool(getattr(self, field.name) != field.default)

    def projection(self, key_channels: int) -> nn.Module:
        """What queries and keys ``[B, key_channels, H, W]`` pass before they are compared."""
        if not self.key_rank:
            return nn.Identity()
        projection = nn.Conv2d(key_channels, self.key_rank, 1, bias=False)
        nn.init.dirac_(projection.weight)
        return projection

    def span(self, layers: int, nearest_first: bool = False) -> slice:
        """Which of so many layers are read.

        Arguments:
            layers: number of layers on offer.
            nearest_first: whether the first of them is nearest to the reader, and not the last.
        """
        if not self.window or self.window >= layers:
            return slice(0, layers)
        return slice(0, self.window) if nearest_first else slice(layers - self.window, layers)

    def cell(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the cells in which pixels of a map of this size share a key."""
        return size if self.share_keys else (min(self.key_pool, size[0]), min(self.key_pool, size[1]))

    def pool(self, key: Tensor, size: tuple[int, int]) -> Tensor:
        """A key for every cell of a grid.

        Arguments:
            key: ``[B, d, H, W]``, or pooled already.
            size: (H, W), of the grid.

        Returns:
            ``[B, d, h, w]``, one number for each cell; ``key`` itself where there is nothing to do.
        """
        cell = self.cell(size)
        if cell == (1, 1) or tuple(key.shape[2:]) != size:
            return key
        sums = in_cells(key, cell).sum((3, 5))  # pooling by torch would keep its input for the backward pass
        return sums / in_cells(key.new_ones(1, 1, *size), cell).sum((3, 5))


EXACT = DepthApproximation()


def in_cells(x: Tensor, cell: tuple[int, int]) -> Tensor:
    """A map ``[B, C, H, W]`` cut into cells, ``[B, C, rows, cell height, columns, cell width]``; those at the lower and
    right border are filled with zeros."""
    below, right = -x.shape[2] % cell[0], -x.shape[3] % cell[1]
    if below or right:
        x = F.pad(x, (0, right, 0, below))
    return x.unflatten(3, (-1, cell[1])).unflatten(2, (-1, cell[0]))


def from_cells(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`in_cells`, for a map of ``size``."""
    return x.flatten(4, 5).flatten(2, 3)[:, :, : size[0], : size[1]]


def scores_in_cells(query: Tensor, keys: Tensor, cell: tuple[int, int]) -> Tensor:
    r"""Scores :math:`s(p)^\top k_j(\mathrm{cell}(p))`, ``[B, n, H, W]``.

    Arguments:
        query: ``[B, d, H, W]``.
        keys: ``[B, n, d, rows, columns]``.
        cell: height and width of a cell.
    """
    scores = torch.einsum("bdhpwq,bjdhw->bjhpwq", in_cells(query, cell), keys)
    return from_cells(scores, (query.shape[2], query.shape[3]))
