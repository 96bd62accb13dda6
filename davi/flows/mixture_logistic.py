r"""Coupling functions of Flow++: the distribution function of a mixture of logistics, taken back to the whole line.

.. math:: y = e^{\tanh s} \operatorname{logit}\Bigl(\sum_{k=1}^K \pi_k\,
          \sigma\bigl((x - \mu_k)\, e^{-l_k}\bigr)\Bigr) + t, \qquad l_k \ge -7

With c the distribution function and p its density, :math:`\log \mathrm{d}y / \mathrm{d}x = \tanh s + \log p - \log c -
\log(1 - c)`. The logarithms of c and 1 - c are found from those of :math:`\sigma(\pm z)`: nothing is rounded to 0 or 1
far out, where y is linear in x.

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from davi.flows.coupling import Elementwise, TanhAffine
from davi.flows.solving import solve_increasing

LEAST_LOG_SCALE = -7.0


class Mixtures(NamedTuple):
    """Mixtures of logistics, one for each variable: ``[B, K, C, ...]`` each."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def logit_cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logit of the distribution function at ``x``, ``[B, C, ...]``, and the logarithm of its slope."""
        z = (x[:, None] - self.means) * (-self.log_scales).exp()
        log_below = F.logsigmoid(z)
        log_above = log_below - z
        # Far out logarithms are huge: weights are added to what is left of them, and the rest cancels in the slope.
        most_below, most_above = log_below.amax(1, keepdim=True), log_above.amax(1, keepdim=True)
        below, above = log_below - most_below + self.log_weights, log_above - most_above
        log_c = torch.logsumexp(below, 1)
        log_rest = torch.logsumexp(above + self.log_weights, 1)
        log_p = torch.logsumexp(below + above - self.log_scales, 1)
        return (most_below - most_above)[:, 0] + (log_c - log_rest), log_p - log_c - log_rest

    def solve(self, value: Tensor) -> Tensor:
        """The x whose :meth:`logit_cdf` is ``value``, ``[B, C, ...]``, without gradients.

        Each logistic alone would have it at a known x: the solution of their mixture lies between those.
        """
        alone = self.means + self.log_scales.exp() * value[:, None]
        start = (self.log_weights.exp() * alone).sum(1)
        low, high = alone.amin(1), alone.amax(1)

        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            y, log_slope = self.logit_cdf(x)
            return y, log_slope.exp()

        least = self.log_scales.amin(1).exp()
        return solve_increasing(function, value, start.clamp(low, high), low, high, least=least)


@final
class MixtureLogistic(Elementwise):
    """The function of the module docstring.

    The parameters of one variable are s, t, K logits of the weights, K means, K log-scales.

    Arguments:
        components: K.

    Raises:
        ValueError: if there is none.
    """

    def __init__(self, components: int) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"components: got {components}, expected at least 1")
        self.numbers = 2 + 3 * components
        self.affine = TanhAffine()

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        value, log_slope = _mixtures(raw).logit_cdf(x)
        y, log_scale = self.affine(value, raw)
        return y, log_slope + log_scale

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        mixtures = _mixtures(raw)
        value, log_scale = self.affine.inverse(y, raw)
        with torch.no_grad():
            x = mixtures.solve(value)
        if torch.is_grad_enabled():
            # Nothing is added but derivatives: those of Newton's step are those of the solution.
            here, log_slope = mixtures.logit_cdf(x)
            slope = log_slope.detach().exp().clamp_min(torch.finfo(x.dtype).tiny)
            x = x - ((here - here.detach()) - (value - value.detach())) / slope
        return x, log_scale - mixtures.logit_cdf(x)[1]


def _mixtures(raw: Tensor) -> Mixtures:
    """From the outputs of a network, ``[B, 2 + 3 K, C, ...]``."""
    logits, means, log_scales = raw[:, 2:].chunk(3, 1)
    return Mixtures(F.log_softmax(logits, 1), means, log_scales.clamp_min(LEAST_LOG_SCALE))
