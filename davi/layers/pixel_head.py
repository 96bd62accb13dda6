"""From the last feature map of a network to a normalized distribution over integer pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

from torch import Tensor

from davi.distributions import Bernoulli, Categorical, DiscretizedLogisticMixture, Distribution
from davi.distributions.base import ordered_gradient
from davi.errors import OptionError

Family = Literal["bernoulli", "categorical", "logistic_mixture"]
Form = Literal["exact", "openai", "nvae", "attentive"]


@final
@dataclass(frozen=True)
class LikelihoodConfig:
    """The section ``likelihood`` of a model's options: the family of p(x | z). Each model has its own defaults.

    Arguments:
        family: of the distribution of a pixel; None: it follows the levels (:meth:`following`).
        components: K of a logistic mixture.
        form: of a logistic mixture: ``exact``; the other forms serve published weights only
            (:mod:`davi.distributions.logistic_mixture`).

    Raises:
        ValueError: if there is fewer than one component, or another family than the logistic mixture has a form.
    """

    family: Family | None = None
    components: int = 10
    form: Form = "exact"

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"components: got {self.components}, expected at least 1")
        if self.form != "exact" and self.family != "logistic_mixture":
            family = "likelihood without a family" if self.family is None else self.family
            raise ValueError(f"form: got {self.form}, expected exact for a {family}")

    def following(self, levels: int, softmax: int = 32) -> LikelihoodConfig:
        """The same with a family: Bernoulli at two levels, categorical up to ``softmax`` levels, then logistic mixture.

        Arguments:
            levels: values per channel.
            softmax: the most levels for which a pixel is categorical.
        """
        if self.family is not None:
            return self
        if levels == 2:
            return replace(self, family="bernoulli")
        return replace(self, family="categorical" if levels <= softmax else "logistic_mixture")

    def check_exact(self) -> None:
        """Refuse the forms for published weights; for models of which there are none.

        Raises:
            ValueError: if the form is another one than ``exact``.
        """
        if self.form != "exact":
            raise ValueError(f"likelihood: got form {self.form}, expected exact: this model has no published weights")


class PixelLikelihood:
    """A model whose options have a section ``likelihood`` and whose last feature map a pixel head reads as that."""

    head: PixelHead
    """Made from the section."""


@final
class PixelHead:
    """Reads network outputs ``[B, parameters, H, W]`` as a distribution over images ``[B, C, H, W]``.

    Layout of the parameters: Bernoulli, a logit per channel; categorical, ``[levels, C]`` logits; logistic mixture of K
    components, ``[K, G]`` mixture logits, ``[K, C]`` means, ``[K, C]`` log-scales and, for three channels, ``[K, 3]``
    coefficients before the tanh, with G = 1 for one or three channels and G = C (independent channels) otherwise.

    Arguments:
        likelihood: which family, with its options; without one it follows the levels.
        channels: C.
        levels: values per channel.

    Raises:
        OptionError: a ``ValueError``, if a Bernoulli is asked for other than 2 levels, a categorical for more than 256.
    """

    def __init__(self, likelihood: LikelihoodConfig, channels: int, levels: int) -> None:
        likelihood = likelihood.following(levels)
        family = likelihood.family
        if family == "bernoulli" and levels != 2:
            raise OptionError(
                "likelihood.family", f"got bernoulli for {levels} levels, expected 2 (binarize the data?)"
            )
        if family == "categorical" and levels > 256:
            raise OptionError("likelihood.family", f"got categorical for {levels} levels, expected at most 256")
        self.likelihood = likelihood
        self.channels = channels
        self.levels = levels
        self.autoregressive = family == "logistic_mixture" and channels == 3

    @property
    def parameters(self) -> int:
        """How many numbers per pixel the network must provide."""
        if self.likelihood.family == "bernoulli":
            return self.channels
        if self.likelihood.family == "categorical":
            return self.levels * self.channels
        groups = 1 if self.autoregressive else self.channels
        return self.likelihood.components * (groups + 2 * self.channels + (3 if self.autoregressive else 0))

    @property
    def normalized(self) -> bool:
        """Whether the distributions sum to one, as all but the forms for published weights do."""
        return self.likelihood.form == "exact"

    def part(self, raw: Tensor, part: int, parts: int) -> Distribution:
        """The distribution of a share of the channels: all of them, or of several parts one.

        Arguments:
            raw: ``[B, parameters, H, W]``.
            part: which, from 0.
            parts: 1, or C for a Bernoulli or categorical head.
        """
        if parts == 1:
            return self(raw)
        if self.likelihood.family == "bernoulli":
            return Bernoulli(raw[:, part : part + 1])
        return Categorical(raw.unflatten(1, (self.levels, self.channels))[:, :, part : part + 1])

    def __call__(self, raw: Tensor) -> Distribution:
        """The distribution whose parameters are ``raw``, ``[B, parameters, H, W]``."""
        if self.likelihood.family == "bernoulli":
            return Bernoulli(raw)
        if self.likelihood.family == "categorical":
            return Categorical(raw.unflatten(1, (self.levels, self.channels)))
        k, c = self.likelihood.components, self.channels
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
            self.likelihood.form,
        )
