"""Calibration: errors worked out in plain loops, and how large they are by chance."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from davi.evaluation.calibration import BINS, Reliability, equal_mass, equal_width

Array = NDArray[np.float64]


def by_hand(confidence: Array, right: NDArray[np.bool_], bins: list[list[int]]) -> float:
    """The calibration error over lists of images."""
    total = 0.0
    for members in bins:
        if members:
            share = sum(bool(right[i]) for i in members) / len(members)
            total += abs(share - sum(float(confidence[i]) for i in members) / len(members)) * len(members)
    return total / len(confidence)


def drawn(n: int) -> tuple[Array, NDArray[np.bool_]]:
    """Confidences from a tenth up, and answers that are right more often than these say."""
    random = np.random.default_rng(3)
    confidence = 0.1 + 0.9 * random.random(n)
    return confidence, random.random(n) < np.sqrt(confidence)


def test_bins_of_equal_width() -> None:
    confidence, right = drawn(200)
    confidence[:3] = [1 / BINS, 2 / BINS, 1.0]  # a bin holds its upper edge
    bins: list[list[int]] = [[] for _ in range(BINS)]
    for i, own in enumerate(confidence):
        bins[next(m for m in range(BINS) if own <= (m + 1) / BINS)].append(i)
    found = equal_width(confidence, right)
    assert found.counts.tolist() == [len(members) for members in bins]
    assert found.error == pytest.approx(by_hand(confidence, right, bins), rel=1e-12)
    assert found.edges == pytest.approx(np.arange(BINS + 1) / BINS)


def test_bins_of_equally_many_images() -> None:
    confidence, right = drawn(64)
    order = sorted(range(64), key=lambda i: confidence[i])
    bins = [order[i : i + n] for i, n in zip(np.cumsum([0, *[5] * 4, *[4] * 10]), [*[5] * 4, *[4] * 11], strict=True)]
    found = equal_mass(confidence, right)
    assert found.counts.tolist() == [5] * 4 + [4] * 11
    assert found.error == pytest.approx(by_hand(confidence, right, bins), rel=1e-12)
    assert (np.diff(found.edges) > 0).all()
    few = equal_mass(confidence[:3], right[:3])
    assert few.counts.tolist() == [1, 1, 1]


def test_a_bin_holds_its_upper_edge() -> None:
    """As the edges are given: 0.07 * 100 is more than 7 in floating point."""
    edges = np.linspace(0.0, 1.0, 101)
    found = equal_width(edges[1:], np.ones(100, dtype=np.bool_), 100)
    assert np.array_equal(found.edges, edges)
    assert np.array_equal(found.confidence, edges[1:])


def test_empty_bins_have_no_numbers() -> None:
    found = equal_width(np.array([0.99, 0.98]), np.array([True, False]))
    assert found.counts.tolist() == [0] * 14 + [2]
    assert np.isnan(found.confidence[:-1]).all()
    assert found.error == pytest.approx(0.985 - 0.5)


@pytest.mark.parametrize("of", [equal_width, equal_mass])
def test_what_a_calibrated_classifier_shows_by_chance(of: object) -> None:
    """The expected error of answers drawn with the very probabilities is what is announced."""
    assert callable(of)
    random = np.random.default_rng(1)
    confidence = 0.1 + 0.9 * random.random(400)
    found: list[Reliability] = [of(confidence, random.random(400) < confidence) for _ in range(300)]
    errors = [each.error for each in found]
    spread = float(np.std(errors)) / math.sqrt(len(errors))
    # 5 %: the absolute value of a binomial deviation is not quite that of a Normal one
    assert found[0].chance == pytest.approx(float(np.mean(errors)), rel=0.05, abs=4 * spread)
    assert found[0].chance > 0.02


def test_one_that_is_always_sure_is_off_by_its_error_rate() -> None:
    right = np.arange(50) % 5 > 0
    for of in (equal_width, equal_mass):
        assert of(np.ones(50), right, bins=1).error == pytest.approx(0.2)
        assert of(np.ones(50), right).chance == 0.0


@pytest.mark.parametrize(
    ("n", "m", "bins", "words"),
    [
        (2, 3, 15, "confidence: got 2 numbers for 3 images, expected one for each"),
        (0, 0, 15, "confidence: got 0 numbers for 0 images, expected one for each"),
        (2, 2, 0, "bins: got 0, expected at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(n: int, m: int, bins: int, words: str) -> None:
    for of in (equal_width, equal_mass):
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            of(np.ones(n), np.ones(m, dtype=bool), bins)
