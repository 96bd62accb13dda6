r"""Whether a classifier is right as often as it is sure.

Its *confidence* in an image is the probability of the class that it finds most probable, :math:`c_n = \max_y p(y \mid
x_n)`. It is calibrated if of all images in which it has the confidence c it puts the share c into the right class. With
the images in M bins by their confidence, and in bin m the mean confidence :math:`\bar c_m` and the share
:math:`a_m` of right answers, the *expected calibration error* is

.. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{n_m}{N} \, | a_m - \bar c_m |

over bins of equal width, :math:`(\frac{m-1}M, \frac mM]`; or over bins of equally many images, among which a classifier
that is nearly always sure does not end up in one alone. A *reliability diagram* shows :math:`a_m` over the bins.

Both errors are biased upward: the share of right answers in a bin scatters, and its distance from the confidence is
positive whichever way. If every image were right with exactly the probability :math:`c_n`, the error would still be
about

.. math:: \sum_m \frac{n_m}{N} \sqrt{\frac{2}{\pi}} \sqrt{\frac{1}{n_m^2} \sum_{n \in m} c_n (1 - c_n)}

the mean of the absolute value of a Normal variable for each bin.

References:
    On Calibration of Modern Neural Networks, C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, ICML 2017,
    https://arxiv.org/abs/1706.04599 (15 bins of equal width)

    Posterior Calibration and Exploratory Analysis for Natural Language Processing Models, K. Nguyen, B. O'Connor, EMNLP
    2015, https://arxiv.org/abs/1508.05154 (bins of equally many)

    Mitigating Bias in Calibration Error Estimation, R. Roelofs, N. Cain, J. Shlens, M. C. Mozer, AISTATS 2022,
    https://arxiv.org/abs/2012.08668
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from davi.evaluation.record import Array

BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """What a classifier's confidence is worth, bin by bin; the least confident first.

    Arguments:
        edges: of the bins, ``[M + 1]``, from 0 to 1.
        counts: images in each bin, ``[M]``.
        confidence: mean in each bin, ``[M]``; NaN where there is no image.
        accuracy: share of images in each bin that are put into the right class, ``[M]``; NaN likewise.
        chance: the error that would be expected of a calibrated classifier (module docstring).
    """

    edges: Array
    counts: NDArray[np.int64]
    confidence: Array
    accuracy: Array
    chance: float

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1."""
        some = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[some]
        return float((self.counts[some] * gaps).sum() / self.counts.sum())


def equal_width(confidence: Array, right: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Bins of equal width.

    Arguments:
        confidence: of each image, ``[N]``, 0 to 1.
        right: whether its most probable class is its own, ``[N]``.
        bins: M.

    Raises:
        ValueError: if there is no image, no bin, or the numbers do not fit each other.

    Example:
        >>> sure = np.array([0.95, 0.95, 0.95, 0.95])
        >>> round(equal_width(sure, np.array([True, True, True, False])).error, 2)
        0.2
    """
    _check(confidence, right, bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return _reliability(confidence, right, place, edges)


def equal_mass(confidence: Array, right: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Bins of equally many images, as far as their number allows. Images of the same confidence may be in two bins.

    Arguments:
        confidence, right, bins: as for :func:`equal_width`; of fewer images each has a bin of its own.

    Raises:
        ValueError: likewise.
    """
    _check(confidence, right, bins)
    bins = min(bins, len(confidence))
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, bins)
    place = np.empty(len(confidence), dtype=np.int64)
    for number, part in enumerate(parts):
        place[part] = number
    inner = [(confidence[low[-1]] + confidence[high[0]]) / 2 for low, high in itertools.pairwise(parts)]
    return _reliability(confidence, right, place, np.array([0.0, *inner, 1.0]))


def _reliability(confidence: Array, right: NDArray[np.bool_], place: NDArray[np.int64], edges: Array) -> Reliability:
    bins = len(edges) - 1

    def sums(values: Array) -> Array:
        return np.asarray(np.bincount(place, weights=values, minlength=bins), dtype=np.float64)

    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # empty bins
        means, shares = sums(confidence) / counts, sums(right.astype(np.float64)) / counts
    variances = np.clip(sums(confidence * (1.0 - confidence)), 0.0, None)
    chance = math.sqrt(2.0 / math.pi) * float(np.sqrt(variances).sum()) / len(confidence)
    return Reliability(edges, counts, means, shares, chance)


def _check(confidence: Array, right: NDArray[np.bool_], bins: int) -> None:
    if len(confidence) != len(right) or not len(confidence):
        raise ValueError(f"confidence: got {len(confidence)} numbers for {len(right)} images, expected one for each")
    if bins < 1:
        raise ValueError(f"bins: got {bins}, expected at least 1")
