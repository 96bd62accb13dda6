r"""The importance-weighted bound for every K from one pass over the draws.

With :math:`K_{\max}` log weights :math:`a_k` of an image, :math:`L_K` is estimated from groups of K draws that do not
overlap, in the order in which they were drawn:

.. math:: \hat L_K = \frac 1{\lfloor K_{\max} / K \rfloor} \sum_{g=0}^{\lfloor K_{\max} / K \rfloor - 1}
          \log \frac 1K \sum_{k = gK + 1}^{(g + 1) K} e^{a_k}

Each group is a draw of the bound's integrand, so the mean over groups is unbiased for :math:`L_K`, whatever K is; draws
that fill no group are left out. K doubles from 1 on, and a group of 2K consists of two groups of K: by Jensen's
inequality the estimates from the same whole groups never fall with K, not even by chance.

The groups are merged like the digits of a binary counter. What is kept is a sum and at most one open group for each K,
float64, whatever :math:`K_{\max}` is.

References:
    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from davi.evaluation.streaming import LogMeanExp, double


def sizes(samples: int) -> tuple[int, ...]:
    """The K of a curve: 1, 2, 4, ... and the largest.

    Example:
        >>> sizes(12)
        (1, 2, 4, 8, 12)
    """
    doubling = tuple(2**level for level in range(samples.bit_length()))
    return doubling if doubling[-1] == samples else (*doubling, samples)


@final
class BoundCurve:
    """Streams the estimates of :math:`L_K` (module docstring).

    Arguments:
        samples: the largest K, which is how many draws will be added.

    Example:
        >>> curve = BoundCurve(3)
        >>> curve.add(torch.tensor([[0.0], [0.0], [0.0]]))
        >>> curve.result().flatten().tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, samples: int) -> None:
        self.sizes = sizes(samples)
        doubling = samples.bit_length()
        self._sums: list[Tensor | None] = [None] * doubling
        self._groups = [0] * doubling
        self._open: list[Tensor | None] = [None] * doubling  # a group of K that waits for its other half, [1, B]
        self._all = LogMeanExp()

    def add(self, log_weights: Tensor) -> None:
        """Count in some more log weights, ``[k, B]`` with any k from 1."""
        groups = double(log_weights)
        self._all.add(groups)
        for level in range(len(self._sums)):
            total, waiting = self._sums[level], self._open[level]
            added = groups.sum(0)
            self._sums[level] = added if total is None else total + added
            self._groups[level] += len(groups)
            if waiting is not None:
                groups = torch.cat([waiting, groups])
            whole = len(groups) // 2 * 2
            self._open[level] = groups[whole:].clone() if len(groups) > whole else None
            if not whole:
                return
            groups = torch.logaddexp(groups[0:whole:2], groups[1:whole:2])

    def groups(self) -> tuple[int, ...]:
        """How many groups are behind the estimate for each of :attr:`sizes`."""
        return tuple(self._groups[: len(self.sizes)]) + (1,) * (len(self.sizes) - len(self._groups))

    def result(self) -> Tensor:
        """The estimates for each of :attr:`sizes`, ``[sizes, B]``, float64, nats.

        Raises:
            ValueError: if too few draws were added.
        """
        found = []
        for level, (total, groups) in enumerate(zip(self._sums, self._groups, strict=True)):
            if total is None:
                raise ValueError(f"log weights: got fewer than {2**level}, expected {self.sizes[-1]} of each image")
            found.append(total / groups - level * math.log(2.0))
        if len(self.sizes) > len(found):
            found.append(self._all.result())
        return torch.stack(found)
