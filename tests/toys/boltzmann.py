"""A restricted Boltzmann machine so small that its partition function is a sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from davi.model import Energy, Summable


@dataclass(frozen=True)
class BoltzmannConfig:
    """
    Arguments:
        hidden: binary hidden units, at most 12.
    """

    hidden: int = 5


@final
class Boltzmann(Energy, Summable):
    """F(v) = -b v - sum_j softplus(c_j + W_j v)."""

    name = "toy_boltzmann"
    Config = BoltzmannConfig
    chain_steps = 20

    def __init__(self, shape: tuple[int, int, int], levels: int, config: BoltzmannConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.weight = nn.Parameter(0.1 * torch.randn(config.hidden, self.dims))
        self.visible = nn.Parameter(torch.zeros(self.dims))
        self.hidden = nn.Parameter(torch.zeros(config.hidden))

    def free_energy(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        flat = x.flatten(1).to(self.weight.dtype)
        return -flat @ self.visible - softplus(flat @ self.weight.T + self.hidden).sum(1)

    @torch.no_grad()
    def gibbs(self, x: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        flat = x.flatten(1).to(self.weight.dtype)
        for _ in range(steps):
            h = torch.bernoulli(((flat @ self.weight.T + self.hidden) / temperature).sigmoid(), generator=generator)
            flat = torch.bernoulli(((h @ self.weight + self.visible) / temperature).sigmoid(), generator=generator)
        return flat.view_as(x).long()

    @property
    def log2_states(self) -> float:
        return float(self.config.hidden)

    def log_partition(self) -> Tensor:
        count = self.config.hidden
        h = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * count).view(-1, count).double()  # all hidden states
        weight, b, c = self.weight.double(), self.visible.double(), self.hidden.double()
        return (h @ c + softplus(h @ weight + b).sum(1)).logsumexp(0)
