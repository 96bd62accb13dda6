r"""The standard error of a mean over images, of which several may be cut from one file.

Patches of one photograph are alike: a hundred of them say less about other photographs than a hundred photographs do.
With the residuals :math:`e_n = v_n - \bar v` of N values that come from G files, the standard error that allows for
any dependence within a file is

.. math:: \mathrm{se}(\bar v) = \frac 1N \sqrt{\frac{G}{G - 1} \sum_{g=1}^{G} \Bigl(\sum_{n \in g} e_n\Bigr)^2}

and Student's t has G - 1 degrees of freedom. Where every image has a file of its own, this is the usual
:math:`s / \sqrt N`. It needs many files: with fewer than :data:`FEWEST` no interval is given and no difference is
called significant.

References:
    K.-Y. Liang, S. L. Zeger, "Longitudinal Data Analysis Using Generalized Linear Models", Biometrika 1986,
    https://doi.org/10.1093/biomet/73.1.13

    A. C. Cameron, D. L. Miller, "A Practitioner's Guide to Cluster-Robust Inference", Journal of Human Resources 2015,
    https://doi.org/10.3368/jhr.50.2.317 (the factor G / (G - 1), the degrees of freedom, and few clusters)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Groups = NDArray[np.int64]
"""``[N]``: images with the same number are of the same file (:class:`davi.data.Images`)."""

FEWEST = 5
"""Files; with fewer, an error says too little about other files."""

FEW = f"from fewer than {FEWEST} files no interval and no significance follows"
"""What is said there."""


def witnesses(values: Values, groups: Groups | None = None) -> int:
    """How many independent sources the values have: G, or N where every image has a file of its own."""
    return len(values) if groups is None else len(np.unique(groups))


def standard_error(values: Values, groups: Groups | None = None) -> float | None:
    """Standard error of the mean (module docstring); None for a single image or a single file.

    Arguments:
        values: of each image, ``[N]``.
        groups: of each image, ``[N]``; None where each has a file of its own.

    Raises:
        ValueError: if there are not as many groups as values.

    Example:
        >>> twice = np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0])  # every value was written down twice
        >>> round(standard_error(twice, np.array([0, 0, 1, 1, 2, 2])), 6), round(standard_error(twice[::2]), 6)
        (0.881917, 0.881917)
    """
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"groups: got {len(groups)}, expected one for each of {len(values)} values")
    count = witnesses(values, groups)
    if count < 2:
        return None
    if groups is None:
        return float(values.std(ddof=1) / np.sqrt(count))
    _, place = np.unique(groups, return_inverse=True)
    sums = np.bincount(place, weights=values - values.mean())  # [G]
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))


def tells(groups: Groups | None) -> bool:
    """Whether there are enough files for an interval, and for calling a difference significant."""
    return groups is None or len(np.unique(groups)) >= FEWEST


def in_words(images: int, files: int | None) -> str | None:
    """``768 patches of 2 files``; None where every image has a file of its own."""
    return None if files is None else f"{images} patches of {files} file{'s' * (files != 1)}"
