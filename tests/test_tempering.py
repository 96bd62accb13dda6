"""Parallel tempering leaves the distribution of every level alone, and its ladder finds its rungs."""

from __future__ import annotations

import pytest
import torch
from contract import assert_frequencies, seeded
from golden_rbm import SHAPE, golden, log_probabilities, place, states
from torch import Tensor

from davi.model.tempering import even_ladder, moved_to, respaced, swap, sweep, tempered_chains
from davi.models.rbm import RBM, RBMConfig

BASE = torch.tensor([0.5, -0.3, 0.0, 0.8, -1.0, 0.2], dtype=torch.float64).view(SHAPE)
BETAS = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


@torch.no_grad()
def strong() -> RBM:
    """The golden weights, four times as large: levels are far apart."""
    model = golden()
    model.weight.mul_(4.0)
    return model


def exact(model: RBM, n: int) -> Tensor:
    """Independent draws of every level."""
    p = torch.stack([log_probabilities(model, float(beta), BASE).exp() for beta in BETAS])
    return states()[p.multinomial(n, replacement=True, generator=seeded(1))]


def test_every_level_keeps_its_distribution() -> None:
    """From exact draws, after one sweep, one swap of each kind, and all of them."""
    model = strong()
    drawn, generator = exact(model, 20000), seeded(2)
    swept = sweep(model, drawn, BETAS, BASE, generator)
    even, of_even = swap(model, drawn, BETAS, BASE, False, generator)
    odd, of_odd = swap(model, drawn, BETAS, BASE, True, generator)
    both = sweep(model, swap(model, even, BETAS, BASE, True, generator)[0], BETAS, BASE, generator)
    assert of_even.isnan().tolist() == [False, True]
    assert of_odd.isnan().tolist() == [True, False]
    assert torch.equal(even[2], drawn[2])
    assert torch.equal(odd[0], drawn[0])
    for moved in (swept, even, odd, both):
        assert not torch.equal(moved, drawn)
        for level, beta in enumerate(BETAS.tolist()):
            log_p = log_probabilities(model, beta, BASE)
            rare = log_p.exp() * 20000 < 20.0  # states that are hardly ever seen count as one
            numbers = torch.cat([torch.arange(64)[~rare], torch.arange(64)[rare]])
            rank = torch.empty(64, dtype=torch.int64)
            rank[numbers] = torch.arange(64).clamp(max=int((~rare).sum()))
            merged = torch.zeros(int((~rare).sum()) + bool(rare.any()), dtype=torch.float64)
            merged.index_add_(0, rank, log_p.exp())
            assert_frequencies(rank[place(moved[level])], merged.log())


def test_swaps_are_accepted_as_often_as_enumeration_says() -> None:
    model = strong()
    _, found = swap(model, exact(model, 20000), BETAS, BASE, True, seeded(3))
    low, high = (log_probabilities(model, beta, BASE) for beta in (0.4, 1.0))
    ratio = low[None, :] + high[:, None] - low[:, None] - high[None, :]  # of the states v (rows) and v' (columns)
    p = low.exp()[:, None] * high.exp()[None, :]
    expected = float((p * ratio.clamp(max=0.0).exp()).sum())
    assert 0.1 < expected < 0.9
    assert float(found[1]) == pytest.approx(expected, abs=4.0 * 0.5 / 20000**0.5)


def test_two_levels_take_turns_with_nobody() -> None:
    drawn = exact(golden(), 5)[:2]
    moved, found = swap(golden(), drawn, BETAS[:2], BASE, True)
    assert torch.equal(moved, drawn)
    assert found.isnan().all()


def test_chains_reach_the_distribution_and_the_acceptance() -> None:
    torch.manual_seed(0)
    model = RBM((1, 5, 6), 2, RBMConfig(15)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    found = tempered_chains(model, torch.zeros(1, 5, 6, dtype=torch.float64), 50, 130, generator=seeded())
    assert 4 <= len(found.betas) <= 6
    assert found.betas[[0, -1]].tolist() == [0.0, 1.0]
    assert found.betas.diff().min() > 0.0
    assert found.acceptance.min() > 0.2
    assert found.acceptance.max() < 0.42  # the measured mean of 50 chains
    again = tempered_chains(model, torch.zeros(1, 5, 6, dtype=torch.float64), 50, 130, generator=seeded())
    assert torch.equal(again.states, found.states)


def test_chains_at_the_top_have_the_models_distribution() -> None:
    found = tempered_chains(golden(), BASE, 3000, 16, generator=seeded())
    assert_frequencies(place(found.states[-1]), log_probabilities(golden()))


def test_a_ladder_of_normal_energies() -> None:
    """Acceptance erfc(3.2 x distance): 3.2 / .733 pairs are wanted, that is four of erfc(.8)."""
    betas = even_ladder(3)
    wanted = torch.erfc(3.2 * torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64))
    found = respaced(betas, torch.erfc(3.2 * betas.diff()), 10)
    torch.testing.assert_close(torch.erfc(3.2 * found.diff()), wanted)
    assert found[[0, -1]].tolist() == [0.0, 1.0]
    assert found.dtype == torch.float64
    short = respaced(betas, torch.erfc(3.2 * betas.diff()), 4)  # too few: from the top downward, at .3
    torch.testing.assert_close(torch.erfc(3.2 * short.diff()), torch.full((3,), 0.3, dtype=torch.float64))
    assert short[-1] == 1.0
    assert 0.0 < short[0] < 1.0
    torch.testing.assert_close(respaced(short, torch.erfc(3.2 * short.diff()), 10), found)  # extrapolated to 0
    assert respaced(betas, torch.tensor([1.0, torch.nan]), 10).tolist() == [0.0, 1.0]
    refused = respaced(betas, torch.zeros(2), 100)  # nothing is known but that it is far
    assert len(refused) == 9


def test_a_new_ladder_takes_the_nearest_states() -> None:
    drawn = exact(golden(), 3)
    moved = moved_to(drawn, BETAS, torch.tensor([0.0, 0.1, 0.3, 0.65, 0.9, 1.0], dtype=torch.float64))
    assert torch.equal(moved, drawn[[0, 0, 1, 1, 2, 2]])


@pytest.mark.parametrize(
    ("chains", "sweeps", "most", "message"),
    [
        (0, 8, 8, "^chains: got 0, expected at least 1$"),
        (1, 3, 8, "^sweeps: got 3, expected at least 4$"),
        (1, 8, 1, "^levels: got 1, expected at least 2$"),
    ],
)
def test_what_is_no_ladder_is_refused(chains: int, sweeps: int, most: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tempered_chains(golden(), BASE, chains, sweeps, most)


@torch.no_grad()
def test_chains_on_a_ladder_keep_their_precision_under_autocast() -> None:
    network = RBM((1, 2, 2), 3, RBMConfig(2))
    base, betas = network.visible_field(), even_ladder(3)
    states = network.visible.sample(base.expand(12, *base.shape)).view(3, 4, *base.shape)
    with torch.autocast("cpu", torch.bfloat16):
        moved = sweep(network, states, betas, base)
        swapped, found = swap(network, moved, betas, base)
    assert moved.dtype == swapped.dtype == torch.float32
    assert 0.0 < float(found[0]) <= 1.0
