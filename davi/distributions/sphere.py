r"""Distributions of unit vectors: uniform, and von Mises-Fisher.

All m variables of an image together are one point z of the sphere :math:`S^{m-1}`; densities are with respect to its
surface, and their maps give every variable an equal share. With the mean direction :math:`\mu` and the concentration
:math:`\kappa`,

.. math:: q(z) = \frac{e^{\kappa \mu^T z}}{A_m F}, \qquad A_m = \frac{2 \pi^{m/2}}{\Gamma(m/2)}, \qquad
          F = {}_0F_1\!\left(; \tfrac m2; \tfrac{\kappa^2}4\right)
            = \Gamma(\tfrac m2) \left(\tfrac 2\kappa\right)^{m/2-1} I_{m/2-1}(\kappa)

:math:`A_m` is the area of the sphere, I the modified Bessel function of the first kind and F the mean of
:math:`e^{\kappa \mu^T z}` over the sphere. The divergence from the uniform distribution depends on m and
:math:`\kappa` alone,

.. math:: KL = \kappa \frac{I_{m/2}(\kappa)}{I_{m/2-1}(\kappa)} - \ln F

and is computed in float64 from the series of F, all of whose terms are positive. Unlike a Bessel function, even one
that is scaled exponentially, it neither overflows nor underflows for any m.

**Draws.** :math:`z = w \mu + \sqrt{1 - w^2}\, v` with v uniform among the unit vectors orthogonal to :math:`\mu`, and w
by rejection: with :math:`b = (m-1) / (2\kappa + \sqrt{4\kappa^2 + (m-1)^2})` and :math:`x_0 = (1-b)/(1+b)`, a proposal

.. math:: w = \frac{1 - (1+b)\, y}{1 - (1-b)\, y}, \qquad y \sim \mathrm{Beta}\!\left(\tfrac{m-1}2, \tfrac{m-1}2\right)

is accepted if :math:`\kappa (w - x_0) + (m-1) \ln \frac{1 - x_0 w}{1 - x_0^2} \ge \ln u`, u uniform.

**Gradients.** :math:`\kappa` is a number, so what is accepted depends on no parameter, and a draw needs no correction.
Turning :math:`\mu` by a small tangent vector :math:`d\mu` turns the whole distribution, and a draw with it:

.. math:: dz = (\mu^T z)\, d\mu - (d\mu^T z)\, \mu

As a turned draw is a draw of the turned distribution, :math:`E[\nabla f(z)^T dz]` is the derivative of :math:`E f(z)`.
There is no direction near which it would grow, as it does where draws are reflected from a fixed axis to :math:`\mu`.

References:
    Hyperspherical Variational Auto-Encoders, T. R. Davidson, L. Falorsi, N. De Cao, T. Kipf, J. M. Tomczak, UAI 2018,
    https://arxiv.org/abs/1804.00891

    Computer Generation of Distributions on the m-Sphere, G. Ulrich, Journal of the Royal Statistical Society C, 1984,
    https://doi.org/10.2307/2347441 (also the proposal from two uniform numbers)

    Simulation of the von Mises Fisher Distribution, A. T. A. Wood, Communications in Statistics, 1994,
    https://doi.org/10.1080/03610919408813161 (the right constants)
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise, Pairwise, at_least_float32, spread

_PROPOSALS = 64
"""At once. Nowhere are fewer than 65 % accepted, so that none of them is with a probability below 1e-29."""


class Moments(NamedTuple):
    """Of a von Mises-Fisher distribution."""

    log_mean: float
    """ln F (module docstring)."""
    cosine: float
    """The mean of :math:`\\mu^T z`."""


@functools.lru_cache(maxsize=256)
def moments(variables: int, kappa: float) -> Moments:
    r"""ln F and :math:`I_{m/2}(\kappa) / I_{m/2-1}(\kappa)` (module docstring).

    .. math:: F = \sum_j t_j, \qquad t_j = \frac{(\kappa/2)^{2j} \, \Gamma(m/2)}{j! \; \Gamma(m/2 + j)}, \qquad
              \frac{I_{m/2}}{I_{m/2-1}} = \frac 2\kappa \frac{\sum_j j \, t_j}{\sum_j t_j}

    Arguments:
        variables: m, at least 2.
        kappa: at least 0.

    Example:
        >>> round(moments(3, 10.0).cosine, 10)  # coth(10) - 1/10
        0.9000000041
    """
    if kappa == 0.0:
        return Moments(0.0, 0.0)
    half = variables / 2.0
    largest = 0.5 * (math.hypot(half - 1.0, kappa) - (half - 1.0))  # the place of the largest term
    reach = 12.0 * math.sqrt(largest) + 40.0  # beyond it terms are below 1e-30 of the largest
    j = torch.arange(max(0, int(largest - reach)), int(largest + reach) + 1, dtype=torch.float64)
    start = torch.tensor(half, dtype=torch.float64)
    log_terms = 2.0 * j * math.log(kappa / 2.0) - torch.lgamma(j + 1.0) - (torch.lgamma(half + j) - torch.lgamma(start))
    mean = float((log_terms.softmax(0) * j).sum())
    return Moments(float(log_terms.logsumexp(0)), 2.0 * mean / kappa)


def divergence_from_uniform(variables: int, kappa: float) -> float:
    """KL divergence of a von Mises-Fisher distribution from the uniform one (module docstring), nats.

    Arguments:
        variables: m, at least 2.
        kappa: at least 0.

    Example:
        >>> round(divergence_from_uniform(3, 10.0), 10)
        1.9957323168
    """
    log_mean, cosine = moments(variables, kappa)
    return kappa * cosine - log_mean


def log_area(variables: int) -> float:
    """ln of the area of the sphere of unit vectors with so many variables."""
    return math.log(2.0) + 0.5 * variables * math.log(math.pi) - math.lgamma(0.5 * variables)


def direction(x: Tensor) -> Tensor:
    """Every image's vector, ``[B, ...]``, divided by its length.

    Zero has no direction: it becomes the first unit vector, with the gradient of a vector of length 1.
    """
    flat = x.flatten(1)
    square = flat.square().sum(1, keepdim=True)
    smallest = torch.finfo(x.dtype).tiny
    unit = flat / square.clamp_min(smallest).sqrt()
    first = torch.zeros_like(flat)
    first[:, 0] = 1.0
    return torch.where(square > smallest, unit, first + flat - flat.detach()).view_as(x)


@final
class UniformSphere(Latent):
    """All unit vectors alike.

    Arguments:
        like: ``[B, ...]``, of the shape, type and device of the draws; its values play no part.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = at_least_float32(like)

    def __repr__(self) -> str:
        return f"UniformSphere(shape={tuple(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    def expand(self, n: int) -> UniformSphere:
        return self if self.shape[0] == n else UniformSphere(self.like.expand(n, *self.shape[1:]))

    def repeat_images(self, times: int) -> UniformSphere:
        """The distributions of each image ``times`` times, side by side."""
        return UniformSphere(self.like.repeat_interleave(times, 0))

    def log_prob_map(self, x: Tensor) -> Tensor:
        variables = x[0].numel()
        return torch.full_like(x, -log_area(variables) / variables)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A unit vector; the temperature plays no part, as no vector is more probable than another."""
        return self.sample_with(_standard(generator))

    def sample_with(self, noise: Noise) -> Tensor:
        return direction(noise(self.like))

    def mode(self) -> Tensor:
        """The first unit vector, as no vector is more probable than another."""
        return direction(torch.zeros_like(self.like))

    def center(self) -> Tensor:
        """The same as :meth:`mode`: the mean, zero, is no unit vector."""
        return self.mode()


@final
class VonMisesFisher(Latent, Pairwise):
    """Unit vectors around a mean direction (module docstring).

    Arguments:
        mu: unit vectors, ``[B, ...]``.
        kappa: the concentration, above 0, the same for all.

    Example:
        >>> q = VonMisesFisher(torch.tensor([[0.0, 0.0, 1.0]]), 10.0)
        >>> q.kl_map(UniformSphere(q.mu), q.mu)[0].sum()
        tensor(1.9957)
    """

    def __init__(self, mu: Tensor, kappa: float) -> None:
        self.mu, self.kappa = at_least_float32(mu), kappa

    def __repr__(self) -> str:
        return f"VonMisesFisher(shape={tuple(self.shape)}, kappa={self.kappa:g})"

    @property
    def shape(self) -> torch.Size:
        return self.mu.shape

    @property
    def variables(self) -> int:
        """m, of an image."""
        return math.prod(self.shape[1:])

    @property
    def mean(self) -> Tensor:
        """Of the draws, which lies inside of the sphere."""
        return moments(self.variables, self.kappa).cosine * self.mu

    def expand(self, n: int) -> VonMisesFisher:
        return self if self.shape[0] == n else VonMisesFisher(self.mu.expand(n, *self.shape[1:]), self.kappa)

    def repeat_images(self, times: int) -> VonMisesFisher:
        """The distributions of each image ``times`` times, side by side."""
        return VonMisesFisher(self.mu.repeat_interleave(times, 0), self.kappa)

    def log_prob_map(self, x: Tensor) -> Tensor:
        # For unit vectors kappa mu^T x = kappa - kappa |x - mu|^2 / 2, which loses no digits where both agree.
        square = (x - self.mu).flatten(1).square().sum(1)
        return spread(self._log_peak() - 0.5 * self.kappa * square, x)

    def log_prob_pairs(self, x: Tensor) -> Tensor:
        mu = self.mu.flatten(1).to(x.device).to(x.dtype)
        return self._log_peak() - self.kappa + self.kappa * x.flatten(1) @ mu.T

    def _log_peak(self) -> float:
        """The log-density in the mean direction."""
        return self.kappa - moments(self.variables, self.kappa).log_mean - log_area(self.variables)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw whose gradient is that of the module docstring. The concentration is divided by the square of the
        temperature, as the precision of a Normal is; at 0 it is the mean direction."""
        if temperature == 0.0:
            return self.mu
        return VonMisesFisher(self.mu, self.kappa / temperature**2).sample_with(_standard(generator))

    def sample_with(self, noise: Noise) -> Tensor:
        mu = self.mu.flatten(1)
        fixed = mu.detach()
        with torch.no_grad():
            away = _one_minus_cosine(noise(fixed.new_empty(len(mu), 3, _PROPOSALS)), self.variables, self.kappa)
            around = noise(self.mu.detach()).flatten(1)
            for _ in range(2):  # twice: where little is left, rounding leaves it at a slant
                around = direction(around - (around * fixed).sum(1, keepdim=True) * fixed)
            across = around
            z = (1.0 - away) * fixed + (away * (2.0 - away)).sqrt() * across
        moved = mu - fixed  # zero, with a gradient
        turned = (1.0 - away) * moved - (moved * z).sum(1, keepdim=True) * fixed
        return (z + turned).view_as(self.mu)

    def mode(self) -> Tensor:
        """The mean direction."""
        return self.mu

    def center(self) -> Tensor:
        """The mean direction."""
        return self.mu

    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:
        """In closed form if the prior is uniform, in equal shares; it has no gradient."""
        if not isinstance(prior, UniformSphere):
            return super().kl_map(prior, z)
        total = divergence_from_uniform(self.variables, self.kappa)
        return torch.full_like(self.mu, total / self.variables), True


