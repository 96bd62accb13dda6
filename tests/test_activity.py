"""Inactive layers and active units, against models whose answers are known by hand, by quadrature or by many draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from inspected import contents
from torch import Generator, Tensor

import davi
from davi import page
from davi.batch import Batch
from davi.data import Images
from davi.distributions import Categorical, Distribution, Latent, Normal, TransformedNormal
from davi.evaluation import bounds, evaluate, measuring
from davi.evaluation.activity import (
    ACTIVE_DRAWS,
    ACTIVE_IMAGES,
    ACTIVE_UNITS,
    ActiveUnits,
    RunningCovariance,
    inactive_layers,
)
from davi.inspection import inspect
from davi.model import Choose, Hierarchy, ask_early
from davi.report import protocol_of, result_of, to_terminal
from davi.training import TrainingConfig
from davi.training.monitor import Monitor
from davi.training.validation import validate

# --- inactive layers


@pytest.mark.parametrize(
    ("nats", "no_divergence", "inactive"),
    [
        ((3.0, 0.01), (), []),
        ((3.0, 0.0099), (), [1]),
        ((0.0, -0.1), (), [0, 1]),  # estimates of divergences may be below zero by chance
        ((3.0, -1.3), (1,), []),
        ((0.001, 5.0), (1,), [0]),
        ((1.3, -1.295), (1,), [0, 1]),  # together they are next to nothing
        ((3.0, -1.3, 0.0), (1,), [2]),
    ],
)
def test_the_rule(nats: tuple[float, ...], no_divergence: tuple[int, ...], inactive: list[int]) -> None:
    names = [f"kl/{i:02d}" for i in range(len(nats))]
    found = inactive_layers(dict(zip(names, nats, strict=True)), [names[i] for i in no_divergence])
    assert found == [names[i] for i in inactive]


class TwoLayers(Hierarchy):
    """q(z_1 | x) = N(x, 1), q(z_2 | z_1) = N(z_1, 0.2^2); p(z_2) = N(0, 1), p(z_1 | z_2) = N(z_2, 0.3^2), and p(x | z)
    depends on z_1 alone: what z_2 knows it knows from z_1, the one layer at work."""

    num_layers = 2
    narrow, prior_scale = 0.2, 0.3

    def __init__(self) -> None:
        super().__init__((1, 1, 1), 3, None)
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def encode(self, x: Tensor) -> Normal:
        self.check_images(x)
        return Normal(x.double() * self.weight, torch.ones(x.shape, dtype=torch.float64))

    def top_down(self, choose: Choose, context: Normal | None = None) -> Distribution:
        drawn = above = None
        if context is not None:
            drawn = ask_early(choose, 1, context)
            above = Normal(drawn.z, torch.full_like(drawn.z, self.narrow))
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        z2 = choose(0, Normal(0.0 * one, one), above)
        z1 = choose(1, Normal(z2, torch.full_like(z2, self.prior_scale)), drawn)
        levels = torch.arange(3.0, dtype=torch.float64).view(1, 3, 1, 1, 1)
        return Categorical(-(levels - z1.unsqueeze(1)).square())


def expected_term(x: float) -> float:
    """E[log q(z_1 | x) - log p(z_1 | z_2)] by Gauss-Hermite quadrature, exact for polynomials of degree 3."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(2)
    masses = masses / masses.sum()
    total = 0.0
    for e1, m1 in zip(nodes, masses, strict=True):
        for e2, m2 in zip(nodes, masses, strict=True):
            z1 = x + e1
            z2 = z1 + TwoLayers.narrow * e2
            log_q = -0.5 * e1**2
            log_p = -0.5 * ((z1 - z2) / TwoLayers.prior_scale) ** 2 - math.log(TwoLayers.prior_scale)
            total += m1 * m2 * (log_q - log_p)  # both without the same constant
    return total


def images(n: int, levels: int = 3) -> Images:
    return Images(torch.arange(n).remainder(levels).to(torch.uint8).view(n, 1, 1, 1), levels, "toy/test")


