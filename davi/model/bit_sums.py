r"""Sums over all states of a layer of bits, without an exponential or a logarithm for every unit of every state.

The partition function of two layers of bits is, summed over one of them,

.. math:: Z = \sum_u e^{f \cdot u} \prod_i \bigl(1 + e^{\eta_i(u)}\bigr), \qquad \eta(u) = o + W^\top u

With u cut into high and low bits, :math:`e^{\eta_i} = A_i(\mathrm{high})\, B_i(\mathrm{low})`, and the product over a
group G of units is a product of two matrices, with a column for each subset of the group,

.. math:: \prod_{i \in G} (1 + A_i B_i) = \sum_{S \subseteq G} \Bigl(\prod_{i \in S} A_i\Bigr)
          \Bigl(\prod_{i \in S} B_i\Bigr)

Its terms are positive, so nothing cancels. Logarithms are taken only where products might overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUP = 4
"""Units in a group."""
LARGEST = 600.0
"""Nats of the largest product that is made; exponentials of 709 overflow."""
_LOW_BITS = 8


@torch.no_grad()
def log_sum(field: Tensor, offset: Tensor, weights: Tensor, at_once: int = 2**16) -> Tensor | None:
    """log Z of the module docstring, a scalar, nats; None where the exponentials of a group might overflow.

    Arguments:
        field: f, float64, ``[bits]``.
        offset: o, ``[units]``.
        weights: W, ``[bits, units]``.
        at_once: states in memory, at least 256, each as a few numbers.
    """
    reach = offset.abs() + weights.abs().sum(0)  # of either sign, in the two factors as well
    if not GROUP * float(reach.max()) <= LARGEST:
        return None
    missing = -len(offset) % GROUP
    offset, weights = pad(offset, (0, missing), value=-math.inf), pad(weights, (0, missing))  # factors of 1
    segments = _segments((offset + weights.clamp(min=0.0).sum(0)).relu() + math.log(2.0))
    bits = len(weights)
    cut = min(bits, _LOW_BITS)
    low = _states(0, 2**cut, cut, weights)
    right = _subsets((offset + low @ weights[:cut]).exp())
    total = field.new_full((), -torch.inf)
    rows = max(1, at_once // 2**cut)
    for first in range(0, 2 ** (bits - cut), rows):
        high = _states(first, min(rows, 2 ** (bits - cut) - first), bits - cut, weights)
        left = _subsets((high @ weights[cut:]).exp()).mT
        log_p = (high @ field[cut:])[:, None] + low @ field[:cut]  # [rows, low states]
        factor = torch.empty_like(log_p)
        for start, *others in segments:
            product = left[start] @ right[start]
            for group in others:
                product.mul_(torch.mm(left[group], right[group], out=factor))
            log_p += product.log_()
        total = torch.logaddexp(total, log_p.flatten().logsumexp(0))
    return total


def _states(first: int, count: int, bits: int, like: Tensor) -> Tensor:
    """Numbers from ``first`` on as bits, the lowest first, ``[count, bits]``."""
    numbers = torch.arange(first, first + count, device=like.device)
    return (numbers[:, None] >> torch.arange(bits, device=like.device) & 1).to(like.dtype)


def _subsets(factors: Tensor) -> Tensor:
    """Of factors ``[B, units]`` the products over all subsets of each group of units, ``[groups, 2^GROUP, B]``."""
    grouped = factors.T.reshape(-1, GROUP, len(factors))
    found = torch.ones_like(grouped[:, :1])
    for place in range(GROUP):
        found = torch.cat([found, found * grouped[:, place : place + 1]], 1)
    return found


def _segments(growth: Tensor) -> list[list[int]]:
    """Groups whose factors can be multiplied without overflow, given the largest logarithm of each unit's."""
    segments: list[list[int]] = []
    room = 0.0
    for group, nats in enumerate(growth.view(-1, GROUP).sum(1).tolist()):
        if nats > room:
            segments.append([])
            room = LARGEST
        segments[-1].append(group)
        room -= nats
    return segments
