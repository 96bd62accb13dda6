r"""Log-likelihoods that err on the low side: the reverse annealed importance sampling estimator (RAISE).

Annealed importance sampling overstates likelihoods on average. Its chains are a model of their own, though, whose
likelihoods can be bounded from below. *The annealed model* draws :math:`v_0` from the base and makes a step of Gibbs
sampling at each of :math:`\beta_1, \dots, \beta_K = 1`; what it ends with is its image. For an image x, chains from
x through the reversed steps down to the base, with the weights of :mod:`davi.evaluation.annealing`, give

.. math:: v_K = x, \quad v_{k-1} \sim T_k(\cdot \mid v_k), \qquad
          w_x = \frac{e^{-F(x)}}{Z_0} \prod_{k=K}^1 \frac{f_{k-1}(v_{k-1})}{f_k(v_{k-1})}, \qquad
          E[w_x] = p_{\text{annealed}}(x)

so that the log of the mean of the weights is on average at most :math:`\log p_{\text{annealed}}(x)`. The bound is on
the likelihood of the annealed model, not of the energy itself. The two models come together as the temperatures grow in
number, and then so do this estimate and that of annealed importance sampling. Where they differ by much, trust neither.
No partition function is needed.

References:
    Accurate and Conservative Estimates of MRF Log-likelihood using Reverse Annealing, Y. Burda, R. B. Grosse,
    R. Salakhutdinov, AISTATS 2015, https://proceedings.mlr.press/v38/burda15.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from davi.evaluation.annealing import STANDARD_TEMPERATURES, Progress, anneal_back, base_field, checked
from davi.model import Harmonium


@dataclass(frozen=True)
class RaiseEstimate:
    """Likelihoods of images under the annealed model: stochastic lower bounds (module docstring).

    Arguments:
        log_weights: log w, float64, ``[N, chains]``, nats.
        temperatures: values of beta, from 0 to 1.
    """

    log_weights: Tensor
    temperatures: tuple[float, ...]

    @property
    def log_p(self) -> Tensor:
        """Of each image, float64, ``[N]``, nats."""
        return self.log_weights.logsumexp(1) - math.log(self.log_weights.shape[1])

    @property
    def effective_samples(self) -> Tensor:
        """Of the chains of each image, as a number of independent ones with equal weights, float64, ``[N]``."""
        return (2 * self.log_weights.logsumexp(1) - (2 * self.log_weights).logsumexp(1)).exp()


@torch.no_grad()
def raise_estimate(
    energy: Harmonium,
    x: Tensor,
    base_images: Tensor | None = None,
    temperatures: int | Sequence[float] = STANDARD_TEMPERATURES,
    chains: int = 10,
    generator: Generator | None = None,
    progress: Progress | None = None,
) -> RaiseEstimate:
    """Likelihoods of a few images under the annealed model (module docstring). All chains of all images walk at once:
    time and memory are those of a partition function with as many chains.

    Arguments:
        energy: with its weights.
        x: integer images, ``[N, C, H, W]``.
        base_images: images whose mean the base has, not those of ``x``; None: all fields of the base are zero.
        temperatures: as of :func:`davi.evaluation.partition_estimate.estimate_partition`.
        chains: of each image.
        generator: of all draws, on the device of the weights.
        progress: called after each temperature.

    Raises:
        ValueError: if there are no chains, or the temperatures do not rise from 0 to 1.
    """
    if chains < 1:
        raise ValueError(f"chains: got {chains}, expected 1 or more")
    betas = checked(temperatures)
    base = base_field(energy, base_images, generator)
    v = energy.state(x.repeat_interleave(chains, 0), generator)
    log_w = (energy.log_volume() - energy.state_free_energy(v)).double() - energy.path_log_z(base)
    v = energy.path_gibbs(v, 1.0, base, generator)
    log_w = log_w + anneal_back(energy, base, betas, v, generator, progress)
    return RaiseEstimate(log_w.view(len(x), chains).cpu(), betas)
