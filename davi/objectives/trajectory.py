r"""The partition function of an energy in training, by annealed importance sampling along its trajectory.

The path that annealed importance sampling needs, from independent units to the model, is there already: training goes
along it. Chains begin with exact draws of units without couplings, whose log Z is known. When an update takes the
weights from :math:`\theta_t` to :math:`\theta_{t+1}`, every chain is weighted, then moved by one step of Gibbs
sampling:

.. math:: \log w \leftarrow \log w + F_t(v) - F_{t+1}(v), \qquad v \sim T_{t+1}(\cdot \mid v)

and the mean of the weights is an unbiased estimate of :math:`Z_t / Z_0` at any time. They grow apart with the length of
the way: how many chains still count, their effective number :math:`(\sum w)^2 / \sum w^2` says. Where it falls below
half of the chains they are drawn anew, each in proportion to its weight, and all weigh what they weighed in the mean:
the estimate stays unbiased, and the relative variances of the weights add up from one such time to the next.

The first part of the way, from units without couplings to the initial weights, is a single step where these are small.
Where that leaves less than half of the chains, such as in weights that have been trained, it is :data:`TEMPERATURES`
steps along the path of :mod:`davi.model.harmonium`. High learning rates outrun the chains: the weights then change more
from one update to the next than one step of sampling can follow. When the error has grown above :data:`LARGEST_ERROR`
and somebody asks, the chains begin again, in as many steps, though at most once in :data:`PAUSE` updates.

References:
    Annealed Importance Sampling, R. M. Neal, Statistics and Computing 2001, https://doi.org/10.1023/A:1008923215028

    Sequential Monte Carlo samplers, P. Del Moral, A. Doucet, A. Jasra, Journal of the Royal Statistical Society B 2006,
    https://doi.org/10.1111/j.1467-9868.2006.00553.x (chains that are drawn anew)

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
"""Steps to weights that are far from none."""
PAUSE = 2000
"""Updates between two such beginnings: they take less than a tenth of the time."""
LARGEST_ERROR = 0.5
"""Of log Z, nats; with a larger one an estimate is not told."""


class Trajectory:
    """Importance chains along the trajectory of training (module docstring).

    Arguments:
        chains: M.
    """

    since: Tensor
    """Updates since the chains began, a scalar."""
    base: Tensor
    """Fields of the independent units, ``[*visible.shape]``."""
    v: Tensor
    """Visible states, ``[M, *visible.shape]``."""
    free_energy: Tensor
    """Theirs, with the newest weights, ``[M]``."""
    log_weights: Tensor
    """log Z_0 + log w, float64, ``[M]``."""
    variance: Tensor
    """Relative variance of the mean of the weights up to the last time that chains were drawn anew, a scalar."""

    def __init__(self, chains: int) -> None:
        self.chains = chains

    @torch.no_grad()
    def begin(self, model: Harmonium) -> None:
        """Go from units without couplings, with the visible fields that the model begins with, to its initial
        weights."""
        self.base = model.visible_field().detach().clone()
        self._start(model, 1)
        if self.error() > self.chains**-0.5:  # less than half of them counted
            self._start(model, TEMPERATURES)

    def _start(self, model: Harmonium, steps: int) -> None:
        base = self.base
        self.v = model.visible.sample(base.expand(self.chains, *base.shape))
        self.log_weights = model.path_log_z(base).expand(self.chains).clone()
        self.variance, self.since = torch.zeros((2,), dtype=torch.float64, device=base.device).unbind()
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
        self.since = self.since + 1.0
        now = model.clamp(self.v)
        self.log_weights += (self.free_energy - now.free_energy).double()
        kept = self._draw_anew()
        h = model.hidden.sample(now.inputs[kept])
        self.v = model.visible.sample(model.visible_input(h))
        self.free_energy = model.clamp(self.v).free_energy

    def _draw_anew(self) -> Tensor:
        """Where few chains count, the numbers of those that go on, each in proportion to its weight (one uniform number
        for all: systematic resampling); else of all, ``[M]``. The host does not learn which."""
        log_w, count = self.log_weights, self.chains
        effective = self._effective()
        few = effective < 0.5 * count
        places = (torch.arange(count, device=log_w.device) + torch.rand_like(log_w[:1])) / count
        drawn = torch.searchsorted(log_w.softmax(0).cumsum(0), places).clamp(max=count - 1)
        self.log_weights = torch.where(few, self.log_z(), log_w)
        self.variance = self.variance + torch.where(few, 1.0 / effective - 1.0 / count, 0.0)
        return torch.where(few, drawn, torch.arange(count, device=log_w.device))

    def log_z(self) -> Tensor:
        """The estimate of log Z, a float64 scalar, nats."""
        return self.log_weights.logsumexp(0) - math.log(self.chains)

    def _effective(self) -> Tensor:
        return (2.0 * self.log_weights.logsumexp(0) - (2.0 * self.log_weights).logsumexp(0)).exp()

    def effective_samples(self) -> float:
        """Effective number of chains."""
        return float(self._effective())

    def error(self) -> float:
        """Standard error of log Z: that of the mean of the weights, relative to it."""
        return math.sqrt(max(0.0, float(self.variance) + 1.0 / self.effective_samples() - 1.0 / self.chains))

    @torch.no_grad()
    def reports(self, model: Harmonium, free_energy: float) -> Mapping[str, float]:
        """log Z, its standard error, the effective number, and the log-likelihood of images of a mean free energy;
        nothing while the error is too large."""
        if self.error() > LARGEST_ERROR and float(self.since) > PAUSE:
            self._start(model, TEMPERATURES)
        if self.error() > LARGEST_ERROR:
            return {}
        log_z = float(self.log_z())
        own = {"log_z": log_z, "log_z_error": self.error(), "effective_samples": self.effective_samples()}
        return {"log_likelihood": -free_energy - log_z, **own}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        own = {"states": self.v, "free_energy": self.free_energy, "log_weights": self.log_weights}
        own |= {"variance": self.variance, "since": self.since, "base": self.base}
        return {f"trajectory/{name}": tensor for name, tensor in own.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        names = ("states", "free_energy", "log_weights", "variance", "since", "base")
        found = [tensors[f"trajectory/{name}"].clone() for name in names]
        self.v, self.free_energy, self.log_weights, self.variance, self.since, self.base = found
