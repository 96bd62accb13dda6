r"""The convolutional restricted Boltzmann machine with probabilistic max-pooling, a layer of a convolutional DBN.

Filters :math:`W^k` are shared over positions. With :math:`\star` for the valid correlation of an image with a filter,

.. math:: I^k = c_k + W^k \star v, \qquad
          E(v, h) = -\sum_k h^k \cdot I^k - b \cdot v - \log m(v)

and of a block of C x C hidden units of one channel at most one is on (:mod:`davi.layers.pooled_bits`). What the hidden
units send down is the adjoint map, the full convolution with the same filters, :math:`b + \sum_k W^k * h^k`. There is
one c for a channel of hidden units, and one b for a channel of visible ones.

Visible units are binary for images of two levels. For others they are real, of variance 1 given the hidden units:
integers with uniform noise, standardized by the mean and the standard deviation of a channel over all pixels of the
training images (:mod:`davi.layers.pixel_units`).

Near its borders an image is seen by fewer filters; no row of it is left out. If a block does not fit, the last one is
smaller.

References:
    Convolutional Deep Belief Networks for Scalable Unsupervised Learning of Hierarchical Representations, H. Lee,
    R. Grosse, R. Ranganath, A. Ng, ICML 2009, https://doi.org/10.1145/1553374.1553453
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, fold

from davi.errors import OptionError
from davi.evidence import Kind
from davi.layers.pixel_units import SMOOTHING, BinaryPixels, GaussianPixels
from davi.layers.pooled_bits import PooledBits
from davi.layers.units import Units
from davi.model import DataInitialized, Harmonium


@dataclass(frozen=True)
class ConvRBMConfig:
    """
    Arguments:
        filters: K, channels of hidden units.
        filter_size: height and width of a filter.
        pool: C, height and width of a block.
        weight_std: standard deviation of the initial weights.
        hidden_bias: initial c.
    """

    filters: int
    filter_size: int
    pool: int = 2
    weight_std: float = 0.01
    hidden_bias: float = 0.0


@final
class ConvRBM(Harmonium, DataInitialized):
    """A convolutional restricted Boltzmann machine (module docstring)."""

    name = "conv_rbm"
    Config = ConvRBMConfig
    config: ConvRBMConfig
    images_wanted = 5000

    def __init__(self, shape: tuple[int, int, int], levels: int, config: ConvRBMConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        channels, height, width = self.shape
        filters, size = config.filters, config.filter_size
        if size > min(height, width):
            expected = f"expected at most {min(height, width)}"
            raise OptionError("filter_size", f"got {size} for maps of {height}x{width}, {expected}")
        self.pixels = (
            BinaryPixels(self.shape, levels) if levels == 2 else GaussianPixels(self.shape, levels, shared=True)
        )
        self.hidden_units = PooledBits((filters, height - size + 1, width - size + 1), config.pool)
        self.weight = nn.Parameter(config.weight_std * torch.randn(filters, channels, size, size))
        self.b = nn.Parameter(torch.zeros(channels, 1, 1))
        self.c = nn.Parameter(torch.full((filters, 1, 1), config.hidden_bias))

    @property
    def visible(self) -> Units:
        return self.pixels.units

    @property
    def hidden(self) -> PooledBits:
        return self.hidden_units

    def visible_field(self) -> Tensor:
        return self.b.expand(self.shape)

    def hidden_field(self) -> Tensor:
        return self.c.expand(self.hidden.shape)

    def hidden_input(self, v: Tensor) -> Tensor:
        return conv2d(v, self.weight) + self.c

    def visible_input(self, h: Tensor) -> Tensor:
        return self.sent_down(h) + self.b

    def sent_down(self, h: Tensor) -> Tensor:
        """What hidden units ``[B, K, H, W]`` add to the fields of the visible ones, ``[B, *shape]``."""
        if self.shape[0] > 1:
            return conv_transpose2d(h, self.weight)
        # The same for one channel: on a CPU a product of matrices and a sum of patches take a quarter of the time.
        patches = self.weight.flatten(1).T @ h.flatten(2)
        return fold(patches, self.shape[1:], self.config.filter_size)

    def state(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return self.pixels.state(x, self.weight.dtype, generator)

    def images(self, v: Tensor) -> Tensor:
        return self.pixels.images(v)

    def expected_levels(self, v: Tensor) -> Tensor:
        """Expected visible units as levels of a pixel, real numbers ``[B, *shape]``."""
        if not isinstance(self.pixels, GaussianPixels):
            return v
        return (v * self.pixels.std + self.pixels.mean - 0.5).clamp(0.0, self.levels - 1.0)

    def log_volume(self) -> Tensor:
        return self.pixels.log_volume() if isinstance(self.pixels, GaussianPixels) else super().log_volume()

    @property
    def claim(self) -> Kind:
        return self.pixels.claim

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Set b to smoothed log odds of each channel; for real units the mean and the standard deviation instead."""
        self.pixels.fit(images, [name for name in ("mean", "std") if f"pixels.{name}" in kept])
        if "b" not in kept and isinstance(self.pixels, BinaryPixels):
            p = (images.double().mean((0, 2, 3)) * len(images) + 0.5 * SMOOTHING) / (len(images) + SMOOTHING)
            self.b.copy_(p.logit().view(-1, 1, 1))
