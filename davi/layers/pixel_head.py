"""From the last feature map of a network to a normalized distribution over integer pixels."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor

from davi.distributions import Bernoulli, Categorical, DiscretizedLogisticMixture, Distribution
from davi.distributions.base import ordered_gradient
from davi.errors import OptionError

Likelihood = Literal["bernoulli", "categorical", "logistic_mixture"]
Form = Literal["exact", "openai", "nvae", "attentive"]


@final
class PixelHead:
    """Reads network outputs ``[B, parameters, H, W]`` as a distribution over images ``[B, C, H, W]``.

    Layout of the parameters: Bernoulli, a logit per channel; categorical, ``[levels, C]`` logits; logistic mixture of K
    components, ``[K, G]`` mixture logits, ``[K, C]`` means, ``[K, C]`` log-scales and, for three channels, ``[K, 3]``
    coefficients before the tanh, with G = 1 for one or three channels and G = C (independent channels) otherwise.

    Arguments:
        likelihood: which family.
        channels: C.
        levels: values per channel.
        components: K of the logistic mixture.
        form: ``"exact"``; the other forms serve published weights only
            (:mod:`davi.distributions.logistic_mixture`).

    Raises:
        OptionError: a ``ValueError``, if a Bernoulli is asked for other than 2 levels, a categorical for more than 256.
        ValueError: if there is fewer than one component.
    """

    def __init__(
        self, likelihood: Likelihood, channels: int, levels: int, components: int = 10, form: Form = "exact"
    ) -> None:
        if likelihood == "bernoulli" and levels != 2:
            raise OptionError("likelihood", f"got bernoulli for {levels} levels, expected 2 (binarize the data?)")
        if likelihood == "categorical" and levels > 256:
            raise OptionError("likelihood", f"got categorical for {levels} levels, expected at most 256")
        if components < 1:
            raise ValueError(f"mixture components: got {components}, expected at least 1")
        self.likelihood = likelihood
        self.channels = channels
        self.levels = levels
        self.components = components
        self.form = form
        self.autoregressive = likelihood == "logistic_mixture" and channels == 3

    @property
    def parameters(self) -> int:
        """How many numbers per pixel the network must provide."""
        if self.likelihood == "bernoulli":
            return self.channels
        if self.likelihood == "categorical":
            return self.levels * self.channels
        groups = 1 if self.autoregressive else self.channels
        return self.components * (groups + 2 * self.channels + (3 if self.autoregressive else 0))

    def __call__(self, raw: Tensor) -> Distribution:
        """The distribution whose parameters are ``raw``, ``[B, parameters, H, W]``."""
        if self.likelihood == "bernoulli":
            return Bernoulli(raw)
        if self.likelihood == "categorical":
            return Categorical(raw.unflatten(1, (self.levels, self.channels)))
        k, c = self.components, self.channels
        groups = 1 if self.autoregressive else c
        widths = [k * groups, k * c, k * c] + ([3 * k] if self.autoregressive else [])
        logits, means, log_scales, *rest = map(ordered_gradient, raw.split(widths, 1))
        coefficients = rest[0].unflatten(1, (k, 3)).tanh() if rest else None
        return DiscretizedLogisticMixture(
            logits.unflatten(1, (k, groups)),
            means.unflatten(1, (k, c)),
            log_scales.unflatten(1, (k, c)),
            self.levels,
            coefficients,
            self.form,
        )
