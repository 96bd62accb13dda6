r"""Bijections of the two halves of an image, side by side as channels, and the steps of Flow++ made of them.

A split takes an image ``[B, C, H, W]`` to two halves of equal shape. Side by side they are ``[B, 2 C, h, w]``, on which
a step is

- :class:`PositionNorm`, :math:`y = g x + b` with a gain and an offset for each channel at each position,
- :class:`Pointwise`, at each position a matrix times the vector of channels of each half,
- a coupling that changes the second half by what the first one says,
- :class:`Flip`: the changed half becomes the first.

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.flows.base import Bijection, Sequential
from davi.flows.coupling import Coupling, Elementwise, TanhAffine
from davi.flows.mixture_logistic import MixtureLogistic
from davi.flows.splits import Channels, Checkerboard, Columns, Split
from davi.layers.coupling_network import CouplingNetwork, CouplingNetworkConfig
from davi.layers.data_conv import normalizing
from davi.layers.from_data import SetFromData

SplitName = Literal["checkerboard", "columns", "channels"]
LEAST_GAIN = 1e-10


def make_split(name: SplitName, channels: int) -> Split:
    """A split of images with so many channels by its name."""
    if name == "channels":
        return Channels(channels)
    return Checkerboard() if name == "checkerboard" else Columns()


def half_shape(name: SplitName, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, h, w) of each half of images of (C, H, W).

    Raises:
        ValueError: if the two halves of such images would not be of one shape.
    """
    channels, height, width = shape
    count, what = (channels, "channels") if name == "channels" else (width, "columns")
    if count % 2:
        raise ValueError(f"shape: got {count} {what} to split in halves, expected an even number")
    return (channels // 2, height, width) if name == "channels" else (channels, height, width // 2)


def side_by_side(split: Split, x: Tensor) -> Tensor:
    """The two halves of ``[B, C, H, W]``, ``[B, 2 C, h, w]``."""
    return torch.cat(split.split(x), 1)


@final
class OnHalves(Bijection):
    """A bijection of ``[B, 2 C, h, w]`` that is given the halves of an image, side by side.

    Arguments:
        split: into two halves of one shape.
        bijection: it keeps the shape.
    """

    def __init__(self, split: Split, bijection: Bijection) -> None:
        super().__init__()
        self.split = split
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.bijection(side_by_side(self.split, x), context)
        return self._merged(y), self._merged(log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.bijection.inverse(side_by_side(self.split, y), context)
        return self._merged(x), self._merged(log_det)

    def _merged(self, x: Tensor) -> Tensor:
        return self.split.merge(*x.chunk(2, 1))


@final
class Flip(Bijection):
    """The two halves of the channels change places."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.cat(x.chunk(2, 1)[::-1], 1), torch.zeros_like(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(y)


@final
class PositionNorm(Bijection, SetFromData):
    r""":math:`y = g x + b` with a gain and an offset for each variable.

    Over the first images each y gets mean 0 and variance 1. Gains are at least 1e-10.

    Arguments:
        shape: of x for one image.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))
        self.offset = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gain = self.gain.clamp_min(LEAST_GAIN)
        return x * gain + self.offset, gain.log().expand_as(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        gain = self.gain.clamp_min(LEAST_GAIN)
        return (y - self.offset) / gain, -gain.log().expand_as(y)

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        variance, mean = torch.var_mean(x, 0, correction=0)
        gain, offset = normalizing(mean, variance)
        self.gain.copy_(gain)
        self.offset.copy_(offset)


@final
class Pointwise(Bijection):
    """A matrix times the vector of channels at each position, one for each half of the channels.

    The matrices are near the identity at first; their inverses are computed in float64.

    Arguments:
        channels: of each half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrices = nn.Parameter(torch.eye(channels) + 1e-3 * torch.randn(2, channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._times(self.matrices, x), self._log_det(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._times(torch.linalg.inv(self.matrices.double()).to(y.dtype), y), -self._log_det(y)

    def _times(self, matrices: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, matrices.flatten(0, 1)[:, :, None, None], groups=2)

    def _log_det(self, x: Tensor) -> Tensor:
        """Of each half in equal shares over its channels."""
        shares = torch.linalg.slogdet(self.matrices).logabsdet / self.matrices.shape[1]  # [2]
        return shares.repeat_interleave(self.matrices.shape[1])[:, None, None].expand_as(x)


def coupling_function(components: int) -> Elementwise:
    """A mixture of so many logistics, scaled and shifted; 0: scale and shift alone."""
    return MixtureLogistic(components) if components else TanhAffine()


def coupling_steps(
    shape: tuple[int, int, int],
    steps: int,
    network: CouplingNetworkConfig,
    *,
    split: SplitName = "checkerboard",
    components: int = 4,
    context: int = 0,
    pointwise: bool = True,
) -> OnHalves:
    """Steps of Flow++ (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        steps: how many.
        network: options of the networks of the couplings.
        split: into the two halves: ``checkerboard`` and ``columns`` need an even width, ``channels`` an even number of
            channels.
        components: logistics of each mixture; 0: the couplings only scale and shift.
        context: channels of the context, ``[B, context, *half_shape(split, shape)[1:]]``; 0: none.
        pointwise: whether a step has matrices.

    Returns:
        A bijection of images, ``[B, C, H, W]``.

    Raises:
        ValueError: if the two halves of such images would not be of one shape.
    """
    half = half_shape(split, shape)
    parts = _parts(half, steps, network, components, context, pointwise)
    return OnHalves(make_split(split, shape[0]), Sequential(*parts))


def _parts(
    half: tuple[int, int, int],
    steps: int,
    network: CouplingNetworkConfig,
    components: int,
    context: int,
    pointwise: bool,
) -> Iterator[Bijection]:
    channels = half[0]
    for _ in range(steps):
        yield PositionNorm((2 * channels, *half[1:]))
        if pointwise:
            yield Pointwise(channels)
        function = coupling_function(components)
        conditioner = CouplingNetwork(half, function.numbers * channels, network, context)
        yield Coupling(Channels(2 * channels), function, conditioner)
        yield Flip()
