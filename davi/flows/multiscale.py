r"""A flow of several scales, which lets go of half of its channels after each.

.. math:: (h_{i+1}, z_i) = f_i(h_i), \qquad h_0 = x, \qquad z = (z_0, z_1, \dots, z_n), \quad z_n = f_n(h_n)

What has been let go of is done: it has a prior, and no further layer. A prior of :math:`z_i` that depends on
:math:`h_{i+1}` is the last coupling of :math:`f_i`.

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast, final

import torch
from torch import Tensor

from davi.distributions.base import spread, sum_per_image
from davi.errors import OptionError
from davi.flows.base import Bijection


@final
class MultiScale(Bijection):
    """Bijections f_i, after each of which but the last the second half of the channels is let go of (module docstring).

    z is flat, ``[B, D]``: the latents of the first scale first, each in the order of its channels, rows and columns.
    The log-determinant of a scale is spread equally over the image.

    Arguments:
        scales: f_i; an image of ``[B, C, ...]`` must leave with an even number of channels.
        shapes: of z_i for one image, each.
    """

    def __init__(self, scales: Sequence[Bijection], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        for i, scale in enumerate(scales):
            self.add_module(str(i), scale)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(cast("list[Bijection]", list(self._modules.values())))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total, latents, h = x.new_zeros(len(x)), [], x
        for i, scale in enumerate(self):
            h, log_det = scale(h, context)
            total = total + sum_per_image(log_det)
            if i < len(self.shapes) - 1:
                h, z = h.chunk(2, 1)
                latents.append(z)
        z = torch.cat([z.flatten(1) for z in (*latents, h)], 1)
        return z, spread(total, x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        *latents, h = parts(y, self.shapes)
        total = y.new_zeros(len(y))
        for i, scale in reversed(list(enumerate(self))):
            if i < len(self.shapes) - 1:
                h = torch.cat((h, latents[i]), 1)
            h, log_det = scale.inverse(h, context)
            total = total + sum_per_image(log_det)
        return h, spread(total, y)


def parts(z: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The latents of each scale, ``[B, *shape]``, from a tensor that has them one after the other."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.reshape(-1, *shape) for part, shape in zip(z.flatten(1).split(sizes, 1), shapes, strict=True)]


_MOST = 4
"""Times the size of an image that a side may be padded to."""


def padding_of(height: int, width: int, scales: int, halvings: int) -> tuple[int, int]:
    """Rows and columns by which an image is padded so that it can be halved so often.

    Arguments:
        height, width: of the image.
        scales: the option of that name, for messages.
        halvings: how often height and width are halved.

    Raises:
        OptionError: if almost all of the image would be padding.
    """
    unit, largest = 2**halvings, _MOST * max(height, width)
    if unit > largest:
        most = scales - halvings + (largest.bit_length() - 1)
        raise OptionError("scales", f"got {scales}, expected at most {most} for images of {height}x{width}")
    return -height % unit, -width % unit
