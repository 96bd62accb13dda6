"""Layers of units against autograd, enumeration and quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from contract import assert_frequencies, seeded
from torch import Tensor

from davi.errors import OptionError
from davi.evidence import Kind
from davi.layers.pixel_units import BinaryPixels, GaussianPixels, PixelUnits, PottsPixels, make_pixel_units
from davi.layers.units import Bits, GaussianUnits, Potts, Units

KINDS: list[Units] = [Bits((2, 3)), Potts((2, 2, 3)), GaussianUnits((2, 3))]
COUNTABLE = KINDS[:2]


def naturals(units: Units, n: int = 4) -> Tensor:
    return 2.0 * torch.randn(n, *units.shape, dtype=torch.float64, generator=seeded(1))


def all_states(units: Units) -> Tensor:
    return units.states(0, round(2**units.log2_states), torch.empty(0, dtype=torch.float64))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b of all pairs, ``[A, B]``."""
    return a.flatten(1) @ b.flatten(1).T


@pytest.mark.parametrize("units", KINDS, ids=repr)
def test_means_are_gradients(units: Units) -> None:
    natural = naturals(units).requires_grad_()
    (gradient,) = torch.autograd.grad(units.log_partition(natural).sum(), natural)
    torch.testing.assert_close(units.mean(natural), gradient, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("units", COUNTABLE, ids=repr)
def test_sums_over_states_by_enumeration(units: Units) -> None:
    natural, states = naturals(units), all_states(units)
    assert len(states) == len(torch.unique(states, dim=0)) == round(2**units.log2_states)
    log_p = dot(natural, states)
    torch.testing.assert_close(units.log_partition(natural), log_p.logsumexp(1), rtol=0.0, atol=1e-12)
    expected = (log_p.softmax(1) @ states.flatten(1)).view_as(natural)
    torch.testing.assert_close(units.mean(natural), expected, rtol=0.0, atol=1e-12)
    assert torch.equal(units.log_base(states), torch.zeros(len(states)))
    assert torch.equal(units.states(3, 5, states), states[3:8])  # a piece of the list


def test_the_sum_over_a_real_unit_is_an_integral() -> None:
    units = GaussianUnits((1,))
    u = torch.linspace(-20.0, 20.0, 2001, dtype=torch.float64)[:, None]
    for natural in naturals(units):
        log_p = natural * u[:, 0] + units.log_base(u)
        integral = log_p.logsumexp(0) + math.log(0.02)
        assert float(units.log_partition(natural[None])) == pytest.approx(float(integral), abs=1e-12)
    assert units.log2_states == math.inf
    with pytest.raises(TypeError, match=r"^real units have no list of states$"):
        units.states(0, 1, u)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("units", [Bits((1, 2)), Potts((2, 3))], ids=repr)
def test_draws_have_the_stated_probabilities(units: Units, temperature: float) -> None:
    natural, states = 0.5 * naturals(units, 1), all_states(units)
    drawn = units.sample(natural.expand(5000, *units.shape), seeded(), temperature)
    assert drawn.dtype == torch.float64
    match = dot(drawn, states) - dot(drawn, 1.0 - states)  # most where all agree
    log_p = dot(natural / temperature, states)[0].log_softmax(0)
    assert_frequencies(match.argmax(1), log_p)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_real_draws_have_mean_and_variance(temperature: float) -> None:
    units = GaussianUnits((1,))
    drawn = units.sample(torch.full((20000, 1), 3.0, dtype=torch.float64), seeded(), temperature)
    error = (temperature / 20000) ** 0.5
    assert float(drawn.mean()) == pytest.approx(3.0, abs=4 * error)
    assert float(drawn.var()) == pytest.approx(temperature, abs=4 * temperature * (2 / 20000) ** 0.5)


@pytest.mark.parametrize("temperature", [1e-39, 1e-30])
def test_almost_cold_every_unit_takes_its_most_probable_value(temperature: float) -> None:
    natural = torch.tensor([[[3.0, 2.0, -5.0], [-40.0, -40.5, -39.5]]])
    assert Potts((2, 3)).sample(natural, temperature=temperature).argmax(-1).tolist() == [[0, 2]]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_no_numbers_are_no_error_of_draws(wrong: float) -> None:
    """Training refuses the step, whose free energies say so."""
    drawn = Potts((2, 3)).sample(torch.full((1, 2, 3), wrong))
    assert drawn.sum(-1).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("units", KINDS, ids=repr)
def test_draws_follow_the_generator(units: Units) -> None:
    natural = naturals(units)
    assert torch.equal(units.sample(natural, seeded(5)), units.sample(natural, seeded(5)))
    assert not torch.equal(units.sample(natural, seeded(5)), units.sample(natural, seeded(6)))


@pytest.mark.parametrize("units", KINDS, ids=repr)
def test_a_fixed_gauge_is_a_projection_that_changes_no_distribution(units: Units) -> None:
    natural = naturals(units)
    fixed = units.gauge_fixed(natural)
    torch.testing.assert_close(units.gauge_fixed(fixed), fixed, rtol=0.0, atol=1e-14)
    torch.testing.assert_close(units.mean(fixed), units.mean(natural), rtol=0.0, atol=1e-14)
    assert float(((natural - fixed) * fixed).sum()) == pytest.approx(0.0, abs=1e-12)  # orthogonal
    assert torch.equal(fixed, natural) != isinstance(units, Potts)


@pytest.mark.parametrize("units", KINDS, ids=repr)
def test_natural_parameters_of_means(units: Units) -> None:
    natural = naturals(units)
    found = units.natural(units.mean(natural))
    torch.testing.assert_close(found, units.gauge_fixed(natural), rtol=0.0, atol=1e-10)


# Integer images as states


def pixel_units(visible: str, levels: int, shape: tuple[int, int, int] = (1, 2, 2)) -> PixelUnits:
    return make_pixel_units(visible, shape, levels)  # type: ignore[arg-type]  # one of its literals


@pytest.mark.parametrize(
    ("visible", "levels", "kind"),
    [
        ("auto", 2, BinaryPixels),
        ("auto", 3, PottsPixels),
        ("binary", 2, BinaryPixels),
        ("potts", 2, PottsPixels),
        ("potts", 17, PottsPixels),
        ("gaussian", 2, GaussianPixels),
        ("gaussian", 256, GaussianPixels),
    ],
)
def test_every_kind_keeps_the_images(visible: str, levels: int, kind: type[PixelUnits]) -> None:
    units = pixel_units(visible, levels, (3, 4, 5))
    assert type(units) is kind
    assert units.claim is (Kind.LOWER_BOUND if kind is GaussianPixels else Kind.EXACT)
    x = torch.randint(levels, (50, 3, 4, 5), generator=seeded()).to(torch.uint8)
    v = units.state(x, torch.float32, seeded())
    assert v.shape == (50, *units.units.shape)
    assert v.dtype == torch.float32
    assert torch.equal(units.images(v), x.long())


def test_binary_units_are_for_two_levels() -> None:
    with pytest.raises(OptionError, match=r"^visible: got binary for 17 levels, expected potts or gaussian") as caught:
        pixel_units("binary", 17)
    assert caught.value.option == "visible"


def test_fields_are_those_of_smoothed_frequencies() -> None:
    """Ten images, three of which are white, and five more of even noise."""
    x = torch.zeros(10, 1, 1, 1, dtype=torch.uint8)
    x[:3] = 1
    odds = (3 + 2.5) / (7 + 2.5)
    bits, potts = (pixel_units(kind, 2, (1, 1, 1)).field(x) for kind in ("binary", "potts"))
    assert float(bits) == pytest.approx(math.log(odds), abs=1e-12)
    half = math.log(odds) / 2
    assert potts.flatten().tolist() == pytest.approx([-half, half], abs=1e-12)
    levels = pixel_units("potts", 3, (1, 1, 1)).field(x).softmax(-1).flatten().tolist()
    assert levels == pytest.approx([(7 + 5 / 3) / 15, (3 + 5 / 3) / 15, (5 / 3) / 15], abs=1e-12)
    assert float(pixel_units("gaussian", 2, (1, 1, 1)).field(x)) == 0.0


def test_real_states_are_standardized() -> None:
    x = torch.randint(40, 200, (4000, 2, 2, 2), generator=seeded())
    x[:, 0, 0, 0] = 7  # never changes
    units = GaussianPixels((2, 2, 2), 256, conditional_std=0.5)
    units.fit(x)
    v = units.state(x, torch.float64, seeded())
    # Twice as far: their deviation given the hidden units is to be 1.
    variance = v.var(0)
    varying = torch.ones(2, 2, 2, dtype=torch.bool)
    varying[0, 0, 0] = False
    torch.testing.assert_close(v.mean(0), torch.zeros(2, 2, 2, dtype=torch.float64), rtol=0.0, atol=5 * 2 / 4000**0.5)
    torch.testing.assert_close(variance[varying], torch.full((7,), 4.0, dtype=torch.float64), rtol=0.1, atol=0.0)
    assert float(units.std[0, 0, 0]) == 4.0  # a 64th of the range
    assert float(units.log_volume()) == pytest.approx(-sum(math.log(s) for s in units.std.flatten().tolist()), abs=1e-5)


def test_what_another_model_has_lent_stays() -> None:
    x = torch.randint(17, (100, 1, 2, 2), generator=seeded())
    mean, std = GaussianPixels((1, 2, 2), 17), GaussianPixels((1, 2, 2), 17)
    before = mean.mean.clone(), std.std.clone()
    mean.fit(x, {"mean"})
    std.fit(x, {"std"})
    assert torch.equal(mean.mean, before[0])
    assert torch.equal(std.std, before[1])
    assert not torch.equal(mean.std, before[1])
    assert not torch.equal(std.mean, before[0])


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_rounding_moves_no_noise_into_another_cell(levels: int) -> None:
    units = GaussianPixels((1, 1, 1000), levels)
    x = torch.randint(levels, (200, 1, 1, 1000), generator=seeded())
    units.fit(x)
    assert torch.equal(units.images(units.state(x, torch.float32, seeded())), x)
