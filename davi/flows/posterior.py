"""The flows that a posterior can be given, by the names that recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from davi.config import Named
from davi.flows.amortized import AmortizedFlow, PosteriorFlowConfig
from davi.flows.householder import HouseholderFlow
from davi.flows.iaf import AmortizedIAF
from davi.flows.planar import PlanarFlow
from davi.flows.sylvester import SylvesterHouseholderFlow, SylvesterOrthogonalFlow, SylvesterTriangularFlow

_FLOWS: tuple[type[AmortizedFlow], ...] = (
    PlanarFlow,
    HouseholderFlow,
    SylvesterOrthogonalFlow,
    SylvesterHouseholderFlow,
    SylvesterTriangularFlow,
    AmortizedIAF,
)

POSTERIOR_FLOWS: dict[str, type[AmortizedFlow]] = {flow.name: flow for flow in _FLOWS}
"""Name in recipes -> class."""


def posterior_flow_configs() -> Mapping[str, type[PosteriorFlowConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {name: flow.Config for name, flow in POSTERIOR_FLOWS.items()}


PosteriorFlowSection = Annotated[PosteriorFlowConfig, Named(posterior_flow_configs)]
"""The options of any of the flows; the key ``name`` says of which."""


def make_posterior_flow(channels: int, features: int, config: PosteriorFlowConfig) -> AmortizedFlow:
    """The flow of a section.

    Arguments:
        channels: of the latents at each position.
        features: of the encoder at each position.
        config: the section.
    """
    return POSTERIOR_FLOWS[config.name](channels, features, config)
