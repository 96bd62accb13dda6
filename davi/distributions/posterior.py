r"""Posteriors that are more than a Normal.

A hierarchy's walk offers a posterior for each latent. Where a paper sends a Normal draw through a flow, the density of
the result is known at that draw, which is all that a bound needs:

.. math:: \log q(z_K) = \log q(z_0) - \sum_k \log \left| \det \partial z_k / \partial z_{k-1} \right|

At any other point the inverse of the flow has to find :math:`z_0` first, one variable after the other in many flows.

References:
    Variational Inference with Normalizing Flows, D. J. Rezende, S. Mohamed, ICML 2015,
    https://arxiv.org/abs/1505.05770
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise
from davi.distributions.normal import Normal
from davi.evidence import Kind

Transform = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``z -> (z', log_det)``, both ``[B, ...]``: a :class:`~davi.flows.Bijection` whose context, if any, is given."""


@final
class KnownDraws:
    """The draws of a posterior whose density is known at them only, with its logarithm there."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, Tensor]] = []  # (z, log q(z) of each variable)

    def add(self, z: Tensor, log_prob: Tensor) -> Tensor:
        """Remember a draw; the very same tensor is returned."""
        self._known.append((z, log_prob))
        return z

    def find(self, x: Tensor) -> Tensor | None:
        """What was remembered of a draw; None if ``x`` is not (the very tensor of) one."""
        return next((log_prob for z, log_prob in self._known if z is x), None)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """The same.

        Raises:
            ValueError: if ``x`` is not (the very tensor of) one of the draws.
        """
        found = self.find(x)
        if found is None:
            raise ValueError("x: got latents that this posterior did not draw, expected one of its own draws")
        return found


@final
class TransformedNormal(Latent):
    """A Normal whose draws pass through a bijection. It remembers its draws and their densities.

    Arguments:
        base: the Normal.
        transform: the bijection.
        inverse: of the bijection; None: only the density of its own draws is known.
    """

    def __init__(self, base: Normal, transform: Transform, inverse: Transform | None = None) -> None:
        self.base = base
        self.transform = transform
        self.inverse = inverse
        self._known = KnownDraws()

    def __repr__(self) -> str:
        return f"TransformedNormal(shape={tuple(self.base.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    @property
    def scores_anywhere(self) -> bool:
        return self.inverse is not None

    def center(self) -> Tensor:
        return self._through(self.base.mean)

    def expand(self, n: int) -> TransformedNormal:
        return TransformedNormal(self.base.expand(n), self.transform, self.inverse)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A reparameterized draw; ``temperature`` scales the noise of the base."""
        return self._through(self.base.sample(generator, temperature))

    def sample_with(self, noise: Noise) -> Tensor:
        return self._through(self.base.sample_with(noise))

    def mode(self) -> Tensor:
        """Where the flow takes the mode of its base, which is not the mode of the result in general."""
        return self.center()

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Density of a draw, which is known already if ``x`` is the very tensor; or anywhere, by the inverse.

        Raises:
            ValueError: if ``x`` is not a draw or the center of this distribution, and there is no inverse.
        """
        if self._known.find(x) is None and self.inverse is not None:
            z0, log_det = self.inverse(x)
            return self.base.log_prob_map(z0) + log_det
        return self._known.log_prob_map(x)

    def _through(self, z0: Tensor) -> Tensor:
        z, log_det = self.transform(z0)
        return self._known.add(z, self.base.log_prob_map(z0) - log_det)


@final
class Drawn(Latent):
    r"""A posterior whose draw has been made already, because the posteriors of other latents depended on it.

    Its part of a bound is :math:`\log q(z) - \log p(z)` at the draw. In closed form it would treat those other latents,
    and with them the prior, as independent of this one, and the result would be no bound. For the same reason its
    expectation is no KL divergence: it can be negative, and near zero it does not say that the latents are unused.

    Arguments:
        posterior: where the latents came from.
        z: the latents.
    """

    def __init__(self, posterior: Latent, z: Tensor) -> None:
        self.posterior = posterior
        self.z = z

    def __repr__(self) -> str:
        return f"Drawn({self.posterior!r})"

    @property
    def shape(self) -> torch.Size:
        return self.z.shape

    @property
    def kind(self) -> Kind:
        return self.posterior.kind

    @property
    def scores_anywhere(self) -> bool:
        return self.posterior.scores_anywhere

    def center(self) -> Tensor:
        return self.posterior.center()

    def expand(self, n: int) -> Drawn:
        return Drawn(self.posterior.expand(n), self.z.expand(n, *self.z.shape[1:]))

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """The draw; always the same one."""
        return self.z

    def sample_with(self, noise: Noise) -> Tensor:
        """The draw, which was made already."""
        return self.z

    def mode(self) -> Tensor:
        """That of the posterior, not the draw."""
        return self.posterior.mode()

    def log_prob_map(self, x: Tensor) -> Tensor:
        return self.posterior.log_prob_map(x)
