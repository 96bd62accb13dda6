"""Sums over all states of bits, by products of matrices, against the plain sum."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from davi.model import bit_sums
from davi.model.bit_sums import log_sum


def plain(field: Tensor, offset: Tensor, weights: Tensor) -> Tensor:
    u = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(field))), dtype=torch.float64)
    inputs = offset + u @ weights
    # Not torch's softplus, which leaves out 2e-9 of numbers above 20.
    return (u @ field + torch.logaddexp(inputs, torch.zeros_like(inputs)).sum(1)).logsumexp(0)


def case(bits: int, units: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(bits)
    a, b, w = (scale * torch.randn(*shape).double() for shape in ((bits,), (units,), (bits, units)))
    return a, b, w


@pytest.mark.parametrize(("bits", "units"), [(1, 1), (3, 6), (8, 4), (10, 13), (11, 200)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_it_is_the_plain_sum(bits: int, units: int, scale: float) -> None:
    """With bits that are all low ones, groups that are not full, and products that would overflow without logarithms
    in between."""
    given = case(bits, units, scale)
    found = log_sum(*given)
    assert found is not None
    torch.testing.assert_close(found, plain(*given), rtol=1e-12, atol=1e-12)


def test_it_holds_no_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^12 states, 2^9 at once."""
    given, rows = case(12, 5, 1.0), []
    states = bit_sums._states

    def counted(first: int, count: int, bits: int, like: Tensor) -> Tensor:
        rows.append(count)
        return states(first, count, bits, like)

    monkeypatch.setattr(bit_sums, "_states", counted)
    found = log_sum(*given, at_once=2**9)
    assert found is not None
    torch.testing.assert_close(found, plain(*given), rtol=1e-12, atol=0.0)
    assert rows == [2**8] + [2] * 8  # the low bits; high ones


@pytest.mark.parametrize("where", ["offset", "weights"])
@pytest.mark.parametrize("far", [-1.0, 1.0])
def test_what_might_overflow_is_left_to_others(where: str, far: float) -> None:
    field, offset, weights = case(2, 3, 1.0)
    (offset if where == "offset" else weights)[1] = far * bit_sums.LARGEST / bit_sums.GROUP
    assert log_sum(field, offset, weights) is None
    assert log_sum(field, torch.full_like(offset, math.nan), weights) is None
