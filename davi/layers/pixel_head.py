"""From the last feature map of a network to a normalized distribution over integer pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, final

from torch import Tensor, nn

from davi.config import Named
from davi.distributions import Bernoulli, Categorical, DiscretizedLogisticMixture, Distribution
from davi.distributions.base import ordered_gradient
from davi.errors import OptionError
from davi.layers.causal_options import named_configs, with_name

Family = Literal["bernoulli", "categorical", "logistic_mixture", "autoregressive"]
Form = Literal["exact", "openai", "nvae", "attentive"]


class CausalConfig(Protocol):
    """The options of a causal network, with its name."""

    @property
    def name(self) -> str:
        """Which network."""

    @property
    def likelihood(self) -> LikelihoodConfig:
        """The family of a pixel."""


NetworkSection = Annotated[CausalConfig, Named(named_configs)]
"""The options of any of the causal networks; the key ``name`` says of which."""


@final
@dataclass(frozen=True)
class LikelihoodConfig:
    """The section ``likelihood`` of a model's options: the family of p(x | z). Each model has its own defaults.

    Arguments:
        family: of a pixel, independent of the others given the latents; None: it follows the levels
            (:meth:`following`); ``autoregressive``: a pixel is given earlier pixels as well, of which a causal network
            makes something.
        components: K of a logistic mixture.
        form: of a logistic mixture: ``exact``; the other forms serve published weights only
            (:mod:`davi.distributions.logistic_mixture`).
        network: of ``autoregressive``: the options of a causal network, with its ``name``; its own section
            ``likelihood`` says the family of a pixel.
        features: of ``autoregressive``: channels of the feature map that the latents offer to the network.
        input_dropout: of ``autoregressive``: the probability, 0 to 1, with which training hides each pixel from the
            network, all its channels at once, when it predicts other pixels. What is predicted is the image itself, and
            outside of training nothing is hidden.

    Raises:
        ValueError: if a number is below one, another family than the logistic mixture has a form, or there is a network
            without the family ``autoregressive`` or the other way round.
    """

    family: Family | None = None
    components: int = 10
    form: Form = "exact"
    network: NetworkSection | None = None
    features: int = 16
    input_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.network is not None:
            object.__setattr__(self, "network", with_name(self.network))
        self._check_network()
        if self.features < 1:
            raise ValueError(f"features: got {self.features}, expected at least 1")
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

    def _check_network(self) -> None:
        if not 0.0 <= self.input_dropout <= 1.0:
            raise ValueError(f"input_dropout: got {self.input_dropout}, expected 0 to 1")
        if self.family != "autoregressive":
            if self.input_dropout:
                raise ValueError(f"input_dropout: got {self.input_dropout}, expected 0 for the family {self.family}")
            if self.network is not None:
                raise ValueError(f"network: got {self.network.name}, expected null for the family {self.family}")
            return
        if self.form != "exact":
            raise ValueError(f"form: got {self.form}, expected exact for an autoregressive likelihood")
        if self.network is None:
            names = ", ".join(named_configs())
            raise ValueError(f"network: got nothing, expected a causal network, by the name of one of {names}")
        inner = self.network.likelihood
        if inner.family == "autoregressive":
            raise ValueError("network.likelihood.family: got autoregressive, expected the family of a pixel")
        if inner.form != "exact":
            raise ValueError(f"network.likelihood.form: got {inner.form}, expected exact")

    def check_exact(self) -> None:
        """Refuse the forms for published weights; for models of which there are none.

        Raises:
            ValueError: if the form is another one than ``exact``.
        """
        if self.form != "exact":
            raise ValueError(f"likelihood: got form {self.form}, expected exact: this model has no published weights")


class Head(ABC):
    """Reads a model's last feature map, ``[B, inputs, H, W]``, as a distribution over integer images."""

    likelihood: LikelihoodConfig
    """The section it is made from."""

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Numbers for each pixel that are read."""

    @property
    @abstractmethod
    def normalized(self) -> bool:
        """Whether the distributions sum to one, as all but the forms for published weights do."""

    @abstractmethod
    def __call__(self, raw: Tensor) -> Distribution:
        """The distribution over images ``[B, C, H, W]`` that a feature map stands for."""

    def blocks(self) -> Iterable[nn.Module]:
        """Modules of a head with weights that may be compiled one by one."""
        return ()


class PixelLikelihood:
    """A model whose options have a section ``likelihood`` and whose last feature map a head reads as that."""

    head: Head
    """Made from the section."""

    @property
    def pixel_head(self) -> PixelHead:
        """The head of a model whose likelihood is not ``autoregressive``."""
        assert isinstance(self.head, PixelHead)
        return self.head


@final
class PixelHead(Head):
    """Reads network outputs ``[B, inputs, H, W]`` as a distribution over images ``[B, C, H, W]``.

    Layout of the parameters: Bernoulli, a logit per channel; categorical, ``[levels, C]`` logits; logistic mixture of K
    components, ``[K, G]`` mixture logits, ``[K, C]`` means, ``[K, C]`` log-scales and, for three channels, ``[K, 3]``
    coefficients before the tanh, with G = 1 for one or three channels and G = C (independent channels) otherwise.

    Arguments:
        likelihood: which family, with its options; without one it follows the levels.
        channels: C.
        levels: values per channel.
        codes: whether the values are codes, whose order means nothing: they are categorical, however many there are.

    Raises:
        OptionError: a ``ValueError``, if a Bernoulli is asked for other than 2 levels, a categorical for more than 256
            that are no codes, another family for codes, or a whole image (``autoregressive``) where a pixel is wanted.
    """

    def __init__(self, likelihood: LikelihoodConfig, channels: int, levels: int, codes: bool = False) -> None:
        if codes and likelihood.family not in (None, "categorical"):
            raise OptionError("likelihood.family", f"got {likelihood.family}, expected categorical for codes")
        likelihood = replace(likelihood, family="categorical") if codes else likelihood.following(levels)
        family = likelihood.family
        if family == "autoregressive":
            raise OptionError("likelihood.family", "got autoregressive, expected the family of a pixel")
        if family == "bernoulli" and levels != 2:
            raise OptionError(
                "likelihood.family", f"got bernoulli for {levels} levels, expected 2 (binarize the data?)"
            )
        if family == "categorical" and levels > 256 and not codes:
            raise OptionError("likelihood.family", f"got categorical for {levels} levels, expected at most 256")
        self.likelihood = likelihood
        self.channels = channels
        self.levels = levels
        self.autoregressive = family == "logistic_mixture" and channels == 3

    @property
    def inputs(self) -> int:
        """How many numbers per pixel the network must provide."""
        if self.likelihood.family == "bernoulli":
            return self.channels
        if self.likelihood.family == "categorical":
            return self.levels * self.channels
        groups = 1 if self.autoregressive else self.channels
        return self.likelihood.components * (groups + 2 * self.channels + (3 if self.autoregressive else 0))

    @property
    def normalized(self) -> bool:
        return self.likelihood.form == "exact"

    def part(self, raw: Tensor, part: int, parts: int) -> Distribution:
        """The distribution of a share of the channels: all of them, or of several parts one.

        Arguments:
            raw: ``[B, inputs, H, W]``.
            part: which, from 0.
            parts: 1, or C for a Bernoulli or categorical head.
        """
        if parts == 1:
            return self(raw)
        if self.likelihood.family == "bernoulli":
            return Bernoulli(raw[:, part : part + 1])
        return Categorical(raw.unflatten(1, (self.levels, self.channels))[:, :, part : part + 1])

    def __call__(self, raw: Tensor) -> Distribution:
        """The distribution whose parameters are ``raw``, ``[B, inputs, H, W]``."""
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
