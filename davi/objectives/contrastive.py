r"""Contrastive divergence, of chains that begin at the images or go on from step to step.

.. math:: \nabla \log p(x) = -\nabla F(x) + E_{p(v)}\bigl[\nabla F(v)\bigr]

The expectation is replaced by a mean over chains: after k steps from the images (CD-k), or with chains that are never
started again (persistent CD).

References:
    Training Products of Experts by Minimizing Contrastive Divergence, G. E. Hinton, Neural Computation 2002,
    https://doi.org/10.1162/089976602760128018

    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient, T. Tieleman, ICML 2008,
    https://www.cs.toronto.edu/~tijmen/pcd/pcd.pdf
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.model import Harmonium, Network
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Progress


@dataclass(frozen=True)
class ContrastiveConfig(ObjectiveConfig):
    """
    Arguments:
        name: ``contrastive``.
        steps: k, Gibbs steps of every chain between two steps of training.
        chains: persistent chains; 0: new chains from the images at every step.
    """

    name: Literal["contrastive"] = "contrastive"
    steps: int = 1
    chains: int = 0


@final
class ContrastiveObjective(Objective):
    """Mean F of images minus mean F of chains (module docstring)."""

    name = "contrastive"
    Config = ContrastiveConfig
    wants = Harmonium
    config: ContrastiveConfig

    def begin(self, model: Network, batch_size: int) -> None:
        assert isinstance(model, Harmonium)
        self.batch_size = batch_size
        field = model.visible_field().detach()
        if self.config.chains:
            self.chains = model.visible.sample(field.expand(self.config.chains, *field.shape))

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        assert isinstance(model, Harmonium)
        v = model.state(batch.x)
        if self.config.chains:
            own = slice(*(self.config.chains * n // self.batch_size for n in (batch.start, batch.start + len(batch.x))))
            chains = self.chains[own] = model.state_gibbs(self.chains[own], self.config.steps)
        else:
            chains = model.state_gibbs(v, self.config.steps)
        data, model_ = network(batch.x), model.state_free_energy(chains)
        return Loss(data.mean() - model_.mean(), {"free_energy": data}, None)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        assert isinstance(model, Harmonium)
        energy = model.free_energy(batch.x, generator)
        return Loss(energy.mean(), {"free_energy": energy}, None)

    def state(self) -> dict[str, Tensor]:
        return {"chains": self.chains} if self.config.chains else {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        if self.config.chains:
            self.chains = tensors["chains"].clone()
