"""Contrastive divergence against sums over all states of the golden Boltzmann machine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from golden_rbm import SHAPE, golden, log_probabilities, place, states, transitions
from torch import Tensor, nn

from davi.batch import Batch
from davi.errors import UserError
from davi.layers.units import GaussianUnits
from davi.model import Clamped, Harmonium
from davi.models.rbm import RBM
from davi.objectives import ContrastiveConfig, ContrastiveObjective, Loss, Progress
from davi.objectives.centering import center

PLAIN = ContrastiveConfig(trajectory_chains=0)
IMAGES = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]]).view(-1, *SHAPE)


def at(step: int) -> Progress:
    return Progress(step, 0, 0.0)


def objective(config: ContrastiveConfig, model: Harmonium, batch_size: int = 2) -> ContrastiveObjective:
    made = ContrastiveObjective(config)
    made.check(model)
    made.begin(model, batch_size)
    return made


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def written(model: nn.Module, *losses: Loss) -> list[Tensor]:
    """The gradient that losses leave, of their mean."""
    model.zero_grad()
    for loss in losses:
        loss.backward(1.0 / len(losses))
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def of_chains(model: RBM, p: Tensor) -> list[Tensor]:
    """The gradient of the mean F of images, less that of chains with distribution ``p`` over all states."""
    data = model.free_energy(IMAGES).mean()
    return gradients(model, data - (p * model.state_free_energy(states())).sum())


def after(model: RBM, k: int) -> Tensor:
    """The distribution of chains k steps after the images, from the power of the matrix of transitions, ``[64]``."""
    start = torch.bincount(place(IMAGES), minlength=64).double() / len(IMAGES)
    return start @ torch.linalg.matrix_power(transitions(model), k)


@pytest.mark.parametrize("k", [1, 3])
def test_the_expected_update_is_that_of_a_power_of_the_transitions(k: int) -> None:
    torch.manual_seed(1)
    model, n = golden(), 2000
    expected = of_chains(model, after(model, k))
    cd = objective(replace(PLAIN, steps=k), model, 2 * n)
    loss = cd.loss(model, model, Batch(IMAGES.repeat(n, 1, 1, 1)), at(0))
    assert loss.claim is None
    for found, wanted in zip(written(model, loss), expected, strict=True):
        # a statistic of one chain is within 0 and 1, or is multiplied by numbers that are
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=4.0 * 0.5 / math.sqrt(2 * n))


def test_the_update_tends_to_that_of_maximum_likelihood() -> None:
    model = golden()
    exact = (-(-model.state_free_energy(states())).logsumexp(0)) * -1.0
    likelihood = gradients(model, model.free_energy(IMAGES).mean() + exact)  # autograd of -log p
    distances = []
    for k in (1, 4, 16, 200):
        pairs = zip(of_chains(model, after(model, k)), likelihood, strict=True)
        distances.append(max(float((found - wanted).abs().max()) for found, wanted in pairs))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.01
    assert distances[-1] < 1e-12


@pytest.mark.parametrize("levels", [0, 4])
def test_persistent_chains_have_the_models_distribution(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 chains, after 20 steps and over 300 further ones; the batch has two images."""
    torch.manual_seed(2)
    model, counts = golden(), torch.zeros(64)
    pcd = objective(replace(PLAIN, chains=200, tempering_levels=levels), model)
    seen: list[Clamped] = []
    advance = pcd.chains.advance

    def watched(*arguments: object) -> Clamped:
        both = advance(*arguments)  # type: ignore[arg-type]
        seen.append(both.split(len(IMAGES))[1])
        return both

    monkeypatch.setattr(pcd.chains, "advance", watched)
    with torch.no_grad():
        for step in range(320):
            pcd.loss(model, model, Batch(IMAGES), at(step))
            pcd.chains.end_step(step)
    for found in seen[20:]:
        counts += torch.bincount(place(found.v), minlength=64)
    p = log_probabilities(model).exp()
    assert 0.5 * float((counts / counts.sum() - p).abs().sum()) < 0.02


