r"""Latents that are integers: codes.

A layer's codes are a grid of integers, ``[B, C, H, W]`` like an image, each in ``{0 .. levels - 1}``. A prior over them
may be independent (:class:`Codes`) or autoregressive (:class:`davi.layers.AutoregressiveCodes`); a posterior may be
certain of one value (:class:`Point`), as that of a quantized model is, where

.. math:: KL(q \| p) = -\log p(z)

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

import copy
import math
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise
from davi.distributions.discrete import Categorical


@final
class Codes(Latent):
    """Independent integers.

    Arguments:
        logits: ``[B, levels, C, H, W]``.

    Example:
        >>> q, p = Codes(torch.tensor([[2.0, 0.0]]).view(1, 2, 1, 1, 1)), Codes(torch.zeros(1, 2, 1, 1, 1))
        >>> z = q.sample(torch.Generator().manual_seed(0))
        >>> q.kl_map(p, z)[0].flatten()  # log 2 minus the entropy of (0.88, 0.12)
        tensor([0.3278])
    """

    def __init__(self, logits: Tensor) -> None:
        self._categorical = Categorical(logits)

    def __repr__(self) -> str:
        return f"Codes(shape={tuple(self.shape)}, levels={self._categorical.levels})"

    @property
    def log_probs(self) -> Tensor:
        """Of every value, ``[B, levels, C, H, W]``, nats."""
        return self._categorical.log_probs

    @property
    def shape(self) -> torch.Size:
        batch, _, *rest = self.log_probs.shape
        return torch.Size((batch, *rest))

    def expand(self, n: int) -> Codes:
        if len(self.log_probs) == n:
            return self
        made = copy.copy(self)
        made._categorical = self._categorical.expand(n)
        return made

    def log_prob_map(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, nats; of one image's distribution also for several."""
        own = self._categorical.expand(len(x)) if len(self.log_probs) == 1 else self._categorical
        return own.log_prob_map(x)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Integers ``[B, C, H, W]``; the temperature divides the logits."""
        return self._categorical.sample(generator, temperature)

    def sample_with(self, noise: Noise) -> Tensor:
        """The value whose share of the unit interval the noise falls into, once the Normal's distribution function has
        made it uniform."""
        uniform = torch.special.ndtr(noise(self.log_probs[:, 0]))
        below = self.log_probs.exp().cumsum(1)[:, :-1] <= uniform.unsqueeze(1)
        return below.sum(1)

    def mode(self) -> Tensor:
        return self._categorical.mode()

    def center(self) -> Tensor:
        """The most probable codes."""
        return self.mode()

    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:
        """In closed form if the prior is independent as well."""
        if not isinstance(prior, Codes):
            return super().kl_map(prior, z)
        possible = self.log_probs > -math.inf
        ratio = torch.where(possible, self.log_probs - prior.log_probs, 0.0)
        return (self.log_probs.exp() * ratio).sum(1), True


@final
class Point(Latent):
    """Integers that are certain: log q is 0 at them, and minus infinity elsewhere.

    Arguments:
        value: integers, ``[B, ...]``.

    Raises:
        TypeError: if they are no integers: a continuous variable that is certain has no density.
    """

    def __init__(self, value: Tensor) -> None:
        if value.is_floating_point() or value.is_complex():
            raise TypeError(f"value: got {value.dtype}, expected integers: other points have no density")
        self.value = value

    def __repr__(self) -> str:
        return f"Point(shape={tuple(self.value.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    def expand(self, n: int) -> Point:
        return Point(self.value.expand(n, *self.value.shape[1:]))

    def log_prob_map(self, x: Tensor) -> Tensor:
        certain = torch.zeros(x.shape, device=x.device)
        return certain.masked_fill(x != self.value, -math.inf)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """The integers, whatever the temperature."""
        return self.value

    def sample_with(self, noise: Noise) -> Tensor:
        """The integers, whatever the noise."""
        return self.value

    def mode(self) -> Tensor:
        return self.value

    def center(self) -> Tensor:
        return self.value

    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:
        """In closed form: minus log p of the integers, at the grain of the prior."""
        return -prior.log_prob_map(self.value), True
