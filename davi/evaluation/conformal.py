r"""How odd a value is among those of held-out images: ranks and conformal p-values.

With the values :math:`s_1, \dots, s_n` of n held-out images and s of another one,

.. math:: p_{\mathrm{high}} = \frac{1 + \#\{i : s_i \ge s\}}{n + 1}, \qquad
          p_{\mathrm{low}} = \frac{1 + \#\{i : s_i \le s\}}{n + 1}

If the other image comes from the same distribution as the held-out ones (if the n + 1 are exchangeable), then
:math:`P(p \le \alpha) \le \alpha` for every :math:`\alpha`, whatever the distribution of the values is. Where both ends
are odd, :math:`p = \min(1, 2 \min(p_{\mathrm{low}}, p_{\mathrm{high}}))`. The least that n images can say is
:math:`1 / (n + 1)`.

A file that is itself among the held-out ones is compared with the others alone; copies of it among these count.

References:
    V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", Springer 2005 (chapter 2)

    S. Bates, E. Candès, L. Lei, Y. Romano, M. Sesia, "Testing for Outliers with Conformal p-values", Annals of
    Statistics 2023, https://arxiv.org/abs/2104.08279
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from davi.evaluation.record import Array


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where values stand among those of held-out images.

    Arguments:
        ranks: ``[N]``: 1 + the number of held-out values that are at least as odd; 1: odder than all of them.
        p: ``[N]``: the p-value; NaN where there is no held-out image but the same one.
    """

    ranks: NDArray[np.int64]
    p: Array


def conformal(
    values: Array, held_out: Array, two_sided: bool = False, same: Sequence[Sequence[int]] | None = None
) -> Ranks:
    """Ranks and p-values (module docstring).

    Arguments:
        values: ``[N]``, finite.
        held_out: ``[n]``, finite.
        two_sided: low values are odd as well; else only high ones are.
        same: of each value the held-out ones that it is itself, which are left out; None: there are none.

    Raises:
        ValueError: if a number is not finite, or ``same`` has another length than ``values``.

    Example:
        >>> found = conformal(np.array([2.5, 9.0]), np.array([1.0, 2.0, 3.0, 4.0]))
        >>> found.ranks.tolist(), found.p.tolist()
        ([3, 1], [0.6, 0.2])
    """
    if not (np.isfinite(values).all() and np.isfinite(held_out).all()):
        raise ValueError("values: got some that are not finite, expected finite numbers alone")
    if same is not None and len(same) != len(values):
        raise ValueError(f"same: got {len(same)}, expected one entry for each of {len(values)} values")
    ordered = np.sort(held_out)
    high = len(ordered) - np.searchsorted(ordered, values, "left")
    low = np.searchsorted(ordered, values, "right")
    others = np.full(len(values), len(ordered))
    for i, copies in enumerate(same or ()):
        own = held_out[list(copies)]
        high[i] -= (own >= values[i]).sum()
        low[i] -= (own <= values[i]).sum()
        others[i] -= len(own)
    ranks = 1 + (np.minimum(low, high) if two_sided else high)
    p = np.minimum(1.0, (2.0 if two_sided else 1.0) * ranks / (others + 1))
    return Ranks(ranks.astype(np.int64), np.where(others > 0, p, np.nan))
