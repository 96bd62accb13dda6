"""What is minimized is the evidence, reweighted as said, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Logistic, sets, vae
from torch import Tensor

import davi
from davi.distributions import Normal
from davi.errors import UserError
from davi.evidence import Evidence, Kind
from davi.model import Hierarchy
from davi.models import VAE
from davi.models.vae import VAEConfig
from davi.objectives import EvidenceConfig, balancing, negative_elbo, objective
from davi.objectives.bounds import _partial
from davi.repetition import repeat_images
from davi.training.prepare import check_fit


def evidence(**penalties: float) -> Evidence:
    terms = {
        "reconstruction": torch.tensor([-10.0, -20.0]),
        "kl/00": torch.tensor([-1.0, -3.0]),
        "kl/01": torch.tensor([-0.5, -0.25]),
        "klein": torch.tensor([-2.0, -4.0]),  # not a divergence: the name has no "kl/"
    }
    return Evidence(terms, Kind.LOWER_BOUND, penalties={name: torch.tensor(x) for name, x in penalties.items()})


@pytest.mark.parametrize(
    ("weight", "expected"),
    # by hand: means are 15 (reconstruction), 2 and 0.375 (divergences), 3 (the other term)
    [(1.0, 20.375), (0.0, 18.0), (0.1, 18.2375), (2.0, 22.75)],
)
def test_value_by_hand(weight: float, expected: float) -> None:
    assert float(negative_elbo(evidence(), weight)) == pytest.approx(expected, rel=1e-6)


def test_penalties_are_added_once() -> None:
    assert float(negative_elbo(evidence(first=3.0, second=0.5))) == pytest.approx(23.875, rel=1e-6)


def test_weight_one_is_the_bound_bit_for_bit() -> None:
    model, x = vae(), torch.randint(2, (6, 1, 4, 4))
    found = []
    for loss_of in (lambda e: negative_elbo(e, 1.0), lambda e: -e.log_px.mean()):
        loss = loss_of(model.evidence(x, torch.Generator().manual_seed(3)))
        found.append([loss, *gradients(loss, model)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(bool(a.any()) for a in found[0][1:])


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_weight_must_be_a_weight(weight: float) -> None:
    with pytest.raises(ValueError, match="kl_weight: got"):
        negative_elbo(evidence(), weight)


def test_no_terms() -> None:
    with pytest.raises(ValueError, match="no terms"):
        negative_elbo(Evidence({}, Kind.EXACT))


def test_annealing_by_epochs_is_the_papers() -> None:
    config = EvidenceConfig(kl_start=0.1, kl_epochs=16)
    # 0.1 + 0.9 epoch / 16, whatever the step within the epoch
    values = {0: 0.1, 1: 0.15625, 4: 0.325, 8: 0.55, 15: 0.94375, 16: 1.0, 17: 1.0}
    for epoch, weight in values.items():
        for step in (0, 1000):
            assert config.kl_weight(step, epoch, 0.5) == pytest.approx(weight, rel=1e-12)


def test_annealing_by_steps_and_by_fraction() -> None:
    steps, fraction = EvidenceConfig(kl_start=0.2, kl_steps=10), EvidenceConfig(kl_start=0.0, kl_fraction=0.25)
    assert [steps.kl_weight(s, 9, 0.9) for s in (0, 5, 10, 11)] == pytest.approx([0.2, 0.6, 1.0, 1.0], rel=1e-12)
    values = [fraction.kl_weight(99, 9, f) for f in (0.0, 0.05, 0.25, 1.0)]
    assert values == pytest.approx([0.0, 0.2, 1.0, 1.0], rel=1e-12)


def test_no_annealing_by_default() -> None:
    assert EvidenceConfig().kl_weight(0, 0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_start": 1.5}, "kl_start: got 1.5"),
        ({"kl_steps": -1}, "kl_steps: got -1"),
        ({"kl_fraction": 2.0}, "kl_fraction: got 2.0"),
        ({"kl_steps": 3, "kl_epochs": 2}, "more than one warm-up"),
        ({"free_nats": -1.0}, "free_nats: got -1.0"),
        ({"free_nats": math.inf}, "free_nats: got inf"),
        ({"draws": 0}, "draws: got 0"),
        ({"kl_balance": True}, "kl_balance: got true without a warm-up"),
        ({"bound": "importance_weighted", "kl_steps": 1}, "bound: got importance_weighted with a warm-up"),
        ({"bound": "importance_weighted", "free_nats": 1.0}, "bound: got importance_weighted with a warm-up or free"),
        ({"gradient": "doubly_reparameterized"}, "gradient: got doubly_reparameterized for the bound elbo"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvidenceConfig(**options)


# The importance-weighted bound


def weighted(log_weights: Tensor) -> Evidence:
    """Evidence of a model whose log weights are given, ``[B * k]``."""
    return Evidence({"reconstruction": log_weights}, Kind.LOWER_BOUND, lambda joint=False: log_weights)


def iwae(k: int, gradient: str = "reparameterized") -> EvidenceConfig:
    return EvidenceConfig(draws=k, bound="importance_weighted", gradient=gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, -1.7929302062), (2, -1.7081628292), (3, -1.6757239087), (4, -1.6590002741), (6, -1.6421943213)],
)
def test_bound_by_enumeration(k: int, expected: float) -> None:
    """z in {1..4}, p(z, x) = (.10, .02, .03, .05), q uniform: the mean of the objective over all 4^k draws is L_k."""
    joint = torch.tensor([0.10, 0.02, 0.03, 0.05], dtype=torch.float64)
    log_weights = torch.tensor(list(itertools.product((joint / 0.25).log().tolist(), repeat=k)), dtype=torch.float64)
    value = objective(weighted(log_weights.flatten()), iwae(k))
    assert float(-value) == pytest.approx(expected, abs=5e-11)  # the goldens' last digit
    assert float(-value) < math.log(0.2)


@pytest.mark.parametrize("gradient", ["reparameterized", "doubly_reparameterized"])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_of_the_exact_posterior_every_bound_is_log_p(k: int, gradient: str) -> None:
    evidence = weighted(torch.full((3 * k,), -7.25, dtype=torch.float64))
    evidence = dataclasses.replace(evidence, draws=(torch.zeros(3 * k, 1),))
    assert float(objective(evidence, iwae(k, gradient))) == pytest.approx(7.25, abs=1e-12)


DOUBLE = "doubly_reparameterized"


def small(latents: tuple[int, ...] = (3,)) -> VAE:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return VAE((1, 3, 3), 2, VAEConfig(latents=latents, hidden=(6,) * len(latents))).double()


def gradients(loss: Tensor, model: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


@pytest.mark.parametrize("latents", [(3,), (3, 2)])
def test_gradient_of_the_bound_is_the_weighted_sum_of_gradients(latents: tuple[int, ...]) -> None:
    """Of two images: the draws of each are weighed among themselves, and both images count alike."""
    model, k = small(latents), 4
    x = torch.randint(2, (2, 1, 3, 3))
    whole = model.evidence(repeat_images(x, k), torch.Generator().manual_seed(1))
    ours = gradients(objective(whole, iwae(k)), model)
    again = model.evidence(repeat_images(x, k), torch.Generator().manual_seed(1)).log_weight
    assert again is not None
    shares = torch.cat([own.softmax(0) for own in again.detach().split(k)]) / len(x)
    single = [torch.autograd.grad(-w, list(model.parameters()), retain_graph=True) for w in again]
    for i, gradient in enumerate(ours):
        summed = sum(float(share) * found[i] for share, found in zip(shares, single, strict=True))
        torch.testing.assert_close(gradient, summed, rtol=1e-6, atol=1e-12)


def test_several_draws_of_the_plain_bound_are_their_mean() -> None:
    model, config = small(), EvidenceConfig(draws=5)
    x = torch.randint(2, (4, 1, 3, 3))
    evidence = model.evidence(repeat_images(x, config.draws), torch.Generator().manual_seed(1))
    assert torch.equal(objective(evidence, config), -evidence.log_px.mean())
    assert evidence.log_px.shape == (20,)
    assert torch.equal(repeat_images(x, config.draws)[5:10], x[1:2].expand(5, -1, -1, -1))


# The doubly reparameterized gradient, where q = N(m, s^2), p(z) = N(0, 1), p(x | z) = N(z, 1): all is known


def gaussian(m: Tensor, s: Tensor, noise: Tensor, x: float = 1.5) -> Evidence:
    q = Normal(m.expand(len(noise), 1), s.expand(len(noise), 1))
    z = q.mean + q.scale * noise[:, None]

    def log_weight_fn(joint: bool = False) -> Tensor:
        log_p = Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z)
        log_p = log_p + Normal(z, torch.ones_like(z)).log_prob(torch.full_like(z, x))
        return log_p if joint else log_p - q.log_prob(z)

    return Evidence({"reconstruction": z.sum(1)}, Kind.LOWER_BOUND, log_weight_fn, draws=(z,))


def encoder_gradients(k: int, gradient: str, n: int, seed: int) -> Tensor:
    """Gradients with respect to (m, s) of ``n`` independent estimates, ``[n, 2]``."""
    noise = torch.randn(n * k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    m = torch.full((n, 1), 0.4, dtype=torch.float64, requires_grad=True)
    s = torch.full((n, 1), 0.9, dtype=torch.float64, requires_grad=True)
    evidence = gaussian(m.repeat_interleave(k, 0), s.repeat_interleave(k, 0), noise)
    found = torch.autograd.grad(objective(evidence, iwae(k, gradient)) * n, (m, s))
    return torch.cat(found, 1)


def test_with_one_draw_both_gradients_have_the_closed_form_as_their_mean() -> None:
    """-ELBO = (m^2 + s^2) / 2 - log s + ((x - m)^2 + s^2) / 2 + const: d/dm = 2 m - x, d/ds = 2 s - 1 / s."""
    expected = torch.tensor([2 * 0.4 - 1.5, 2 * 0.9 - 1 / 0.9], dtype=torch.float64)
    for gradient in ("reparameterized", "doubly_reparameterized"):
        found = encoder_gradients(1, gradient, 20_000, seed=3)
        error = found.std(0) / math.sqrt(len(found))
        assert bool(((found.mean(0) - expected).abs() < 4 * error).all())


def test_two_draws_integrated_exactly() -> None:
    """Both gradients of L_2 by Gauss-Hermite quadrature over both draws: the same expectation."""
    from numpy.polynomial.hermite_e import hermegauss

    nodes, masses = (torch.from_numpy(part) for part in hermegauss(60))
    masses = masses / masses.sum()
    noise = torch.cartesian_prod(nodes, nodes)  # [3600, 2]
    mass = torch.outer(masses, masses).flatten()
    means = []
    for gradient in ("reparameterized", "doubly_reparameterized"):
        m = torch.full((len(noise), 1), 0.4, dtype=torch.float64, requires_grad=True)
        s = torch.full((len(noise), 1), 0.9, dtype=torch.float64, requires_grad=True)
        evidence = gaussian(m.repeat_interleave(2, 0), s.repeat_interleave(2, 0), noise.flatten())
        found = torch.autograd.grad(objective(evidence, iwae(2, gradient)) * len(noise), (m, s))
        means.append(torch.stack([(part[:, 0] * mass).sum() for part in found]))
    torch.testing.assert_close(means[0], means[1], rtol=1e-9, atol=1e-9)
    assert bool((means[0].abs() > 0.01).all())


def test_with_many_draws_the_doubly_reparameterized_gradient_varies_less() -> None:
    forms = "reparameterized", "doubly_reparameterized"
    plain, double = (encoder_gradients(50, form, 4000, seed=4) for form in forms)
    error = ((plain.var(0) + double.var(0)) / len(plain)).sqrt()
    assert bool(((plain.mean(0) - double.mean(0)).abs() < 4 * error).all())
    assert bool((double.var(0) < 0.1 * plain.var(0)).all())


def test_the_doubly_reparameterized_gradient_leaves_value_and_decoder_alone() -> None:
    model, x = small(), torch.randint(2, (2, 1, 3, 3))
    values, found = [], []
    for gradient in ("reparameterized", "doubly_reparameterized"):
        config = iwae(5, gradient)
        loss = objective(model.evidence(repeat_images(x, config.draws), torch.Generator().manual_seed(1)), config)
        values.append(loss.detach())
        found.append(dict(zip(dict(model.named_parameters()), gradients(loss, model), strict=True)))
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0.0)
    for name in found[0]:
        if name.startswith("output"):
            torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-12)
        else:
            assert not torch.allclose(found[0][name], found[1][name], rtol=1e-3)


def test_the_doubly_reparameterized_gradient_of_an_exact_posterior_is_zero() -> None:
    """Pixels that ignore z, and q = p(z): all weights are equal, and nothing is left of the gradient but the score's
    noise, which the doubly reparameterized one does not have."""
    model, found = small(), []
    with torch.no_grad():
        for layer in (model.inference[0].mean, model.inference[0].log_scale, model.output.hidden[0]):
            layer.weight.zero_()
            layer.bias.zero_()
    for gradient in ("reparameterized", "doubly_reparameterized"):
        config = iwae(5, gradient)
        evidence = model.evidence(repeat_images(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), config.draws))
        inference = list(model.inference.parameters())
        found.append(torch.autograd.grad(objective(evidence, config), inference, materialize_grads=True))
    assert any(bool((one.abs() > 1e-3).any()) for one in found[0])
    assert all(bool((one.abs() < 1e-14).all()) for one in found[1])  # float64


@pytest.mark.parametrize("latents", [(3,), (3, 2)])
def test_the_doubly_reparameterized_gradient_by_networks_that_are_frozen(latents: tuple[int, ...]) -> None:
    """With several layers a draw moves the posteriors of later ones. By definition: the weights' densities come from a
    copy that nobody learns from, the generative model learns at fixed draws, and the posterior through them."""
    model, k = small(latents), 3
    frozen = copy.deepcopy(model).requires_grad_(False)
    x = repeat_images(torch.randint(2, (2, 1, 3, 3)), k)
    found = gradients(objective(model.evidence(x, torch.Generator().manual_seed(1)), iwae(k, DOUBLE)), model)
    with_noise = torch.Generator().manual_seed(1)
    z: list[Tensor] = []  # from the image up, as they are drawn
    posterior = model.encode(x).normal
    for layer in range(len(latents)):
        posterior = posterior if not layer else model.inference[layer](z[-1]).normal
        z.append(posterior.sample(with_noise))

    def log_weights(densities: VAE, z: list[Tensor]) -> Tensor:
        below = [densities.encode(x), *(densities.inference[i](z[i - 1]) for i in range(1, len(z)))]
        top = Normal(torch.zeros_like(z[-1]), torch.ones_like(z[-1]))
        above = [densities.generative[len(z) - 2 - i](z[i + 1]).normal for i in range(len(z) - 1)] + [top]
        total = densities.head(densities.output(z[0])).log_prob(x)
        return sum((p.log_prob(v) - q.normal.log_prob(v) for p, q, v in zip(above, below, z, strict=True)), total)

    learning = log_weights(model, [v.detach() for v in z]).unflatten(0, (2, k))
    shares = learning.detach().softmax(1)
    moving = log_weights(frozen, z).unflatten(0, (2, k))
    encoder = list(model.inference.parameters())
    through = gradients(-(shares**2 * moving).sum(1).mean(), model.inference)
    expected = {id(p): g for p, g in zip(encoder, through, strict=True)}
    theirs = gradients(-(shares * learning).sum(1).mean(), model)
    for own, other, parameter in zip(found, theirs, model.parameters(), strict=True):
        torch.testing.assert_close(own, expected.get(id(parameter), other), rtol=1e-8, atol=1e-11)
    assert all(bool((g != 0).any()) for g in expected.values())


# A linear Gaussian model: p(z) = N(0, I_2), p(x | z) = N(W z + b, I / 4)

W = torch.tensor([[1.0, 0.0], [0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
B = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
X = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
PRECISION = W.T @ W / 0.25 + torch.eye(2, dtype=torch.float64)
MEAN = torch.linalg.solve(PRECISION, W.T @ (X - B) / 0.25)


def linear_gaussian(q: Normal, noise: Tensor) -> Evidence:
    z = q.mean + q.scale * noise
    prior, sharp = Normal(torch.zeros_like(z), torch.ones_like(z)), torch.full((len(z), 3), 0.5, dtype=torch.float64)
    reconstruction = Normal(z @ W.T + B, sharp).log_prob(X.expand(len(z), 3))
    kl = q.expand(len(z)).closed_kl_map(prior)
    terms = {"reconstruction": reconstruction, "kl/00": -kl.sum(1)}
    return Evidence(
        terms, Kind.LOWER_BOUND, lambda joint=False: reconstruction + prior.log_prob(z) - q.log_prob(z), kl_maps={}
    )


def test_linear_gaussian_values() -> None:
    """At the best mean-field posterior and at the prior: the bound's mean is exact on antithetic unit pairs, since the
    reconstruction term is quadratic in the noise."""
    assert MEAN.tolist() == pytest.approx([-0.28328804, -0.41915761], abs=1e-8)
    noise = math.sqrt(2.0) * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    best = Normal(MEAN[None], PRECISION.diagonal().rsqrt()[None])
    prior = Normal(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    for q, expected in ((best, -6.7412495548), (prior, -18.4373740579)):
        assert float(-objective(linear_gaussian(q, noise), EvidenceConfig())) == pytest.approx(expected, abs=1e-9)


def test_linear_gaussian_bounds_rise_to_log_p() -> None:
    best = Normal(MEAN[None], PRECISION.diagonal().rsqrt()[None])
    noise = torch.randn(60_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounds = [float(-objective(linear_gaussian(best, noise), iwae(k))) for k in (1, 5, 50)]
    assert bounds[0] < bounds[1] < bounds[2]
    # 4 standard errors of the mean log weight of 60,000 draws, whose standard deviation is about 0.04
    assert bounds[2] == pytest.approx(-6.7405706680, abs=6e-4)


# Free bits


def with_maps(maps: dict[str, Tensor]) -> Evidence:
    terms = {"reconstruction": torch.zeros(2)} | {name: -m.flatten(1).sum(1) for name, m in maps.items()}
    return Evidence(terms, Kind.LOWER_BOUND, kl_maps=maps)


@pytest.mark.parametrize("group", ["channel", "layer"])
def test_free_bits_by_hand(group: str) -> None:
    """Two channels of two pixels: channel means over the batch are 0.3 and 2.1 nats, of the layer 2.4. The second image
    alone would be below the threshold."""
    kl = torch.tensor([[[0.1, 0.1], [2.0, 1.5]], [[0.2, 0.2], [0.5, 0.2]]])[..., None]  # [B, C, h, 1]
    config = EvidenceConfig(free_nats=1.0, free_group=group)  # type: ignore[arg-type]
    expected = {"channel": 1.0 + 2.1, "layer": 2.4}[group]
    assert float(objective(with_maps({"kl/00": kl}), config)) == pytest.approx(expected, rel=1e-6)
    more = dataclasses.replace(config, free_nats=3.0)
    assert float(objective(with_maps({"kl/00": kl}), more)) == pytest.approx({"channel": 6.0, "layer": 3.0}[group])


@pytest.mark.parametrize("group", ["channel", "layer"])
def test_free_bits_below_the_threshold_have_no_gradient_and_above_it_the_plain_one(group: str) -> None:
    low, high = torch.full((2, 3, 2, 2), 1e-3), torch.full((2, 3, 2, 2), 5.0)
    maps = {"kl/00": low.requires_grad_(), "kl/01": high.requires_grad_()}
    config = EvidenceConfig(free_nats=0.5, free_group=group)  # type: ignore[arg-type]
    of_low, of_high = torch.autograd.grad(objective(with_maps(maps), config), (low, high))
    plain = torch.autograd.grad(objective(with_maps(maps), EvidenceConfig()), (low, high))
    assert torch.equal(of_low, torch.zeros_like(of_low))
    assert torch.equal(of_high, plain[1])


def test_free_bits_do_not_touch_the_reported_evidence() -> None:
    model, x = vae(), torch.randint(2, (6, 1, 4, 4))
    evidence = model.evidence(x, torch.Generator().manual_seed(3))
    before = {name: term.clone() for name, term in evidence.terms.items()}
    loss = objective(evidence, EvidenceConfig(free_nats=5.0))
    assert bool(loss > -evidence.log_px.mean())
    assert all(torch.equal(evidence.terms[name], term) for name, term in before.items())


def test_free_bits_of_a_batch_with_several_draws_are_those_of_the_mean() -> None:
    kl = torch.rand(4, 3, 2, 2)
    config = EvidenceConfig(free_nats=0.7)
    once = objective(with_maps({"kl/00": kl}), config)
    two = dataclasses.replace(config, draws=2)
    twice = objective(with_maps({"kl/00": repeat_images(kl, 2)}), two)
    torch.testing.assert_close(once, twice, rtol=1e-6, atol=0.0)


# Warm-up and balancing


def test_a_finished_warm_up_is_the_bound_bit_for_bit() -> None:
    """With balancing, too: it acts only while the weight is below 1."""
    model, x = vae(), torch.randint(2, (6, 1, 4, 4))
    config = EvidenceConfig(kl_steps=10, kl_balance=True)
    found = []
    for options, weight in ((config, config.kl_weight(10, 0, 0.5)), (EvidenceConfig(), 1.0)):
        evidence = model.evidence(x, torch.Generator().manual_seed(3))
        loss = objective(evidence, options, weight) if options is config else -evidence.log_px.mean()
        found.append([loss, *gradients(loss, model)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["nvae_mnist", "nvae_flow"])
def test_balancing_is_that_of_the_published_program(name: str, need_shared: Callable[[str], Path]) -> None:
    """The fixture has what the authors' program computed: at beta 0.5, sum_i gamma_i KL_i / 2 of each image."""
    facts = json.loads(need_shared(f"fixtures/{name}.json").read_text())
    divergences = torch.tensor(facts["float64"]["kl_nats_per_layer_per_image"], dtype=torch.float64)  # [B, L]
    maps, terms = {}, {}
    for layer, (shape, kl) in enumerate(zip(facts["z_shapes"], divergences.T, strict=True)):
        size = math.prod(shape[1:])
        maps[f"kl/{layer:02d}"] = (kl / size)[:, None, None, None].expand(-1, *shape[1:])
        terms[f"kl/{layer:02d}"] = -kl
    evidence = Evidence(terms, Kind.LOWER_BOUND, kl_maps=maps)
    published = facts["kl_balancing"]
    # 2e-6: the published numbers are float32
    gamma = torch.stack(list(balancing(evidence).values()))
    assert gamma.tolist() == pytest.approx(published["gamma_at_kl_coeff_0_5"], rel=2e-6)
    config = EvidenceConfig(kl_fraction=0.3, kl_balance=True)
    mean = sum(published["balanced_kl_times_coeff_per_image"]) / len(divergences)
    assert float(objective(evidence, config, 0.5)) == pytest.approx(mean, rel=2e-6)


