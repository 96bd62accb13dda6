r"""Independent logistic variables.

.. math:: p(x) = \frac{\sigma(h)\, \sigma(-h)}{s}, \qquad h = \frac{x - \mu}{s}, \qquad
          \log p(x) = -\operatorname{softplus}(h) - \operatorname{softplus}(-h) - \log s

The standard deviation is :math:`s \pi / \sqrt 3`; tails fall like :math:`e^{-|h|}`.

References:
    NICE: Non-linear Independent Components Estimation, L. Dinh, D. Krueger, Y. Bengio, 2014,
    https://arxiv.org/abs/1410.8516 (as the prior of a flow)
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise, at_least_float32, uniform_like


@final
class Logistic(Latent):
    """Independent logistic variables (module docstring).

    Arguments:
        mean: ``[B, ...]``.
        scale: s, positive, the same shape.

    Example:
        >>> Logistic(torch.zeros(1, 2), torch.ones(1, 2)).log_prob(torch.zeros(1, 2))  # - 2 log 4
        tensor([-2.7726])
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean = at_least_float32(mean)
        self.scale = at_least_float32(scale)

    def __repr__(self) -> str:
        return f"Logistic(shape={tuple(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.mean.shape

    def expand(self, n: int) -> Logistic:
        shape = (n, *self.shape[1:])
        return self if self.shape[0] == n else Logistic(self.mean.expand(shape), self.scale.expand(shape))

    def log_prob_map(self, x: Tensor) -> Tensor:
        h = (x - self.mean) / self.scale
        return -F.softplus(h) - F.softplus(-h) - self.scale.log()

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A reparameterized draw, ``mean + temperature * scale * logit(u)`` with uniform u."""
        # As far from 0 and 1 as neighboring uniform numbers are from each other: both have infinite logits.
        u = uniform_like(self.mean, generator, 0.5 * torch.finfo(self.mean.dtype).eps)
        return self.mean + temperature * self.scale * u.logit()

    def sample_with(self, noise: Noise) -> Tensor:
        """The logit of the Normal's distribution function takes the noise to a logistic variable."""
        n = noise(self.mean)
        return self.mean + self.scale * (torch.special.log_ndtr(n) - torch.special.log_ndtr(-n))

    def mode(self) -> Tensor:
        """Where the density is largest: the mean."""
        return self.mean

    def center(self) -> Tensor:
        """The mean."""
        return self.mean
