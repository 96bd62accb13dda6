"""What an energy of real units promises: a density that integrates to one, and bounds on its masses over the cells of
integers. On images of two values with three levels."""

from __future__ import annotations

import pytest
import torch
import toys
from contract import all_images, assert_frequencies, energies_that_claim, model_of, place, seeded, small

from davi.evaluation import importance_bound
from davi.evidence import About, Kind
from davi.model import Harmonium, Normalized, Partition

LEVELS, SHAPE = 3, (1, 1, 2)
DRAWS = 3000


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


@pytest.fixture(params=energies_that_claim(Kind.LOWER_BOUND))
def energy(request: pytest.FixtureRequest) -> Harmonium:
    found = small(request.param, SHAPE, LEVELS).double()
    assert isinstance(found, Harmonium)
    with torch.no_grad():  # far from independent pixels
        for parameter in found.parameters():
            parameter.mul_(4.0)
    return found


@pytest.fixture
def model(energy: Harmonium) -> Normalized:
    found = model_of(energy)
    assert isinstance(found, Normalized)
    return found


@torch.no_grad()
def test_the_partition_function_is_the_integral_over_all_states(energy: Harmonium) -> None:
    """By the trapezoidal rule, whose error is far below 1e-10: the density is analytic and vanishes at the ends."""
    axis = torch.linspace(-15.0, 15.0, 301, dtype=torch.float64)
    v = torch.cartesian_prod(axis, axis).view(-1, *SHAPE)
    log_z = (-energy.state_free_energy(v)).logsumexp(0) + 2.0 * (axis[1] - axis[0]).log()
    torch.testing.assert_close(energy.log_partition(), log_z, rtol=0.0, atol=1e-10)


@torch.no_grad()
def test_evidence_is_a_bound_with_weights(model: Normalized) -> None:
    x = all_images(model).repeat(DRAWS, 1, 1, 1)
    first, other = (model.evidence(x, seeded(seed)) for seed in (5, 6))
    assert (first.kind, first.about) == (Kind.LOWER_BOUND, About.X)
    assert bool((first.log_px != other.log_px).all())
    assert torch.equal(first.log_px, model.evidence(x, seeded(5)).log_px)
    assert first.log_weight is not None
    assert torch.equal(first.log_weight, first.log_px)
    # Weights have the mean P(x), over all images at most 1; what is missing lies outside of the range of the levels.
    masses = first.log_weight.exp().view(DRAWS, 9).mean(0)
    assert 0.2 < float(masses.sum()) < 1.0
    assert bool((first.log_px.view(DRAWS, 9).mean(0) < masses.log()).all())


def test_several_draws_tighten_the_bound(model: Normalized) -> None:
    x = all_images(model).repeat(200, 1, 1, 1)
    bounds = [importance_bound(model, x, k, seeded()).view(200, 9).mean(0).sum() for k in (1, 4, 16)]
    assert float(bounds[0]) < float(bounds[1]) < float(bounds[2])


def test_with_an_estimate_it_is_an_estimate(energy: Harmonium) -> None:
    estimated = Normalized(energy, Partition(1.25, Kind.ESTIMATE))
    evidence = estimated.evidence(all_images(estimated), seeded())
    assert evidence.kind is Kind.ESTIMATE
    expected = -energy.free_energy(all_images(estimated), seeded()) - 1.25
    assert torch.equal(evidence.log_px, expected)


def test_noise_stays_in_its_cell(energy: Harmonium) -> None:
    x = torch.randint(LEVELS, (1000, *SHAPE), generator=seeded())
    v = energy.state(x, seeded())
    assert torch.equal(energy.images(v), x)
    assert torch.equal(energy.images(v.new_full((1, *SHAPE), -1e3)), torch.zeros(1, *SHAPE, dtype=torch.int64))
    assert torch.equal(energy.images(v.new_full((1, *SHAPE), 1e3)), torch.full((1, *SHAPE), LEVELS - 1))


@torch.no_grad()
def test_the_chain_leaves_the_density_alone(energy: Harmonium) -> None:
    """Counted in squares of states, the ends of a long chain and one step more are distributed alike."""
    axis = torch.linspace(-15.0, 15.0, 601, dtype=torch.float64) + 1e-9
    v = torch.cartesian_prod(axis, axis).view(-1, *SHAPE)
    squares = (v.flatten(1) > 0).long() @ torch.tensor([2, 1])
    density = (-energy.state_free_energy(v)).softmax(0)
    log_p = torch.zeros(4, dtype=torch.float64).index_add_(0, squares, density).log()
    start = v[torch.multinomial(density, 8000, replacement=True, generator=seeded())]
    for steps in (1, 3):
        moved = energy.state_gibbs(start, steps, seeded())
        assert_frequencies((moved.flatten(1) > 0).long() @ torch.tensor([2, 1]), log_p)


def test_samples_are_images_in_the_cells_of_the_states(model: Normalized) -> None:
    """Mass outside of the range goes to the cells at its ends: each image is drawn at least as often as it weighs."""
    n = 4000
    counts = torch.bincount(place(model.sample(n, generator=seeded()), LEVELS), minlength=9) / n
    x = all_images(model).repeat(DRAWS, 1, 1, 1)
    with torch.no_grad():
        masses = model.evidence(x, seeded()).log_px.exp().view(DRAWS, 9).mean(0)
    assert bool((counts > masses - 5.0 * (masses / n).sqrt()).all())
    assert float(counts[4]) == pytest.approx(float(masses[4]), abs=0.04)  # the cell without an end; five errors
