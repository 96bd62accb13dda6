r"""Continuous latents that are predicted one after the other.

.. math:: p(z) = \prod_i N(z_i;\, \mu_i(z_{<i}),\, \sigma_i(z_{<i})^2)

in the order in which one reads: position by position, row by row from the top left. A position has one part for each
group of its channels; the channels of a part are independent given what comes before it. One pass of the network gives
the parameters of all parts for a given z, so a density costs one pass and a draw as many as there are parts.

References:
    PixelVAE: A Latent Variable Model for Natural Images, I. Gulrajani et al., ICLR 2017,
    https://arxiv.org/abs/1611.05013
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise
from davi.distributions.normal import Normal

Conditionals = Callable[[Tensor, Tensor], Normal]
"""``(z, features) -> Normal`` of every variable given those before it, for z ``[B, C, h, w]`` and features
``[B, F, h, w]``."""


@final
class AutoregressiveNormal(Latent):
    """Latents on a grid, each Normal given those before it (module docstring).

    Arguments:
        network: gives the conditionals.
        features: what the network is given beside z, ``[B, F, h, w]``.
        channels: C.
        parts: of a position: 1, or one for each channel.

    Example:
        >>> def network(z, features):  # every position has the one to its left as its mean
        ...     return Normal(torch.nn.functional.pad(z, (1, -1)), torch.ones_like(z))
        >>> prior = AutoregressiveNormal(network, torch.zeros(1, 1, 1, 3), channels=1)
        >>> prior.sample_with(torch.ones_like)
        tensor([[[[1., 2., 3.]]]])
    """

    def __init__(self, network: Conditionals, features: Tensor, channels: int, parts: int = 1) -> None:
        self.network, self.features, self.channels, self.parts = network, features, channels, parts

    def __repr__(self) -> str:
        return f"AutoregressiveNormal(shape={tuple(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        batch, _, *grid = self.features.shape
        return torch.Size((batch, self.channels, *grid))

    def expand(self, n: int) -> AutoregressiveNormal:
        if len(self.features) == n:
            return self
        features = self.features.expand(n, *self.features.shape[1:])
        return AutoregressiveNormal(self.network, features, self.channels, self.parts)

    def conditionals(self, z: Tensor) -> Normal:
        return self.network(z, self.features)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Of every variable given those before it, nats."""
        return self.conditionals(x).log_prob_map(x)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A reparameterized draw, part after part; ``temperature`` multiplies every standard deviation."""
        return self.sample_with(
            lambda like: (
                temperature * torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
            )
        )

    def sample_with(self, noise: Noise) -> Tensor:
        z = self._blank()
        given = noise(z)
        _, channels, height, width = z.shape
        share = channels // self.parts
        for place in range(height * width * self.parts):
            position, part = divmod(place, self.parts)
            turn = torch.zeros(channels, height, width, dtype=torch.bool, device=z.device)
            turn[part * share : (part + 1) * share, position // width, position % width] = True
            found = self.conditionals(z)
            z = torch.where(turn, found.mean + found.scale * given, z)
        return z

    def mode(self) -> Tensor:
        """The same as :meth:`center`; the mode of the whole is not known."""
        return self.center()

    def center(self) -> Tensor:
        """Each variable at its mean given those before it."""
        return self.sample_with(torch.zeros_like)

    def _blank(self) -> Tensor:
        features = self.features
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        return torch.zeros(self.shape, dtype=dtype, device=features.device)
