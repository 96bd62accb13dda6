r"""Mixtures of diagonal Normal distributions over latents.

.. math:: p(z) = \sum_{k=1}^K w_k \, N\bigl(z; \mu_k, \mathrm{diag}(\sigma_k^2)\bigr)

over all variables together, or over groups of them that are independent of one another, such as the channels of each
position, each group with weights of its own.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise, at_least_float32, standard_gumbel_like
from davi.distributions.normal import Normal


@final
class NormalMixture(Latent):
    """A mixture of diagonal Normal distributions (module docstring).

    Arguments:
        logits: of the weights, ``[B, K, ...]``. Variables along a dimension in which the logits have size 1 belong to
            one group: with ``[B, K, 1, 1, 1]`` all variables are one group, with ``[B, K, 1, h, w]`` the channels of
            each position are one.
        components: ``[B, K, ...]``.

    Example:
        >>> p = NormalMixture(torch.zeros(1, 2, 1), Normal(torch.tensor([[[-1.0], [1.0]]]), torch.ones(1, 2, 1)))
        >>> p.log_prob(torch.zeros(1, 1))  # both components have the density of a standard Normal at 1
        tensor([-1.4189])
    """

    def __init__(self, logits: Tensor, components: Normal) -> None:
        self.log_weights = at_least_float32(logits).log_softmax(1)
        self.components = components
        sizes = components.shape[2:]
        self._group = [i for i, size in enumerate(logits.shape[2:], 2) if size == 1]
        self._group_size = math.prod(sizes[i - 2] for i in self._group)

    def __repr__(self) -> str:
        return f"NormalMixture(shape={tuple(self.shape)}, components={self.log_weights.shape[1]})"

    @property
    def shape(self) -> torch.Size:
        batch, _, *rest = self.components.shape
        return torch.Size((batch, *rest))

    def expand(self, n: int) -> NormalMixture:
        if len(self.log_weights) == n:
            return self
        return NormalMixture(self.log_weights.expand(n, *self.log_weights.shape[1:]), self.components.expand(n))

    def log_prob_map(self, x: Tensor) -> Tensor:
        """The log-density of each group, in equal shares over its variables."""
        log_joint = self.log_weights + self._of_groups(self.components.log_prob_map(x.unsqueeze(1)))  # [B, K, ...]
        return (log_joint.logsumexp(1) / self._group_size).expand(x.shape)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw from a component that is drawn by its weight. ``temperature`` scales the standard deviations; it does
        not change the weights: at 0 the draw is the mean of some component."""
        gumbel = standard_gumbel_like(self.log_weights, generator)
        return self._best(self.log_weights + gumbel).sample(generator, temperature)

    def sample_with(self, noise: Noise) -> Tensor:
        """The component is chosen by noise as well, K numbers for each group."""
        gumbel = -torch.log(-torch.special.log_ndtr(noise(self.log_weights)))
        return self._best(self.log_weights + gumbel).sample_with(noise)

    def center(self) -> Tensor:
        """The mean of the component with the largest weight, which no noise leads to."""
        return self._best(self.log_weights).mean

    def mode(self) -> Tensor:
        """The mean of the component with the highest peak, the mode of components that do not overlap."""
        return self._best(self.log_weights - self._of_groups(self.components.scale.log())).mean

    def _of_groups(self, x: Tensor) -> Tensor:
        """Sums over the variables of each group, ``[B, K, ...]`` of the shape of the logits."""
        return x.sum(self._group, keepdim=True) if self._group else x

    def _best(self, scores: Tensor) -> Normal:
        """In each group the component with the largest score, ``[B, ...]``."""
        mean, scale = self.components.mean, self.components.scale
        chosen = scores.argmax(1, keepdim=True).expand(len(mean), 1, *mean.shape[2:])
        return Normal(mean.gather(1, chosen).squeeze(1), scale.gather(1, chosen).squeeze(1))
