r"""Parallel tempering along the path of a harmonium, on a ladder that finds its own rungs.

Chains at :math:`\beta_0 < \ldots < \beta_R = 1` of the path from independent units (:mod:`davi.model.harmonium`) each
make steps of Gibbs sampling at their own :math:`\beta`. Then neighbors offer each other their states, and accept with
probability

.. math:: \min\Bigl(1, \exp\bigl[F_{\beta}(v) + F_{\beta'}(v') - F_{\beta}(v') - F_{\beta'}(v)\bigr]\Bigr)

which leaves the distribution of every level as it is. Pairs take turns: those that begin with an even level, then those
that begin with an odd one. What a chain at the top would not leave by itself for a long time it leaves by way of the
bottom, where at :math:`\beta = 0` every step draws independent states.

Swaps of neighbors whose energies are Normal are accepted with probability :math:`\operatorname{erfc}(d)`, d being
proportional to the distance of their :math:`\beta`. So from measured acceptances a follow distances
:math:`\operatorname{erfc}^{-1}(a)` that can be added up and cut into equal pieces, as many as give an acceptance
of .3: neither are most offers refused, nor are there more levels than needed.

References:
    Tempered Markov Chain Monte Carlo for Training of Restricted Boltzmann Machines, G. Desjardins, A. Courville,
    Y. Bengio, P. Vincent, O. Delalleau, AISTATS 2010, https://proceedings.mlr.press/v9/desjardins10a.html

    Parallel Tempering: Theory, Applications, and New Perspectives, D. J. Earl, M. W. Deem, Physical Chemistry Chemical
    Physics 2005, https://doi.org/10.1039/b509983h (acceptance)

    Non-Reversible Parallel Tempering: A Scalable Highly Parallel MCMC Scheme, S. Syed, A. Bouchard-Cote,
    G. Deligiannidis, A. Doucet, JRSS B 2022, https://arxiv.org/abs/1905.02939 (turns; distances that add up)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from davi.model.harmonium import Harmonium

TARGET, LEAST = 0.3, 0.2
"""Acceptance of swaps that a ladder aims at, and below which it has a level more."""

_SURE = 1e-4
"""Measured acceptances are taken for at least this, and for at most 1 minus this."""


class Tempered(NamedTuple):
    """Chains on a ladder.

    Arguments:
        states: visible states of every level, ``[levels, chains, *visible.shape]``; the last level is the model's.
        betas: of the levels, ascending to 1, float64, ``[levels]``.
        acceptance: mean probability with which swaps of neighbors were accepted, float64, ``[levels - 1]``.
    """

    states: Tensor
    betas: Tensor
    acceptance: Tensor


def even_ladder(levels: int, device: torch.device | None = None) -> Tensor:
    """Levels at equal distances from 0 to 1, float64, ``[levels]``."""
    return torch.linspace(0.0, 1.0, levels, dtype=torch.float64, device=device)


@torch.no_grad()
def sweep(model: Harmonium, states: Tensor, betas: Tensor, base: Tensor, generator: Generator | None = None) -> Tensor:
    """States of all levels after one step of Gibbs sampling, each at its own ``beta``.

    Arguments:
        model: the energy.
        states: ``[levels, chains, *visible.shape]``.
        betas: ``[levels]``.
        base: fields of the independent units, ``[*visible.shape]``.
        generator: of the draws; None: torch's default one.
    """
    moved = model.path_gibbs(states.flatten(0, 1), _of_each(betas, states), base, generator)
    return moved.view_as(states)


@torch.no_grad()
def swap(
    model: Harmonium,
    states: Tensor,
    betas: Tensor,
    base: Tensor,
    odd: bool = False,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Let neighbors exchange their states (module docstring).

    Arguments:
        model, states, betas, base, generator: as in :func:`sweep`.
        odd: whether the pairs begin with odd levels, or with even ones.

    Returns:
        The states, and the mean over the chains of the probability of acceptance of each pair, float64,
        ``[levels - 1]``; NaN for pairs whose turn it was not.
    """
    levels = len(betas)
    found = torch.full((levels - 1,), torch.nan, dtype=torch.float64, device=states.device)
    lower = torch.arange(int(odd), levels - 1, 2, device=states.device)
    if not len(lower):
        return states, found
    v, v_ = states[lower], states[lower + 1]
    beta, beta_ = betas[lower], betas[lower + 1]

    def energies(own: Tensor, at: Tensor) -> Tensor:
        return model.path_free_energy(own.flatten(0, 1), _of_each(at, own), base).view(own.shape[:2])

    log_ratio = energies(v, beta) + energies(v_, beta_) - energies(v_, beta) - energies(v, beta_)
    probability = log_ratio.double().clamp(max=0.0).exp()
    accepted = torch.rand(probability.shape, generator=generator, device=states.device) < probability
    accepted = accepted.view(*accepted.shape, *[1] * (states.ndim - 2))
    states = states.clone()
    states[lower], states[lower + 1] = torch.where(accepted, v_, v), torch.where(accepted, v, v_)
    found[lower] = probability.mean(1)
    return states, found


