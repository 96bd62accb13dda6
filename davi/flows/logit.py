r"""The step from pixels in [0, 1] to the whole line.

.. math:: l = \operatorname{logit}(\alpha + (1 - 2 \alpha)\, y), \qquad
          \log \frac{\mathrm{d} l}{\mathrm{d} y} = \log (1 - 2 \alpha) + \operatorname{softplus}(l)
          + \operatorname{softplus}(-l)

A small alpha keeps the ends of the range away from infinity. The text of the Real NVP paper has
:math:`\alpha + (1 - \alpha) y`; its authors' program has the symmetric form, and so has Flow++.

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from davi.flows.base import Bijection


@final
class Logit(Bijection):
    """The logistic function turned round, of each variable (module docstring).

    Arguments:
        alpha: from 0 to below a half.

    Raises:
        ValueError: if alpha is not.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: got {alpha}, expected a number from 0 to below 0.5")
        self.alpha = alpha
        self.slope = 1.0 - 2.0 * alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = torch.logit(self.alpha + self.slope * x)
        return y, self._log_slope(y)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (y.sigmoid() - self.alpha) / self.slope, -self._log_slope(y)

    def _log_slope(self, y: Tensor) -> Tensor:
        return math.log(self.slope) + F.softplus(y) + F.softplus(-y)