def test_no_gradient_flows_through_the_weights_of_balancing() -> None:
    maps = {f"kl/{i:02d}": torch.rand(2, 3, 2**i, 2**i, requires_grad=True) for i in range(2)}
    config = EvidenceConfig(kl_steps=2, kl_balance=True)
    weights = balancing(with_maps(maps))
    found = torch.autograd.grad(objective(with_maps(maps), config, 0.5), list(maps.values()))
    for gradient, weight in zip(found, weights.values(), strict=True):
        # Each of the two images has half of 0.5 gamma.
        torch.testing.assert_close(gradient, (0.25 * weight).expand_as(gradient), rtol=1e-6, atol=0.0)


# What cannot be trained is refused before training


@pytest.mark.parametrize(
    "options", [{"draws": 2}, {"bound": "importance_weighted"}, {"free_nats": 1.0}, {"kl_balance": True, "kl_steps": 3}]
)
def test_a_model_without_latents_is_refused(options: dict[str, Any]) -> None:
    model = Logistic((1, 4, 4), 2)
    with pytest.raises(UserError, match=r"^objective: got .* for logistic, expected a model with importance weights$"):
        check_fit(model, sets(), EvidenceConfig(**options))
    check_fit(model, sets(), EvidenceConfig(kl_steps=3))