def test_a_layer_at_work_may_have_a_negative_term() -> None:
    """By hand: ln 0.3 - 1/2 + (0.2 / 0.3)^2 / 2 = -1.482 for every image. It is reported as a term, nowhere as
    inactive; the layers together are the divergence of q(z_1, z_2 | x) from p(z_1, z_2)."""
    truth = [expected_term(x) for x in (0.0, 1.0, 2.0)]
    assert truth == pytest.approx([math.log(0.3) - 0.5 + 2.0 / 9.0] * 3, abs=1e-12)
    model, some = TwoLayers(), images(300)
    evaluation = evaluate(model, some, samples=100, batch_size=300)
    # One draw has the variance 1/2 + (2/9)^2 / ... < 1; there are 30,000.
    assert evaluation.kl[:, 1].mean() == pytest.approx(truth[0], abs=4 / math.sqrt(300 * 100))
    assert evaluation.kl.sum(1).mean() > 0
    data = {"shape": model.shape, "levels": model.levels}
    result = result_of(evaluation, (), protocol_of(evaluation, {"name": "toy"}, data))
    assert result.kl is not None
    assert (result.kl.divergence, result.kl.inactive) == ((True, False), ())
    text = to_terminal(result)
    assert "term by layer, top first" in text
    assert "inactive" not in text
    found = inspect(model, some, limit=200, samples=1)
    assert [(layer.divergence, layer.inactive) for layer in found.layers] == [(True, False), (False, False)]
    section = page.latents.divergences(contents(inspection=found), 96)
    assert section.title == "Terms of the latent layers"
    record = {"kind": "validation", "step": 1, "seconds": 1.0, **validate(model.eval(), some, 100, seed=0)}
    assert record["no_divergence"] == ["kl/01"]
    config = TrainingConfig(steps=10)
    assert Monitor(config.monitor, lambda step, seconds: True, "validation").see(record) == []


# --- active units


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [3, 16, 1]])
def test_running_covariance_in_any_parts(sizes: list[int]) -> None:
    first, second = 1e6 + torch.randn(2, 20, 4, 3, dtype=torch.float64)  # far from zero: sums of products would cancel
    second = second + first
    stream = RunningCovariance()
    for parts in zip(first.split(sizes), second.split(sizes), strict=True):
        stream.add(*parts)
    a, b = (x - x.mean(0) for x in (first, second))
    torch.testing.assert_close(stream.covariance(), (a * b).sum(0) / 19, rtol=1e-8, atol=0)  # 1e6 * epsilon, with room


class Chain(Hierarchy):
    """Three layers of two units; ``posterior(layer, x, above)`` gives each posterior, the prior goes with ``above``."""

    num_layers = 3

    def __init__(self, posterior: Callable[[int, Tensor, Tensor], Any]) -> None:
        super().__init__((1, 1, 2), 3, None)
        self.posterior = posterior
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.encoded = 0

    def encode(self, x: Tensor) -> Tensor:
        self.check_images(x)
        self.encoded += len(x)
        return x.double() * self.weight

    def top_down(self, choose: Choose, context: Tensor | None = None) -> Distribution:
        above = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
        for layer in range(3):
            posterior = None
            if context is not None:
                posterior = self.posterior(layer, context, above.expand(len(context), -1, -1, -1))
            above = choose(layer, prior(layer, above), posterior)
        return Categorical(above.new_zeros(len(above), 3, 1, 1, 2))


def prior(layer: int, above: Tensor) -> Normal:
    """Moves a lot with the layers above, and bends."""
    mean = 2.0 * above + torch.sin(3.0 * above) if layer else above
    return Normal(mean, torch.ones_like(above) * (1.0 + above.square()).sqrt())


def count(model: Hierarchy, n: int = 60, most: int = 100, part: int = 60, seed: int = 0) -> ActiveUnits:
    values = torch.arange(2 * n).remainder(3).view(n, 1, 1, 2)
    counter = ActiveUnits(model, n, seed, most)
    with measuring(model):
        for x in values.split(part):
            counter.add(Batch(x))
    return counter


@pytest.mark.parametrize("seed", range(5))
def test_posteriors_that_are_their_priors_have_no_active_unit(seed: int) -> None:
    """The lower layers' means have variances far above 1, all of it noise of the draws above: it cancels exactly."""
    model = Chain(lambda layer, x, above: prior(layer, above))
    counter = count(model, seed=seed)
    assert all(bool((variance.abs() < 1e-20).all()) for variance in counter.variances())
    found = counter.count()
    assert found is not None
    assert (found.layers, found.out_of, found.images, found.draws) == ((0, 0, 0), (2, 2, 2), 60, ACTIVE_DRAWS)


