"""Standard errors of patches, against the formula written out and against what is drawn again and again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from davi.evaluation.clusters import FEWEST, in_words, standard_error, tells


def test_by_hand() -> None:
    """Values 0, 2 | 4, 6, 8: mean 4, sums of residuals -6 and 6; sqrt(2 / 1 * (36 + 36)) / 5 = 12 / 5."""
    values, groups = np.array([0.0, 2.0, 4.0, 6.0, 8.0]), np.array([5, 5, 2, 2, 2])
    assert standard_error(values, groups) == pytest.approx(12 / 5, rel=1e-14)


def test_a_file_for_each_image_is_the_usual_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    usual = values.std(ddof=1) / math.sqrt(50)
    assert standard_error(values) == usual
    assert standard_error(values, np.random.default_rng(1).permutation(50)) == pytest.approx(usual, rel=1e-12)


def test_repeated_values_are_no_more_witnesses() -> None:
    values = np.random.default_rng(0).normal(size=20)
    again = standard_error(values.repeat(100), np.arange(20).repeat(100))
    assert again == pytest.approx(standard_error(values), rel=1e-12)
    assert standard_error(values.repeat(100)) == pytest.approx(again / math.sqrt(2000 / 20 * 1999 / 1900), rel=1e-3)


def test_it_is_how_much_the_mean_varies() -> None:
    """Files of 30 patches, each with an offset of its own of deviation 1, patches with noise of deviation 1.

    The mean over 12 files has the variance (1 + 1 / 30) / 12. Over 400 draws the mean of the estimated variances is
    known to sqrt(2 / 11 / 400) of itself; an error that takes the patches for witnesses is 16 times too small.
    """
    source, groups = np.random.default_rng(0), np.arange(12).repeat(30)
    squares = []
    for _ in range(400):
        values = source.normal(size=12).repeat(30) + source.normal(size=360)
        error = standard_error(values, groups)
        assert error is not None
        squares.append(error**2)
    true = (1 + 1 / 30) / 12
    assert abs(np.mean(squares) / true - 1) < 4 * math.sqrt(2 / 11 / 400)


def test_files_of_different_sizes_count_by_their_patches() -> None:
    """Against the sandwich estimator of a regression on a constant, written with matrices."""
    source = np.random.default_rng(2)
    groups = np.sort(source.integers(6, size=40))
    values = source.normal(size=40) + groups
    design = np.ones((40, 1))
    bread = np.linalg.inv(design.T @ design)
    rest = values - values.mean()
    meat = sum(
        design[groups == g].T @ np.outer(rest[groups == g], rest[groups == g]) @ design[groups == g] for g in range(6)
    )
    expected = math.sqrt((6 / 5 * bread @ meat @ bread).item())
    assert standard_error(values, groups) == pytest.approx(expected, rel=1e-12)


def test_one_file_or_image_tells_nothing() -> None:
    assert standard_error(np.array([1.0])) is None
    assert standard_error(np.array([1.0, 2.0]), np.array([3, 3])) is None
    with pytest.raises(ValueError, match="groups: got 1, expected one for each of 2 values"):
        standard_error(np.array([1.0, 2.0]), np.array([3]))


def test_how_many_files_are_enough() -> None:
    assert FEWEST == 5
    assert [tells(np.arange(n).repeat(3)) for n in (1, 4, 5)] == [False, False, True]
    assert tells(None)


def test_in_words() -> None:
    words = [in_words(768, files) for files in (None, 1, 2)]
    assert words == [None, "768 patches of 1 file", "768 patches of 2 files"]