@pytest.mark.parametrize("name", ["attentive", "biva", "ladder_vae", "vae", "very_deep_vae"])
def test_the_doubly_reparameterized_gradient_of_hierarchies(name: str) -> None:
    """Value and gradient of the likelihood's own parameters are those of the plain one; the others exist."""
    model = davi.build(f"{name}_digits_tiny").eval().double()
    assert isinstance(model, Hierarchy)
    check_fit(model, of(model), iwae(3, DOUBLE))
    x, values, found = torch.randint(model.levels, (2, *model.shape)), [], []
    for gradient in ("reparameterized", DOUBLE):
        evidence = model.evidence(repeat_images(x, 3), torch.Generator().manual_seed(1))
        loss = objective(evidence, iwae(3, gradient))
        values.append(loss.detach())
        found.append(dict(zip(dict(model.named_parameters()), gradients(loss, model), strict=True)))
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0.0)
    assert all(bool(g.isfinite().all()) for g in found[1].values())
    head = {
        "attentive": "output.",
        "biva": "output",
        "ladder_vae": "output",
        "vae": "output",
        "very_deep_vae": "output.",
    }
    same = [n for n in found[0] if n.startswith(head[name])]
    assert same
    for n in same:
        torch.testing.assert_close(found[0][n], found[1][n], rtol=1e-8, atol=1e-10)


