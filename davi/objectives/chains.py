"""Where the states come from whose free energies stand for the model's expectation in contrastive divergence.

- :class:`FromImages`: k steps of Gibbs sampling from the images of the batch (CD-k).
- :class:`Persistent`: chains that go on from step to step (persistent CD). What is kept is their hidden states: each
  step begins with visible ones, drawn with the new weights, and ends where free energies are wanted, so nothing is
  computed twice.
- :class:`Tempering`: the same on the levels of a ladder (:mod:`davi.model.tempering`), whose top level is the model.

Chains are independent of the size of a batch. Each part of a batch moves its share of them.

References:
    Training Products of Experts by Minimizing Contrastive Divergence, G. E. Hinton, Neural Computation 2002,
    https://doi.org/10.1162/089976602760128018

    Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient, T. Tieleman, ICML 2008,
    https://www.cs.toronto.edu/~tijmen/pcd/pcd.pdf

    Tempered Markov Chain Monte Carlo for Training of Restricted Boltzmann Machines, G. Desjardins, A. Courville,
    Y. Bengio, P. Vincent, O. Delalleau, AISTATS 2010, https://proceedings.mlr.press/v9/desjardins10a.html
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from davi.model import Clamped, Harmonium
from davi.model.tempering import moved_to, respaced, swap, sweep

ADAPT_EVERY = 50
"""Steps between two changes of a ladder."""


class Chains(ABC):
    """Markov chains of a harmonium.

    Arguments:
        steps: k, steps of Gibbs sampling between two steps of training.
        count: chains; 0: as many as there are images.
    """

    def __init__(self, steps: int, count: int) -> None:
        self.steps, self.count = steps, count

    @abstractmethod
    def begin(self, model: Harmonium) -> None:
        """Make the state with which training begins."""

    @abstractmethod
    def advance(self, network: nn.Module, model: Harmonium, x: Tensor, own: slice, step: int) -> Clamped:
        """Images, and behind them some of the chains after k further steps.

        Arguments:
            network: the energy as it has to be called.
            model: the same.
            x: the images of a part of a batch, ``[B, C, H, W]``.
            own: which chains the part moves.
            step: number of the step of training.
        """

    def end_step(self, step: int) -> None:  # noqa: B027  # most do nothing
        """What is changed for all chains after a step of training."""

    def reports(self) -> Mapping[str, float]:
        """Numbers for the log."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027  # some have none
        """Undo :meth:`state`."""


def make_chains(steps: int, count: int, levels: int) -> Chains:
    """The chains of a recipe: on a ladder if it has levels, from the images if there are none."""
    if not count:
        return FromImages(steps, count)
    return Tempering(steps, count, levels) if levels else Persistent(steps, count)


@torch.no_grad()
def _visible(model: Harmonium, h: Tensor, steps: int) -> Tensor:
    """Visible states given hidden ones, and after ``steps - 1`` further steps of Gibbs sampling."""
    v = model.visible.sample(model.visible_input(h))
    return model.state_gibbs(v, steps - 1) if steps > 1 else v


def _independent(model: Harmonium, count: int) -> Tensor:
    """States of visible units without couplings, ``[count, *visible.shape]``."""
    field = model.visible_field().detach()
    return model.visible.sample(field.expand(count, *field.shape))


@final
class FromImages(Chains):
    """New chains at every step, as many as images."""

    def begin(self, model: Harmonium) -> None:
        """There is nothing to keep."""

    def advance(self, network: nn.Module, model: Harmonium, x: Tensor, own: slice, step: int) -> Clamped:
        images: Clamped = network(x, True)
        h = model.hidden.sample(images.inputs.detach())
        chains = model.clamp(_visible(model, h, self.steps))
        return Clamped(*(torch.cat(pair) for pair in zip(images, chains, strict=True)))


@final
class Persistent(Chains):
    """Chains that go on, kept as hidden states, ``[chains, *hidden.shape]``."""

    h: Tensor

    @torch.no_grad()
    def begin(self, model: Harmonium) -> None:
        self.h = model.hidden.sample(model.hidden_input(_independent(model, self.count)))

    def advance(self, network: nn.Module, model: Harmonium, x: Tensor, own: slice, step: int) -> Clamped:
        both: Clamped = network(x, True, _visible(model, self.h[own], self.steps))
        self.h[own] = model.hidden.sample(both.inputs[len(x) :])
        return both

    def state(self) -> dict[str, Tensor]:
        return {"chains": self.h}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.h = tensors["chains"].clone()


