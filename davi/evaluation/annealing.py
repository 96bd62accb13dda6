r"""Annealed importance sampling: chains that walk from independent units to an energy, or back.

Along the path of a harmonium (:mod:`davi.model.harmonium`), at the temperatures
:math:`0 = \beta_0 < \dots < \beta_K = 1`, with the unnormalized probabilities :math:`f_k(v) = e^{-F_{\beta_k}(v)}`

.. math:: v_0 \sim f_0 / Z_0, \quad v_k \sim T_k(\cdot \mid v_{k-1}), \qquad
          w = \prod_{k=1}^K \frac{f_k(v_{k-1})}{f_{k-1}(v_{k-1})}, \qquad E[w] = \frac{Z}{Z_0}

where :math:`T_k`, one step of Gibbs sampling, leaves :math:`f_k` as it is. Whatever the number of temperatures the
mean is right; their number decides how much the weights vary. The steps of Gibbs sampling are reversible: the same
ones, taken from :math:`v_{K-1} \sim f_K / Z` down to :math:`\beta_1`, with the inverse ratios, give

.. math:: w' = \prod_{k=K}^1 \frac{f_{k-1}(v_{k-1})}{f_k(v_{k-1})}, \quad v_{k-2} \sim T_{k-1}(\cdot \mid v_{k-1}),
          \qquad E[w'] = \frac{Z_0}{Z}

Logarithms of the ratios are computed without taking differences of free energies, and summed in float64.

References:
    Annealed Importance Sampling, R. M. Neal, Statistics and Computing 2001, https://arxiv.org/abs/physics/9803008

    On the Quantitative Analysis of Deep Belief Networks, R. Salakhutdinov, I. Murray, ICML 2008,
    https://doi.org/10.1145/1390156.1390266 (the path, the base and the temperatures)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from davi.model import Harmonium

Progress = Callable[[int, int], None]
"""Called with how many temperatures are done, and of how many."""

STANDARD_TEMPERATURES = 14_501
"""Of the schedule of Salakhutdinov and Murray, each counted once: steps of 1e-3 up to 0.5, of 1e-4 up to 0.9 and of
1e-5 up to 1."""

SMOOTHING = 5.0
"""The base counts so many more images, of units whose fields are zero."""


def schedule(temperatures: int = STANDARD_TEMPERATURES) -> tuple[float, ...]:
    """So many values of beta from 0 to 1, in the proportions of the standard ones: 1/29 of the steps up to 0.5, 8/29
    up to 0.9, and 20/29 for the last tenth.

    Raises:
        ValueError: if there are fewer than two.
    """
    if temperatures < 2:
        raise ValueError(f"temperatures: got {temperatures}, expected 2 or more")
    places = np.arange(temperatures) * ((STANDARD_TEMPERATURES - 1) / (temperatures - 1))
    return tuple(np.interp(places, (0.0, 500.0, 4500.0, 14500.0), (0.0, 0.5, 0.9, 1.0)).tolist())


def checked(temperatures: int | Sequence[float]) -> tuple[float, ...]:
    """Values of beta: those given, or the :func:`schedule` of so many.

    Raises:
        ValueError: if they do not rise from 0 to 1.
    """
    if isinstance(temperatures, int):
        return schedule(temperatures)
    betas = tuple(float(beta) for beta in temperatures)
    rising = all(lower < upper for lower, upper in itertools.pairwise(betas))
    if len(betas) < 2 or betas[0] != 0.0 or betas[-1] != 1.0 or not rising:
        raise ValueError(f"temperatures: got {str(list(betas))[:60]}, expected numbers that rise from 0 to 1")
    return betas


@torch.no_grad()
def base_field(
    energy: Harmonium, images: Tensor | None, generator: Generator | None = None, smoothing: float = SMOOTHING
) -> Tensor:
    """The fields a of the base, ``[*visible.shape]``: of independent units with the mean of some images; without images
    all are zero, so that discrete units take all their values alike.

    Arguments:
        energy: with its units.
        images: integers, ``[N, C, H, W]``.
        generator: for the noise of real units.
        smoothing: the mean counts so many more images, of units whose fields are zero: no unit is certain.
    """
    zero = torch.zeros_like(energy.visible_field())
    if images is None:
        return zero
    total = smoothing * energy.visible.mean(zero.double()[None])
    for part in images.split(1000):
        total = total + energy.state(part.to(zero.device), generator).double().sum(0)
    return energy.visible.natural(total / (len(images) + smoothing))[0].to(zero.dtype)


@torch.no_grad()
def anneal(
    energy: Harmonium,
    base: Tensor,
    betas: Sequence[float],
    chains: int,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """log w of chains from the base to the energy (module docstring), float64, ``[chains]``, nats.

    Arguments:
        energy: with its weights.
        base: a, ``[*visible.shape]``.
        betas: rising from 0 to 1.
        chains: how many, all in one tensor.
        generator: of all draws.
        progress: called after each temperature.
    """
    v = energy.visible.sample(base.expand(chains, *base.shape), generator)
    logs = torch.zeros(chains, dtype=torch.float64, device=base.device)
    steps = len(betas) - 1
    for k in range(1, steps + 1):
        inputs = energy.hidden_input(v)  # shared by the weight and the step of Gibbs sampling
        logs += energy.path_log_ratio(v, inputs, betas[k - 1], betas[k], base)
        if k < steps:
            v = energy.path_gibbs(v, betas[k], base, generator, inputs)
        if progress is not None:
            progress(k, steps)
    return logs


@torch.no_grad()
def anneal_back(
    energy: Harmonium,
    base: Tensor,
    betas: Sequence[float],
    v: Tensor,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """log w' of chains from the energy to the base (module docstring), float64, ``[M]``, nats.

    Arguments:
        energy, base, betas: as of :func:`anneal`.
        v: visible states drawn from the energy, ``[M, *visible.shape]``.
        generator, progress: as of :func:`anneal`.
    """
    logs = torch.zeros(len(v), dtype=torch.float64, device=base.device)
    steps = len(betas) - 1
    for k in range(steps, 0, -1):
        inputs = energy.hidden_input(v)
        logs -= energy.path_log_ratio(v, inputs, betas[k - 1], betas[k], base)
        if k > 1:
            v = energy.path_gibbs(v, betas[k - 1], base, generator, inputs)
        if progress is not None:
            progress(steps + 1 - k, steps)
    return logs
