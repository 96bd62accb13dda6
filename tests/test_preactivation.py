"""Padding, batch norm, shortcuts and places of residual classifiers, against what they are defined as."""

from __future__ import annotations

import copy
import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from davi.layers.biased_batch_norm import BiasedBatchNorm2d, set_momentum
from davi.layers.checkpointed import frozen_statistics
from davi.layers.preactivation import PaddedShortcut, Place, ResidualStages, StemLayer, branch, shortcut
from davi.layers.same_padding import SameConv2d, pad_same


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_same_padding_by_its_definition(size: int, kernel: int, stride: int) -> None:
    """One output for each stride begun, and windows as far to the left as they are to the right, or one less."""
    torch.manual_seed(0)
    conv = SameConv2d(1, 1, kernel, stride).double().requires_grad_(False)
    column = torch.randn(size, dtype=torch.float64)
    outputs = math.ceil(size / stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(outputs, dtype=torch.float64)
    for i, k in itertools.product(range(outputs), range(kernel)):
        if 0 <= i * stride + k - before < size:
            expected[i] += conv.weight[0, 0, k, kernel // 2] * column[i * stride + k - before]
    found = conv(column[None, None, :, None])[0, 0, :, 0]  # a single column meets the middle one of the kernel
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_strided_kernel_reaches_over_the_end_of_even_maps_alone() -> None:
    assert pad_same(torch.ones(1, 1, 4, 4), 3, 2)[0, 0].tolist() == [[1.0] * 4 + [0.0]] * 4 + [[0.0] * 5]
    assert pad_same(torch.ones(1, 1, 5, 5), 3, 2).shape == (1, 1, 7, 7)


def test_kernels_begin_within_two_standard_deviations() -> None:
    torch.manual_seed(0)
    weight = SameConv2d(8, 16, 3).weight.detach()
    std = (2.0 / (9 * 16)) ** 0.5
    assert float(weight.abs().max()) <= 2 * std
    assert 0.8 * std < float(weight.std()) < 0.95 * std  # of a Normal that is cut off there: 0.88


def test_running_statistics_follow_the_biased_variance() -> None:
    norm = BiasedBatchNorm2d(2, momentum=0.25, eps=0.5).double()
    x = torch.randn(3, 2, 2, 1, dtype=torch.float64) * 3.0 + 1.0
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    expected = (x - mean[:, None, None]) / (variance + 0.5).sqrt()[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, 0.25 * mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * variance, rtol=1e-12, atol=1e-12)
    before = copy.deepcopy(norm.state_dict())
    with frozen_statistics(norm):
        norm(x + 1.0)
    assert all(torch.equal(x, before[name]) for name, x in norm.state_dict().items())
    norm.momentum = None  # every batch counts alike
    norm.reset_running_stats()
    norm(x)
    norm(3.0 * x)
    torch.testing.assert_close(norm.running_var, 5.0 * variance, rtol=1e-12, atol=1e-12)
    norm.eval()
    expected = (x - 2.0 * mean[:, None, None]) / (5.0 * variance + 0.5).sqrt()[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


def test_momentum_is_set_in_every_part() -> None:
    parts = nn.Sequential(branch(2, 2), StemLayer(1, 2, "3x3"))
    set_momentum(parts, 0.5)
    assert [part.momentum for part in parts.modules() if isinstance(part, nn.BatchNorm2d)] == [0.5] * 3


def test_shortcuts() -> None:
    assert isinstance(shortcut(4, 4), nn.Identity)
    assert isinstance(shortcut(4, 4, bottleneck=True), nn.Identity)
    assert isinstance(shortcut(4, 8, bottleneck=True), SameConv2d)
    x = torch.arange(8.0).view(1, 2, 2, 2)
    found = PaddedShortcut(3, 2)(x)
    assert found[0, :, 0, 0].tolist() == [0.0, 1.5, 5.5, 0.0, 0.0]
    assert PaddedShortcut(0, 2)(torch.arange(5.0).view(1, 1, 1, 5))[0, 0, 0].tolist() == [0.5, 2.5, 4.0]


def test_the_large_stem_quarters_the_resolution() -> None:
    """A maximum over windows cut off at the edge: after the ReLU that is the same as over zeros."""
    stem = StemLayer(1, 2, "7x7").double().eval()
    x = torch.randn(2, 1, 10, 8, dtype=torch.float64)
    y = stem.norm(stem.conv(x)).relu()
    assert y.shape == (2, 2, 5, 4)
    expected = nn.functional.pad(y, (0, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    assert torch.equal(stem(x), expected)


def test_places_of_units() -> None:
    stages = ResidualStages(units=(2, 1), widths=(4, 4, 6))
    assert list(stages.each()) == [Place(0, 0, 4, 4, 1), Place(0, 1, 4, 4, 1), Place(1, 0, 4, 6, 2)]
    wide = ResidualStages(units=(1, 2), widths=(4, 2, 3), bottleneck=True)
    assert [place[2:] for place in wide.each()] == [(4, 8, 1), (8, 12, 2), (12, 12, 1)]
    assert wide.last_width == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": ()}, "units: got [], expected at least 1 for each stage"),
        ({"units": (2, 0, 1)}, "units: got [2, 0, 1], expected at least 1 for each stage"),
        (
            {"widths": (4, 4)},
            "widths: got [4, 4], expected 4 positive numbers: one for the stem and one for each stage",
        ),
        ({"widths": (4, 8, 6, 8)}, "widths: got [4, 8, 6, 8], expected no width below the one before it"),
        ({"norm_momentum": 0.0}, "norm_momentum: got 0.0, expected above 0, at most 1"),
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        ResidualStages(**options)
