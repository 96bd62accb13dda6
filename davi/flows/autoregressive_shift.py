r"""Volume-preserving autoregressive flows: every variable is shifted by a function of those before it.

.. math:: z'_i = z_i - \mu_i(z_{<i}), \qquad \log \left| \det \partial z' / \partial z \right| = 0

The Jacobian is triangular with ones on its diagonal. The order is that of the pixels, row by row, and within a pixel
that of the channels; in a mirrored shift the pixels come in the opposite order. Masked convolutions see to it.

References:
    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898

    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.nvae_cells import KernelConv2d

_EXPANSION = 6


def causal_mask(
    in_channels: int, out_channels: int, kernel_size: int, *, strict: bool, mirrored: bool = False, groups: int = 1
) -> Tensor:
    """Which weights of a convolution look back only, ``[out, in / groups, k, k]``, true or false.

    Pixels before the centre are seen whole. At the centre the channels of input and output are cut into as many equal
    parts as the fewer of the two are, and a part sees the parts before it and, unless ``strict``, itself.

    Arguments:
        in_channels, out_channels: one a multiple of the other.
        kernel_size: k, odd.
        strict: whether a part does not see itself.
        mirrored: pixels come in the opposite order; the order of the channels stays.
        groups: 1, or ``in_channels`` for a depth-wise convolution, in which every channel sees itself.
    """
    centre = kernel_size // 2
    mask = np.zeros((out_channels, in_channels // groups, kernel_size, kernel_size), dtype=bool)
    mask[:, :, :centre] = True
    mask[:, :, centre, :centre] = True
    parts = min(in_channels, out_channels)
    target = np.arange(out_channels)[:, None] // (out_channels // parts)
    source = np.arange(in_channels) // (in_channels // parts)
    seen = source < target if strict else source <= target
    mask[:, :, centre, centre] = True if groups > 1 else seen
    return torch.tensor(mask[:, :, ::-1, ::-1].copy() if mirrored else mask)


@final
class AutoregressiveShift(nn.Module):
    """One shift (module docstring). Its mean is a small network of masked convolutions.

    Arguments:
        channels: of the latents.
        mirrored: take the pixels in the opposite order.
    """

    def __init__(self, channels: int, mirrored: bool) -> None:
        super().__init__()
        wide = _EXPANSION * channels
        first = causal_mask(channels, wide, 3, strict=True, mirrored=mirrored)
        second = causal_mask(wide, wide, 5, strict=False, mirrored=mirrored, groups=wide)
        last = causal_mask(wide, channels, 1, strict=False)
        self.spread = KernelConv2d(channels, wide, 3, bias=False, mask=first)
        self.look = KernelConv2d(wide, wide, 5, bias=False, groups=wide, mask=second)
        self.mean = KernelConv2d(wide, channels, 1, mask=last)
        self.mean.reset_length(0.1)

    def forward(self, z: Tensor) -> Tensor:
        """z', ``[B, C, H, W]`` like ``z``."""
        shift: Tensor = self.mean(F.elu(F.elu(self.look(F.elu(self.spread(z))))))
        return z - shift


@final
class ShiftPairs(nn.Module):
    """Pairs of shifts, forwards and mirrored: the transform of a :class:`~davi.distributions.TransformedNormal`.

    Arguments:
        channels: of the latents.
        pairs: how many.
    """

    def __init__(self, channels: int, pairs: int) -> None:
        super().__init__()
        self.shifts = nn.Sequential(*(AutoregressiveShift(channels, mirrored=bool(i % 2)) for i in range(2 * pairs)))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The shifted latents and their log-determinant, zero for each variable; ``[B, C, H, W]`` both."""
        return self.shifts(z), torch.zeros_like(z)
