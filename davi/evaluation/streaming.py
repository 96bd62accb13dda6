r"""Streaming sums over importance samples, none of which is kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def double(x: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class LogMeanExp:
    r"""Streams :math:`\log \frac 1K \sum_k e^{a_k}` over k in float64: a running maximum and a running sum.

    Example:
        >>> stream = LogMeanExp()
        >>> stream.add(torch.tensor([[0.0], [0.0]]))
        >>> stream.result()
        tensor([0.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._highest: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Count in some more ``a_k``, ``[k, B]`` with any k from 1."""
        values = double(values)
        top = values.max(0).values  # [B]
        if self._highest is None or self._sum is None:
            self._highest, self._sum = top, torch.zeros_like(top)
        highest = torch.maximum(self._highest, top)
        # Where all values so far are -inf, any finite reference gives the right sum, 0; -inf itself would give NaN.
        reference = torch.where(highest == -torch.inf, 0.0, highest)
        self._sum = self._sum * (self._highest - reference).exp() + (values - reference).exp().sum(0)
        self._highest = highest
        self._count += len(values)

    def result(self) -> Tensor:
        """``[B]``, float64.

        Raises:
            ValueError: if nothing was added.
        """
        if self._highest is None or self._sum is None:
            raise ValueError("log-mean-exp: got no values, expected at least one")
        reference = torch.where(self._highest == -torch.inf, 0.0, self._highest)
        # ln K is subtracted once, for all K values: subtracting it per chunk would give the bound of the chunk.
        return reference + self._sum.log() - math.log(self._count)
