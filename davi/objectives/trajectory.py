r"""The partition function of an energy in training, by annealed importance sampling along its trajectory.

The path that annealed importance sampling needs, from independent units to the model, is there already: training goes
along it. Chains begin with exact draws of units without couplings, whose log Z is known. When an update takes the
weights from :math:`\theta_t` to :math:`\theta_{t+1}`, every chain is weighted, then moved by one step of Gibbs
sampling:

.. math:: \log w \leftarrow \log w + F_t(v) - F_{t+1}(v), \qquad v \sim T_{t+1}(\cdot \mid v)

and the mean of the weights is an unbiased estimate of :math:`Z_t / Z_0` at any time. They grow apart with the length of
the way: how many chains still count, their effective number :math:`(\sum w)^2 / \sum w^2` says.

The first part of the way, from units without couplings to the initial weights, is a single step where these are small.
Where that leaves less than half of the chains, such as in weights that have been trained, it is :data:`TEMPERATURES`
steps along the path of :mod:`davi.model.harmonium`.

References:
    Annealed Importance Sampling, R. M. Neal, Statistics and Computing 2001, https://doi.org/10.1023/A:1008923215028

    Fast training and sampling of Restricted Boltzmann Machines, N. Béreux, A. Decelle, C. Furtlehner, L. Rosset,
    B. Seoane, ICLR 2025, https://arxiv.org/abs/2405.15376 (along the trajectory)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from davi.model import Harmonium

TEMPERATURES = 1000
"""Steps to initial weights that are far from none."""


class Trajectory:
    """Importance chains along the trajectory of training (module docstring).

    Arguments:
        chains: M.
    """

    v: Tensor
    """Visible states, ``[M, *visible.shape]``."""
    free_energy: Tensor
    """Theirs, with the newest weights, ``[M]``."""
    log_weights: Tensor
    """log Z_0 + log w, float64, ``[M]``."""

    def __init__(self, chains: int) -> None:
        self.chains = chains

    @torch.no_grad()
    def begin(self, model: Harmonium) -> None:
        """Go from units without couplings to a model's initial weights."""
        self._start(model, 1)
        if self.effective_samples() < 0.5 * self.chains:
            self._start(model, TEMPERATURES)

    def _start(self, model: Harmonium, steps: int) -> None:
        base = model.visible_field().detach()
        self.v = model.visible.sample(base.expand(self.chains, *base.shape))
        self.log_weights = model.path_log_z(base).expand(self.chains).clone()
        for step in range(steps):
            beta, next_ = step / steps, (step + 1) / steps
            self.free_energy = model.path_free_energy(self.v, beta, base)
            if step + 1 < steps:
                self.log_weights += (self.free_energy - model.path_free_energy(self.v, next_, base)).double()
                self.v = model.path_gibbs(self.v, next_, base)
        self.follow(model)

    @torch.no_grad()
    def follow(self, model: Harmonium) -> None:
        """Weight the chains for an update that has been made, and move them."""
        now = model.clamp(self.v)
        self.log_weights += (self.free_energy - now.free_energy).double()
        h = model.hidden.sample(now.inputs)
        self.v = model.visible.sample(model.visible_input(h))
        self.free_energy = model.clamp(self.v).free_energy

    def log_z(self) -> Tensor:
        """The estimate of log Z, a float64 scalar, nats."""
        return self.log_weights.logsumexp(0) - math.log(self.chains)

    def effective_samples(self) -> float:
        """Effective number of chains."""
        return float((2.0 * self.log_weights.logsumexp(0) - (2.0 * self.log_weights).logsumexp(0)).exp())

    def reports(self) -> Mapping[str, float]:
        """log Z, its standard error (that of the mean of the weights, relative to it), and the effective number."""
        effective = self.effective_samples()
        error = math.sqrt(max(0.0, 1.0 / effective - 1.0 / self.chains))
        return {"log_z": float(self.log_z()), "log_z_error": error, "effective_samples": effective}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        own = {"states": self.v, "free_energy": self.free_energy, "log_weights": self.log_weights}
        return {f"trajectory/{name}": tensor for name, tensor in own.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        self.v, self.free_energy, self.log_weights = (
            tensors[f"trajectory/{name}"].clone() for name in ("states", "free_energy", "log_weights")
        )
