r"""A distribution sent through a bijection whose inverse is known as well: its density is known at any point.

With :math:`z = f(\epsilon)` and :math:`\epsilon` from a base distribution,

.. math:: \log p(z) = \log p_0\bigl(f^{-1}(z)\bigr) + \log \left| \det \frac{\partial f^{-1}(z)}{\partial z} \right|

:class:`~davi.distributions.TransformedNormal` needs no inverse, and knows the density of its own draws only.

References:
    Normalizing Flows for Probabilistic Modeling and Inference, G. Papamakarios, E. Nalisnick, D. J. Rezende,
    S. Mohamed, B. Lakshminarayanan, JMLR 2021, https://arxiv.org/abs/1912.02762
"""

from __future__ import annotations

from typing import Protocol, final

import torch
from torch import Generator, Tensor

from davi.distributions.base import Latent, Noise
from davi.evidence import Kind


class Invertible(Protocol):
    """What is needed of a :class:`~davi.flows.Bijection`; its context, if any, is given."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y = f(x), and a map of the shape of x that sums to the log-determinant of dy/dx."""

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x with f(x) = y, and a map of the shape of y that sums to the log-determinant of dx/dy."""


@final
class Transformed(Latent):
    """A distribution of latents sent through a bijection that keeps their shape (module docstring).

    Arguments:
        base: of epsilon.
        bijection: f.

    Example:
        >>> from davi.distributions import Normal
        >>> from davi.flows import InverseAutoregressiveFlow
        >>> base = Normal(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
        >>> p = Transformed(base, InverseAutoregressiveFlow(1, 2, 8, kernel_size=1))  # not trained: 0.88 epsilon
        >>> p.log_prob(torch.zeros(1, 2, 1, 1)).detach()  # - log 2 pi - 2 log sigmoid(2)
        tensor([-1.5840])
    """

    def __init__(self, base: Latent, bijection: Invertible) -> None:
        self.base = base
        self.bijection = bijection

    def __repr__(self) -> str:
        return f"Transformed({self.base!r})"

    @property
    def kind(self) -> Kind:
        return self.base.kind

    @property
    def shape(self) -> torch.Size:
        return self.base.shape

    def expand(self, n: int) -> Transformed:
        return Transformed(self.base.expand(n), self.bijection)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """At the grain of x; what the bijection mixes is in equal shares."""
        epsilon, log_det = self.bijection.inverse(x)
        return self.base.log_prob_map(epsilon) + log_det

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """f of a draw of the base, whose spread ``temperature`` scales."""
        return self.bijection(self.base.sample(generator, temperature))[0]

    def sample_with(self, noise: Noise) -> Tensor:
        return self.bijection(self.base.sample_with(noise))[0]

    def center(self) -> Tensor:
        """Where f takes the center of the base."""
        return self.bijection(self.base.center())[0]

    def mode(self) -> Tensor:
        """Where f takes the mode of the base, which is not the mode of the result in general."""
        return self.bijection(self.base.mode())[0]
