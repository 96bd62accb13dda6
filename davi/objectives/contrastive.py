r"""Contrastive divergence, with chains that begin at the images, go on from step to step, or stand on a ladder.

.. math:: \nabla \log p(x) = -\nabla F(x) + E_{p(v)}\bigl[\nabla F(v)\bigr]

The expectation is replaced by a mean over chains (:mod:`davi.objectives.chains`): after k steps from the images (CD-k),
or with chains that are never started again (persistent CD). The loss, mean F of images minus mean F of chains, has this
gradient, but its value says nothing of the likelihood; it is near 0 where chains know the model well. What is known of
the likelihood in training is an estimate along its trajectory (:mod:`davi.objectives.trajectory`), for the images of
each batch. On mean units, see :mod:`davi.objectives.centering`.

References:
    Training Products of Experts by Minimizing Contrastive Divergence, G. E. Hinton, Neural Computation 2002,
    https://doi.org/10.1162/089976602760128018

    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient, T. Tieleman, ICML 2008,
    https://www.cs.toronto.edu/~tijmen/pcd/pcd.pdf
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.errors import UserError
from davi.layers.units import GaussianUnits
from davi.model import Clamped, Harmonium, Network, WithCouplings
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Outcome, Progress
from davi.objectives.centering import MeanUnits, center, sparsity
from davi.objectives.chains import make_chains
from davi.objectives.energy_gradient import add_gradient
from davi.objectives.trajectory import Trajectory

RECENT = 0.9
"""Weight of earlier batches in the mean free energy that the log's likelihood is made from."""


