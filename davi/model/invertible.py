r"""A model that takes images to noise by an invertible function: a normalizing flow.

Integers are dequantized to y (:mod:`davi.flows.dequantization`), which the bijection f takes to z. Together,

.. math:: \log P(x) \ge E_{q(y \mid x)}\bigl[\log p(f(y)) + \log |\det \partial f / \partial y|
          - \log q(y \mid x)\bigr]

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from torch import Generator, Tensor

from davi.distributions import Latent
from davi.distributions.base import sum_per_image
from davi.evidence import About, Evidence, Kind
from davi.flows import Bijection, Dequantization
from davi.model.base import Model, Temperature, check_draw


class Invertible(Model, ABC):
    """A flow on dequantized images (module docstring). A subclass sets the two parts and says what z follows."""

    dequantization: Dequantization
    """From integers to continuous images y, and back."""
    bijection: Bijection
    """f, from y to z."""

    @abstractmethod
    def base(self, n: int) -> Latent:
        """The distribution of z for ``n`` images."""

    def context(self, y: Tensor | None) -> Tensor | None:
        """What the bijection is told of the classes ``y``; a model without classes tells it nothing."""
        return None

    @final
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """The lower bound with one draw of the noise. Its log-weight is the bound itself."""
        self.check_images(x)
        self.check_labels(y, len(x))
        drawn = self.dequantization(x, generator, next(self.parameters()).dtype)
        z, log_det = self.bijection(drawn.y, self.context(y))
        base = self.base(len(x))
        terms = {
            "base": base.log_prob(z),
            "log_det": sum_per_image(log_det),
            "dequantization": -sum_per_image(drawn.log_q),
        }

        def log_weight_fn(joint: bool = False) -> Tensor:
            density = terms["base"] + terms["log_det"]
            return density if joint else density + terms["dequantization"]

        about = About.X if y is None else About.X_GIVEN_Y
        kind = Kind.weakest(Kind.LOWER_BOUND, base.kind, drawn.kind)
        return Evidence(terms, kind, log_weight_fn, about=about, dims=self.dims)

    @final
    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """Draw z, whose spread is multiplied by the temperature, and take it back to an image."""
        factor = check_draw(n, temperature)
        z = self.base(n).sample(generator, factor)
        continuous, _ = self.bijection.inverse(z, self.context(y))
        return self.dequantization.quantize(continuous)
