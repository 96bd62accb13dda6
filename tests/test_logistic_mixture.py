"""The discretized logistic mixture against 50-digit arithmetic, enumeration of all values, and its own draws."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import Tensor

from davi.distributions import DiscretizedLogisticMixture, logistic_mixture
from davi.distributions.base import twice_differentiable
from davi.distributions.logistic_mixture import FORMS, LogMass, log1mexp

GRID = list(itertools.product([-1.5 + 0.25 * i for i in range(13)], range(-7, 6)))
"""Means from -1.5 to 1.5 and log-scales from -7 to 5."""


def over_all_levels(
    means: Tensor, log_scales: Tensor, levels: int, logits: Tensor | None = None, form: str = "exact"
) -> Tensor:
    """Log-probabilities [pixels, levels]; ``means`` and ``log_scales`` [pixels, K], ``logits`` the same or None.

    The values lie along the width of the image.
    """
    logits = torch.zeros_like(means) if logits is None else logits
    n, k = means.shape
    maps = [p.view(n, k, 1, 1, 1).expand(n, k, 1, 1, levels) for p in (logits, means, log_scales)]
    mixture = DiscretizedLogisticMixture(*maps, levels, form=form)
    values = torch.arange(levels).view(1, 1, 1, levels).expand(n, 1, 1, levels)
    return mixture.log_prob_map(values).view(n, levels)


def exact_log_prob(value: int, mean: float, log_scale: float, levels: int) -> float:
    """log(sigma(a) - sigma(b)) as the paper writes it, in 40 digits and more."""
    distance = abs(2 * value / (levels - 1) - 1 - mean) / math.exp(log_scale)
    with mpmath.workdps(40 + int(distance / math.log(10))):  # two numbers near 1, as many digits as the tail has zeros
        half, x = mpmath.mpf(1) / (levels - 1), 2 * mpmath.mpf(value) / (levels - 1) - 1
        scale = mpmath.exp(mpmath.mpf(log_scale))
        lower = 0 if value == 0 else 1 / (1 + mpmath.exp(-(x - half - mean) / scale))
        upper = 1 if value == levels - 1 else 1 / (1 + mpmath.exp(-(x + half - mean) / scale))
        return float(mpmath.log(upper - lower))


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_total_mass_is_one(levels: int) -> None:
    means, log_scales = torch.tensor(GRID, dtype=torch.float32).unbind(1)
    for chunk in range(0, len(GRID), 57):  # 65536 levels for all pairs at once would take more memory than needed
        log_p = over_all_levels(means[chunk : chunk + 57, None], log_scales[chunk : chunk + 57, None], levels)
        assert log_p.dtype == torch.float32
        mass = log_p.double().exp().sum(1)  # the sum itself in float64: its error is not the likelihood's
        assert (mass - 1).abs().max() < 1e-6


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_total_mass_of_mixtures_is_one(levels: int) -> None:
    n, k = 12, 5
    means, log_scales = 3 * torch.rand(n, k) - 1.5, 12 * torch.rand(n, k) - 7
    mass = over_all_levels(means, log_scales, levels, 3 * torch.randn(n, k)).double().exp().sum(1)
    assert (mass - 1).abs().max() < 1e-6


def test_joint_mass_of_a_color_pixel_is_one() -> None:
    levels, n, k = 8, 20, 3
    colors = torch.tensor(list(itertools.product(range(levels), repeat=3)))  # [512, 3]
    x = colors.T.view(1, 3, 1, -1).expand(n, 3, 1, 512)

    def spread(p: Tensor) -> Tensor:
        return p.view(n, k, -1, 1, 1).expand(n, k, p.shape[2], 1, 512)

    mixture = DiscretizedLogisticMixture(
        spread(2 * torch.randn(n, k, 1)),
        spread(3 * torch.rand(n, k, 3) - 1.5),
        spread(12 * torch.rand(n, k, 3) - 7),
        levels,
        spread(2 * torch.rand(n, k, 3) - 1),
    )
    log_p = mixture.log_prob_map(x)
    assert log_p.shape == (n, 1, 1, 512)
    mass = log_p.double().exp().sum(3)
    assert (mass - 1).abs().max() < 1e-6


PROBES = [
    (0, 0.0, 0.0, 2),
    (1, 0.7, -3.0, 2),
    (5, -0.3, -1.5, 17),
    (16, 1.2, -4.0, 17),
    (128, 0.1, -7.0, 256),
    (200, -0.9, -7.0, 256),  # 1.47 / e^-7: the probability is e^-1607
    (0, 1.5, -5.0, 256),
    (254, 0.99, -3.5, 256),
    (255, -1.5, -2.0, 256),
    (17, 0.2, 5.0, 256),  # a difference of 5e-5 between two CDFs near one half
    (40_000, 0.22, -12.0, 65536),
    (65_535, 1.0, -7.0, 65536),
    (30_000, -0.5, 3.0, 65536),
]


@pytest.mark.parametrize(("value", "mean", "log_scale", "levels"), PROBES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_values_are_those_of_the_formula(
    value: int, mean: float, log_scale: float, levels: int, dtype: torch.dtype, tolerance: float
) -> None:
    # The center, a number of levels, is rounded once; divided by the scale in levels that is the error in nats.
    rounding = 2 * torch.finfo(dtype).eps / math.exp(log_scale)
    mean = torch.tensor(mean, dtype=dtype).item()  # the oracle is given the number that the code is given
    one = torch.ones(1, 1, 1, 1, 1, dtype=dtype)
    mixture = DiscretizedLogisticMixture(one, mean * one, log_scale * one, levels)
    found = mixture.log_prob(torch.full((1, 1, 1, 1), value)).item()
    assert found == pytest.approx(exact_log_prob(value, mean, log_scale, levels), rel=tolerance, abs=rounding)


def test_autoregressive_channels_and_mixing_by_hand() -> None:
    """G is shifted by c0 R, B by c1 R + c2 G, per component; R, G, B are the observed values in [-1, 1]."""
    levels, k, pixel = 8, 3, (6, 1, 4)
    torch.manual_seed(3)
    logits, means, log_scales, c = (torch.randn(k, i, dtype=torch.float64) for i in (1, 3, 3, 3))
    red, green = (2 * v / (levels - 1) - 1 for v in pixel[:2])
    weights = logits[:, 0].softmax(0)
    total = 0.0
    for j in range(k):
        shifts = (0.0, c[j, 0] * red, c[j, 1] * red + c[j, 2] * green)
        parts = [
            exact_log_prob(pixel[i], float(means[j, i] + shifts[i]), float(log_scales[j, i]), levels) for i in range(3)
        ]
        total += float(weights[j]) * math.exp(sum(parts))
    maps = [p.view(1, k, -1, 1, 1) for p in (logits, means, log_scales)]
    mixture = DiscretizedLogisticMixture(*maps, levels, c.view(1, k, 3, 1, 1))
    found = mixture.log_prob(torch.tensor(pixel).view(1, 3, 1, 1)).item()
    assert found == pytest.approx(math.log(total), rel=1e-11)


@pytest.mark.parametrize("channels", [2, 4])
def test_independent_channels_are_mixtures_of_their_own(channels: int) -> None:
    b, k, h, w, levels = 2, 3, 2, 2, 17
    logits, means, log_scales = (torch.randn(b, k, channels, h, w, dtype=torch.float64) for _ in range(3))
    x = torch.randint(levels, (b, channels, h, w))
    together = DiscretizedLogisticMixture(logits, means, log_scales, levels).log_prob_map(x)
    assert together.shape == (b, channels, h, w)
    for i in range(channels):
        own = [p[:, :, i : i + 1] for p in (logits, means, log_scales)]
        alone = DiscretizedLogisticMixture(*own, levels).log_prob_map(x[:, i : i + 1])
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", list(FORMS))
def test_gradients_are_finite_far_outside(form: str) -> None:
    means = torch.tensor([-50.0, -50.0, 50.0, 50.0]).view(4, 1).requires_grad_()
    log_scales = torch.tensor([-7.0, 5.0, -7.0, 5.0]).view(4, 1).requires_grad_()
    logits = torch.zeros(4, 1, requires_grad=True)
    log_p = over_all_levels(means, log_scales, 256, logits, form)
    assert log_p.isfinite().all()
    gradients = torch.autograd.grad(log_p.sum(), [means, log_scales, logits])
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0] != 0).all()  # an image that is far off still says where to go


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(5)
    b, k, levels = 1, 2, 17
    x = torch.tensor([0, 3, 16, 9, 16, 0]).view(b, 3, 1, 2)  # both ends and the inside
    leaves = [0.7 * torch.randn(b, k, g, 1, 2, dtype=torch.float64) for g in (1, 3, 3, 3)]

    def log_prob(logits: Tensor, means: Tensor, log_scales: Tensor, c: Tensor) -> Tensor:
        return DiscretizedLogisticMixture(logits, means, log_scales, levels, c).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, [leaf.requires_grad_() for leaf in leaves], eps=1e-6, atol=1e-8)


def test_log1mexp() -> None:
    values = [1e-320, 1e-30, 1e-12, 0.999e-3, 1.001e-3, 0.5, math.log(2.0), 1.0, 30.0, 700.0]
    log_t = torch.tensor([math.log(t) for t in values], dtype=torch.float64)
    with mpmath.workdps(400):
        t = [mpmath.exp(mpmath.mpf(v)) for v in log_t.tolist()]
        expected, slopes = [float(mpmath.log(1 - mpmath.exp(-v))) for v in t], [float(v / mpmath.expm1(v)) for v in t]
    # 1 - 1e-304 is 1 in float64: where log p is next to nothing it is right to a unit of rounding, not to a share of it
    found = log1mexp(log_t)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15)
    log_t.requires_grad_()
    (slope,) = torch.autograd.grad(log1mexp(log_t).sum(), log_t)
    torch.testing.assert_close(slope, torch.tensor(slopes, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_absurdly_large_scales_have_finite_values_and_gradients(levels: int) -> None:
    """From about e^95 on the inverse of the scale is zero in float32; what is left is the two open ends."""
    scales = [30.0, 88.0, 95.0, 104.0, 300.0, 1000.0]
    log_scales = torch.tensor(scales).view(-1, 1).requires_grad_()
    means = torch.tensor([-1.5, 0.0, 50.0, -50.0, 0.3, 1.0]).view(-1, 1).requires_grad_()
    log_p = over_all_levels(means, log_scales, levels)
    assert log_p.isfinite().all()
    assert (log_p[:, [0, -1]] - math.log(0.5)).abs().max() < 1e-6
    for i, scale in enumerate(scales if levels > 2 else []):
        # P(inner) -> t / 4 with t = 1 / (scale in levels)
        expected = -scale - math.log((levels - 1) / 2) - math.log(4)
        assert log_p[i, 1:-1].tolist() == pytest.approx([expected] * (levels - 2), rel=1e-6)
    slopes = torch.autograd.grad(log_p.sum(), [means, log_scales])
    assert all(slope.isfinite().all() for slope in slopes)
    assert slopes[1].flatten().tolist() == pytest.approx([2.0 - levels] * len(scales), rel=1e-6, abs=1e-6)


def test_openai_form_sums_to_one_within_its_known_error() -> None:
    means, log_scales = torch.tensor(GRID, dtype=torch.float64).unbind(1)
    inside = means.abs() <= 1  # outside, the density at the center stands for most values
    mass = over_all_levels(means[inside, None], log_scales[inside, None], 256, form="openai").exp().sum(1)
    error = (mass - 1).abs().max().item()
    # Known: within 7e-6 at moderate scales. The density replaces differences up to 1e-5 in each of 256 values.
    assert 1e-9 < error < 256e-5


@pytest.mark.parametrize("form", ["openai", "nvae", "attentive"])
def test_compatibility_forms_agree_where_nothing_is_small(form: str) -> None:
    means, log_scales = torch.tensor([[0.1]], dtype=torch.float64), torch.tensor([[-2.0]], dtype=torch.float64)
    exact = over_all_levels(means, log_scales, 256)
    other = over_all_levels(means, log_scales, 256, form=form)
    torch.testing.assert_close(other[:, 20:254], exact[:, 20:254], rtol=1e-9, atol=1e-9)


PUBLISHED_SUMS = {(0.5, -1.5): 1.098, (0.9, -2.5): 1.237, (0.99, -3.5): 1.450, (1.0, -5.0): 1.642}


@pytest.mark.parametrize("form", ["nvae", "attentive"])
def test_published_forms_exceed_one_by_the_known_amount(form: str) -> None:
    """Value 254 takes the open upper end as well as 255: weights trained so need the form; it is no likelihood."""
    means, log_scales = torch.tensor(list(PUBLISHED_SUMS), dtype=torch.float64).unbind(1)
    mass = over_all_levels(means[:, None], log_scales[:, None], 256, form=form).exp().sum(1)
    assert mass.tolist() == pytest.approx(list(PUBLISHED_SUMS.values()), abs=6e-4)  # three published decimals
    right = over_all_levels(means[:, None], log_scales[:, None], 256, form="openai").exp().sum(1)
    assert right.tolist() == pytest.approx([1.0] * 4, abs=1e-5)


def test_smallest_difference_of_the_forms() -> None:
    """Below a difference of 1e-5 all three take the density at the center; inside the logarithm nothing is clamped."""
    mean, log_scale, value = 0.0, -5.0, 200
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    x = 2 * value / 255 - 1
    t = (x - mean) / math.exp(log_scale)
    density = -t - log_scale - 2 * math.log1p(math.exp(-t)) - math.log(127.5)
    for form in ("openai", "nvae", "attentive"):
        mixture = DiscretizedLogisticMixture(one, mean * one, log_scale * one, 256, form=form)
        assert mixture.log_prob(torch.full((1, 1, 1, 1), value)).item() == pytest.approx(density, rel=1e-12)


@pytest.mark.parametrize(("levels", "floor"), [(2, -7.0), (256, -7.0), (65536, -7.0 - math.log(257))])
def test_floor_of_the_log_scale(levels: int, floor: float) -> None:
    assert DiscretizedLogisticMixture.min_log_scale(levels) == pytest.approx(floor, rel=1e-14)
    means = torch.full((1, 1), 0.01, dtype=torch.float64)
    low, at, above = (
        over_all_levels(means, torch.full((1, 1), s, dtype=torch.float64), levels) for s in (-40.0, floor, floor + 0.1)
    )
    assert torch.equal(low, at)
    assert not torch.equal(at, above)


def pixels(n: int, *parameters: Tensor) -> list[Tensor]:
    """``n`` pixels with the same parameters: each [K, G] -> [1, K, G, 1, n]."""
    return [p.view(1, *p.shape, 1, 1).expand(1, *p.shape, 1, n) for p in parameters]


def chi_square(draws: Tensor, probabilities: Tensor) -> float:
    """Probability of counts this far off; values expected fewer than 5 times are counted as one."""
    expected = probabilities.double() * len(draws)
    counts = torch.bincount(draws, minlength=len(expected)).double()
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    counts = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    kept = expected > 0
    statistic = ((counts - expected).square()[kept] / expected[kept]).sum().item()
    return float(chi2.sf(statistic, int(kept.sum()) - 1))


def test_sampling_frequencies_of_one_channel() -> None:
    n, levels = 40_000, 12
    logits = torch.tensor([[0.5], [-0.5], [0.0]])
    means, log_scales = torch.tensor([[-0.8], [0.3], [1.1]]), torch.tensor([[-2.0], [-1.0], [-3.0]])
    mixture = DiscretizedLogisticMixture(*pixels(n, logits, means, log_scales), levels)
    draws = mixture.sample(torch.Generator().manual_seed(1)).flatten()
    assert draws.dtype == torch.long
    assert draws.min() >= 0
    assert draws.max() < levels
    probabilities = over_all_levels(means.T, log_scales.T, levels, logits.T).exp()[0]
    assert chi_square(draws, probabilities) > 1e-4
    assert torch.equal(draws, mixture.sample(torch.Generator().manual_seed(1)).flatten())


def test_sampling_frequencies_of_colors() -> None:
    """Later channels are conditioned on the rounded, clipped earlier ones, as the likelihood is."""
    n, levels = 40_000, 4
    logits = torch.tensor([[0.0], [1.0]])
    # wide reds that are often clipped, narrow greens and blues that follow them
    means = torch.tensor([[0.9, 0.1, -0.2], [-0.3, 0.4, 0.3]])
    log_scales = torch.tensor([[-1.0, -3.0, -3.0], [-0.5, -2.0, -3.0]])
    c = torch.tensor([[0.9, -0.5, 0.8], [-0.7, 0.6, 0.4]])
    *maps, coefficients = pixels(n, logits, means, log_scales, c)
    draws = DiscretizedLogisticMixture(*maps, levels, coefficients).sample(torch.Generator().manual_seed(2))
    index = (draws[0, 0] * levels + draws[0, 1]) * levels + draws[0, 2]
    colors = torch.tensor(list(itertools.product(range(levels), repeat=3)))
    *maps, coefficients = pixels(64, logits, means, log_scales, c)
    log_p = DiscretizedLogisticMixture(*maps, levels, coefficients).log_prob_map(colors.T.view(1, 3, 1, 64))
    assert chi_square(index.flatten(), log_p.flatten().exp()) > 1e-4


@pytest.mark.parametrize("channels", [2, 4])
def test_independent_channels_are_drawn_independently(channels: int) -> None:
    n, k, levels = 30_000, 2, 3
    logits, means, log_scales = torch.randn(k, channels), torch.randn(k, channels), torch.full((k, channels), -1.5)
    draws = DiscretizedLogisticMixture(*pixels(n, logits, means, log_scales), levels).sample(
        torch.Generator().manual_seed(3)
    )
    assert draws.shape == (1, channels, 1, n)
    pmf = [
        over_all_levels(*(p[:, i].view(1, k) for p in (means, log_scales)), levels, logits[:, i].view(1, k)).exp()[0]
        for i in range(channels)
    ]
    for i, j in itertools.combinations(range(channels), 2):
        pair = (draws[0, i] * levels + draws[0, j]).flatten()
        assert chi_square(pair, torch.outer(pmf[i], pmf[j]).flatten()) > 1e-5


def by_enumeration(mixture: DiscretizedLogisticMixture) -> Tensor:
    """Channel by channel the value with the largest sum of the probabilities of all colors that begin so."""
    b, _, c, h, w = mixture.means.shape
    colors = torch.tensor(list(itertools.product(range(mixture.levels), repeat=c)))
    log_p = torch.stack([mixture.log_prob_map(v.view(1, c, 1, 1).expand(b, c, h, w)).sum(1) for v in colors], -1)
    p = log_p.exp().unflatten(-1, (mixture.levels,) * c)  # [B, H, W, levels, levels, ..]
    chosen = []
    for _ in range(c):
        value = p.flatten(4).sum(4).argmax(3) if p.ndim > 4 else p.argmax(3)
        chosen.append(value)
        p = p.take_along_dim(value.view(*value.shape, *[1] * (p.ndim - 3)), 3).squeeze(3)
    return torch.stack(chosen, 1)


def some_mixture(levels: int, channels: int, groups: int, coefficients: bool = False) -> DiscretizedLogisticMixture:
    """Random, with components that overlap and means beyond both ends; in float64, in which no two values tie."""
    b, k, h, w = 2, 3, 5, 8
    logits, means, log_scales = (torch.randn(b, k, n, h, w).double() for n in (groups, channels, channels))
    c = torch.randn(b, k, 3, h, w).double() if coefficients else None
    return DiscretizedLogisticMixture(logits, 0.8 * means, log_scales - 1.5, levels, c)


@pytest.mark.parametrize("levels", [2, 3, 7])
@pytest.mark.parametrize(
    ("channels", "groups", "coefficients"), [(1, 1, False), (3, 1, True), (3, 1, False), (2, 1, False), (2, 2, False)]
)
def test_the_mode_is_the_most_probable_value_given_those_before(
    levels: int, channels: int, groups: int, coefficients: bool
) -> None:
    mixture = some_mixture(levels, channels, groups, coefficients)
    assert torch.equal(mixture.mode(), by_enumeration(mixture))


def test_the_mode_at_256_levels_is_the_largest_of_all_values() -> None:
    mixture = some_mixture(256, 4, 4)
    values = torch.arange(256).view(256, 1, 1, 1, 1)
    log_p = torch.stack([mixture.log_prob_map(value.expand(2, 4, 5, 8)) for value in values])
    assert torch.equal(mixture.mode(), log_p.argmax(0))
    single = DiscretizedLogisticMixture(
        *(p.float() for p in (mixture.log_weights, mixture.means, mixture.log_scales)), 256
    )
    found = single.log_prob_map(single.mode())
    # float32 rounds differently here and there: equally probable to a few roundings of numbers up to 6.
    assert (log_p.max(0).values - found).max() < 1e-5


def test_the_heaviest_component_need_not_hold_the_mode() -> None:
    """Two narrow components of weight 0.3 at one value against a broad one of weight 0.4 elsewhere."""
    logits = torch.tensor([0.4, 0.3, 0.3]).log().view(1, 3, 1, 1, 1)
    means, log_scales = torch.tensor([0.3, -0.5, -0.5]), torch.tensor([-2.0, -4.0, -4.0])
    maps = [p.view(1, 3, 1, 1, 1) for p in (means, log_scales)]
    assert DiscretizedLogisticMixture(logits, *maps, 256).mode().item() == round(0.5 * 127.5)
    # Above 256 levels the approximation that the docstring states.
    assert DiscretizedLogisticMixture(logits, *maps, 257).mode().item() == round(1.3 * 128)


@pytest.mark.parametrize("at_once", [1, 100])
def test_the_mode_does_not_depend_on_how_many_pixels_are_looked_at_together(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = some_mixture(17, 3, 1, coefficients=True)
    expected = mixture.mode()
    monkeypatch.setattr(logistic_mixture, "_AT_ONCE", at_once)
    assert torch.equal(mixture.mode(), expected)


@pytest.mark.parametrize("form", ["nvae", "attentive"])
def test_white_is_white_in_every_form(form: str) -> None:
    """By the sums of these forms 254 is always at least as probable as 255."""
    one = torch.ones(1, 1, 1, 1, 1)
    assert DiscretizedLogisticMixture(one, one, -5.0 * one, 256, form=form).mode().item() == 255


@pytest.mark.parametrize("levels", [11, 300])
def test_temperature(levels: int) -> None:
    logits, means = torch.tensor([[0.0], [1.0]]), torch.tensor([[-0.5, 0.0, 0.0], [0.2, -0.4, 3.0]])
    log_scales, c = torch.full((2, 3), -2.0), torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    *maps, coefficients = pixels(5000, logits, means, log_scales, c)
    mixture = DiscretizedLogisticMixture(*maps, levels, coefficients)
    assert torch.equal(mixture.sample(temperature=0.0), mixture.mode())
    hot, cold = (mixture.sample(torch.Generator().manual_seed(4), t) for t in (1.0, 0.25))
    assert cold[:, 0].double().std() < 0.7 * hot[:, 0].double().std()


def test_wrong_arguments_are_refused() -> None:
    zeros = torch.zeros(1, 1, 2, 1, 1)
    known = "exact, openai, openai_5bit, nvae, attentive"
    with pytest.raises(ValueError, match=rf"^form: got 'mse', expected one of {known}$"):
        DiscretizedLogisticMixture(zeros, zeros, zeros, 256, form="mse")
    with pytest.raises(ValueError, match=r"^coefficients: got 2 channels, expected 3 autoregressive ones$"):
        DiscretizedLogisticMixture(zeros[:, :, :1], zeros, zeros, 256, torch.zeros(1, 1, 3, 1, 1))


def test_half_precision_is_measured_in_float32() -> None:
    raw = torch.randn(2, 1, 1, 3, 3).bfloat16()
    mixture = DiscretizedLogisticMixture(raw, raw, raw, 256)
    assert mixture.log_prob(torch.zeros(2, 1, 3, 3, dtype=torch.uint8)).dtype == torch.float32
    assert repr(mixture) == "DiscretizedLogisticMixture(shape=(2, 1, 1, 3, 3), levels=256, form='exact')"


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_derivatives_are_those_of_the_formula(levels: int) -> None:
    """Against autograd through log(sigma(a) - sigma(b)), written as log-sigmoids; float64."""
    unit = (levels - 1) / 2.0
    value = torch.linspace(0, levels - 1, 9, dtype=torch.float64).round().long().view(-1, 1, 1)
    ahead = (unit * torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)).view(1, -1, 1).repeat(9, 1, 15)
    slope = torch.linspace(-12.0, 9.0, 15, dtype=torch.float64).view(1, 1, -1).repeat(9, 13, 1)  # -log s
    found, expected = [], []
    for first, last in ((value == 0, value == levels - 1), (value < 0, value < 0)):
        inputs = ahead.clone().requires_grad_(), slope.clone().requires_grad_()
        ours = LogMass.apply(*inputs, first, last)
        found += [ours, *torch.autograd.grad(ours.sum(), inputs)]
        below = F.logsigmoid((0.5 - inputs[0]) * inputs[1].exp())
        above = F.logsigmoid((0.5 + inputs[0]) * inputs[1].exp())
        inner = below + above + log1mexp(inputs[1])
        theirs = torch.where(first, below, torch.where(last, above, inner))
        expected += [theirs, *torch.autograd.grad(theirs.sum(), inputs)]
    for own, other in zip(found, expected, strict=True):
        # Roundings of float64, in the derivative magnified by the largest terms that cancel.
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12 * float(other.detach().abs().max()))


def test_where_two_derivatives_are_wanted_the_formula_is_written_out() -> None:
    """The same values and derivatives, and second ones that those of finite differences confirm; float64."""
    levels, generator = 17, torch.Generator().manual_seed(3)
    shape, options = (2, 3, 1, 2, 2), {"generator": generator, "dtype": torch.float64}
    logits, means, log_scales = (torch.randn(shape, **options).requires_grad_() for _ in range(3))
    x = torch.tensor([0, 5, 11, 16]).view(1, 1, 2, 2).expand(2, -1, -1, -1)

    def log_prob(*parameters: Tensor) -> Tensor:
        return DiscretizedLogisticMixture(*parameters, levels).log_prob(x)

    parameters = (logits, means, log_scales)
    once = log_prob(*parameters)
    with twice_differentiable():
        twice = log_prob(*parameters)
        torch.testing.assert_close(twice, once, rtol=1e-12, atol=1e-12)
        own, other = (torch.autograd.grad(value.sum(), parameters, retain_graph=True) for value in (twice, once))
        for first, second in zip(own, other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
        assert torch.autograd.gradgradcheck(log_prob, parameters)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_is_that_of_many_draws(channels: int) -> None:
    """With all mass well inside the range, where nothing is lost beyond the ends."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 1, 2, 2, generator=generator)
    means = 0.3 * torch.randn(1, 3, channels, 2, 2, generator=generator).clamp(-1.5, 1.5)
    log_scales = torch.full_like(means, -4.0)
    coefficients = 0.3 * torch.randn(1, 3, 3, 2, 2, generator=generator).clamp(-1, 1) if channels == 3 else None

    def of(n: int) -> DiscretizedLogisticMixture:
        parts = [x.expand(n, -1, -1, -1, -1) for x in (logits, means, log_scales)]
        c = None if coefficients is None else coefficients.expand(n, -1, -1, -1, -1)
        return DiscretizedLogisticMixture(*parts, 256, c)

    draws = of(20_000).sample(generator).double()
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - of(1).mean()[0]).abs() <= 5 * error).all()


def test_the_mean_stays_within_the_levels() -> None:
    means = torch.tensor([-3.0, 5.0]).view(1, 1, 1, 1, 2)
    mixture = DiscretizedLogisticMixture(torch.zeros(1, 1, 1, 1, 2), means, torch.full_like(means, -3.0), 16)
    assert mixture.mean().flatten().tolist() == [0.0, 15.0]
