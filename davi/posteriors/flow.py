"""A posterior that is a Normal sent through a flow (:mod:`davi.flows.amortized`)."""

from __future__ import annotations

from typing import final

from torch import Tensor

from davi.distributions import Latent, Normal, TransformedNormal
from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.posterior import make_posterior_flow
from davi.posteriors.base import Posterior


@final
class FlowPosterior(Posterior):
    """A Normal sent through a flow whose parameters follow from the encoder's features.

    Arguments:
        channels: of the latents.
        features: that the model's head reads.
        config: the flow's options.
    """

    def __init__(self, channels: int, features: int, config: PosteriorFlowConfig) -> None:
        super().__init__()
        self.flow = make_posterior_flow(channels, features, config)

    def forward(self, base: Normal, features: Tensor) -> Latent:
        return TransformedNormal(base, self.flow, self.flow.inverse, features.to(base.mean.dtype))
