"""The convolutional deep belief network: its layers, its bound, and inference in which layers above have a say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from contract import all_images, assert_frequencies, place, seeded, shake
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

from davi.batch import Batch
from davi.errors import OptionError, UserError
from davi.evaluation.annealing import anneal, base_field
from davi.evidence import Kind
from davi.layers.pixel_units import GaussianPixels
from davi.layers.pooled_bits import PooledBits
from davi.layers.units import Units
from davi.model import Partition
from davi.models.conv_dbn import ConvDBN, ConvDBNConfig, NormalizedConvDBN
from davi.models.conv_rbm import ConvRBM, ConvRBMConfig

FLOAT64 = torch.empty(0, dtype=torch.float64)


def layer(shape: tuple[int, int, int], filters: int, size: int, pool: int, levels: int = 2) -> ConvRBM:
    """One of random weights, far from independent units."""
    found = ConvRBM(shape, levels, ConvRBMConfig(filters, size, pool, weight_std=1.0)).double().eval()
    with torch.no_grad():
        for field in (found.b, found.c):
            field.copy_(0.5 * torch.randn_like(field))
    return found


def stack(shape: tuple[int, int, int], *layers: tuple[int, int, int], levels: int = 2) -> ConvDBN:
    """Of layers with so many filters, of that size, with blocks of that size."""
    torch.manual_seed(3)
    found = ConvDBN(shape, levels, ConvDBNConfig(*zip(*layers, strict=True), weight_std=0.8))
    return shake(shake(shake(found))).double()


def hidden_states(units: PooledBits) -> Tensor:
    return units.states(0, round(2**units.log2_states), FLOAT64)


def log_joint(rbm: ConvRBM, v: Tensor, h: Tensor) -> Tensor:
    """Minus the energy of every pair, ``[len(v), len(h)]``: position by position, without a convolution."""
    w, size = rbm.weight.detach(), rbm.config.filter_size
    total = (rbm.b.detach() * v).flatten(1).sum(1)[:, None] + (rbm.c.detach() * h).flatten(1).sum(1)
    for k, i, j in itertools.product(*map(range, rbm.hidden.shape)):
        seen = v[:, :, i : i + size, j : j + size].flatten(1) @ w[k].flatten()
        total = total + seen[:, None] * h[:, k, i, j]
    return total


def exact(network: ConvDBN) -> NormalizedConvDBN:
    found = network.normalized(Partition(float(network.energy.log_partition()), Kind.EXACT))
    assert isinstance(found, NormalizedConvDBN)
    return found


# One layer


def test_with_one_filter_it_is_its_toeplitz_machine() -> None:
    """Eight visible units and one filter of 2x2 at three positions: 2^8 states times 2^3."""
    rbm = layer((1, 2, 4), 1, 2, 1)
    w = rbm.weight.detach().flatten()
    toeplitz = torch.zeros(8, 3, dtype=torch.float64)
    for j in range(3):
        toeplitz[[j, j + 1, j + 4, j + 5], j] = w
    v = all_images(rbm).flatten(1).double()
    h = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    log_p = (rbm.b.item() * v).sum(1)[:, None] + rbm.c.item() * h.sum(1) + v @ toeplitz @ h.T
    assert float(rbm.log_partition()) == pytest.approx(float(log_p.flatten().logsumexp(0)), abs=1e-12)
    free = rbm.free_energy(all_images(rbm)).detach()
    torch.testing.assert_close(free, -log_p.logsumexp(1), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("shape", "size"), [((1, 3, 3), 2), ((2, 2, 2), 1), ((1, 2, 4), 2)])
def test_sums_over_all_states_of_blocks(shape: tuple[int, int, int], size: int) -> None:
    """Blocks of four units, and where it does not divide of fewer."""
    rbm = layer(shape, 2, size, 2)
    v, h = all_images(rbm).double(), hidden_states(rbm.hidden)
    log_p = log_joint(rbm, v, h)
    assert float(rbm.log_partition()) == pytest.approx(float(log_p.flatten().logsumexp(0)), abs=1e-11)
    free = rbm.free_energy(all_images(rbm)).detach()
    torch.testing.assert_close(free, -log_p.logsumexp(1), rtol=0.0, atol=1e-11)
    expected = torch.tensordot(log_p.softmax(1), h, 1)
    torch.testing.assert_close(rbm.hidden.mean(rbm.hidden_input(v)).detach(), expected, rtol=0.0, atol=1e-12)
    expected = torch.tensordot(log_p.softmax(0).T, v, 1)
    torch.testing.assert_close(rbm.visible.mean(rbm.visible_input(h)).detach(), expected, rtol=0.0, atol=1e-12)


def test_the_path_begins_with_independent_units_and_leads_to_the_energy() -> None:
    rbm = layer((1, 3, 3), 2, 2, 2)
    v, h = all_images(rbm).double(), hidden_states(rbm.hidden)
    base = torch.randn(1, 3, 3, dtype=torch.float64)
    log_z = (base * v).flatten(1).sum(1).logsumexp(0) + math.log(len(h))
    assert float(rbm.path_log_z(base)) == pytest.approx(float(log_z), abs=1e-12)
    log_p = log_joint(rbm, v, h)
    for beta in (0.0, 0.3, 1.0):
        expected = ((1.0 - beta) * base * v).flatten(1).sum(1) + (beta * log_p).logsumexp(1)
        free = rbm.path_free_energy(v, beta, base).detach()
        torch.testing.assert_close(free, -expected, rtol=0.0, atol=1e-11)


def test_annealing_finds_the_partition_function() -> None:
    rbm = layer((1, 3, 3), 2, 2, 2)
    x = torch.randint(2, (50, 1, 3, 3))
    base = base_field(rbm, x)
    weights = anneal(rbm, base, torch.linspace(0.0, 1.0, 30).double().tolist(), 2000, seeded())
    found = (weights - rbm.log_partition() + rbm.path_log_z(base)).exp()
    assert float(found.mean()) == pytest.approx(1.0, abs=5.0 * float(found.std()) / 2000**0.5)
    assert float(found.std()) < 1.0


def test_a_step_of_the_chain_leaves_the_distribution_alone() -> None:
    rbm = layer((1, 2, 3), 2, 2, 2)
    v, h = all_images(rbm).double(), hidden_states(rbm.hidden)
    up = log_prob(rbm.hidden, rbm.hidden_input(v), h).exp()
    down = log_prob(rbm.visible, rbm.visible_input(h), v).exp()
    p = (-rbm.free_energy(all_images(rbm)).detach()).softmax(0)
    kernel = up @ down
    torch.testing.assert_close(p @ kernel, p, rtol=0.0, atol=1e-14)
    balance = p[:, None] * kernel
    torch.testing.assert_close(balance, balance.T, rtol=0.0, atol=1e-14)
    start = all_images(rbm)[torch.multinomial(p, 8000, replacement=True, generator=seeded(1))]
    assert float(p.min()) * len(start) > 5.0
    assert_frequencies(place(rbm.gibbs(start, 2, seeded()), 2), p.log())


def log_prob(units: Units, natural: Tensor, states: Tensor) -> Tensor:
    """Of all states given all parameters, ``[len(natural), len(states)]``."""
    linear = natural.detach().flatten(1) @ states.flatten(1).T
    return linear - units.log_partition(natural.detach())[:, None]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_sent_down_is_the_adjoint(channels: int) -> None:
    """The sum of patches for one channel, and the convolution for several: <h, W v> = <W' h, v>."""
    rbm = layer((channels, 6, 5), 4, 3, 2)
    v = torch.randn(2, channels, 6, 5, dtype=torch.float64)
    h = torch.randn(2, 4, 4, 3, dtype=torch.float64)
    up, down = rbm.hidden_input(v) - rbm.c, rbm.sent_down(h)
    torch.testing.assert_close((h * up).sum(), (down * v).sum())
    (slope,) = torch.autograd.grad((h * rbm.hidden_input(v.requires_grad_())).sum(), v)
    torch.testing.assert_close(down, slope)


