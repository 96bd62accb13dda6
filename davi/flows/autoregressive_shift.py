r"""Volume-preserving autoregressive flows: every variable is shifted by a function of those before it.

.. math:: z'_i = z_i - \mu_i(z_{<i}), \qquad \log \left| \det \partial z' / \partial z \right| = 0

The Jacobian is triangular with ones on its diagonal. The order is that of the pixels, row by row, and within a pixel
that of the channels; in a mirrored shift the pixels come in the opposite order. Masked convolutions see to it
(:mod:`davi.layers.masked`). The inverse, :math:`z_i = z'_i + \mu_i(z_{<i})`, finds the variables one after the other.

References:
    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898

    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from davi.flows.base import Bijection, Sequential, solve_in_order
from davi.layers.masked import causal_mask, degrees
from davi.layers.nvae_cells import KernelConv2d

_EXPANSION = 6


@final
class AutoregressiveShift(Bijection):
    """One shift (module docstring). Its mean is a small network of masked convolutions.

    Arguments:
        channels: of the latents.
        mirrored: take the pixels in the opposite order.
    """

    def __init__(self, channels: int, mirrored: bool) -> None:
        super().__init__()
        wide = _EXPANSION * channels
        variables, hidden = degrees(channels, channels), degrees(wide, channels)
        first = causal_mask(variables, hidden, 3, mask_type="A", reverse=mirrored)
        second = causal_mask(hidden, hidden, 5, mask_type="B", reverse=mirrored, groups=wide)
        last = causal_mask(hidden, variables, mask_type="B")
        self.spread = KernelConv2d(channels, wide, 3, bias=False, mask=first)
        self.look = KernelConv2d(wide, wide, 5, bias=False, groups=wide, mask=second)
        self.mean = KernelConv2d(wide, channels, 1, mask=last)
        self.mean.reset_length(0.1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z', ``[B, C, H, W]`` like z, and zeros."""
        return x - self._shift(x), torch.zeros_like(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return solve_in_order(lambda x: y + self._shift(x), y), torch.zeros_like(y)

    def _shift(self, z: Tensor) -> Tensor:
        """Mu, ``[B, C, H, W]``."""
        shift: Tensor = self.mean(F.elu(F.elu(self.look(F.elu(self.spread(z))))))
        return shift


@final
class ShiftPairs(Bijection):
    """Pairs of shifts, forwards and mirrored: the transform of a :class:`~davi.distributions.TransformedNormal`.

    Arguments:
        channels: of the latents.
        pairs: how many.
    """

    def __init__(self, channels: int, pairs: int) -> None:
        super().__init__()
        self.shifts = Sequential(*(AutoregressiveShift(channels, mirrored=bool(i % 2)) for i in range(2 * pairs)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.shifts(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.shifts.inverse(y, context)