def _standard(generator: Generator | None) -> Noise:
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _one_minus_cosine(noise: Tensor, variables: int, kappa: float) -> Tensor:
    """1 - w of the first proposal that is accepted (module docstring), ``[B, 1]``.

    One minus w is computed and not w, which is near 1 where kappa is large.

    Arguments:
        noise: standard Normal, ``[B, 3, proposals]``: two numbers make a proposal, the third decides.
        variables: m.
        kappa: the concentration.
    """
    free = variables - 1
    b = free / (2.0 * kappa + math.hypot(2.0 * kappa, free))
    gap = 2.0 * b / (1.0 + b)  # 1 - x_0
    first, second, third = noise.unbind(1)
    # A coordinate of a point of the sphere, uniformly drawn: that point's length in a plane, and an angle.
    square = torch.ones_like(first) if variables == 2 else -torch.expm1(torch.special.log_ndtr(first) * 2 / (free - 1))
    coordinate = square.sqrt() * torch.cos(2.0 * math.pi * torch.special.ndtr(second))
    y = 0.5 * (1.0 + coordinate)
    away = 2.0 * b * y / (1.0 - y + b * y)
    ratio = (gap + (1.0 - gap) * away) / (gap * (2.0 - gap))
    accepted = kappa * (gap - away) + free * ratio.log() >= torch.special.log_ndtr(third)
    return away.gather(1, accepted.int().argmax(1, keepdim=True))