def test_it_moves_with_the_image_away_from_borders() -> None:
    rbm = layer((1, 12, 12), 3, 3, 2)
    v = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    v[..., 4:8, 4:7] = torch.bernoulli(torch.full((4, 3), 0.5, dtype=torch.float64), generator=seeded())
    moved = v.roll((2, -2), (2, 3))
    inputs, others = rbm.hidden_input(v), rbm.hidden_input(moved)
    torch.testing.assert_close(inputs.roll((2, -2), (2, 3)), others)
    pooled, other = rbm.hidden.pooled_mean(inputs), rbm.hidden.pooled_mean(others)
    torch.testing.assert_close(pooled.roll((1, -1), (2, 3)), other)
    assert float((pooled - other).abs().max().detach()) > 0.1


def test_log_odds_and_scale_follow_the_images() -> None:
    binary = layer((2, 5, 5), 1, 3, 1)
    x = torch.zeros(2000, 2, 5, 5, dtype=torch.int64)
    x[:500, 0] = 1
    binary.initialize(x)
    p = binary.b.detach().sigmoid().flatten()
    torch.testing.assert_close(p, torch.tensor([502.5 / 2005, 2.5 / 2005], dtype=torch.float64))
    gray = layer((2, 5, 5), 1, 3, 1, levels=9)
    gray.initialize(8 * x, kept=["pixels.mean"])
    assert isinstance(gray.pixels, GaussianPixels)
    assert torch.equal(gray.pixels.mean, torch.full((2, 5, 5), 4.5, dtype=torch.float64))
    expected = torch.tensor([12.0 + 1.0 / 12.0, 1.0 / 12.0], dtype=torch.float64).sqrt()
    torch.testing.assert_close(gray.pixels.std, expected.view(2, 1, 1).expand(2, 5, 5))


