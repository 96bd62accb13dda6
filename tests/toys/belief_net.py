"""A fully visible sigmoid belief network: every pixel is a logistic regression on the pixels before it.

Reference:
    Graphical Models for Machine Learning and Digital Communication, B. J. Frey, MIT Press 1998
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from davi.distributions import Bernoulli
from davi.model import Autoregressive, Conditional


@dataclass(frozen=True)
class BeliefNetConfig:
    """
    Arguments:
        scale: standard deviation of the initial weights.
    """

    scale: float = 0.1


@final
class BeliefNet(Autoregressive, Conditional):
    """p(x_i = 1 | x_{<i}) = sigmoid(b_i + sum_{j<i} W_ij x_j), with biases of each class where there are classes."""

    name = "toy_belief_net"
    Config = BeliefNetConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: BeliefNetConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        if levels != 2 or shape[0] != 1:
            raise ValueError(f"levels: got {levels} of {shape[0]} channels, expected binary images of one channel")
        self.weight = nn.Parameter(config.scale * torch.randn(self.dims, self.dims))
        self.bias = nn.Parameter(config.scale * torch.randn(max(1, classes), self.dims))

    def conditionals(self, x: Tensor, y: Tensor | None = None) -> Bernoulli:
        flat = x.flatten(1).to(self.weight.dtype)
        bias = self.bias if y is None else self.bias[y.long()]
        logits = flat @ self.weight.tril(-1).T + bias
        return Bernoulli(logits.view(len(x), *self.shape))