def respaced(betas: Tensor, acceptance: Tensor, most: int) -> Tensor:
    """The ladder whose neighbors accept alike (module docstring), with probability .3 or nearly so.

    It leads from 0 to 1, with as many levels as that takes. If these would be more than ``most``, it begins above 0.

    Arguments:
        betas: of the ladder on which was measured, ascending to 1, ``[levels]``.
        acceptance: of its neighbors, ``[levels - 1]``.
        most: levels that the ladder may have, at least 2.

    Returns:
        Float64, ascending to 1, on the device of ``betas``.
    """
    distances = _distance(acceptance.double().cpu())
    wanted, longest = (float(_distance(torch.tensor(a, dtype=torch.float64))) for a in (TARGET, LEAST))
    below = betas.double().cpu().flip(0)  # from 1 downward
    path = torch.cat([distances.new_zeros(1), distances.flip(0).cumsum(0)])
    if below[-1] > 0.0:  # nothing is known of what lies below but the last slope
        slope = distances[0] / (below[-2] - below[-1])
        path = torch.cat([path, path[-1:] + slope * below[-1:]])
        below = torch.cat([below, below.new_zeros(1)])
    length = float(path[-1])
    pairs = max(1, round(length / wanted))
    pairs += length > pairs * longest
    step = length / pairs if pairs < most else wanted
    places = step * torch.arange(min(pairs, most - 1) + 1, dtype=torch.float64)
    found = _interpolated(places, path, below).flip(0)
    found[-1] = 1.0
    if pairs < most:
        found[0] = 0.0
    return found.to(betas.device)


def moved_to(states: Tensor, betas: Tensor, ladder: Tensor) -> Tensor:
    """States for the levels of another ladder, each from the nearest level of the old one.

    Arguments:
        states: ``[levels, chains, *visible.shape]``.
        betas: of the old ladder, ``[levels]``.
        ladder: the new one, ``[new levels]``.
    """
    nearest = (ladder[:, None] - betas).abs().argmin(1)
    return states[nearest]


@torch.no_grad()
def tempered_chains(
    model: Harmonium,
    base: Tensor,
    chains: int,
    sweeps: int,
    most: int = 64,
    generator: Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tempered:
    """Chains that begin with independent units, after so many sweeps of all levels, each followed by swaps.

    In the first half of the sweeps the ladder is adapted, after 8, 16, 32, ... of them; in the second half it stays as
    it is, and only then every level keeps its distribution. Acceptances are those of the second half.

    Arguments:
        model: the energy.
        base: fields of the independent units, ``[*visible.shape]``.
        chains: of every level.
        sweeps: at least 4.
        most: levels that the ladder may have.
        generator: of the draws; None: torch's default one.
        progress: called with how many sweeps are done, and of how many.

    Raises:
        ValueError: one line.
    """
    for name, value, least in (("chains", chains, 1), ("sweeps", sweeps, 4), ("levels", most, 2)):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    betas = even_ladder(min(8, most), base.device)
    first = model.visible.sample(base.expand(chains, *base.shape), generator)
    states = first.expand(len(betas), *first.shape).clone()
    meter = AcceptanceMeter(betas)
    due, half = 8, sweeps // 2
    for number in range(sweeps):
        states = sweep(model, states, betas, base, generator)
        states, found = swap(model, states, betas, base, bool(number % 2), generator)
        meter.add(found)
        if number + 1 == due <= half:
            ladder = respaced(betas, meter.mean(), most)
            states, betas, meter = moved_to(states, betas, ladder), ladder, AcceptanceMeter(ladder)
            due *= 2
        if progress is not None:
            progress(number + 1, sweeps)
    return Tempered(states, betas, meter.mean())


class AcceptanceMeter:
    """Mean acceptances of the pairs of a ladder.

    Arguments:
        betas: of the ladder.
    """

    def __init__(self, betas: Tensor) -> None:
        self.total = torch.zeros(len(betas) - 1, dtype=torch.float64, device=betas.device)
        self.count = torch.zeros_like(self.total)

    def add(self, found: Tensor) -> None:
        """Take in what :func:`swap` has found."""
        self.total += found.nan_to_num(0.0)
        self.count += ~found.isnan()

    def mean(self) -> Tensor:
        """Float64, ``[levels - 1]``; NaN for pairs whose turn never came."""
        return self.total / self.count


def _of_each(betas: Tensor, states: Tensor) -> Tensor:
    """The ``beta`` of every state, ``[levels * chains]``."""
    return betas.repeat_interleave(states.shape[1])


def _distance(acceptance: Tensor) -> Tensor:
    """erfc^-1 of acceptances; pairs that were never seen count as half accepted."""
    return torch.erfinv(1.0 - acceptance.nan_to_num(0.5).clamp(_SURE, 1.0 - _SURE))


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear interpolation of y(x), x ascending, at some places."""
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = (at - x[left]) / (x[right] - x[left])
    return y[left] + share.clamp(0.0, 1.0) * (y[right] - y[left])
