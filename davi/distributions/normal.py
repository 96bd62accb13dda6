r"""Diagonal Normal distributions and the bounded parameterization of the Deep Attentive VAE.

Network outputs :math:`(a, b)` are not used as mean and log standard deviation directly. They are bounded,

.. math:: \mu = 5 \tanh(a / 10), \qquad \sigma = \exp(\mathrm{bound}(b; l, h)) + 0.01

with :math:`\mathrm{bound}(b; -c, c) = c \tanh(b / 2c)` for a symmetric interval and the smoothstep
:math:`l + (h - l)(3t^2 - 2t^3)`, :math:`t = \mathrm{clip}((b - l)/(h - l), 0, 1)` otherwise. A *residual* posterior
adds its own outputs to the prior's raw ones before bounding, so that a zero output makes it equal to the prior when
both have the same interval.

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij

    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898 (residual Normal posteriors)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise, Pairwise, at_least_float32, sum_per_image

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


@final
class Normal(Latent, Pairwise):
    """Independent Normal variables.

    Arguments:
        mean: ``[B, ...]``.
        scale: standard deviations, positive, the same shape.

    Example:
        >>> q, p = Normal(torch.ones(1, 3), torch.ones(1, 3)), Normal(torch.zeros(1, 3), torch.ones(1, 3))
        >>> q.kl(p)  # half the squared distance of the means
        tensor([1.5000])
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self._mean = at_least_float32(mean)
        self.scale = at_least_float32(scale)

    def __repr__(self) -> str:
        return f"Normal(shape={tuple(self.mean.shape)})"

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def shape(self) -> torch.Size:
        return self.mean.shape

    def expand(self, n: int) -> Normal:
        """The same distribution for ``n`` batch elements; a batch of one is repeated."""
        if self.mean.shape[0] == n:
            return self
        shape = (n, *self.mean.shape[1:])
        return Normal(self.mean.expand(shape), self.scale.expand(shape))

    def repeat_images(self, times: int) -> Normal:
        """The distributions of each image ``times`` times, side by side."""
        return Normal(self.mean.repeat_interleave(times, 0), self.scale.repeat_interleave(times, 0))

    def log_prob_map(self, x: Tensor) -> Tensor:
        standard = (x - self.mean) / self.scale
        return -0.5 * standard.square() - self.scale.log() - _HALF_LOG_TWO_PI

    def log_prob_pairs(self, x: Tensor) -> Tensor:
        points = x.flatten(1)  # [M, D]
        mean, scale = (t.flatten(1).to(x.device).to(x.dtype) for t in (self.mean, self.scale))  # [B, D]
        precision = scale.square().reciprocal()
        # The square of (x - mean) / scale, multiplied out.
        squares = points.square() @ precision.T - 2.0 * points @ (mean * precision).T
        squares = squares + (mean.square() * precision).sum(1)
        return -0.5 * squares - (scale.log() + _HALF_LOG_TWO_PI).sum(1)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A reparameterized draw, ``mean + temperature * scale * noise``."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + temperature * self.scale * noise

    def sample_with(self, noise: Noise) -> Tensor:
        return self.mean + self.scale * noise(self.mean)

    def mode(self) -> Tensor:
        """Where the density is largest: the mean."""
        return self.mean

    def center(self) -> Tensor:
        """The mean."""
        return self.mean

    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:
        r"""In closed form if the prior is a Normal, or knows its own.

        If the prior is autoregressive with Normal conditionals, the divergence has no closed form. Its variables are
        independent here, so that, with :math:`z_{<i}` of the draw,

        .. math:: E_q \sum_i KL(q_i \| p(\cdot \mid z_{<i})) = E_q \sum_i \bigl( \log q_i(z_i)
                  - \log p(z_i \mid z_{<i}) \bigr) = KL(q \| p)

        and the sum on the left is an estimate without bias, never negative and with less noise than
        :math:`\log q(z) - \log p(z)`.
        """
        if isinstance(prior, ClosedDivergence):
            return prior.closed_divergence(self), True
        conditionals = prior.conditionals(z)
        if isinstance(conditionals, Normal):
            return self.closed_kl_map(conditionals), conditionals is prior
        return super().kl_map(prior, z)

    def kl(self, other: Normal) -> Tensor:
        r""":math:`KL(\mathrm{self} \| \mathrm{other})` in closed form, summed over all but the batch, ``[B]``, nats."""
        return sum_per_image(self.closed_kl_map(other))

    def closed_kl_map(self, other: Normal) -> Tensor:
        """The KL divergence of every single variable, ``[B, ...]``, nats."""
        ratio = self.scale / other.scale
        shift = (self.mean - other.mean) / other.scale
        return 0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()


class ClosedDivergence(ABC):
    """A prior other than a Normal that knows the KL divergence of a Normal posterior from it in closed form."""

    @abstractmethod
    def closed_divergence(self, posterior: Normal) -> Tensor:
        """The divergence at the grain of the latents, ``[B, ...]``, nats."""


def bound_log_scale(raw: Tensor, low: float, high: float) -> Tensor:
    """Squash ``raw`` into (low, high): a tanh for a symmetric interval, a smoothstep otherwise (module docstring)."""
    if low == -high:
        return high * torch.tanh(raw / (2.0 * high))
    t = ((raw - low) / (high - low)).clamp(0.0, 1.0)
    return low + (high - low) * t.square() * (3.0 - 2.0 * t)


def bounded_normal(raw_mean: Tensor, raw_log_scale: Tensor, low: float = -5.0, high: float = 5.0) -> Normal:
    """The Normal whose raw network outputs are given (module docstring).

    Arguments:
        raw_mean: unbounded, ``[B, C, H, W]``; the mean lies in (-5, 5).
        raw_log_scale: unbounded, same shape.
        low: lower bound of the log standard deviation, before the floor of 0.01 is added to the standard deviation.
        high: its upper bound.

    Raises:
        ValueError: if ``low`` is not below ``high``.
    """
    if not low < high:
        raise ValueError(f"log-scale bounds: got {low} to {high}, expected the lower one first")
    mean = 5.0 * torch.tanh(at_least_float32(raw_mean) / 10.0)
    scale = bound_log_scale(at_least_float32(raw_log_scale), low, high).exp() + 0.01
    return Normal(mean, scale)
