r"""The stationary autoregressive process of first order, AR(1), as a prior.

Along a series of n latent variables

.. math:: z_1 \sim N(0, 1), \qquad z_t = \alpha z_{t-1} + N(0, 1 - \alpha^2)

so each variable is a standard Normal one, and neighbors have the correlation :math:`\alpha`. No posterior whose
variables are independent can be equal to it. The divergence of such a Normal posterior,

.. math:: KL(q \| p) = \sum_t \frac{1}{2} \left( \frac{(\mu_t - \alpha \mu_{t-1})^2 + \sigma_t^2
          + \alpha^2 \sigma_{t-1}^2}{1 - \alpha^2} - 1 \right) + \frac{1}{2} \log \frac{1 - \alpha^2}{\sigma_t^2}

(without :math:`\alpha` for t = 1) is at least

.. math:: \frac{1}{2} \left[ (n - 2) \ln(1 + \alpha^2) - \ln(1 - \alpha^2) \right] \text{ nats,}

the *committed rate*, with equality where all means are 0 and the variances are one over the diagonal of the prior's
precision matrix: :math:`1 - \alpha^2` at both ends and :math:`(1 - \alpha^2) / (1 + \alpha^2)` between them.

References:
    Preventing Posterior Collapse with delta-VAEs, A. Razavi, A. van den Oord, B. Poole, O. Vinyals, ICLR 2019,
    https://arxiv.org/abs/1901.03416
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise, at_least_float32
from davi.distributions.normal import ClosedDivergence, Normal

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def committed_rate(n: int, alpha: float) -> float:
    """The least KL divergence of independent Normal variables from a series (module docstring), nats.

    Arguments:
        n: variables of the series, at least 2.
        alpha: correlation of neighbors.

    Example:
        >>> round(committed_rate(64, 0.95), 4)
        21.1022
    """
    return 0.5 * ((n - 2) * math.log1p(alpha**2) - math.log1p(-(alpha**2)))


@final
class AR1(Latent, ClosedDivergence):
    """An AR(1) process (module docstring).

    Arguments:
        like: zeros of the shape of the latents, ``[B, C, h, w]``. Each channel is a series along the positions, row by
            row; where there is a single position, the channels are one series.
        alpha: correlation of neighbors, from 0 to below 1.

    Example:
        >>> p = AR1(torch.zeros(1, 2, 1, 1), 0.5)
        >>> q = Normal(torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), 0.75**0.5))
        >>> q.kl_map(p, q.mean)[0].sum()  # as small as it can be
        tensor(0.1438)
    """

    def __init__(self, like: Tensor, alpha: float) -> None:
        self._zero = at_least_float32(like)
        self.alpha = alpha

    def __repr__(self) -> str:
        return f"AR1(shape={tuple(self.shape)}, alpha={self.alpha:g})"

    @property
    def shape(self) -> torch.Size:
        return self._zero.shape

    def expand(self, n: int) -> AR1:
        return AR1(self._zero.expand(n, *self.shape[1:]), self.alpha)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """The log-density of each variable given those before it."""
        series = self._series(x)
        scale = self._scales(series)
        first, before = series[..., :1], series[..., :-1]
        steps = torch.cat([first, series[..., 1:] - self.alpha * before], -1)  # N(0, scale^2)
        return (-0.5 * (steps / scale).square() - scale.log() - _HALF_LOG_TWO_PI).reshape(x.shape)

    def closed_divergence(self, posterior: Normal) -> Tensor:
        """The KL divergence of each variable from its distribution given those before it, mean over these."""
        mean, variance = self._series(posterior.mean), self._series(posterior.scale.square())
        scale = self._scales(mean)
        alpha = self.alpha
        moved = (mean[..., 1:] - alpha * mean[..., :-1]).square() + alpha**2 * variance[..., :-1]
        squares = torch.cat([mean[..., :1].square(), moved], -1) + variance
        ratio = squares / scale.square()
        return (0.5 * (ratio - 1.0 - variance.log()) + scale.log()).reshape(posterior.shape)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A reparameterized draw; ``temperature`` scales all of its noise."""
        noise = torch.randn(self.shape, generator=generator, dtype=self._zero.dtype, device=self._zero.device)
        return self._of_noise(temperature * noise)

    def sample_with(self, noise: Noise) -> Tensor:
        return self._of_noise(noise(self._zero))

    def center(self) -> Tensor:
        """Zero, the mean."""
        return self._zero

    def mode(self) -> Tensor:
        """Zero, the mean."""
        return self._zero

    def _series(self, x: Tensor) -> Tensor:
        """``[B, ..., n]``, the variables of a series along the last dimension."""
        return x.flatten(2) if math.prod(x.shape[2:]) > 1 else x.flatten(1)

    def _scales(self, series: Tensor) -> Tensor:
        """Standard deviations of the variables given those before them, ``[n]``."""
        scales = series.new_full(series.shape[-1:], (1.0 - self.alpha**2) ** 0.5)
        scales[0] = 1.0
        return scales

    def _of_noise(self, noise: Tensor) -> Tensor:
        r""":math:`z_t = \sum_{s \le t} \alpha^{t - s} \, \mathrm{scale}_s \, \epsilon_s`, all at once."""
        series = self._series(noise)
        times = torch.arange(series.shape[-1], device=noise.device)
        lag = times[:, None] - times  # [t, s]
        powers = torch.full_like(lag, self.alpha, dtype=noise.dtype).pow(lag.clamp_min(0)).tril()
        with torch.autocast(noise.device.type, enabled=False):
            return ((series * self._scales(series)) @ powers.T).reshape(noise.shape)
