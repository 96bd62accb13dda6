"""The convolutional deep belief network: its layers, its bound, and inference in which layers above have a say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from contract import all_images, assert_frequencies, place, seeded, shake
from listed_conv import hidden_states, log_joint, log_prob
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

import davi
from davi.batch import Batch
from davi.errors import OptionError, UserError
from davi.evidence import Kind
from davi.layers.pooled_bits import PooledBits
from davi.model import Partition
from davi.models.conv_dbn import ConvDBN, ConvDBNConfig, NormalizedConvDBN
from davi.models.conv_rbm import ConvRBM


def stack(shape: tuple[int, int, int], *layers: tuple[int, int, int], levels: int = 2) -> ConvDBN:
    """Of layers with so many filters, of that size, with blocks of that size."""
    torch.manual_seed(3)
    filters, sizes, pools = zip(*layers, strict=True)
    found = ConvDBN(shape, levels, ConvDBNConfig(filters, sizes, pools, weight_std=0.8))
    return shake(shake(shake(found))).double()


def exact(network: ConvDBN) -> NormalizedConvDBN:
    found = network.normalized(Partition(float(network.energy.log_partition()), Kind.EXACT))
    assert isinstance(found, NormalizedConvDBN)
    return found


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
    with pytest.raises(ValueError, match=r"^weight_std: got -1.0, expected a finite number from 0$"):
        ConvDBNConfig(weight_std=-1.0)
    with pytest.raises(ValueError, match=r"^hidden_bias: got inf, expected a finite number$"):
        ConvDBNConfig(hidden_bias=math.inf)


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


# Training


def test_layers_are_trained_one_after_the_other_towards_the_target(tmp_path: Path) -> None:
    """With all that the recipe for Fashion-MNIST uses; pooled units become rarer than without a target."""
    x = torch.randint(2, (300, 1, 6, 6), dtype=torch.uint8, generator=seeded())
    x[:, :, 2:4] |= x[:, :, 1:3]
    active = []
    for target, name in ((0.0, "without"), (0.02, "with")):
        objective = {"name": "contrastive", "chains": 10, "sparsity_target": target, "sparsity_weight": 2.0}
        training = {"objective": {**objective, "sparsity_fields_alone": True}, "threads": 1}
        run = davi.train(
            "conv_dbn_digits_tiny",
            x[:, 0].numpy(),
            run=tmp_path / name,
            steps=40,
            training=training,
            validation=50,
            binarization="none",
        )
        model = run.model
        assert isinstance(model, NormalizedConvDBN)
        features = model.network.features(x.long())
        assert all(bool(pooled.isfinite().all()) for pooled in features)
        active.append([float(pooled.mean()) for pooled in features])
    assert all(sparse < plain for plain, sparse in zip(*active, strict=True))
