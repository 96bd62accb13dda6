"""A model of two parts that are trained one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.evidence import Evidence, Kind
from davi.model import Model, Network, Staged, Temperature
from toys.belief_net import BeliefNet, BeliefNetConfig


@dataclass(frozen=True)
class HalvesConfig:
    """No options."""


@final
class Halves(Model, Staged):
    """The upper half of an image, and then the lower half where it differs from what the upper half says it is.

    What it says depends on the weights of the first part: the second one is trained on what the first has become.
    """

    name = "toy_halves"
    Config = HalvesConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: HalvesConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        half = (shape[0], shape[1] // 2, shape[2])
        self.top, self.bottom = (BeliefNet(half, levels, BeliefNetConfig()) for _ in range(2))

    def part(self, name: str) -> Network:
        if name not in ("top", "bottom"):
            raise KeyError(f"got {name}, expected top or bottom")
        return self.top if name == "top" else self.bottom

    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        top, bottom = batch.x.long().chunk(2, 2)
        return batch._replace(x=top if name == "top" else bottom ^ self._said(top))

    def _said(self, top: Tensor) -> Tensor:
        return (self.top.conditionals(top).logits > 0).long()

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        self.check_images(x)
        self.check_labels(y, len(x))
        parts = {"top": self.top, "bottom": self.bottom}
        terms = {name: part.evidence(self.view(name, Batch(x)).x).log_px for name, part in parts.items()}
        return Evidence(terms, Kind.EXACT)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        top, bottom = (part.sample(n, temperature, generator) for part in (self.top, self.bottom))
        return torch.cat([top, bottom ^ self._said(top)], 2)
