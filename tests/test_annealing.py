"""Annealed importance sampling on a machine all of whose states are listed: the very functions that chains use give the
expectations of their weights, and sampled weights have them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from unittest.mock import patch

import pytest
import torch
from contract import assert_frequencies, seeded
from golden_rbm import HIDDEN, LOG_Z, SHAPE, golden, log_probabilities, place, states
from torch import Generator, Tensor

from davi.evaluation import raise_estimate
from davi.evaluation.annealing import anneal, anneal_back, base_field, checked, schedule
from davi.layers.units import Bits, GaussianUnits, Potts, Units
from davi.models.rbm import RBM

UNIFORM = torch.zeros(SHAPE, dtype=torch.float64)
TILTED = torch.linspace(-0.6, 0.9, 6, dtype=torch.float64).view(SHAPE)
BETAS = (0.0, 0.3, 0.7, 1.0)


@pytest.fixture(autouse=True, scope="module")
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def ratios(model: RBM, lower: float, upper: float, base: Tensor) -> Tensor:
    """log f_upper(v) / f_lower(v) of all states, as the chains compute it, ``[64]``."""
    v = states()
    return model.path_log_ratio(v, model.hidden_input(v), lower, upper, base)


def kernel(model: RBM, beta: float, base: Tensor) -> Tensor:
    """p(v' | v) of ``path_gibbs``, ``[64, 64]``: it is run with all hidden states in place of drawn ones, and the
    parameters that it would draw with are seen."""
    seen: dict[tuple[int, ...], Tensor] = {}

    def sample(units: Bits, natural: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        seen[units.shape] = natural
        return units.states(0, 2 ** math.prod(units.shape), natural)

    with patch.object(Bits, "sample", sample):
        model.path_gibbs(states(), beta, base)
    h = model.hidden.states(0, 2**HIDDEN, UNIFORM)
    return probabilities(model.hidden, seen[(HIDDEN,)], h) @ probabilities(model.visible, seen[SHAPE], states())


def probabilities(units: Units, natural: Tensor, u: Tensor) -> Tensor:
    """p of all states given each of some parameters, ``[parameters, states]``."""
    return (natural.flatten(1) @ u.flatten(1).T - units.log_partition(natural)[:, None]).exp()


def expectations(model: RBM, base: Tensor, betas: Sequence[float], start: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """E[w] and E[log w] over all paths of chains that begin with states of probability ``start``, ``[..., 64]``."""
    places = range(len(betas) - 1, 0, -1) if back else range(1, len(betas))
    p, weighted, logs = start, start, start.new_zeros(start.shape[:-1])
    for k in places:
        log_ratio = ratios(model, betas[k - 1], betas[k], base) * (-1.0 if back else 1.0)
        logs = logs + p @ log_ratio
        step = kernel(model, betas[k - 1] if back else betas[k], base)
        weighted, p = (weighted * log_ratio.exp()) @ step, p @ step
    return weighted.sum(-1), logs


def assert_mean(values: Tensor, expected: float | Tensor, errors: float = 4.0) -> None:
    """Of the last dimension, within four standard errors."""
    error = values.std(-1) / math.sqrt(values.shape[-1])
    assert bool(((values.mean(-1) - expected).abs() < errors * error).all())


# The weights


def test_two_temperatures_give_the_golden_numbers() -> None:
    model = golden()
    log_z = float(model.path_log_z(UNIFORM))
    log_w = ratios(model, 0.0, 1.0, UNIFORM)
    assert log_z == pytest.approx(10 * math.log(2.0), abs=1e-12)
    assert log_z + float(log_w.logsumexp(0)) - math.log(64) == pytest.approx(LOG_Z, abs=1e-12)
    assert log_z + float(log_w.mean()) == pytest.approx(7.5373718, abs=5e-8)
    w = log_w.exp()
    assert float(w.var(correction=0) / w.mean() ** 2) == pytest.approx(0.0980822, abs=5e-8)


def test_sampled_weights_of_two_temperatures_agree() -> None:
    model = golden()
    exact = ratios(model, 0.0, 1.0, UNIFORM)
    logs = anneal(model, UNIFORM, (0.0, 1.0), 20_000, seeded())
    assert_mean(logs, float(exact.mean()))
    assert_mean(logs.exp(), float(exact.exp().mean()))


@pytest.mark.parametrize("base", [UNIFORM, TILTED])
def test_ratios_are_differences_of_free_energies(base: Tensor) -> None:
    model, v = golden(), states()
    expected = model.path_free_energy(v, 0.3, base) - model.path_free_energy(v, 0.7, base)
    torch.testing.assert_close(ratios(model, 0.3, 0.7, base), expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("base", [UNIFORM, TILTED])
def test_the_mean_weight_is_a_ratio_of_partition_functions(base: Tensor) -> None:
    """Over all paths, there and back; and sampled weights have the same means."""
    model = golden()
    ratio = LOG_Z - float(model.path_log_z(base))
    first, last = (log_probabilities(model, beta, base).exp() for beta in (0.0, 1.0))
    forward, forward_log = expectations(model, base, BETAS, first, back=False)
    assert float(forward.log()) == pytest.approx(ratio, abs=1e-12)
    assert float(forward_log) < ratio
    back, back_log = expectations(model, base, BETAS, last, back=True)
    assert float(back.log()) == pytest.approx(-ratio, abs=1e-12)
    assert -float(back_log) > ratio  # so that log Z lies between the two, if the chains begin with exact draws
    n = 10_000
    logs = anneal(model, base, BETAS, n, seeded())
    assert_mean(logs, forward_log)
    assert_mean(logs.exp(), forward)
    drawn = states()[torch.multinomial(last, n, replacement=True, generator=seeded())]
    logs = anneal_back(model, base, BETAS, drawn, seeded())
    assert_mean(logs, back_log)
    assert_mean(logs.exp(), back)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_steps_leave_their_distribution_alone_and_are_reversible(beta: float) -> None:
    model, p = golden(), log_probabilities(golden(), beta, TILTED).exp()
    step = kernel(model, beta, TILTED)
    torch.testing.assert_close(p @ step, p, rtol=0.0, atol=1e-14)
    flow = p[:, None] * step
    torch.testing.assert_close(flow, flow.T, rtol=0.0, atol=1e-14)
    moved = model.path_gibbs(states()[37:38].expand(4000, *SHAPE), beta, TILTED, seeded())
    assert_frequencies(place(moved), step[37].log())


def test_a_coupling_of_200_does_not_overflow() -> None:
    model = RBM((1, 1, 1), 2, RBM.Config(1))
    model.weight.fill_(200.0)
    v, base = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.zeros(1, 1, 1)
    log_w = model.path_log_ratio(v, model.hidden_input(v), 0.0, 1.0, base).double()
    assert float(model.path_log_z(base) + log_w.logsumexp(0)) - math.log(2) == pytest.approx(200.0, abs=1e-5)
    logs = anneal(model, base, checked(100), 1000, seeded())
    assert bool(logs.isfinite().all())
    assert float(model.path_log_z(base) + logs.logsumexp(0)) - math.log(1000) == pytest.approx(200.0, abs=0.15)


def test_chains_follow_the_generator() -> None:
    model = golden()
    before = torch.random.get_rng_state()
    first, again, other = (anneal(model, UNIFORM, BETAS, 20, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.dtype == torch.float64


# RAISE


def test_raise_bounds_the_likelihood_of_the_annealed_model() -> None:
    """Over all paths: the mean weight of every image is its probability, and the mean log weight is less."""
    model, n = golden(), 400
    annealed = log_probabilities(model, 0.0, UNIFORM).exp()
    for beta in BETAS[1:]:
        annealed = annealed @ kernel(model, beta, UNIFORM)
    assert float(annealed.sum()) == pytest.approx(1.0, abs=1e-12)
    start = kernel(model, 1.0, UNIFORM)
    log_scale = -model.free_energy(states()) - model.path_log_z(UNIFORM)
    mean, log_mean = expectations(model, UNIFORM, BETAS, start, back=True)
    torch.testing.assert_close(log_scale.exp() * mean, annealed, rtol=0.0, atol=1e-14)
    assert bool((log_scale + log_mean < annealed.log()).all())
    estimate = raise_estimate(model, states().long(), None, BETAS, n, seeded())
    assert_mean(estimate.log_weights, log_scale + log_mean, 5.0)  # all 64 of them
    assert_mean(estimate.log_weights.exp(), annealed, 5.0)
    torch.testing.assert_close(estimate.log_p, estimate.log_weights.exp().mean(1).log())
    assert bool((estimate.effective_samples <= n).all())
    assert float(estimate.effective_samples.mean()) > 0.8 * n


def test_raise_comes_close_to_the_likelihood_from_below() -> None:
    """Averaged over images of the model: the annealed model is another one, and the log has a Jensen gap on top."""
    model = golden()
    log_p = log_probabilities(model)
    gaps = []
    for temperatures in (3, 30):
        found = raise_estimate(model, states().long(), None, temperatures, 50, seeded())
        gaps.append(float((log_p.exp() * (log_p - found.log_p)).sum()))
    assert gaps[0] > gaps[1] > 0.0
    assert gaps[1] < 0.01


# Temperatures and bases


def test_the_standard_schedule() -> None:
    betas = schedule()
    assert len(betas) == 14_501  # the joints 0.5 and 0.9 counted twice: 14,503
    steps = torch.tensor(betas, dtype=torch.float64).diff()
    for cut, size in ((slice(0, 500), 1e-3), (slice(500, 4500), 1e-4), (slice(4500, None), 1e-5)):
        torch.testing.assert_close(steps[cut], torch.full_like(steps[cut], size), rtol=1e-9, atol=0.0)
    assert (betas[0], betas[500], betas[4500], betas[-1]) == (0.0, 0.5, 0.9, 1.0)


def test_other_numbers_of_temperatures_keep_its_proportions() -> None:
    assert schedule(2) == (0.0, 1.0)
    betas = schedule(146)
    assert len(betas) == 146
    assert [betas[i] for i in (5, 45)] == pytest.approx([0.5, 0.9])
    assert checked(146) == betas
    assert checked([0, 0.25, 1]) == (0.0, 0.25, 1.0)


@pytest.mark.parametrize("wrong", [[0.0], [0.0, 0.5], [0.1, 1.0], [0.0, 0.6, 0.4, 1.0], [0.0, 0.5, 0.5, 1.0], []])
def test_temperatures_rise_from_0_to_1(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^temperatures: got \[.*\], expected numbers that rise from 0 to 1$"):
        checked(wrong)


def test_one_temperature_is_none() -> None:
    with pytest.raises(ValueError, match=r"^temperatures: got 1, expected 2 or more$"):
        checked(1)


def test_the_base_has_the_smoothed_mean_of_images() -> None:
    images = torch.randint(2, (40, *SHAPE), generator=seeded()) * torch.tensor([0, 1, 1, 1, 1, 1]).view(SHAPE)
    base = base_field(golden(), images)
    expected = (images.double().sum(0) + 2.5) / 45.0
    torch.testing.assert_close(golden().visible.mean(base), expected, rtol=0.0, atol=1e-12)
    assert torch.equal(base_field(golden(), None), UNIFORM)
    many = images.repeat(60, 1, 1, 1)  # more than are looked at at once
    expected = (many.double().sum(0) + 2.5) / (len(many) + 5.0)
    torch.testing.assert_close(base_field(golden(), many).sigmoid(), expected, rtol=0.0, atol=1e-12)


# Units


UNITS = [Bits((2, 3)), Potts((2, 3)), GaussianUnits((2, 3))]


@pytest.mark.parametrize("units", UNITS, ids=lambda units: type(units).__name__)
def test_changes_of_log_partition_functions_keep_their_digits(units: Units) -> None:
    """Against float64 along a step that is lost in float32, and along the whole way."""
    natural = 6.0 * torch.randn(50, 2, 3, generator=seeded(), dtype=torch.float32)
    exact = natural.double()
    for lower, upper in ((0.0, 1.0), (0.0, 1e-5), (0.9, 0.90001), (0.3, 0.7)):
        expected = units.log_partition(upper * exact) - units.log_partition(lower * exact)
        found = units.log_partition_change(exact, lower, upper)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
        single = units.log_partition_change(natural, lower, upper).double()
        scale = (upper - lower) * exact.abs().flatten(1).sum(1)
        assert float(((single - expected) / scale).abs().max()) < 1e-5
    assert torch.equal(Units.log_partition_change(units, exact, 0.3, 0.7), expected)  # what units have by default


@pytest.mark.parametrize("units", UNITS[:2], ids=lambda units: type(units).__name__)
def test_changes_of_log_partition_functions_do_not_overflow(units: Units) -> None:
    natural = 3000.0 * torch.randn(50, 2, 3, generator=seeded(), dtype=torch.float32)
    expected = units.log_partition(natural.double()) - units.log_partition(torch.zeros_like(natural).double())
    found = units.log_partition_change(natural, 0.0, 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("units", UNITS, ids=lambda units: type(units).__name__)
def test_natural_parameters_of_a_mean(units: Units) -> None:
    mean = units.mean(torch.randn(7, 2, 3, generator=seeded(), dtype=torch.float64))
    torch.testing.assert_close(units.mean(units.natural(mean)), mean, rtol=0.0, atol=1e-12)