@pytest.mark.parametrize("seed", range(5))
def test_all_units_that_follow_the_image_are_active(seed: int) -> None:
    """Means a x, then a z + noise of the draw: Var_x(E[z]) is a^2, a^4, a^6 times that of x, which is 0.68 here."""

    def posterior(layer: int, x: Tensor, above: Tensor) -> Normal:
        return Normal(0.6 * (above if layer else x), torch.ones_like(above))

    counter = count(Chain(posterior), seed=seed)
    values = torch.arange(120).remainder(3).view(60, 2).double()
    expected = [values.var(0) * 0.6 ** (2 * i) for i in (1, 2, 3)]
    for variance, wanted in zip(counter.variances(), expected, strict=True):
        torch.testing.assert_close(variance.flatten(), wanted, rtol=1e-10, atol=0)  # what is linear in noise cancels
    found = counter.count()
    assert found is not None
    assert found.layers == (2, 2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_width_that_follows_the_image_makes_no_unit_active(seed: int) -> None:
    """z_0 ~ N(0, (1 + x)^2), z_1 ~ N(z_0, 1): the mean of z_1 over all draws is 0 whatever the image."""

    def posterior(layer: int, x: Tensor, above: Tensor) -> Normal:
        return Normal(above, torch.ones_like(above) if layer else 1.0 + x)

    found = count(Chain(posterior), seed=seed).count()
    assert found is not None
    assert found.layers == (0, 0, 0)


def test_noise_that_opposite_draws_do_not_cancel_has_no_expectation() -> None:
    """Means x (z_0^2 - 1) with z_0 ~ N(0, 1) are 0 over all draws. Over half of the draws, four independent squares,
    they have the factor c with variance 2 / 4: one half alone would give c^2 Var(x), that is 0.4 where Var(x) = 0.8."""

    def posterior(layer: int, x: Tensor, above: Tensor) -> Normal:
        return Normal(x * (above.square() - 1.0) if layer else torch.zeros_like(above), torch.ones_like(above))

    found = torch.stack([count(Chain(posterior), n=6, seed=i).variances()[1].mean() for i in range(200)])
    assert abs(float(found.mean())) < 0.1  # five standard errors: 0.4 / sqrt(2 units x 200 seeds)


def test_the_mean_of_a_flow_is_that_of_its_draws() -> None:
    """z = exp(x e) has the mean exp(x^2 / 2), though without noise it is 1 for every image."""

    def posterior(layer: int, x: Tensor, above: Tensor) -> TransformedNormal:
        base = Normal(torch.zeros_like(above), torch.ones_like(above))
        return TransformedNormal(base, lambda z: ((x * z).exp(), x.log() + x * z))

    found = count(Chain(posterior)).count()
    assert found is not None
    assert found.layers == (2, 2, 2)


@pytest.mark.parametrize(("most", "part"), [(1, 60), (60, 60), (1000, 60), (100, 1), (100, 7)])
def test_the_count_does_not_depend_on_how_images_and_draws_are_grouped(most: int, part: int) -> None:
    def posterior(layer: int, x: Tensor, above: Tensor) -> Normal:
        return Normal(torch.sin(above + x), 0.5 + above.square() * x)

    model = Chain(posterior)
    expected, found = count(model).variances(), count(model, most=most, part=part).variances()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)  # float64, sums in another order
    assert model.encoded == 120  # the way up once for each image


@pytest.mark.parametrize(
    ("recipe", "shake", "noisy"), [("attentive_digits_tiny", 0.3, 20), ("biva_digits_tiny", 0.6, 0)]
)
def test_variances_of_a_network_are_those_of_many_draws(recipe: str, shake: float, noisy: int) -> None:
    """Against 2 x 50 independent draws for each image. In the first model, whose units are all but inactive, the noise
    of the layers above makes at least 20 of 48 active; the second draws latents on the way up and down."""
    torch.manual_seed(0)
    model = davi.build(recipe).double()
    assert isinstance(model, Hierarchy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    x, draws, generator = torch.randint(17, (12, *model.shape)), 50, Generator().manual_seed(1)

    def means(draws: int) -> Tensor:
        """Of all units of all layers, given the latents before them, mean over the draws, ``[12, units]``."""
        found: list[Tensor] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert posterior is not None
            if prior is not None:
                found.append(posterior.center().unflatten(0, (12, draws)).mean(1).flatten(1))
            return posterior.sample(generator)

        model.top_down(choose, model.encode(x.repeat_interleave(draws, 0)))
        return torch.cat(found, 1)

    counter = ActiveUnits(model, len(x), 0, 100)
    with measuring(model):
        first, second, single = means(draws), means(draws), means(1)
        counter.add(Batch(x))
    expected = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / 11
    found = torch.cat([variance.flatten() for variance in counter.variances()])
    # Variances reach 0.1. Seeds of either side move single ones by up to 2e-3, and those near the threshold by less.
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)
    units, active = counter.count(), int((expected > 0.01).sum())
    assert units is not None
    assert abs(units.value - active) <= 2
    assert not noisy or int((single.var(0) > 0.01).sum()) >= active + noisy  # one draw and its noise


def test_at_most_some_images_are_counted_spread_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "METERS", (ActiveUnits,))  # others encode images as well
    model = Chain(lambda layer, x, above: Normal(x, torch.ones_like(above)))
    n = ACTIVE_IMAGES + 300
    values = torch.zeros(n, 1, 1, 2, dtype=torch.uint8)
    values[ACTIVE_IMAGES:] = 2  # the first images alone would say that nothing varies
    found = evaluate(model, Images(values, 3, "toy/test"), batch_size=64).measure(ACTIVE_UNITS)
    assert found is not None
    assert (found.images, found.layers) == (ACTIVE_IMAGES, (2, 2, 2))
    assert model.encoded == n + ACTIVE_IMAGES
