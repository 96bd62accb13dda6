"""The sections of a hierarchy's options that are about its latents, the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from davi.flows.posterior import PosteriorFlowSection
from davi.posteriors import ConstantRateSection
from davi.priors import PriorSection


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """Options of the latents of a hierarchy.

    Arguments:
        posterior_flow: sends the draws of every layer's Normal posterior through a flow.
        prior: of the top layer; None: the model's own.
        constant_rate: prior and posterior of the top layer, whose KL divergence is the same for every image and all
            weights (:mod:`davi.posteriors.constant_rate`). Flows that a model has of its own are then left out there.
    """

    posterior_flow: PosteriorFlowSection | None = None
    prior: PriorSection | None = None
    constant_rate: ConstantRateSection | None = None

    def has_constant_rate(self, layer: int) -> bool:
        """Whether a layer, counted from the top, has a constant KL divergence."""
        return layer == 0 and self.constant_rate is not None


class LayerSizes(NamedTuple):
    """What a layer's posterior is made of: channels of the latents, and of the features that its head reads."""

    channels: int
    features: int