@dataclass(frozen=True)
class ContrastiveConfig(ObjectiveConfig):
    """
    Arguments:
        name: ``contrastive``.
        steps: k, Gibbs steps of every chain between two steps of training.
        chains: persistent chains, any number; 0: new chains from the images at every step.
        tempering_levels: parallel tempering of persistent chains on a ladder of at most so many levels, as many as keep
            the acceptance of swaps between .2 and .4; 0: none.
        centered: the centered gradient.
        centering_decay: of the moving means that are its offsets.
        sparsity_target: mean of hidden units that is aimed at; 0: none.
        sparsity_weight: of that target.
        sparsity_decay: of the moving mean that is compared with it.
        sparsity_fields_alone: change only the fields of the hidden units for it, not their couplings.
        trajectory_chains: importance chains that estimate the likelihood along the way; 0: none.
    """

    name: Literal["contrastive"] = "contrastive"
    steps: int = 1
    chains: int = 0
    tempering_levels: int = 0
    centered: bool = False
    centering_decay: float = 0.99
    sparsity_target: float = 0.0
    sparsity_weight: float = 0.1
    sparsity_decay: float = 0.95
    sparsity_fields_alone: bool = False
    trajectory_chains: int = 20

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("chains", 0), ("tempering_levels", 0), ("trajectory_chains", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        for name in ("centering_decay", "sparsity_decay", "sparsity_target"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to below 1")
        if not 0 <= self.sparsity_weight < float("inf"):
            raise ValueError(f"sparsity_weight: got {self.sparsity_weight}, expected a number from 0")
        if self.tempering_levels and not self.chains:
            raise ValueError(
                f"tempering_levels: got {self.tempering_levels} without chains, expected persistent ones (chains: 100)"
            )
        if self.tempering_levels == 1:
            raise ValueError("tempering_levels: got 1, expected at least 2, or 0 for no tempering")


def _add_gradient(model: Harmonium, both: Clamped, images: int, share: float, factor: float) -> None:
    """Add the gradient of the loss to those of the parameters (:func:`add_gradient`).

    Arguments:
        model: the energy.
        both: so many images, and chains.
        images: how many.
        share: of each chain in the mean.
        factor: of the gradient.
    """
    weights = both.free_energy.new_full(both.free_energy.shape, -share * factor)
    weights[:images] = factor / images
    add_gradient(model, both, weights)


@final
class ContrastiveObjective(Objective):
    """Mean F of images minus mean F of chains (module docstring)."""

    name = "contrastive"
    Config = ContrastiveConfig
    wants = Harmonium
    config: ContrastiveConfig
    compares_training_images = True

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__(config)
        self.chains = make_chains(config.steps, config.chains, config.tempering_levels)
        self.trajectory = Trajectory(config.trajectory_chains) if config.trajectory_chains else None
        self.offsets = MeanUnits(config.centering_decay, "visible", "hidden") if config.centered else None
        self.activity = MeanUnits(config.sparsity_decay, "hidden") if config.sparsity_target else None
        self.recent: Tensor | None = None
        """Moving mean of the free energies of images, for the log alone."""

    def check(self, model: Network) -> None:
        assert isinstance(model, Harmonium)
        if self.config.centered and not isinstance(model, WithCouplings):
            raise UserError(
                f"objective.centered: got true for {model.name}, expected false: its couplings are no single matrix"
            )
        if self.config.sparsity_target and isinstance(model.hidden, GaussianUnits):
            raise UserError(
                f"objective.sparsity_target: got {self.config.sparsity_target} for {model.name}, expected 0: its "
                "hidden units are not binary"
            )

    def begin(self, model: Network, batch_size: int) -> None:
        assert isinstance(model, Harmonium)
        self.batch_size = batch_size
        self.chains.begin(model)
        for part in (self.trajectory, self.offsets, self.activity):
            if part is not None:
                part.begin(model)

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        assert isinstance(model, Harmonium)
        images, count = len(batch.x), self.chains.count
        own = slice(*(count * n // self.batch_size for n in (batch.start, batch.start + images)))
        known = self._knows_gradient(network, model)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not known):
            both = self.chains.advance(network, model, batch.x, own, at.step)
        of_images, of_chains = both.free_energy[:images], both.free_energy[images:]
        # Where chains are not as many as images each part has its share, and the mean is that of all parts.
        share = self.batch_size / images / count if count else 1.0 / images
        value = of_images.mean() - (of_chains.sum() * share if count else of_chains.mean())
        if self.activity is not None:
            target, fields_alone = self.config.sparsity_target, self.config.sparsity_fields_alone
            penalty = sparsity(model, both.inputs[:images], self.activity.mean["hidden"], target, fields_alone)
            value = value + self.config.sparsity_weight * (penalty - penalty.detach())  # a gradient, no cost
        for means in (self.offsets, self.activity):
            if means is not None:
                means.add(model, both.split(images)[0], self.batch_size)
        energy = of_images.detach() - model.log_volume()
        if self.trajectory is not None:
            mean = energy.double().mean()
            self.recent = mean if self.recent is None else RECENT * self.recent + (1.0 - RECENT) * mean
        gradient = partial(_add_gradient, model, both, images, share) if known else None
        return Loss(value, {"free_energy": energy}, None, gradient=gradient)

    def _knows_gradient(self, network: nn.Module, model: Harmonium) -> bool:
        """Whether the gradient is written down, which is quicker than autograd. A network that is wrapped has wrappers
        that see to what autograd does, and nothing else."""
        return network is model and isinstance(model, WithCouplings) and self.activity is None

    def after_backward(self, model: Network, at: Progress) -> None:
        if self.activity is not None:
            self.activity.end()
        if self.offsets is not None:
            assert isinstance(model, Harmonium)
            assert isinstance(model, WithCouplings)
            self.offsets.end()
            mean = self.offsets.mean
            center(model.couplings, model.visible.gauge_fixed(mean["visible"]), mean["hidden"])

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        assert isinstance(model, Harmonium)
        energy = model.free_energy(batch.x, generator)
        return Loss(energy.mean(), {"free_energy": energy}, None)

    @property
    def ends_steps(self) -> bool:
        return self.trajectory is not None or self.config.tempering_levels > 0

    def end_step(self, model: Network, at: Progress, outcome: Outcome) -> None:
        assert isinstance(model, Harmonium)
        self.chains.end_step(at.step)
        if self.trajectory is not None:
            self.trajectory.follow(model)

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        assert isinstance(model, Harmonium)
        found = dict(self.chains.reports())
        if self.trajectory is not None and self.recent is not None:
            found |= self.trajectory.reports(model, float(self.recent))
        if self.activity is not None:
            found["hidden_mean"] = float(self.activity.mean["hidden"].mean())
        return found

    def settled(self, at: Progress) -> bool:
        return False  # free energies of different weights cannot be compared: each has a log Z of its own

    def state(self) -> dict[str, Tensor]:
        found = self.chains.state()
        if self.trajectory is not None:
            found |= self.trajectory.state()
        for name, means in self._means():
            found |= {f"{name}/{key}": tensor for key, tensor in means.state().items()}
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.chains.load_state(tensors)
        if self.trajectory is not None:
            self.trajectory.load_state(tensors)
        for name, means in self._means():
            own = {key.removeprefix(f"{name}/"): x for key, x in tensors.items() if key.startswith(f"{name}/")}
            means.load_state(own)

    def _means(self) -> list[tuple[str, MeanUnits]]:
        both = (("centering", self.offsets), ("sparsity", self.activity))
        return [(name, means) for name, means in both if means is not None]