def test_gray_levels_are_real_units() -> None:
    """One pixel: the integral over it, by quadrature; and the density of the noise around an integer."""
    rbm = layer((1, 1, 1), 2, 1, 1, levels=7)
    rbm.initialize(torch.tensor([0, 1, 6, 6]).view(4, 1, 1, 1))
    assert isinstance(rbm.pixels, GaussianPixels)
    mean, std = rbm.pixels.mean, rbm.pixels.std
    assert float(mean) == pytest.approx(3.75)
    grid = torch.linspace(-20.0, 20.0, 40001, dtype=torch.float64)
    density = (-rbm.state_free_energy(grid.view(-1, 1, 1, 1)).detach()).exp()
    assert float(rbm.log_partition()) == pytest.approx(math.log(float(density.sum()) * 1e-3), abs=1e-9)
    x = torch.arange(7).view(7, 1, 1, 1)
    v = rbm.state(x, seeded())
    assert torch.equal(rbm.images(v), x)
    expected = rbm.state_free_energy(v) + math.log(float(std))
    torch.testing.assert_close(rbm.free_energy(x, seeded()), expected)
    assert rbm.claim is Kind.LOWER_BOUND
    middle = (x.double() + 0.5 - mean) / std
    torch.testing.assert_close(rbm.expected_levels(middle), x.double())


# The stack


def log_p(network: ConvDBN, number: int, states: Tensor) -> Tensor:
    """log p of what a layer sees, from the top, over all hidden states."""
    rbm = network.layer(number)
    if rbm is network.energy:
        return -rbm.state_free_energy(states).detach() - rbm.log_partition()
    h = hidden_states(rbm.hidden)
    pooled = rbm.hidden.pool(h)
    units = pooled.flatten(1).sum(1) * -math.log(rbm.config.pool**2)  # whole blocks
    above = log_p(network, number + 1, pooled) + units
    return (log_prob(rbm.visible, rbm.visible_input(h), states).T + above).logsumexp(1)


STACKS = [
    ((2, 2, 2), (3, 1, 1)),
    ((1, 2, 1), (2, 2, 2)),
    ((1, 2, 2), (2, 1, 1), (2, 1, 1)),
]
"""Filters, their size and that of blocks, of layers above images of 3x3 pixels."""


