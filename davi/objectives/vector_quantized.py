r"""Minus the evidence of a quantized autoencoder, plus what keeps features and codes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.model import Network
from davi.model.quantized import CodeAutoencoder
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Outcome, Progress


@dataclass(frozen=True)
class VectorQuantizedConfig(ObjectiveConfig):
    name: Literal["vector_quantized"] = "vector_quantized"
    commitment: float = 0.25
    decay: float = 0.99
    debias: bool = False
    smoothing: float = 0.0
    revive_below: float = 0.0  # a code is dead when its N is below this share of the mean N


@final
class VectorQuantizedObjective(Objective):
    """See the module docstring. ``reports``: ``code_perplexity/LL`` and ``code_usage/LL`` of layer LL, over the last
    whole epoch (until there is one, over the steps so far)."""

    name: ClassVar[str] = "vector_quantized"
    Config: ClassVar[type[ObjectiveConfig]] = VectorQuantizedConfig
    wants: ClassVar[type] = CodeAutoencoder
    config: VectorQuantizedConfig

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        raise AssertionError

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        raise AssertionError

    def end_step(self, model: Network, at: Progress, outcome: Outcome) -> None: ...

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}
