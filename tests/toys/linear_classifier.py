"""A classifier: multinomial logistic regression on the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from davi.model import Classifier


@dataclass(frozen=True)
class LinearClassifierConfig:
    """
    Arguments:
        scale: standard deviation of the initial weights.
    """

    scale: float = 0.1


@final
class LinearClassifier(Classifier):
    """a_c = b_c + W_c x, with pixels from 0 to 1."""

    name = "toy_linear_classifier"
    Config = LinearClassifierConfig

    def __init__(
        self, shape: tuple[int, int, int], levels: int, config: LinearClassifierConfig, classes: int = 0
    ) -> None:
        super().__init__(shape, levels, config, classes)
        self.weight = nn.Parameter(config.scale * torch.randn(classes, self.dims))
        self.bias = nn.Parameter(torch.zeros(classes))

    def logits(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1).to(self.weight.dtype) / (self.levels - 1)
        return pixels @ self.weight.T + self.bias