@final
class Tempering(Chains):
    """Chains on a ladder, which is measured and changed every :data:`ADAPT_EVERY` steps.

    The tensors have room for ``most`` levels. Those that the ladder does not need come last, at 1, and are not moved.

    Arguments:
        steps: k, sweeps of all levels, each followed by swaps.
        count: chains of every level.
        most: levels.
    """

    base: Tensor
    """Fields of the independent units at the bottom, ``[*visible.shape]``."""
    v: Tensor
    """``[most, chains, *visible.shape]``."""
    betas: Tensor
    """Float64, ``[most]``."""
    accepted: Tensor
    """Sums since the ladder was changed: of the probabilities of swaps of neighbors, and their number, float64,
    ``[2, most - 1]``."""
    acceptance: Tensor
    """As it was measured last; NaN before, and where there is no level; float64, ``[most - 1]``."""

    def __init__(self, steps: int, count: int, most: int) -> None:
        super().__init__(steps, count)
        self.most, self.levels = most, 2

    @torch.no_grad()
    def begin(self, model: Harmonium) -> None:
        self.base = model.visible_field().detach().clone()
        v = _independent(model, self.count)
        self.v = v.expand(self.most, *v.shape).clone()
        self.betas = torch.ones(self.most, dtype=torch.float64, device=v.device)
        self.betas[0] = 0.0
        self.accepted = self.betas.new_zeros(2, self.most - 1)
        self.acceptance = self.betas.new_full((self.most - 1,), torch.nan)
        self.levels = 2

    @torch.no_grad()
    def _moved(self, model: Harmonium, own: slice, step: int) -> Tensor:
        """States of the top level after the sweeps."""
        v, betas = self.v[: self.levels, own], self.betas[: self.levels]
        for number in range(step * self.steps, (step + 1) * self.steps):
            v = sweep(model, v, betas, self.base)
            v, found = swap(model, v, betas, self.base, bool(number % 2))
            pairs = self.accepted[:, : self.levels - 1]
            pairs += v.shape[1] * torch.stack([found.nan_to_num(0.0), (~found.isnan()).double()])
        self.v[: self.levels, own] = v
        return v[-1]

    def advance(self, network: nn.Module, model: Harmonium, x: Tensor, own: slice, step: int) -> Clamped:
        both: Clamped = network(x, True, self._moved(model, own, step))
        return both

    @torch.no_grad()
    def end_step(self, step: int) -> None:
        if (step + 1) % ADAPT_EVERY:
            return
        old = self.betas[: self.levels]
        measured = (self.accepted[0] / self.accepted[1])[: self.levels - 1]
        ladder = respaced(old, measured, self.most)
        v = moved_to(self.v[: self.levels], old, ladder)
        self.acceptance.fill_(torch.nan)[: self.levels - 1] = measured
        self.levels = len(ladder)
        self.v[: self.levels], self.betas[: self.levels] = v, ladder
        self.betas[self.levels :] = 1.0
        self.accepted.zero_()

    def reports(self) -> Mapping[str, float]:
        measured = self.acceptance[~self.acceptance.isnan()]
        if not len(measured):
            return {}
        lowest, highest = float(measured.min()), float(measured.max())
        told = {"swap_acceptance": float(measured.mean()), "swap_acceptance_lowest": lowest}
        return {**told, "swap_acceptance_highest": highest, "levels": float(len(measured) + 1)}

    def state(self) -> dict[str, Tensor]:
        moving = {"chains": self.v, "betas": self.betas, "accepted": self.accepted}
        return {**moving, "acceptance": self.acceptance, "base": self.base}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.v, self.betas, self.accepted, self.acceptance, self.base = (
            tensors[name].clone() for name in ("chains", "betas", "accepted", "acceptance", "base")
        )
        self.levels = int((self.betas < 1.0).sum()) + 1
