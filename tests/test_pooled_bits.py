"""Units in blocks of which at most one is on, by lists of all their states."""

from __future__ import annotations

import math

import pytest
import torch
from contract import assert_frequencies, seeded
from torch import Tensor
from torch.nn.functional import softplus

from davi.layers.pooled_bits import PooledBits


def all_states(units: PooledBits) -> Tensor:
    """Every state once."""
    return units.states(0, round(2**units.log2_states), torch.empty(0, dtype=torch.float64))


def test_probabilities_of_a_block_by_hand() -> None:
    natural = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64).view(1, 1, 2, 2)
    units = PooledBits((1, 2, 2), 2)
    expected = torch.tensor([0.1148277, 0.0312942, 0.6285608, 0.1402509], dtype=torch.float64)
    torch.testing.assert_close(units.mean(natural).flatten(), expected, rtol=0.0, atol=5e-8)
    assert float(units.pooled_mean(natural)) == pytest.approx(1.0 - 0.0850665, abs=5e-8)


@pytest.mark.parametrize(("shape", "block"), [((2, 2, 2), 1), ((2, 4, 2), 2), ((1, 3, 5), 2), ((1, 4, 5), 3)])
def test_units_are_the_exponential_family_of_their_states(shape: tuple[int, int, int], block: int) -> None:
    """All states of all blocks, the smaller ones at the border as well."""
    units = PooledBits(shape, block)
    states = all_states(units)
    assert len(torch.unique(states.flatten(1), dim=0)) == len(states)
    assert set(units.pool(states).unique().tolist()) == {0.0, 1.0}
    sizes = [
        min(block, shape[1] - i) * min(block, shape[2] - j)
        for i in range(0, shape[1], block)
        for j in range(0, shape[2], block)
    ]
    assert len(states) == math.prod(size + 1 for size in sizes) ** shape[0]
    natural = torch.randn(1, *shape, dtype=torch.float64, generator=seeded()).requires_grad_()
    log_p = (natural * states).flatten(1).sum(1)
    a = units.log_partition(natural)
    torch.testing.assert_close(a, log_p.logsumexp(0)[None], rtol=0.0, atol=1e-12)
    p = (log_p - a).exp()
    torch.testing.assert_close(units.mean(natural)[0], torch.tensordot(p, states, 1), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(units.pooled_mean(natural)[0], torch.tensordot(p, units.pool(states), 1))
    (slope,) = torch.autograd.grad(a.sum(), natural)
    torch.testing.assert_close(units.mean(natural), slope, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (0.3, 0.30001), (0.0, 1e-9)])
def test_a_small_step_on_the_path_keeps_its_digits(lower: float, upper: float) -> None:
    units = PooledBits((2, 3, 5), 2)
    natural = 30.0 * torch.randn(4, 2, 3, 5, dtype=torch.float64, generator=seeded())
    found = units.log_partition_change(natural, lower, upper)
    grid = torch.linspace(lower, upper, 4001, dtype=torch.float64)[:, None, None, None]
    slopes = torch.stack([(x * units.mean(grid * x)).flatten(1).sum(1) for x in natural])  # dA / d beta
    expected = torch.trapezoid(slopes, grid.flatten())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    single = units.log_partition_change(natural.float(), lower, upper).double()
    torch.testing.assert_close(single, found, rtol=1e-5, atol=0.0)


def test_natural_parameters_of_a_mean() -> None:
    units = PooledBits((2, 3, 2), 2)
    natural = torch.randn(3, 2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(units.natural(units.mean(natural)), natural)


def test_blocks_of_one_unit_are_bits() -> None:
    natural = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    units = PooledBits((2, 3, 3), 1)
    torch.testing.assert_close(units.log_partition(natural), softplus(natural).flatten(1).sum(1))
    torch.testing.assert_close(units.mean(natural), natural.sigmoid())


def test_at_most_one_unit_of_a_block_is_drawn_and_with_its_probability() -> None:
    units = PooledBits((1, 3, 2), 2)
    states = all_states(units)
    natural = torch.randn(1, 1, 3, 2, dtype=torch.float64, generator=seeded())
    for temperature in (1.0, 2.0):
        drawn = units.sample(natural.expand(4000, -1, -1, -1), seeded(), temperature)
        assert float(units.pool(drawn).max()) == 1.0
        found = (drawn[:, None] == states).flatten(2).all(2)
        assert bool(found.any(1).all())
        log_p = (natural / temperature * states).flatten(1).sum(1).log_softmax(0)
        assert_frequencies(found.double().argmax(1), log_p)
    sure = units.sample(torch.full((50, 1, 3, 2), 500.0), seeded())  # in float32
    assert bool((units.pool(sure) == 1.0).all())


def test_every_unit_of_a_block_that_is_on_is_equally_probable() -> None:
    units = PooledBits((1, 3, 2), 2)
    states = all_states(units)
    pooled = torch.tensor([1.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1)
    on = states[(units.pool(states) == pooled).flatten(1).all(1)]
    assert len(on) == 4 * 2
    drawn = units.unpool(pooled.expand(4000, -1, -1, -1), seeded())
    found = (drawn[:, None] == on).flatten(2).all(2)
    log_p = units.log_unpool(pooled).expand(8)
    assert_frequencies(found.double().argmax(1), log_p)
    assert float(units.unpool(torch.zeros(9, 1, 2, 1)).max()) == 0.0
    assert torch.equal(units.spread(pooled), torch.ones(1, 1, 3, 2, dtype=torch.float64))
