r"""Masked convolutions: an output depends only on variables before it in some order.

The order is the raster order of the pixels, row by row, and inside a pixel that of whole numbers, the *degrees*, which
every channel has. An output with degree d sees all channels of the pixels before its own. Of its own pixel it sees the
channels whose degree is

- below d, with a mask of type A, which a network has in its first layer: its inputs are the variables;
- at most d, with a mask of type B, which all later layers have: their inputs have seen no more than smaller degrees.

So hidden channels and outputs of degree d are functions of the pixels before theirs and of the variables of smaller
degrees in their own. :func:`degrees` cuts channels into equal parts, in order: one part per variable (C of them) for a
density that takes the channels of a pixel one after the other, a single part for one that takes whole pixels. On maps
of one pixel, with 1x1 kernels, this is the masked autoencoder of dense layers.

References:
    MADE: Masked Autoencoder for Distribution Estimation, M. Germain, K. Gregor, I. Murray, H. Larochelle, ICML 2015,
    https://arxiv.org/abs/1502.03509

    Pixel Recurrent Neural Networks, A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, ICML 2016,
    https://arxiv.org/abs/1601.06759
"""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskType = Literal["A", "B"]
"""Whether an output sees its own degree in its own pixel: A, no; B, yes."""


def degrees(channels: int, parts: int) -> Tensor:
    """Degrees of ``channels`` channels: 0 .. ``parts`` - 1 in order and in equal shares, as nearly as possible.

    Example:
        >>> degrees(6, 3), degrees(3, 3)
        (tensor([0, 0, 1, 1, 2, 2]), tensor([0, 1, 2]))
    """
    numbers = torch.arange(channels)
    return numbers if numbers.is_meta else numbers * parts // channels


def causal_mask(
    inputs: Tensor,
    outputs: Tensor,
    kernel_size: int | tuple[int, int] = 1,
    *,
    mask_type: MaskType,
    reverse: bool = False,
    groups: int = 1,
) -> Tensor:
    """Which weights of a convolution may be other than zero (module docstring), ``[out, in / groups, k, k]`` booleans.

    For dense layers ``[:, :, 0, 0]`` of the mask of a 1x1 kernel is that of the matrix.

    Arguments:
        inputs: degrees of the input channels, ``[in]`` whole numbers.
        outputs: degrees of the output channels, ``[out]``.
        kernel_size: k, or numbers of rows and columns; odd.
        mask_type: A for the first layer of a network, B for the others.
        reverse: the last pixel comes first. Channels come in the order of their degrees all the same.
        groups: of channels that do not see one another, as in :func:`torch.nn.functional.conv2d`.

    Raises:
        ValueError: if a kernel size is even or not positive, or the groups do not divide the channels.

    Example:
        >>> two = degrees(2, 2)
        >>> causal_mask(two, two, 3, mask_type="A")[1, 0].int().tolist()  # second output, first input
        [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    """
    rows, columns = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if min(rows, columns) < 1 or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
    if groups < 1 or len(inputs) % groups or len(outputs) % groups:
        raise ValueError(f"groups: got {groups}, expected a divisor of {len(inputs)} and {len(outputs)} channels")
    own = outputs[:, None]
    source = inputs.view(groups, -1).repeat_interleave(len(outputs) // groups, 0)  # [out, in / groups]
    if source.is_meta:  # shapes alone, which models are tried on first
        return torch.empty(*source.shape, rows, columns, dtype=torch.bool, device=source.device)
    center = rows * columns // 2  # of the taps, counted row by row
    mask = (torch.arange(rows * columns) < center).expand(*source.shape, -1).clone()
    mask[:, :, center] = own > source if mask_type == "A" else own >= source
    mask = mask.view(*source.shape, rows, columns)
    return mask.flip(2, 3) if reverse else mask


@final
class MaskedConv2d(nn.Module):
    """A convolution with 'same' padding and masked kernels (module docstring).

    Arguments:
        inputs, outputs: degrees of the input and output channels, ``[in]`` and ``[out]`` whole numbers.
        kernel_size: odd.
        mask_type, reverse: of :func:`~davi.layers.masked.causal_mask`.

    Raises:
        ValueError: if the kernel size is even or not positive.
    """

    mask: Tensor

    def __init__(
        self,
        inputs: Tensor,
        outputs: Tensor,
        kernel_size: int = 3,
        *,
        mask_type: MaskType,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        mask = causal_mask(inputs, outputs, kernel_size, mask_type=mask_type, reverse=reverse)
        self.conv = nn.Conv2d(len(inputs), len(outputs), kernel_size)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight * self.mask.to(self.conv.weight.dtype)
        return F.conv2d(x, weight, self.conv.bias, padding=self.mask.shape[-1] // 2)
