"""Annealed importance sampling along the trajectory of training, against sums over all states."""

from __future__ import annotations

import pytest
import torch
from golden_rbm import LOG_Z, golden, log_probabilities, states, transitions
from torch import Tensor

from davi.batch import Batch
from davi.models.rbm import RBM
from davi.objectives import ContrastiveConfig, ContrastiveObjective, Outcome, Progress, trajectory
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
    chains.since = chains.variance = torch.zeros((), dtype=torch.float64)
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
    told = chains.reports(scaled(1.0), 0.0)
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
    told = chains.reports(model, 0.0)
    assert told["log_z"] == pytest.approx(float(model.log_partition()), abs=4.0 * told["log_z_error"])
    error = chains.error()
    chains._start(model, 1)
    assert chains.error() > 2.0 * error  # in one step it is larger


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
        loss.backward()
        optimizer.step()
        made.end_step(model, Progress(step, 0, 0.0), Outcome(0.0, 1, lambda: iter(())))
    with torch.no_grad():
        exact = -model.free_energy(x) - model.log_partition()
    told = made.reports(model, Progress(150, 0, 1.0))
    assert float(exact.mean()) > -3.9  # of log 1/64 = -4.2 in the beginning
    assert 40 < told["effective_samples"] <= 400
    energies = float(model.free_energy(x).detach().mean())
    assert made.recent is not None
    assert float(made.recent) == pytest.approx(energies, abs=0.1)  # a mean over the last ten batches
    assert told["log_likelihood"] == pytest.approx(-float(made.recent) - told["log_z"], abs=1e-9)
    assert told["log_z"] == pytest.approx(float(model.log_partition()), abs=3.0 * told["log_z_error"])


def test_chains_that_are_drawn_anew_leave_the_estimate_unbiased() -> None:
    """Six chains over updates so large that few of them count: the mean of the estimates of Z is Z."""
    torch.manual_seed(4)
    found, redrawn = [], 0
    for _ in range(1500):
        chains = Trajectory(6)
        chains.begin(scaled(0.0))
        for factor in (1.8, 0.5, 1.8, 1.0):
            chains.follow(scaled(factor))
        redrawn += float(chains.variance) > 0.0
        found.append(float((chains.log_z() - LOG_Z).exp()))
    assert redrawn > 800
    estimates = torch.tensor(found, dtype=torch.float64)
    assert float(estimates.mean()) == pytest.approx(1.0, abs=4.0 * float(estimates.std()) / len(found) ** 0.5)
    assert float(estimates.std()) < 1.0  # so that the line above says something


def test_what_has_lost_the_weights_is_not_told_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    model = scaled(1.0)
    chains = Trajectory(50)
    chains.begin(scaled(0.0))
    chains.follow(model)
    assert chains.reports(model, -1.0)["log_likelihood"] == pytest.approx(1.0 - float(chains.log_z()))
    chains.variance = chains.variance + 1.0
    assert chains.reports(model, -1.0) == {}
    monkeypatch.setattr(trajectory, "PAUSE", 0)
    told = chains.reports(model, -1.0)
    assert told["log_z"] == pytest.approx(LOG_Z, abs=4.0 * told["log_z_error"])
    assert told["effective_samples"] > 40
