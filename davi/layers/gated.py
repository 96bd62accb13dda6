r"""Convolutions whose outputs are gated, and the encoder and the decoder of the Sylvester flows paper.

A gated convolution has no other activation: with convolutions :math:`a` and :math:`b` of the same kind,

.. math:: y = a(x) \odot \mathrm{sigmoid}(b(x))

Its weights begin so that y has the mean square of x: those of b with the variance 1/n for n summands, which gives
:math:`E[\mathrm{sigmoid}(b)^2] = 0.293`, those of a with the variance 3.41/n. With torch's own rule a signal is worth a
third of itself after each layer, and twelve layers begin as a constant.

References:
    Sylvester Normalizing Flows for Variational Inference, R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling,
    UAI 2018, https://arxiv.org/abs/1803.05649 (the networks)

    Language Modeling with Gated Convolutional Networks, Y. N. Dauphin, A. Fan, M. Auli, D. Grangier, ICML 2017,
    https://arxiv.org/abs/1612.08083 (the gate)
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_VALUE_GAIN = 1.85
"""Standard deviation of the value's weights, in those of the gate's."""
HALVINGS = 2
"""How often the encoder halves the resolution."""
FEATURES = 8
"""The encoder's features, in widths."""


@torch.no_grad()
def _initialize(conv: nn.Conv2d | nn.ConvTranspose2d, summands: float, outputs: int) -> None:
    """The first weights (module docstring).

    Arguments:
        conv: for value and gate.
        summands: numbers that an output sums over.
        outputs: the dimension of the weights that the outputs are along.
    """
    value, gate = conv.weight.chunk(2, outputs)
    value.normal_(0.0, _VALUE_GAIN / math.sqrt(summands))
    gate.normal_(0.0, 1.0 / math.sqrt(summands))
    assert conv.bias is not None
    conv.bias.zero_()


@final
class GatedConv2d(nn.Module):
    """A gated convolution: one convolution for value and gate, the value's channels first.

    Arguments:
        inputs, outputs: channels.
        kernel_size: one number, or height and width.
        stride: 2 halves the grid.
        padding: zeros on each side.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int | tuple[int, int] = 5, stride: int = 1, padding: int = 2
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, kernel_size, stride, padding)
        _initialize(self.conv, inputs * math.prod(self.conv.kernel_size), outputs=0)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` -> ``[B, outputs, H / stride, W / stride]``."""
        return F.glu(self.conv(x), 1)


@final
class GatedSpread(nn.Module):
    """A gated transposed convolution from one position to a grid.

    Arguments:
        inputs, outputs: channels.
        grid: height and width.
    """

    def __init__(self, inputs: int, outputs: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, 2 * outputs, grid)
        _initialize(self.conv, inputs, outputs=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, 1, 1]`` -> ``[B, outputs, *grid]``."""
        return F.glu(self.conv(x), 1)


@final
class GatedDoubling(nn.Module):
    """A gated transposed convolution with 5 x 5 kernels that doubles the grid.

    Arguments:
        inputs, outputs: channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, 2 * outputs, 5, stride=2, padding=2, output_padding=1)
        _initialize(self.conv, inputs * 25 / 4, outputs=1)  # a quarter of a kernel meets each output

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` -> ``[B, outputs, 2 h, 2 w]``."""
        return F.glu(self.conv(x), 1)


@final
class GatedEncoder(nn.Sequential):
    """From an image to a vector of features: five gated convolutions, then one whose kernel is the whole grid.

    Arguments:
        channels: of the images.
        width: channels at full resolution; the published network has 32, and twice as many after the first halving.
        grid: height and width of the images after two halvings; 7 x 7 as published.
    """

    def __init__(self, channels: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__(
            GatedConv2d(channels, width),
            GatedConv2d(width, width, stride=2),
            GatedConv2d(width, 2 * width),
            GatedConv2d(2 * width, 2 * width, stride=2),
            GatedConv2d(2 * width, 2 * width),
            GatedConv2d(2 * width, FEATURES * width, grid, padding=0),
        )


@final
class GatedDecoder(nn.Module):
    """From a vector of latents to the pixels' parameters: the encoder's mirror image, and a 1 x 1 convolution.

    Arguments:
        latents: length of the vector.
        outputs: parameters for each pixel.
        width, grid: as the encoder's.
    """

    def __init__(self, latents: int, outputs: int, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        # Transposed convolutions of stride 1 that keep the grid are convolutions.
        self.hidden = nn.Sequential(
            GatedSpread(latents, 2 * width, grid),
            GatedConv2d(2 * width, 2 * width),
            GatedDoubling(2 * width, width),
            GatedConv2d(width, width),
            GatedDoubling(width, width),
            GatedConv2d(width, width),
        )
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, latents, 1, 1]`` -> ``[B, outputs, H, W]``."""
        raw: Tensor = self.last(self.hidden(z))
        return raw