def test_derivatives_of_draws_that_follow_from_others() -> None:
    """f = a^2 b c with b = 2 a + 1 and c = a b: its derivative by each with the others held fixed."""
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    b = 2.0 * a + 1.0  # 7
    c = a * b  # 21
    found = _partial(a.square() * b * c, [a, b, c])
    assert [float(x) for x in found] == [2 * 3 * 7 * 21, 9 * 21, 9 * 7]


@pytest.mark.parametrize("recipe", ["iaf_vae_digits_tiny", "nvae_digits_tiny"])
def test_the_doubly_reparameterized_gradient_refuses_flows(recipe: str) -> None:
    model = davi.build(recipe).train()
    assert isinstance(model, Hierarchy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="has a posterior of type TransformedNormal, expected Normal posteriors only"):
        check_fit(model, of(model), iwae(3, DOUBLE))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    check_fit(model, of(model), iwae(3))


def of(model: Hierarchy) -> Any:
    """Images of a model's shape."""
    from davi.data import DataSets, Images

    images = Images(torch.zeros(4, *model.shape, dtype=torch.uint8), model.levels, "zeros")
    return DataSets(images, None, images, {"set": "zeros"})


@pytest.mark.parametrize(("recipe", "form"), [("very_deep_vae_digits_tiny", "openai"), ("nvae_digits_tiny", "nvae")])
def test_forms_that_are_no_likelihoods_claim_nothing_and_are_not_trained(recipe: str, form: str) -> None:
    exact, model = davi.build(recipe), davi.build(recipe, f"model.likelihood.form={form}")
    x = torch.randint(model.levels, (2, *model.shape))
    assert (exact.evidence(x).kind, model.evidence(x).kind) == (Kind.LOWER_BOUND, Kind.ESTIMATE)
    assert isinstance(model, Hierarchy)
    with pytest.raises(UserError, match=rf"^model\.likelihood\.form: got {form}, expected exact: "):
        check_fit(model, of(model), EvidenceConfig())
