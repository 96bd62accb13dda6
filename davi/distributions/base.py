"""The protocol of a distribution, and helpers that several of them need."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Generator, Tensor

from davi.evidence import Kind

Noise = Callable[[Tensor], Tensor]
"""Standard Normal noise of somebody's choice: of the shape, type and device of the tensor that it is given."""


class Distribution(ABC):
    """A distribution over tensors whose first dimension is the batch."""

    @property
    def normalized(self) -> bool:
        """Whether the probabilities sum to one; forms that serve published weights only may say no."""
        return True

    @property
    def kind(self) -> Kind:
        """What ``log_prob`` is: exact, unless the probabilities do not sum to one or are not known exactly. A claim
        made of several distributions has the weakest kind of all of them."""
        return Kind.EXACT if self.normalized else Kind.ESTIMATE

    @abstractmethod
    def log_prob_map(self, x: Tensor) -> Tensor:
        """Log-probabilities at the grain at which the distribution factorizes, ``[B, ...]``, nats."""

    @abstractmethod
    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """One draw per batch element. ``temperature`` scales the spread of the draw (1: the distribution itself)."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The most probable value of each entry given those before it, or what an instance says that it is instead.

        Of entries that are independent it is the most probable value of all together. Used for pictures; no number that
        is reported depends on it.
        """

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of each batch element, ``[B]``, nats."""
        return sum_per_image(self.log_prob_map(x))


class WithMean(ABC):
    """A distribution of pixels whose mean is known. Used for pictures, like :meth:`Distribution.mode`."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of every sub-pixel, ``[B, C, H, W]``, in units of levels; for a binary one, the probability of 1."""


class Pairwise(ABC):
    """A distribution of latents whose density at many points, of every image's own distribution, is one product of
    matrices."""

    @abstractmethod
    def log_prob_pairs(self, x: Tensor) -> Tensor:
        """Log-density of each point under the distribution of each image, ``[M, B]``, nats.

        Arguments:
            x: M points, ``[M, ...]``. The result has their type and device; rounding wants float64.
        """


class Latent(Distribution):
    """A distribution of the latents of one layer, as a hierarchy's walk offers it: a prior or a posterior."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Of a draw, ``[B, ...]``. The prior of the top layer may have B = 1 for all images alike."""

    @property
    def scores_anywhere(self) -> bool:
        """Whether ``log_prob`` knows the density of any latents, not only of this distribution's own draws."""
        return True

    @abstractmethod
    def center(self) -> Tensor:
        """The latents when the noise is zero: the mean of a Normal, and where a flow takes it."""

    @abstractmethod
    def expand(self, n: int) -> Latent:
        """The same distribution for ``n`` images; a batch of one is repeated."""

    @abstractmethod
    def sample_with(self, noise: Noise) -> Tensor:
        """The draw that given noise makes, in place of a generator's."""

    def conditionals(self, z: Tensor) -> Latent:
        """Of every variable given those before it, at z; the distribution itself if no variable depends on others."""
        return self

    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:
        r"""KL divergence from the prior at the grain of the latents, ``[B, ...]``, nats.

        Here its estimate from one draw, :math:`\log q(z) - \log p(z)`, which may be below zero by chance; a subclass
        that knows the closed form returns that.

        Arguments:
            prior: p.
            z: a draw of this distribution.

        Returns:
            The map, and whether it is the closed form, which does not depend on the draw.
        """
        return self.log_prob_map(z) - prior.log_prob_map(z), False


def sum_per_image(x: Tensor) -> Tensor:
    """``[B, ...]`` -> ``[B]``, without a copy of maps whose channels are innermost in memory."""
    return ordered_gradient(x).sum(tuple(range(1, x.ndim))) if x.ndim > 1 else x


def spread(total: Tensor, x: Tensor) -> Tensor:
    """A number of each image, ``[B]`` or one for all, in equal shares over the variables of ``x``."""
    shares = total / math.prod(x.shape[1:])
    return shares.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)


def ordered_gradient(x: Tensor) -> Tensor:
    """The same tensor, whose gradient will have channels innermost in memory if the tensor has.

    The gradient of a sum is one number in many places, laid out in no order at all, and softmaxes and stacks forget the
    order of what they were given. A map that arrives in another order than its convolution's is turned round there, and
    slowly: better once, where it is small.

    Arguments:
        x: ``[B, C, H, W]``, else nothing is done.
    """
    if x.requires_grad and x.ndim == 4 and x.stride(1) == 1 and x.shape[1] > 1:
        x.register_hook(_channels_innermost)
    return x


def _channels_innermost(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


_TWICE: ContextVar[bool] = ContextVar("twice", default=False)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within the block, log-probabilities can be differentiated twice. Some are faster and smaller if once will do."""
    token = _TWICE.set(True)
    try:
        yield
    finally:
        _TWICE.reset(token)


def is_twice_differentiable() -> bool:
    """Whether this is called within :func:`twice_differentiable`."""
    return _TWICE.get()


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision network outputs in float32; float32 and float64 unchanged.

    Likelihoods and divergences sum thousands of numbers: in half precision the sum itself would be wrong.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def uniform_like(x: Tensor, generator: Generator | None, margin: float) -> Tensor:
    """Uniform numbers in (margin, 1 - margin), the shape and type of ``x``."""
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return margin + (1.0 - 2.0 * margin) * u


def standard_gumbel_like(x: Tensor, generator: Generator | None) -> Tensor:
    """Standard Gumbel noise: ``argmax(logits + gumbel)`` is a draw from ``softmax(logits)``."""
    tiny = torch.finfo(x.dtype).tiny
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device).clamp_min(tiny)
    return -torch.log((-torch.log(u)).clamp_min(tiny))