@pytest.mark.parametrize("layers", STACKS)
def test_the_bound_never_exceeds_what_is_summed(layers: tuple[tuple[int, int, int], ...]) -> None:
    network = stack((1, 3, 3), *layers)
    model, x = exact(network), all_images(network)
    truth = log_p(network, 0, x.double())
    assert float(truth.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    claim = model.evidence(x)
    assert claim.kind is Kind.LOWER_BOUND
    for i in (0, 77, 411):
        draws, drawn = 4000, model.evidence(x[i : i + 1].expand(4000, -1, -1, -1), seeded())
        assert drawn.log_weight is not None
        weights = drawn.log_weight.detach()
        torch.testing.assert_close(weights, drawn.log_px.detach(), rtol=0.0, atol=1e-10)
        error = float((weights - truth[i]).exp().std()) / draws**0.5
        assert float((weights - truth[i]).exp().mean()) == pytest.approx(1.0, abs=5.0 * error + 1e-9)
        gap, noise = float(truth[i] - weights.mean()), float(weights.std()) / draws**0.5
        assert gap > 5.0 * noise  # it is not tight either


def test_the_bound_is_a_sum_over_hidden_states(monkeypatch: pytest.MonkeyPatch) -> None:
    network = stack((1, 3, 3), *STACKS[0])
    model, x = exact(network), all_images(network)[300:301]
    h = hidden_states(network.layer(0).hidden)
    monkeypatch.setattr(PooledBits, "sample", lambda *args: h)
    evidence = model.evidence(x.expand(len(h), -1, -1, -1))
    assert evidence.log_weight_fn is not None
    weights, joint = (evidence.log_weight_fn(joint=alone).detach() for alone in (False, True))
    q = (joint - weights).exp()
    assert float(q.sum()) == pytest.approx(1.0, abs=1e-12)
    truth = float(log_p(network, 0, x.double()))
    assert float(joint.logsumexp(0)) == pytest.approx(truth, abs=1e-10)
    assert float((q * weights).sum()) < truth


def test_the_bound_is_tight_where_units_are_independent_given_the_image() -> None:
    """One block, whose filter has the same weight wherever it lies, and a pooled unit as probable as below it."""
    network = stack((1, 3, 3), (1, 2, 2), (3, 1, 1))
    below, top = network.layer(0), network.energy
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        alone = below.hidden.unpool(one)
        odds = below.c.sum() + math.log(4.0) + below.visible.log_partition(below.visible_input(alone))
        odds -= below.visible.log_partition(below.visible_field()[None])
        top.b.zero_()
        top.b.fill_(float(odds - top.state_free_energy(zero) + top.state_free_energy(one)))
    x = all_images(network)
    found, truth = exact(network).evidence(x).log_px.detach(), log_p(network, 0, x.double())
    torch.testing.assert_close(found, truth, rtol=0.0, atol=1e-10)
    expected = -below.free_energy(x).detach() - below.log_partition()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)  # and the stack is its first layer


def test_one_layer_is_its_machine() -> None:
    network = stack((1, 3, 3), (2, 2, 2))
    model, x = exact(network), all_images(network)
    evidence = model.evidence(x)
    assert evidence.kind is Kind.EXACT
    assert evidence.log_weight is None
    assert float(evidence.log_px.detach().exp().sum()) == pytest.approx(1.0, abs=1e-10)
    estimated = network.normalized(Partition(1.0, Kind.ESTIMATE))
    assert estimated.evidence(x).kind is Kind.ESTIMATE


def test_the_bound_of_gray_levels_is_of_the_noisy_image() -> None:
    network = stack((1, 3, 3), (2, 2, 2), (2, 1, 1), levels=5)
    x = torch.randint(5, (1, 1, 3, 3))
    evidence = exact(network).evidence(x.expand(4000, -1, -1, -1), seeded())
    assert evidence.kind is Kind.LOWER_BOUND
    # By hand: the mean of the density over the noise, which importance weights estimate as well.
    rbm = network.layer(0)
    v = rbm.state(x.expand(4000, -1, -1, -1), seeded(6))
    h = hidden_states(rbm.hidden)
    mean, n = rbm.visible_input(h).detach().flatten(1), v.flatten(1)
    density = -0.5 * (n[:, None] - mean).square().sum(2) - 4.5 * math.log(2.0 * math.pi)
    pooled = rbm.hidden.pool(h)
    above = log_p(network, 1, pooled) - pooled.flatten(1).sum(1) * math.log(4.0)
    expected = ((density + above).logsumexp(1) + rbm.log_volume()).exp()
    assert evidence.log_weight is not None
    found = evidence.log_weight.detach().exp()
    error = float(found.std() + expected.std()) / 4000**0.5
    assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=5.0 * error)


def test_samples_have_the_stated_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConvRBM, "chain_steps", 30)
    network = stack((1, 2, 2), (2, 1, 2), (2, 1, 1))
    drawn = network.normalized(None).sample(6000, generator=seeded())
    assert_frequencies(place(drawn, 2), log_p(network, 0, all_images(network).double()))


def test_without_a_partition_function_there_is_no_likelihood() -> None:
    network = stack((1, 3, 3), (2, 2, 2), (2, 1, 1))
    with pytest.raises(UserError, match=r"^conv_dbn: got no partition function, expected one: "):
        network.normalized(None).evidence(torch.zeros(1, 1, 3, 3, dtype=torch.int64))


def test_layers_above_see_pooled_units() -> None:
    network = stack((1, 6, 6), (3, 3, 2), (2, 2, 1))
    x = torch.randint(2, (4000, 1, 6, 6), generator=seeded())[:1].expand(4000, -1, -1, -1)
    seen = network.view("layer_2", Batch(x), seeded()).x
    assert network.view("layer_1", Batch(x)).x is x
    expected, _ = network.features(x[:1])
    torch.testing.assert_close(seen.double().mean(0), expected[0], rtol=0.0, atol=0.04)


