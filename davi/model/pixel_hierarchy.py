"""A hierarchy over pixels, whose likelihood, top prior and posteriors its options choose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from typing import Any, final

from torch import Tensor, nn

from davi.distributions import Latent, Normal
from davi.errors import OptionError
from davi.model.latent_options import LatentOptions, LayerSizes
from davi.model.pixel_likelihood import LikelihoodHierarchy
from davi.posteriors import FlowPosterior, make_constant_rate
from davi.priors import FromImages, FromPosteriors, make_prior


class PixelHierarchy(LikelihoodHierarchy, ABC):
    """A hierarchy whose options choose the likelihood (:class:`LikelihoodHierarchy`), the prior of the top layer and
    the family of its posteriors.

    A subclass calls :meth:`choose_latents` as well and makes the prior of its top layer with :meth:`top_prior` and
    every posterior with :meth:`posterior`; its options are :class:`LatentOptions`.
    """

    @abstractmethod
    def top_posterior(self, context: Any) -> Latent:
        """The posterior of the top layer.

        Arguments:
            context: the result of ``encode_pixels``.
        """

    @final
    def choose_latents(self, top: tuple[int, ...], layers: Sequence[LayerSizes]) -> None:
        """Make the prior and the posteriors that the options ask for.

        Arguments:
            top: shape of the top layer's latents for one image, ``[C, h, w]``.
            layers: of every layer, the top first.

        Raises:
            OptionError: a ``ValueError``, if they do not fit the latents.
        """
        options = self.config
        assert isinstance(options, LatentOptions)
        self._choose_rate(top, options)
        self.prior_of_top = None if options.prior is None else make_prior(top, self.shape, options.prior)
        self.posteriors: nn.ModuleList | None = None
        if options.posterior_flow is not None:
            self.posteriors = nn.ModuleList(FlowPosterior(*layer, options.posterior_flow) for layer in layers)
        if isinstance(self.prior_of_top, FromPosteriors) and (reason := self.why_top_is_not_normal()):
            raise OptionError("prior.name", f"got {self.prior_of_top.name}, expected another prior: {reason}")
        if isinstance(self.prior_of_top, FromImages):
            self.images_wanted = max(self.images_wanted, self.prior_of_top.images_wanted)

    def why_top_is_not_normal(self) -> str:
        """Why the posterior of the top layer is not a diagonal Normal that follows from the image alone, whose density
        is known at any point; empty if it is."""
        return "" if self.posteriors is None else "the posterior has a flow, and is no Normal distribution"

    def _choose_rate(self, top: tuple[int, ...], options: LatentOptions) -> None:
        rate = options.constant_rate
        self.rate_of_top = None if rate is None else make_constant_rate(top, rate)
        for option, other in (("posterior_flow", options.posterior_flow), ("prior", options.prior)):
            if rate is not None and other is not None:
                raise OptionError(
                    "constant_rate.name",
                    f"got {rate.name} beside {option} {other.name}, expected one of the two: both choose the top layer",
                )

    def _facts(self) -> list[str]:
        rate = self.rate_of_top
        told = [] if rate is None else [f"  constant rate of the top layer: {rate.rate:.4g} nats ({rate.name})"]
        return [*super()._facts(), *told]

    @final
    def top_prior(self, own: Latent) -> Latent:
        """The prior of the top layer: the model's own, or the one that the options ask for."""
        if self.rate_of_top is not None:
            return self.rate_of_top.prior()
        if self.prior_of_top is None:
            return own
        prior: Latent = self.prior_of_top(self._infer_top)
        return prior

    def _infer_top(self, pixels: Tensor) -> Latent:
        """The top posterior of images that are none of the batch: in eval mode, so that they do not move running
        statistics, nor share the statistics of the batch."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return self.top_posterior(self.encode_pixels(pixels))
        finally:
            for module in training:
                module.training = True

    @final
    def posterior(self, layer: int, base: Normal, features: Tensor) -> Latent:
        """The posterior of a layer: the Normal that the model's head reads, or what the options make of it.

        Arguments:
            layer: which, from the top.
            base: the Normal.
            features: what its head reads, ``[B, F, h, w]``.
        """
        if layer == 0 and self.rate_of_top is not None:
            constant: Latent = self.rate_of_top(base, features)
            return constant
        if self.posteriors is None:
            return base
        posterior: Latent = self.posteriors[layer](base, features)
        return posterior

    @final
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """The weights of the prior that follow from images, then all others that do."""
        prior = self.prior_of_top
        if isinstance(prior, FromImages) and not any(f"prior_of_top.{name}" in kept for name in prior.state_dict()):
            prior.initialize(self._as_numbers(images))
        super().initialize(images, kept)
