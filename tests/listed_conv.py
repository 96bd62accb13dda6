"""Convolutional restricted Boltzmann machines so small that all states of their units can be listed."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from davi.layers.pooled_bits import PooledBits
from davi.layers.units import Units
from davi.models.conv_rbm import ConvRBM, ConvRBMConfig


def layer(shape: tuple[int, int, int], filters: int, size: int, pool: int, levels: int = 2) -> ConvRBM:
    """One of random weights, far from independent units."""
    found = ConvRBM(shape, levels, ConvRBMConfig(filters, size, pool, weight_std=1.0)).double().eval()
    with torch.no_grad():
        for field in (found.b, found.c):
            field.copy_(0.5 * torch.randn_like(field))
    return found


def hidden_states(units: PooledBits) -> Tensor:
    return units.states(0, round(2**units.log2_states), torch.empty(0, dtype=torch.float64))


def log_joint(rbm: ConvRBM, v: Tensor, h: Tensor) -> Tensor:
    """Minus the energy of every pair, ``[len(v), len(h)]``: position by position, without a convolution."""
    w, size = rbm.weight.detach(), rbm.config.filter_size
    total = (rbm.b.detach() * v).flatten(1).sum(1)[:, None] + (rbm.c.detach() * h).flatten(1).sum(1)
    for k, i, j in itertools.product(*map(range, rbm.hidden.shape)):
        seen = v[:, :, i : i + size, j : j + size].flatten(1) @ w[k].flatten()
        total = total + seen[:, None] * h[:, k, i, j]
    return total


def log_prob(units: Units, natural: Tensor, states: Tensor) -> Tensor:
    """Of all states given all parameters, ``[len(natural), len(states)]``."""
    linear = natural.detach().flatten(1) @ states.flatten(1).T
    return linear - units.log_partition(natural.detach())[:, None]
