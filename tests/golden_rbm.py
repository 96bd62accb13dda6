"""A restricted Boltzmann machine of six visible and four hidden units, all of whose states are listed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from davi.models.rbm import RBM, RBMConfig

SHAPE, HIDDEN = (1, 2, 3), 4
LOG_Z = 7.577492827519375


def golden() -> RBM:
    """W_ij = .8 sin(i + 2 j + 1), b_i = .1 (i - 2), c_j = .2 (j - 1), in float64."""
    model = RBM(SHAPE, 2, RBMConfig(HIDDEN)).double().eval()
    dtype = torch.float64
    with torch.no_grad():
        model.weight.copy_(
            torch.tensor([[0.8 * math.sin(i + 2 * j + 1) for j in range(HIDDEN)] for i in range(6)], dtype=dtype)
        )
        model.b.copy_(torch.tensor([0.1 * (i - 2) for i in range(6)], dtype=dtype).view(SHAPE))
        model.c.copy_(torch.tensor([0.2 * (j - 1) for j in range(HIDDEN)], dtype=dtype))
    return model


def states() -> Tensor:
    """All visible states, ``[64, 1, 2, 3]``, in the order of the units' own list."""
    like = torch.empty(0, dtype=torch.float64)
    return golden().visible.states(0, 64, like)


def place(v: Tensor) -> Tensor:
    """Where visible states stand among :func:`states`, ``[B]``."""
    return (v.flatten(1).long() * 2 ** torch.arange(6)).sum(1)


@torch.no_grad()
def log_probabilities(model: RBM, beta: float = 1.0, base: Tensor | None = None) -> Tensor:
    """Of all visible states at a place of the path, ``[64]``."""
    base = torch.zeros(SHAPE, dtype=torch.float64) if base is None else base
    negative = -model.path_free_energy(states(), beta, base)
    return negative - negative.logsumexp(0)


@torch.no_grad()
def transitions(model: RBM) -> Tensor:
    """T: p(v' | v) of one step of Gibbs sampling, by the sum over all hidden states, ``[64, 64]``."""
    h = model.hidden.states(0, 2**HIDDEN, torch.empty(0, dtype=torch.float64))
    up, down = model.hidden_input(states()), model.visible_input(h)
    p_h = torch.stack([_bernoulli(logits, h) for logits in up])  # [64, 16]
    p_v = torch.stack([_bernoulli(logits.flatten(), states().flatten(1)) for logits in down])  # [16, 64]
    return p_h @ p_v


def _bernoulli(logits: Tensor, bits: Tensor) -> Tensor:
    p = logits.sigmoid()
    return torch.where(bits > 0, p, 1.0 - p).prod(1)
