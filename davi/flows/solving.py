"""Where an increasing function of one number takes a given value: Newton's method within a shrinking bracket."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_ITERATIONS = 200


@torch.no_grad()
def solve_increasing(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    width: Tensor | None = None,
    least: Tensor | float = 0.0,
) -> Tensor:
    """The a with function(a) = target.

    Newton's steps where they lie within the bracket and at least halve from one to the next, else half of the bracket.
    It ends when a step is lost in rounding. Each solution is found by itself, whatever else is in the batch.

    Arguments:
        function: gives values and slopes, of each number by itself.
        target: of any shape, as are the following.
        start: the first a.
        low, high: the lowest and the highest a possible.
        width: high - low, where it is known without rounding.
        least: a step of this size times the relative rounding error is lost in rounding, however small the a.
    """
    a = start
    last = high - low if width is None else width
    found = torch.zeros_like(target, dtype=torch.bool)
    epsilon = torch.finfo(target.dtype).eps
    for _ in range(MOST_ITERATIONS):
        value, slope = function(a)
        low, high = torch.where(value < target, a, low), torch.where(value < target, high, a)
        newton = a - (value - target) / slope
        trusted = (newton >= low) & (newton <= high) & (2 * (newton - a).abs() <= last)
        following = torch.where(found, a, torch.where(trusted, newton, (low + high) / 2))
        last = (following - a).abs()
        found = last <= epsilon * (following.abs() + least)
        a = following
        if bool(found.all()):
            break
    return a
