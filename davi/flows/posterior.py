"""The flows that a posterior can be given, by the names that recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from torch import Tensor, nn

from davi.config import Named
from davi.flows.amortized import AmortizedFlow, PosteriorFlowConfig
from davi.flows.iaf import InverseAutoregressiveFlow


@final
@dataclass(frozen=True)
class IAFConfig(PosteriorFlowConfig):
    """Options of the inverse autoregressive flow.

    Arguments:
        name: ``iaf``.
        steps: how many.
        width: of the hidden layers.
        hidden_layers: how many.
        gate_bias: initial bias of the gates' logits.
    """

    name: Literal["iaf"] = "iaf"
    width: int = 320
    hidden_layers: int = 2
    gate_bias: float = 2.0


@final
class AmortizedIAF(AmortizedFlow):
    """The inverse autoregressive flow (:mod:`davi.flows.iaf`), its context linear in the encoder's features."""

    name: ClassVar[str] = "iaf"
    Config: ClassVar[type[PosteriorFlowConfig]] = IAFConfig
    config: IAFConfig

    def __init__(self, channels: int, features: int, config: IAFConfig) -> None:
        super().__init__(channels, features, config)
        self.context = nn.Conv2d(features, config.width, 1)
        self.flow = InverseAutoregressiveFlow(
            config.steps, channels, config.width, config.hidden_layers, 1, config.gate_bias
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(x, self._context(context))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(y, self._context(context))

    def _context(self, features: Tensor | None) -> Tensor | None:
        return None if features is None else self.context(features)


POSTERIOR_FLOWS: dict[str, type[AmortizedFlow]] = {flow.name: flow for flow in (AmortizedIAF,)}
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
