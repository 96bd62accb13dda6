r"""How many steps of a Markov chain are worth an independent draw.

With the autocorrelation :math:`\rho(t)` of a quantity at lag t, the integrated autocorrelation time is

.. math:: \tau = 1 + 2 \sum_{t=1}^{\infty} \rho(t)

A mean over n steps has the variance of a mean over :math:`n / \tau` independent draws. The sum over all lags of an
estimated :math:`\rho` is noise; it is cut at the smallest window W that is at least five steps and five times the sum
so far (Sokal's automatic windowing), which has the relative standard error :math:`\sqrt{2 (2 W + 1) / n}` with n steps
of all chains together (Madras and Sokal). Along the visible units of a Gibbs chain of two layers no correlation is
negative.

Several chains share one mean. If they stay apart, the correlation does not fall to zero however long the lag, and no
window is found: that the time is longer than the chains can tell is then the answer.

References:
    Monte Carlo Methods in Statistical Mechanics: Foundations and New Algorithms, A. Sokal, 1997,
    https://doi.org/10.1007/978-1-4899-0319-8_6

    The Pivot Algorithm: A Highly Efficient Monte Carlo Method for the Self-Avoiding Walk, N. Madras, A. Sokal, Journal
    of Statistical Physics 1988, https://doi.org/10.1007/BF01022990
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_WINDOW = 5
"""Autocorrelation times that a window holds at least."""


@dataclass(frozen=True, eq=False)
class Autocorrelation:
    """The autocorrelation of a quantity along Markov chains.

    Arguments:
        rho: at the lags 0, 1, ..., half the length of the chains; float64. NaN for a quantity that does not vary.
        time: the integrated autocorrelation time in steps; None if it is not reached: no window of at most half the
            length of the chains is long enough.
        standard_error: of the time.
        chains, steps: that it was measured over.
    """

    rho: Tensor
    time: float | None
    standard_error: float | None
    chains: int
    steps: int


def autocorrelation(values: Tensor) -> Autocorrelation:
    """The autocorrelation of a quantity (module docstring).

    Arguments:
        values: along each of some chains, ``[chains, steps]``, at least two steps.
    """
    chains, steps = values.shape
    deviation = values.double() - values.double().mean()
    padded = torch.fft.rfft(deviation, n=2 * steps)  # padded with zeros, so that the ends do not meet
    products = torch.fft.irfft(padded.abs().square(), n=2 * steps)[:, :steps].sum(0)
    pairs = chains * torch.arange(steps, 0, -1, dtype=torch.float64, device=values.device)
    covariance = (products / pairs)[: steps // 2 + 1]
    varies = float(covariance[0]) > 1e-20 * float(values.double().square().mean())
    rho = covariance / covariance[0] if varies else torch.full_like(covariance, math.nan)
    times = 2.0 * rho.cumsum(0) - 1.0
    windows = torch.arange(len(times), dtype=torch.float64, device=values.device)
    enough = (windows >= _WINDOW * times.clamp_min(1.0)).nonzero().flatten()
    if not len(enough):
        return Autocorrelation(rho.cpu(), None, None, chains, steps)
    window = int(enough[0])
    time = float(times[window])
    error = time * math.sqrt(2.0 * (2 * window + 1) / (chains * steps))
    return Autocorrelation(rho.cpu(), time, error, chains, steps)
