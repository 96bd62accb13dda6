"""What hidden units look for, as pictures."""

from __future__ import annotations

import torch
from contract import small

from davi.layers.units import Bits, GaussianUnits, Potts
from davi.model.filters import combined, per_level
from davi.models import RBM


def test_the_filters_of_an_rbm_are_its_couplings() -> None:
    rbm = small("rbm_digits_tiny", (1, 2, 3), 2)
    assert isinstance(rbm, RBM)
    found = rbm.receptive_fields(1)
    assert rbm.filter_layers == 1
    assert not found.requires_grad
    torch.testing.assert_close(found, rbm.weight.detach().T.reshape(-1, 1, 2, 3), rtol=0.0, atol=1e-6)


def test_a_unit_above_looks_for_a_combination_of_what_those_below_look_for() -> None:
    below = torch.randn(4, 1, 2, 3, dtype=torch.float64)
    weights = torch.randn(5, 4, dtype=torch.float64)
    found = combined(weights, below)
    assert found.shape == (5, 1, 2, 3)
    for j in range(5):
        torch.testing.assert_close(found[j], sum(weights[j, i] * below[i] for i in range(4)))


def test_one_hot_units_are_shown_by_the_slope_over_levels() -> None:
    units = Potts((1, 2, 2, 5))
    weights = torch.randn(3, *units.shape, dtype=torch.float64)
    found = per_level(weights, units)
    assert found.shape == (3, 1, 2, 2)
    # To first order, in proportion to how the expected level changes where all levels are equally probable.
    natural = torch.zeros_like(weights).requires_grad_()
    levels = torch.arange(5.0, dtype=torch.float64)
    expected = units.mean(natural) @ levels
    (slope,) = torch.autograd.grad(expected.sum(), natural)
    first_order = (slope * weights).sum(-1)
    torch.testing.assert_close(found * levels.var(unbiased=False), first_order)
    shifted = weights + torch.randn(3, 1, 2, 2, 1, dtype=torch.float64)  # the gauge
    torch.testing.assert_close(per_level(shifted, units), found)


def test_a_binary_unit_is_a_unit_of_two_levels() -> None:
    weights = torch.randn(3, 1, 2, 2, 2)
    two = per_level(weights, Potts((1, 2, 2, 2)))
    torch.testing.assert_close(two, weights[..., 1] - weights[..., 0])
    for units in (Bits((1, 2, 2)), GaussianUnits((1, 2, 2))):
        assert per_level(two, units) is two
