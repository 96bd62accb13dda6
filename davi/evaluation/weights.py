r"""Importance weights of independent chains, as logarithms.

For weights :math:`w_1, \dots, w_M`, each an unbiased estimate of what is sought, all that is reported comes from the
weights themselves: their mean, its standard error :math:`s / \sqrt M` with the sample standard deviation s, and

.. math:: \text{effective samples} = \frac{\bigl(\sum_m w_m\bigr)^2}{\sum_m w_m^2},

M where all weights are equal and 1 where one outweighs the rest. The mean of :math:`\log w` is lower than the log of
the mean (Jensen), and its spread says nothing of the error of the latter.

References:
    On the Quantitative Analysis of Deep Belief Networks, R. Salakhutdinov, I. Murray, ICML 2008,
    https://doi.org/10.1145/1390156.1390266 (the interval)

    Annealed Importance Sampling, R. M. Neal, Statistics and Computing 2001, https://arxiv.org/abs/physics/9803008
    (the effective number of samples)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """Weights of independent chains (module docstring).

    Arguments:
        logs: log w, float64, ``[M]``, nats; -inf is a weight of 0.
    """

    logs: Tensor

    @property
    def log_mean(self) -> float:
        """Log of the mean weight, nats."""
        return float(self.logs.logsumexp(0)) - math.log(len(self.logs))

    def interval(self, sigmas: float = 3.0) -> tuple[float, float]:
        """Logs of the mean weight less and plus ``sigmas`` standard errors, nats.

        The lower one is -inf where the interval contains 0. One weight alone has no standard error: everything is
        possible.
        """
        if len(self.logs) == 1:
            return -math.inf, math.inf
        highest = float(self.logs.max())
        if highest == -math.inf:
            return -math.inf, -math.inf
        relative = (self.logs - highest).exp()
        mean = float(relative.mean())
        margin = sigmas * float(relative.std()) / math.sqrt(len(relative))
        low = highest + math.log(mean - margin) if mean > margin else -math.inf
        return low, highest + math.log(mean + margin)

    @property
    def effective_samples(self) -> float:
        """As many independent, equal weights would give as good a mean; 0 where all weights are 0."""
        highest = float(self.logs.max())
        if highest == -math.inf:
            return 0.0
        relative = (self.logs - highest).exp()
        return float(relative.sum() ** 2 / relative.square().sum())


def of_chains(logs: Tensor) -> Weights:
    """Weights in the form that :class:`Weights` expects: float64, on the CPU, without gradients."""
    return Weights(logs.detach().cpu().to(torch.float64))