# Layers above have a say


def posterior(network: ConvDBN, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The undirected network of two layers: log weights of all pairs of hidden states, ``[B, N, M]``, and these."""
    one, two = network.layer(0), network.layer(1)
    first, second = hidden_states(one.hidden), hidden_states(two.hidden)
    pooled = one.hidden.pool(first)
    between = log_joint(two, pooled, second) - (two.b.detach() * pooled).flatten(1).sum(1)[:, None]  # b plays no part
    return log_joint(one, v, first)[:, :, None] + between, first, second


def test_features_are_expectations_of_the_undirected_network() -> None:
    network = stack((1, 3, 3), (2, 2, 2), (3, 1, 1))
    x = all_images(network)[301:302]
    log_w, first, second = posterior(network, x.double())
    p = log_w[0].flatten().softmax(0).view(len(first), len(second))
    found = network.features(x.expand(1000, -1, -1, -1), 40, seeded())
    units = [network.layer(n).hidden for n in (0, 1)]
    expected = [
        torch.tensordot(p.sum(1), units[0].pool(first), 1),
        torch.tensordot(p.sum(0), units[1].pool(second), 1),
    ]
    for pooled, right in zip(found, expected, strict=True):
        torch.testing.assert_close(pooled.mean(0), right, rtol=0.0, atol=0.015)
    below = network.features(x)
    assert float((below[0][0] - expected[0]).abs().max()) > 0.05  # where it matters


def test_what_is_behind_a_mask_is_what_the_undirected_network_expects() -> None:
    network = stack((1, 3, 3), (2, 2, 2), (3, 1, 1))
    given = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    given[..., 1:, :2] = False
    x = all_images(network)[200:201]
    others = all_images(network)
    others = others[(others == x)[:, given[0]].all(1)].double()
    assert len(others) == 16
    both, alone = (
        posterior(network, others)[0],
        log_joint(network.layer(0), others, hidden_states(network.layer(0).hidden)),
    )
    for layers, log_w in ((1, alone), (2, both)):
        p = log_w.flatten(1).logsumexp(1).softmax(0)
        found = network.fill(x.expand(1000, -1, -1, -1), given, 40, seeded(), layers)
        assert torch.equal(found[:, given[0]], x.double().expand(1000, -1, -1, -1)[:, given[0]])
        torch.testing.assert_close(found.mean(0), torch.tensordot(p, others, 1), rtol=0.0, atol=0.015)


def test_what_is_impossible_is_refused_in_one_line() -> None:
    network = stack((1, 3, 3), (2, 2, 2), (3, 1, 1))
    x, given = torch.zeros(1, 1, 3, 3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.bool)
    for sweeps, layers in ((0, None), (1, 0), (1, 3)):
        with pytest.raises(ValueError, match=r"^sweeps, layers: got \d, \d, expected at least 1, and 1 to 2 layers$"):
            network.fill(x, given, sweeps, layers=layers)
    with pytest.raises(OptionError, match=r"^filter_size: got 3 for maps of 2x1, expected at most 1$"):
        ConvDBN((1, 4, 2), 2, ConvDBNConfig((2, 2), (2, 3), (2, 2)))
    with pytest.raises(ValueError, match=r"^pool: got 1 numbers, expected one for each of 2 layers$"):
        ConvDBNConfig((2, 2), (2, 3), (2,))
    with pytest.raises(ValueError, match=r"^filters: got \[\], expected one positive number for each layer$"):
        ConvDBNConfig((), (), ())


# What units look for


def test_receptive_fields_are_the_slopes_of_a_linear_network() -> None:
    network = stack((2, 14, 14), (3, 3, 2), (4, 2, 2), (5, 2, 1))
    assert network.filter_layers == 3
    weights = [network.layer(n).weight.detach() for n in range(3)]
    assert torch.equal(network.receptive_fields(1), weights[0])
    for number, size in ((2, 6), (3, 12)):
        image = torch.zeros(1, 2, size, size, dtype=torch.float64, requires_grad=True)
        seen: Tensor = image
        for n in range(number):
            seen = conv2d(avg_pool2d(seen, 2) if n else seen, weights[n])
        found = network.receptive_fields(number)
        assert found.shape == (weights[number - 1].shape[0], 2, size, size)
        for j in range(len(found)):
            (slope,) = torch.autograd.grad(seen[0, j].sum(), image, retain_graph=True)
            torch.testing.assert_close(found[j], slope[0])
