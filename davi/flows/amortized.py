r"""Flows whose parameters an encoder computes for each image: what a posterior takes.

A posterior begins with a Normal draw :math:`z_0` and sends it through K invertible steps,

.. math:: \log q(z_K \mid x) = \log q(z_0 \mid x)
          - \sum_{k=1}^K \log \left| \det \frac{\partial z_k}{\partial z_{k-1}} \right|

whose parameters are functions of the encoder's features of the image. The steps see the channels of one position
together, and positions apart: a vector of latents is a map of one position.

References:
    Variational Inference with Normalizing Flows, D. J. Rezende, S. Mohamed, ICML 2015,
    https://arxiv.org/abs/1505.05770
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

from davi.flows.base import Bijection


@dataclass(frozen=True)
class PosteriorFlowConfig:
    """The section ``posterior_flow`` of a model's options; each flow has its own options beside these.

    Arguments:
        name: of the flow.
        steps: K, how many times it is applied.
    """

    name: str
    steps: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")


class AmortizedFlow(Bijection, ABC):
    """A bijection of maps ``[B, channels, ...]`` whose parameters follow from a context ``[B, features, ...]``.

    Arguments:
        channels: of the latents at each position.
        features: of the context at each position.
        config: the options, an instance of ``Config``.

    Raises:
        OptionError: a ``ValueError``, if the options do not fit so many channels.
    """

    name: ClassVar[str]
    """The name recipes use, as ``posterior_flow.name``."""
    Config: ClassVar[type[PosteriorFlowConfig]]
    """The dataclass of the options; its ``name`` is a literal."""

    def __init__(self, channels: int, features: int, config: Any) -> None:
        super().__init__()
        self.channels, self.features, self.config = channels, features, config