@pytest.mark.parametrize("chains", [3, 7, 100])
def test_parts_move_their_share_of_any_number_of_chains(chains: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the parts together is that of the whole, and each chain is moved once."""
    torch.manual_seed(3)
    model, x = golden(), IMAGES.repeat(2, 1, 1, 1)
    pcd = objective(replace(PLAIN, chains=chains), model, 4)
    before, moved = pcd.state()["chains"].clone(), []
    total = torch.zeros((), dtype=torch.float64)
    sizes = []
    advance = pcd.chains.advance

    def watched(*arguments: object) -> Clamped:
        both = advance(*arguments)  # type: ignore[arg-type]
        moved.append(both.split(1)[1])
        sizes.append(len(moved[-1].v))
        return both

    monkeypatch.setattr(pcd.chains, "advance", watched)
    for start in range(4):
        total = total + pcd.loss(model, model, Batch(x[start : start + 1], start=start), at(0)).value / 4
    assert sum(sizes) == chains
    energies = torch.cat([found.free_energy for found in moved])
    expected = model.free_energy(x).mean() - energies.mean()
    torch.testing.assert_close(total, expected, rtol=0.0, atol=1e-12)
    assert pcd.state()["chains"].shape == before.shape == (chains, 4)


def step_of(made: ContrastiveObjective, model: RBM, x: Tensor = IMAGES) -> list[Tensor]:
    """The gradients after one batch in two parts."""
    for parameter in model.parameters():
        parameter.grad = None
    half = len(x) // 2
    for start in (0, half):
        made.loss(model, model, Batch(x[start : start + half], start=start), at(0)).backward(0.5)
    made.after_backward(model, at(0))
    return [parameter.grad for parameter in (model.weight, model.b, model.c) if parameter.grad is not None]


def test_the_centered_gradient_is_that_of_units_less_their_offsets() -> None:
    """By autograd of the energy in the other parameters, for some images and chains, then back to the model's."""
    torch.manual_seed(4)
    model, lambda_ = golden(), torch.rand(4).double()
    v, v_, mu = states()[[3, 11, 38]], states()[[60, 21]], torch.rand(6).double()
    with torch.no_grad():
        own = (model.weight.clone(), model.b.flatten() + model.weight @ lambda_, model.c + mu @ model.weight)
    weight, beta, gamma = (tensor.requires_grad_() for tensor in own)

    def free_energy(v: Tensor) -> Tensor:
        h = gamma + (v.flatten(1) - mu) @ weight  # the input of h in -(v - mu) W (h - lambda) - (h - lambda) gamma
        inside = h.exp().add(1.0).log().sum(1) - h @ lambda_
        return -((v.flatten(1) - mu) @ beta) - inside

    # The two energies differ by what does not depend on v, which the loss does not see.
    other = free_energy(v).mean() - free_energy(v_).mean()
    loss = model.state_free_energy(v).mean() - model.state_free_energy(v_).mean()
    torch.testing.assert_close(other, loss, rtol=0.0, atol=1e-12)
    g_weight, g_beta, g_gamma = torch.autograd.grad(other, (weight, beta, gamma))
    loss.backward()
    center(model.couplings, mu.view(SHAPE), lambda_)
    expected = (g_weight, (g_beta - g_weight @ lambda_).view(SHAPE), g_gamma - mu @ g_weight)
    for found, wanted in zip(model.couplings, expected, strict=True):
        torch.testing.assert_close(found.grad, wanted, rtol=0.0, atol=1e-12)


def test_offsets_are_moving_means_of_images() -> None:
    model = golden()
    torch.manual_seed(4)
    made = objective(replace(PLAIN, chains=6, centered=True, centering_decay=0.25), model)
    assert made.offsets is not None
    first = {name: mean.clone() for name, mean in made.offsets.mean.items()}
    torch.testing.assert_close(first["visible"], model.b.detach().sigmoid())
    torch.manual_seed(5)
    centered = [gradient.clone() for gradient in step_of(made, model)]
    torch.manual_seed(4)
    plain = objective(replace(PLAIN, chains=6), model)
    torch.manual_seed(5)
    step_of(plain, model)  # with the same chains
    v, h = model.state(IMAGES), model.hidden_input(model.state(IMAGES)).sigmoid()
    mu, lambda_ = 0.25 * first["visible"] + 0.75 * v.mean(0), 0.25 * first["hidden"] + 0.75 * h.mean(0)
    torch.testing.assert_close(made.offsets.mean["visible"], mu, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(made.offsets.mean["hidden"], lambda_.detach(), rtol=0.0, atol=1e-12)
    center(model.couplings, mu, lambda_)
    for found, parameter in zip(centered, model.couplings, strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=0.0, atol=1e-12)
    assert not any(tensor.any() for name, tensor in made.state().items() if "batch_mean" in name)


def test_the_centered_gradient_follows_flipped_bits() -> None:
    """With the means of the data as offsets the update of couplings of a flipped model is the flipped update."""
    torch.manual_seed(6)
    v, h = torch.rand(50, 6).double().round(), torch.rand(50, 4).double()
    v_, h_ = torch.rand(50, 6).double().round(), torch.rand(50, 4).double()

    def update(flip: bool) -> Tensor:
        model, (a, b), (a_, b_) = golden(), (1 - v if flip else v, h), (1 - v_ if flip else v_, h_)
        model.weight.grad = (a.T @ b - a_.T @ b_) / 50
        model.b.grad, model.c.grad = (a - a_).mean(0).view(SHAPE), (b - b_).mean(0)
        center(model.couplings, a.mean(0), b.mean(0))
        return model.weight.grad

    torch.testing.assert_close(update(True), -update(False), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("fields_alone", [True, False])
def test_the_sparsity_target_adds_its_cross_entropy(fields_alone: bool) -> None:
    torch.manual_seed(7)
    model = golden()
    config = replace(PLAIN, sparsity_target=0.1, sparsity_weight=2.0, sparsity_decay=0.5)
    made = objective(replace(config, sparsity_fields_alone=fields_alone), model)
    assert made.activity is not None
    q = made.activity.mean["hidden"].clone()
    torch.testing.assert_close(q, model.c.detach().sigmoid())
    torch.manual_seed(8)
    weight, b, c = (gradient.clone() for gradient in step_of(made, model))
    torch.manual_seed(8)
    plain = step_of(objective(PLAIN, model), model)
    for found, wanted in zip((weight, b, c), plain, strict=True):
        assert found.shape == wanted.shape
    torch.manual_seed(7)
    by_input = 2.0 * (q - 0.1)
    v = model.state(IMAGES).flatten(1)
    expected = torch.zeros_like(weight) if fields_alone else v.mean(0)[:, None] * by_input
    torch.testing.assert_close(weight - plain[0], expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(b, plain[1], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(c - plain[2], by_input, rtol=0.0, atol=1e-12)
    h = model.hidden_input(model.state(IMAGES)).sigmoid().mean(0)
    torch.testing.assert_close(made.activity.mean["hidden"], (0.5 * q + 0.5 * h).detach(), rtol=0.0, atol=1e-12)


def test_options_that_do_not_fit_are_refused() -> None:
    for config, message in (
        ({"steps": 0}, "^steps: got 0, expected at least 1$"),
        ({"tempering_levels": 4}, "^tempering_levels: got 4 without chains, expected persistent ones"),
        ({"tempering_levels": 1, "chains": 5}, "^tempering_levels: got 1, expected at least 2, or 0"),
        ({"sparsity_target": 1.0}, "^sparsity_target: got 1.0, expected 0 to below 1$"),
        ({"sparsity_weight": -1.0}, "^sparsity_weight: got -1.0, expected a number from 0$"),
    ):
        with pytest.raises(ValueError, match=message):
            ContrastiveConfig(**config)


def test_couplings_that_are_no_matrix_have_no_centered_gradient() -> None:
    class Tied(Harmonium):
        """Nothing of it is called."""

        name = "tied"

    Tied.__abstractmethods__ = frozenset()
    made = ContrastiveObjective(replace(PLAIN, centered=True))
    made.check(golden())
    with pytest.raises(
        UserError, match=r"^objective.centered: got true for tied, expected false: its couplings are no"
    ):
        made.check(Tied.__new__(Tied))  # type: ignore[type-abstract]


def test_real_hidden_units_have_no_sparsity_target(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ContrastiveObjective(replace(PLAIN, sparsity_target=0.1))
    made.check(golden())
    monkeypatch.setattr(RBM, "hidden", GaussianUnits((4,)))
    with pytest.raises(
        UserError, match=r"^objective.sparsity_target: got 0.1 for rbm, expected 0: its hidden units are"
    ):
        made.check(golden())
