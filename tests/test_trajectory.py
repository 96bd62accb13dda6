"""Annealed importance sampling along the trajectory of training, against sums over all states."""

from __future__ import annotations

import math

import pytest
import torch
from golden_rbm import LOG_Z, golden, log_probabilities, states, transitions
from torch import Tensor

from davi.batch import Batch
from davi.models.rbm import RBM
from davi.objectives import ContrastiveConfig, ContrastiveObjective, Outcome, Progress
from davi.objectives.trajectory import Trajectory


@torch.no_grad()
def scaled(factor: float) -> RBM:
    """The golden machine with other couplings."""
    model = golden()
    model.weight.mul_(factor)
    return model


def increments(before: RBM, after: RBM) -> Tensor:
    """What an update adds to the log-weight of a chain in each of all states, ``[64]``."""
    chains = Trajectory(64)
    chains.v, chains.log_weights = states(), torch.zeros(64, dtype=torch.float64)
    with torch.no_grad():
        chains.free_energy = before.state_free_energy(states())
    chains.follow(after)
    assert not torch.equal(chains.v, states())
    torch.testing.assert_close(chains.free_energy, after.state_free_energy(chains.v).detach())
    return chains.log_weights


def test_weights_over_two_updates_have_the_mean_that_they_should_have() -> None:
    """E[w] = Z / Z_0 over all states of the chains, though their log-weights are too low in the mean."""
    path = [scaled(factor) for factor in (0.0, 0.6, 1.0)]
    first, second = increments(path[0], path[1]), increments(path[1], path[2])
    start, moves = log_probabilities(path[0]).exp(), transitions(path[1])
    log_z0 = path[0].log_partition()
    mean = (start * first.exp()) @ moves @ second.exp()
    assert float(log_z0 + mean.log()) == pytest.approx(LOG_Z, abs=1e-12)
    assert float(log_z0 + start @ first + start @ moves @ second) < LOG_Z - 0.01


def test_chains_follow_the_weights() -> None:
    torch.manual_seed(1)
    chains = Trajectory(20000)
    chains.begin(scaled(0.0))
    assert float(chains.log_z()) == pytest.approx(float(scaled(0.0).log_partition()), abs=1e-12)
    assert chains.effective_samples() == pytest.approx(20000)
    for factor in (0.4, 1.0):
        chains.follow(scaled(factor))
    told = chains.reports()
    assert told["log_z_error"] < 0.02
    assert told["effective_samples"] < 20000
    assert told["log_z"] == pytest.approx(LOG_Z, abs=4.0 * told["log_z_error"])
    assert chains.log_weights.dtype == torch.float64


def test_weights_that_have_been_trained_are_reached_in_many_steps() -> None:
    torch.manual_seed(2)
    model = scaled(8.0)
    chains = Trajectory(100)
    chains.begin(model)
    assert chains.effective_samples() > 50
    told = chains.reports()
    assert told["log_z"] == pytest.approx(float(model.log_partition()), abs=4.0 * told["log_z_error"])
    chains._start(model, 1)
    assert chains.effective_samples() < 50  # as one step would not


def test_the_likelihood_that_training_reports_is_right() -> None:
    """After 150 updates of a machine that begins without couplings, for the images of the last batch."""
    torch.manual_seed(3)
    model = scaled(0.01)
    x = states()[[0, 7, 7, 56, 63, 63]].long()
    made = ContrastiveObjective(ContrastiveConfig(chains=50, trajectory_chains=400))
    made.begin(model, len(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(151):
        loss = made.loss(model, model, Batch(x), Progress(step, 0, 0.0))
        if step == 150:
            break
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        made.end_step(model, Progress(step, 0, 0.0), Outcome(0.0, 1, lambda: iter(())))
    with torch.no_grad():
        exact = -model.free_energy(x) - model.log_partition()
    told = made.reports(Progress(150, 0, 1.0))
    assert float(exact.mean()) > -3.9  # of log 1/64 = -4.2 in the beginning
    assert 40 < told["effective_samples"] < 400
    assert told["log_z_error"] == pytest.approx(math.sqrt(1.0 / told["effective_samples"] - 1.0 / 400.0))
    torch.testing.assert_close(loss.terms["log_likelihood"], exact, rtol=0.0, atol=3.0 * told["log_z_error"])
