"""Contrastive divergence with persistent chains, an objective that keeps a state.

References:
    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient, T. Tieleman, ICML 2008,
    https://www.cs.toronto.edu/~tijmen/pcd/pcd.pdf
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.model import Energy, Network
from davi.objectives import Loss, Objective, ObjectiveConfig, Progress


@dataclass(frozen=True)
class PersistentConfig(ObjectiveConfig):
    """
    Arguments:
        name: ``toy_persistent``.
        steps: of every chain between two steps of training.
    """

    name: Literal["toy_persistent"] = "toy_persistent"
    steps: int = 1


@final
class PersistentContrastiveDivergence(Objective):
    """F of images minus F of chains that go on from step to step; they are the objective's, not the model's."""

    name = "toy_persistent"
    Config = PersistentConfig
    wants = Energy
    config: PersistentConfig

    def begin(self, model: Network, batch_size: int) -> None:
        self.chains = torch.zeros(batch_size, *model.shape, dtype=torch.int64, device=next(model.parameters()).device)

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        assert isinstance(model, Energy)
        own = slice(batch.start, batch.start + len(batch.x))
        self.chains[own] = model.gibbs(self.chains[own], self.config.steps)
        data, chains = network(batch.x), network(self.chains[own])
        return Loss(data.mean() - chains.mean(), {"data": data, "chains": chains}, None)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        assert isinstance(model, Energy)
        energy = model.free_energy(batch.x)
        return Loss(energy.mean(), {"data": energy}, None)

    def state(self) -> dict[str, Tensor]:
        return {"chains": self.chains}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.chains = tensors["chains"].clone()
