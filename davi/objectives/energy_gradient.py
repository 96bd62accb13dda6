r"""The gradient of free energies, in closed form.

With the symbols of :mod:`davi.model.harmonium`, and P the projection that fixes the gauge of the visible units

.. math:: \frac{\partial F}{\partial W} = -P v \, E[h \mid v]^\top, \qquad
          \frac{\partial F}{\partial b} = -P v, \qquad \frac{\partial F}{\partial c} = -E[h \mid v]

Autograd finds the same, but takes longer: it notes every operation on the way there.

References:
    A Practical Guide to Training Restricted Boltzmann Machines, G. E. Hinton, 2012,
    https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf
"""

from __future__ import annotations

import torch
from torch import Tensor

from davi.model import Clamped, Harmonium, WithCouplings


@torch.no_grad()
def add_gradient(model: Harmonium, clamped: Clamped, weights: Tensor) -> None:
    r"""Add the gradient of :math:`\sum_n a_n F(v_n)` to those of the parameters.

    Arguments:
        model: the energy, with couplings that are a matrix.
        clamped: its visible states, ``[B, ...]``.
        weights: a, of whatever sign, ``[B]``.
    """
    assert isinstance(model, WithCouplings)
    negative = -weights
    v = model.visible.gauge_fixed(clamped.v).flatten(1)
    h = model.hidden.mean(clamped.inputs) * negative[:, None]
    # In memory the gradient of W lies as W does, hidden units first, without which the update takes longer.
    found = ((h.T @ v).T, (negative @ v).view_as(model.couplings.b), h.sum(0))
    for parameter, gradient in zip(model.couplings, found, strict=True):
        if parameter.requires_grad:
            gradient = gradient.to(parameter.dtype)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
