"""A layer of the convolutional deep belief network, by lists of all states, and as what it is without a convolution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from contract import all_images, assert_frequencies, place, seeded
from listed_conv import hidden_states, layer, log_joint, log_prob

from davi.evaluation.annealing import anneal, base_field
from davi.evidence import Kind
from davi.layers.pixel_units import GaussianPixels
from davi.objectives.centering import sparsity


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


def test_the_sparsity_target_moves_the_field_of_a_whole_channel() -> None:
    """Lee's rule: c of a channel follows the sum over its positions of the target less the mean of the units."""
    rbm = layer((1, 5, 5), 3, 2, 2)
    x = torch.randint(2, (20, 1, 5, 5), generator=seeded())
    images = rbm.clamp(rbm.state(x))
    mean = rbm.hidden.mean(images.inputs).mean(0).detach()
    sparsity(rbm, images, mean, 0.1, fields_alone=True).backward()
    assert rbm.c.grad is not None
    torch.testing.assert_close(rbm.c.grad, (mean - 0.1).sum((1, 2), keepdim=True))
    assert rbm.weight.grad is None
    assert rbm.b.grad is None
