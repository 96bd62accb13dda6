r"""The convolutional restricted Boltzmann machine with probabilistic max-pooling, a layer of a convolutional DBN.

Filters :math:`W^k` are shared over positions. With :math:`\star` for the valid correlation of an image with a filter,

.. math:: I^k = c_k + W^k \star v, \qquad
          E(v, h) = -\sum_k h^k \cdot I^k - b \cdot v - \log m(v)

and of a block of C x C hidden units of one channel at most one is on (:mod:`davi.layers.pooled_bits`). What the hidden
units send down is the adjoint map, the full convolution with the same filters, :math:`b + \sum_k W^k * h^k`. There is
one c for a channel of hidden units, and one b for a channel of visible ones.

Visible units are binary for images of two levels. For others they are real, of variance 1 given the hidden units:
integers with uniform noise, less the mean of the training images and divided by their standard deviation, one of each
for a channel.

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
from davi.flows import Dequantization
from davi.layers.pooled_bits import PooledBits
from davi.layers.units import Bits, GaussianUnits, Units
from davi.model import DataInitialized, Harmonium

SMOOTHING = 5.0
"""Images of even noise that are added to those from which log odds are taken."""


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
    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, int, int], levels: int, config: ConvRBMConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        channels, height, width = self.shape
        filters, size = config.filters, config.filter_size
        if size > min(height, width):
            expected = f"expected at most {min(height, width)}"
            raise OptionError("filter_size", f"got {size} for maps of {height}x{width}, {expected}")
        self.binary = levels == 2
        self._visible: Units = Bits(self.shape) if self.binary else GaussianUnits(self.shape)
        self.hidden_units = PooledBits((filters, height - size + 1, width - size + 1), config.pool)
        self.weight = nn.Parameter(config.weight_std * torch.randn(filters, channels, size, size))
        self.b = nn.Parameter(torch.zeros(channels, 1, 1))
        self.c = nn.Parameter(torch.full((filters, 1, 1), config.hidden_bias))
        if not self.binary:
            self.dequantization = Dequantization(levels, 0.0, float(levels))
            self.register_buffer("mean", torch.full((channels, 1, 1), levels / 2.0))
            self.register_buffer("std", torch.full((channels, 1, 1), levels / 12.0**0.5))

    @property
    def visible(self) -> Units:
        return self._visible

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
        dtype = self.weight.dtype
        if self.binary:
            return x.to(dtype)
        return (self.dequantization(x, generator, dtype).y - self.mean) / self.std

    def images(self, v: Tensor) -> Tensor:
        return v.long() if self.binary else self.dequantization.quantize(v * self.std + self.mean)

    def expected_levels(self, v: Tensor) -> Tensor:
        """Expected visible units as levels of a pixel, real numbers ``[B, *shape]``."""
        return v if self.binary else (v * self.std + self.mean - 0.5).clamp(0.0, self.levels - 1.0)

    def log_volume(self) -> Tensor:
        if self.binary:
            return super().log_volume()
        return -self.std.log().expand(self.shape).sum()

    @property
    def claim(self) -> Kind:
        return Kind.EXACT if self.binary else Kind.LOWER_BOUND

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Set b to the log odds of each channel; for real units the mean and the standard deviation instead."""
        values = images.double().transpose(0, 1).flatten(1)
        if self.binary:
            more = SMOOTHING * self.dims / self.shape[0]
            found = {"b": ((values.sum(1) + 0.5 * more) / (values.shape[1] + more)).logit()}
        else:
            variance = values.var(1, correction=0) + 1.0 / 12.0  # of uniform noise
            found = {"mean": values.mean(1) + 0.5, "std": variance.sqrt()}
        for name, value in found.items():
            if name not in kept:
                getattr(self, name).copy_(value.view(-1, 1, 1))
