"""What every energy promises: a free energy, a chain that leaves its distribution alone, and with its partition
function a probability. On images of four binary pixels, so that all states can be listed. What real units promise
instead is tested in test_contract_energy_real.py."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import toys
from contract import all_images, assert_frequencies, energies_that_claim, model_of, place, seeded, small
from torch import Tensor
from toys.boltzmann import Boltzmann

from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evidence import About, Kind
from davi.model import Energy, Normalized, Partition, Summable

SHAPE = (1, 2, 2)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


def of(name: str) -> Energy:
    found = small(name, SHAPE, 2).double()
    assert isinstance(found, Energy)
    with torch.no_grad():  # far from independent pixels
        for parameter in found.parameters():
            parameter.mul_(4.0)
    return found


@pytest.fixture(params=energies_that_claim(Kind.EXACT))
def energy(request: pytest.FixtureRequest) -> Energy:
    return of(request.param)


@pytest.fixture
def model(energy: Energy) -> Normalized:
    found = model_of(energy)
    assert isinstance(found, Normalized)
    return found


@torch.no_grad()
def log_probabilities(energy: Energy) -> Tensor:
    """Of all images: minus their free energies, minus the log of the sum."""
    negative = -energy.free_energy(all_images(energy))
    return negative - negative.logsumexp(0)


def test_free_energies_are_nats_of_images(energy: Energy) -> None:
    x = all_images(energy)
    found = energy.free_energy(x)
    assert found.shape == (16,)
    assert torch.equal(energy(x), found)
    assert torch.equal(energy.free_energy(x.to(torch.uint8)), found)
    assert float(log_probabilities(energy).std()) > 0.3  # not simply even


def test_the_partition_function_is_the_sum_over_all_images(energy: Energy) -> None:
    assert isinstance(energy, Summable)
    log_z = energy.log_partition()
    assert log_z.dtype == torch.float64
    assert log_z.ndim == 0
    total = sum(math.exp(-float(f)) for f in energy.free_energy(all_images(energy)).detach())
    assert float(log_z.detach()) == pytest.approx(math.log(total), abs=1e-10)


def test_probabilities_sum_to_one(model: Normalized) -> None:
    x = all_images(model)
    evidence = model.evidence(x)
    assert (evidence.kind, evidence.about, evidence.log_weight) == (Kind.EXACT, About.X, None)
    assert float(evidence.log_px.detach().exp().sum()) == pytest.approx(1.0, abs=1e-10)
    torch.testing.assert_close(evidence.log_px, log_probabilities(model.energy), rtol=0.0, atol=1e-10)
    assert torch.equal(importance_bound(model, x, 7), evidence.log_px)  # an exact model is asked once


def test_a_claim_is_as_exact_as_its_partition_function(energy: Energy) -> None:
    estimated = Normalized(energy, Partition(1.25, Kind.ESTIMATE))
    x = all_images(energy)
    evidence = estimated.evidence(x)
    assert evidence.kind is Kind.ESTIMATE
    assert torch.equal(evidence.log_px, -energy.free_energy(x) - 1.25)


def test_it_goes_by_the_energys_name_and_facts(model: Normalized) -> None:
    energy = model.energy
    facts = (energy.name, energy.shape, energy.levels, energy.config)
    assert (model.name, model.shape, model.levels, model.config) == facts
    assert model.saved is energy
    with pytest.raises(ValueError, match=f"^labels: got some, expected None: {energy.name} was built without classes$"):
        model.evidence(all_images(model), y=torch.zeros(16, dtype=torch.int64))


def test_the_chain_leaves_the_distribution_alone(energy: Energy) -> None:
    """Chains that begin with draws from it, after one step and after three."""
    log_p, n = log_probabilities(energy), 8000
    start = all_images(energy)[torch.multinomial(log_p.exp(), n, replacement=True, generator=seeded(1))]
    for steps in (1, 3):
        moved = energy.gibbs(start, steps, seeded())
        energy.check_images(moved)
        assert moved.shape == start.shape
        assert not torch.equal(moved, start)
        assert_frequencies(place(moved, 2), log_p)


def test_the_chain_finds_the_distribution_from_anywhere(energy: Energy) -> None:
    for x in (torch.zeros(4000, *SHAPE), torch.ones(4000, *SHAPE)):
        moved = energy.gibbs(x.long(), 50, seeded())
        assert_frequencies(place(moved, 2), log_probabilities(energy))


def test_chains_follow_the_generator(energy: Energy) -> None:
    x = torch.randint(2, (50, *SHAPE))
    first, again, other = (energy.gibbs(x, 2, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_samples_have_the_stated_probabilities(model: Normalized) -> None:
    drawn = model.sample(4000, generator=seeded())
    assert_frequencies(place(drawn, 2), log_probabilities(model.energy))


@pytest.mark.parametrize("temperature", [0, 0.0, (0.0,)])
def test_nothing_is_divided_by_a_temperature_of_zero(model: Normalized, temperature: float) -> None:
    with pytest.raises(UserError, match=r"^temperature: got 0, expected a number above 0, by which energies are"):
        model.sample(2, temperature)


# The Boltzmann machine, all of whose states are written out


@pytest.fixture
def boltzmann() -> Boltzmann:
    found = of(Boltzmann.name)
    assert isinstance(found, Boltzmann)
    return found


def energies(model: Boltzmann) -> Tensor:
    """E(v, h) = -b v - c h - h W v of all images and hidden states, ``[16, 32]``."""
    w, b, c = model.weight.tolist(), model.visible.tolist(), model.hidden.tolist()
    rows = []
    for v in itertools.product((0, 1), repeat=4):
        for h in itertools.product((0, 1), repeat=5):
            linear = sum(b[i] * v[i] for i in range(4)) + sum(c[j] * h[j] for j in range(5))
            rows.append(-linear - sum(h[j] * w[j][i] * v[i] for i in range(4) for j in range(5)))
    return torch.tensor(rows, dtype=torch.float64).view(16, 32)


def transitions(joint: Tensor) -> Tensor:
    """p(v' | v) of one step, over all hidden states: the sum of p(h | v) p(v' | h), ``[16, 16]``."""
    up = joint / joint.sum(1, keepdim=True)
    down = joint / joint.sum(0, keepdim=True)
    return up @ down.T


def test_free_energies_and_partition_function_by_hand(boltzmann: Boltzmann) -> None:
    e = energies(boltzmann)
    free = boltzmann.free_energy(all_images(boltzmann)).detach()
    torch.testing.assert_close(free, -(-e).logsumexp(1), rtol=0.0, atol=1e-12)
    assert float(boltzmann.log_partition().detach()) == pytest.approx(float((-e).exp().sum().log()), abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_step_of_the_chain_by_hand(boltzmann: Boltzmann, temperature: float) -> None:
    """From each image the frequencies of the next one; and the distribution that such steps leave alone."""
    joint = (-energies(boltzmann) / temperature).exp()
    matrix = transitions(joint)
    p = joint.sum(1) / joint.sum()
    torch.testing.assert_close(p @ matrix, p, rtol=0.0, atol=1e-14)
    n = 4000
    start = all_images(boltzmann).repeat_interleave(n, 0)
    places = place(boltzmann.gibbs(start, 1, seeded(), temperature), 2).view(16, n)
    for v in range(16):
        assert_frequencies(places[v], matrix[v].log())


def test_samples_at_a_temperature_by_hand(boltzmann: Boltzmann) -> None:
    joint = (-energies(boltzmann) / 2.0).exp()
    drawn = model_of(boltzmann).sample(4000, 2.0, seeded())
    assert_frequencies(place(drawn, 2), (joint.sum(1) / joint.sum()).log())
