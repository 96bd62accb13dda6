"""Where images enter and leave a network: padding, pixel distributions, and the Normals of the latents."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from davi.layers import LikelihoodConfig, Padding, PixelHead
from davi.layers.raw_normal import GaussianOptions, RawNormal


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (8, 8), (7, 12), (28, 28)])
@pytest.mark.parametrize("unit", [1, 2, 4])
def test_padding_comes_off_again(size: tuple[int, int], unit: int) -> None:
    padding = Padding.to_multiple(size, unit)
    x = torch.randint(1, 9, (2, 3, *size)).double()
    padded = padding.add(x)
    assert tuple(padded.shape[2:]) == padding.padded == tuple(-(-n // unit) * unit for n in size)
    assert torch.equal(padding.crop(padded), x)
    assert padded.sum() == x.sum()  # what was added is zero
    assert abs(padding.left - padding.right) <= 1
    assert abs(padding.top - padding.bottom) <= 1


def test_padding_of_a_given_width() -> None:
    padding = Padding.to_multiple((28, 28), 4, 2)
    assert padding == Padding(28, 28, 2, 2, 2, 2)
    assert padding.add(torch.ones(1, 28, 28))[0, 2:30, 2:30].all()
    with pytest.raises(ValueError, match=r"^pad: got 1, which makes 30x30; expected multiples of 4$"):
        Padding.to_multiple((28, 28), 4, 1)


@pytest.mark.parametrize(
    ("family", "channels", "levels", "components", "parameters"),
    [
        ("bernoulli", 1, 2, 1, 1),
        ("bernoulli", 3, 2, 1, 3),
        ("categorical", 1, 17, 1, 17),
        ("categorical", 3, 256, 1, 768),
        ("logistic_mixture", 1, 256, 10, 30),
        ("logistic_mixture", 2, 256, 5, 30),
        ("logistic_mixture", 3, 256, 5, 50),  # a logit, three means, scales and coefficients for each component
        ("logistic_mixture", 3, 256, 10, 100),
        ("logistic_mixture", 4, 65536, 5, 60),
    ],
)
def test_parameters_of_a_pixel(family: Any, channels: int, levels: int, components: int, parameters: int) -> None:
    head = PixelHead(LikelihoodConfig(family, components), channels, levels)
    assert head.inputs == parameters
    distribution = head(torch.randn(2, parameters, 3, 4))
    x = distribution.sample()
    assert x.shape == (2, channels, 3, 4)
    assert distribution.log_prob(x).shape == (2,)
    assert distribution.log_prob(x).isfinite().all()


def test_layout_of_the_parameters() -> None:
    k = 2
    raw = torch.arange(k * 10, dtype=torch.float64).view(1, -1, 1, 1)
    mixture = PixelHead(LikelihoodConfig("logistic_mixture", k), 3, 256)(raw)
    first = -math.log(1 + math.e)  # logits 0 and 1
    assert mixture.log_weights.flatten().tolist() == pytest.approx([first, first + 1], rel=1e-12)
    assert mixture.means.flatten().tolist() == [2, 3, 4, 5, 6, 7]  # [K, C]
    assert mixture.log_scales.flatten().tolist() == [8, 9, 10, 11, 12, 13]
    assert mixture.coefficients.flatten().tolist() == pytest.approx([math.tanh(c) for c in range(14, 20)], rel=1e-12)
    categorical = PixelHead(LikelihoodConfig("categorical"), 2, 3)(torch.tensor([0.0, 5, 0, 0, 5, 0]).view(1, 6, 1, 1))
    assert categorical.mode().flatten().tolist() == [2, 0]  # [levels, C]: channel 0 reads entries 0, 2, 4


@pytest.mark.parametrize(
    ("options", "levels", "message"),
    [
        (("bernoulli",), 17, "likelihood.family: got bernoulli for 17 levels, expected 2 (binarize the data?)"),
        (("categorical",), 65536, "likelihood.family: got categorical for 65536 levels, expected at most 256"),
        (("logistic_mixture", 0), 256, "components: got 0, expected at least 1"),
        (("bernoulli", 1, "nvae"), 2, "form: got nvae, expected exact for a bernoulli"),
    ],
)
def test_impossible_heads_are_refused(options: tuple[Any, ...], levels: int, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        PixelHead(LikelihoodConfig(*options), 1, levels)
    assert str(error.value) == message


def test_residual_posterior_with_zero_output_is_the_prior() -> None:
    outputs = torch.randn(2, 6, 3, 3)
    prior = RawNormal.split(outputs)
    assert torch.equal(prior.mean, outputs[:, :3])
    assert torch.equal(prior.log_scale, outputs[:, 3:])
    zero = RawNormal.split(torch.zeros_like(outputs))
    options = GaussianOptions()
    assert torch.equal(prior.shifted(zero).bounded(options).kl(prior.bounded(options)), torch.zeros(2))
    shifted = prior.shifted(RawNormal.split(torch.ones_like(outputs)))
    assert torch.equal(torch.cat(shifted, 1), outputs + 1)


def test_noise_is_added_to_the_log_scale_only() -> None:
    outputs = torch.randn(2, 200, 10, 10)
    clean, noisy = RawNormal.split(outputs), RawNormal.split(outputs, 0.1)
    assert torch.equal(clean.mean, noisy.mean)
    deviation = (noisy.log_scale - clean.log_scale).std().item()
    assert deviation == pytest.approx(0.1, rel=4 / math.sqrt(2 * 20_000))  # four standard errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_scale_low": 5.0}, "log_scale_low: got 5.0, expected less than log_scale_high, 5.0"),
        ({"noise": -0.1}, "noise: got -0.1, expected a number >= 0"),
        ({"noise": math.nan}, "noise: got nan, expected a number >= 0"),
        ({"noise": math.inf}, "noise: got inf, expected a number >= 0"),
        ({"log_scale_high": math.inf}, "log_scale_high: got inf, expected -50 to 50"),
        ({"log_scale_high": 50.1}, "log_scale_high: got 50.1, expected -50 to 50"),
        ({"log_scale_low": -51.0}, "log_scale_low: got -51.0, expected -50 to 50"),
        ({"log_scale_low": math.nan}, "log_scale_low: got nan, expected -50 to 50"),
    ],
)
def test_impossible_gaussian_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        GaussianOptions(**options)
    assert str(error.value) == message
