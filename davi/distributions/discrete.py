"""Bernoulli and categorical pixels, independent given the latents."""

from __future__ import annotations

import copy
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from davi.distributions.base import Distribution, WithMean, at_least_float32, standard_gumbel_like, uniform_like


@final
class Bernoulli(Distribution, WithMean):
    r"""Binary pixels: :math:`\log p(x) = x \log \sigma(l) + (1 - x) \log \sigma(-l)`.

    Arguments:
        logits: ``[B, C, H, W]``.
    """

    levels = 2

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)

    def __repr__(self) -> str:
        return f"Bernoulli(shape={tuple(self.logits.shape)})"

    def log_prob_map(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, nats, for integers 0 and 1."""
        sign = 2 * x.to(self.logits.dtype) - 1
        return F.logsigmoid(sign * self.logits)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        if temperature == 0:
            return self.mode()
        u = uniform_like(self.logits, generator, 0.0)
        return (u < torch.sigmoid(self.logits / temperature)).long()

    def mode(self) -> Tensor:
        """The most probable image, ``[B, C, H, W]``; 0 where both values are equally probable."""
        return (self.logits > 0).long()

    def mean(self) -> Tensor:
        """The probability of 1, ``[B, C, H, W]``."""
        return torch.sigmoid(self.logits)


@final
class Categorical(Distribution, WithMean):
    """A free distribution over all levels of every channel.

    Arguments:
        logits: ``[B, levels, C, H, W]``.
    """

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = at_least_float32(logits).log_softmax(1)

    def __repr__(self) -> str:
        return f"Categorical(shape={tuple(self.log_probs.shape)})"

    @property
    def levels(self) -> int:
        return self.log_probs.shape[1]

    def expand(self, n: int) -> Categorical:
        """The same for each of ``n`` images in place of one; no memory is taken for it."""
        made = copy.copy(self)
        made.log_probs = self.log_probs.expand(n, *self.log_probs.shape[1:])
        return made

    def log_prob_map(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``, nats."""
        return self.log_probs.gather(1, x.long().unsqueeze(1)).squeeze(1)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        if temperature == 0:
            return self.mode()
        return (self.log_probs / temperature + standard_gumbel_like(self.log_probs, generator)).argmax(1)

    def mode(self) -> Tensor:
        """The most probable image, ``[B, C, H, W]``."""
        return self.log_probs.argmax(1)

    def mean(self) -> Tensor:
        """The sum over all levels of v P(v), ``[B, C, H, W]``."""
        values = torch.arange(self.levels, dtype=self.log_probs.dtype, device=self.log_probs.device)
        return torch.einsum("l,bl...->b...", values, self.log_probs.exp())
