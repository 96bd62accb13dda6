r"""Integer images as states of the visible units of an energy.

With L levels, a pixel x in {0 .. L - 1} becomes

- a bit, v = x, for two levels;
- a Potts unit, the one-hot vector of x, for any number of levels;
- a real unit, with the noise u of uniform dequantization and the mean and the standard deviation of the pixel over the
  training images,

.. math:: v = \frac{x + u - \mu}{\sigma}, \qquad u \sim U[0, 1), \qquad
          \log P(x) = \log \int_x^{x+1} p(v(y))\, \frac{\mathrm{d}y}{\sigma}
          \ge E_u\Bigl[\log p(v) - \log \sigma\Bigr]

The last summand is the whole constant of the standardization (:meth:`GaussianPixels.log_volume`).

References:
    A note on the evaluation of generative models, L. Theis, A. van den Oord, M. Bethge, ICLR 2016,
    https://arxiv.org/abs/1511.01844 (dequantization)

    Learning Multiple Layers of Features from Tiny Images, A. Krizhevsky, 2009,
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf (Gaussian visible units on standardized pixels)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container
from typing import Literal, final

import torch
from torch import Generator, Tensor, nn

from davi.errors import OptionError
from davi.evidence import Kind
from davi.layers.units import Bits, GaussianUnits, Potts, Units

Visible = Literal["auto", "binary", "gaussian", "potts"]
"""Kinds of visible units, as options name them; auto: binary for two levels, Potts units for more."""

SMOOTHING = 5.0
"""How many images of even noise are counted beside those whose frequencies are taken."""

NARROWEST = 1.0 / 64.0
"""Of the range of all levels: no standard deviation is smaller, so that a pixel that never changes in the training
images may change in others."""

_OF_NOISE = 1.0 / 12.0
"""Variance of the noise of dequantization."""


class PixelUnits(nn.Module, ABC):
    """Visible units for images (module docstring).

    Arguments:
        units: their kind and shape.
    """

    claim: Kind = Kind.EXACT
    """What their log-probability says about that of an integer image."""

    def __init__(self, units: Units) -> None:
        super().__init__()
        self.units = units

    @abstractmethod
    def state(self, x: Tensor, dtype: torch.dtype, generator: Generator | None = None) -> Tensor:
        """The states of integer images ``[B, C, H, W]``: ``[B, *units.shape]``.

        Arguments:
            x: the images.
            dtype: of the states.
            generator: source of the noise, where there is some.
        """

    @abstractmethod
    def images(self, v: Tensor) -> Tensor:
        """The integer images of states, ``[B, C, H, W]``, int64."""

    @abstractmethod
    def field(self, images: Tensor) -> Tensor:
        """Natural parameters of independent units with the frequencies of images, smoothed by :data:`SMOOTHING`,
        ``[*units.shape]``, float64.

        Arguments:
            images: integers, ``[N, C, H, W]``.
        """

    def fit(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Set what follows from training images ``[N, C, H, W]``, but for buffers whose names are in ``kept``."""


@final
class BinaryPixels(PixelUnits):
    """Bits.

    Arguments:
        shape: (C, H, W).
        levels: of the images.

    Raises:
        OptionError: if there are more than two levels.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int) -> None:
        if levels != 2:
            raise OptionError("visible", f"got binary for {levels} levels, expected potts or gaussian (or 2 levels)")
        super().__init__(Bits(shape))

    def state(self, x: Tensor, dtype: torch.dtype, generator: Generator | None = None) -> Tensor:
        return x.to(dtype)

    def images(self, v: Tensor) -> Tensor:
        return v.long()

    def field(self, images: Tensor) -> Tensor:
        """Log odds."""
        p = (images.double().sum(0) + 0.5 * SMOOTHING) / (len(images) + SMOOTHING)
        return self.units.natural(p)


@final
class PottsPixels(PixelUnits):
    """One-hot vectors.

    Arguments:
        shape: (C, H, W).
        levels: of the images.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int) -> None:
        super().__init__(Potts((*shape, levels)))
        self.levels = levels

    def state(self, x: Tensor, dtype: torch.dtype, generator: Generator | None = None) -> Tensor:
        empty = torch.zeros(*x.shape, self.levels, dtype=dtype, device=x.device)
        return empty.scatter_(-1, x.long()[..., None], 1.0)

    def images(self, v: Tensor) -> Tensor:
        return v.argmax(-1)

    def field(self, images: Tensor) -> Tensor:
        """Log frequencies, in the gauge of the units."""
        counts = torch.stack([(images == level).sum(0) for level in range(self.levels)], -1)
        p = (counts.double() + SMOOTHING / self.levels) / (len(images) + SMOOTHING)
        return self.units.natural(p)


@final
class GaussianPixels(PixelUnits):
    r"""Real units.

    Arguments:
        shape: (C, H, W).
        levels: of the images.
        conditional_std: standard deviation of a pixel given the hidden units, where units have the variance 1; in
            standard deviations of the pixel over the training images.
        shared: whether the mean and the standard deviation are those of all pixels of a channel, as a convolution wants
            them, in place of each pixel's own.

    Before :meth:`fit` the mean and the standard deviation are those of pixels all of whose values are equally probable.
    """

    claim = Kind.LOWER_BOUND

    def __init__(
        self, shape: tuple[int, int, int], levels: int, conditional_std: float = 1.0, shared: bool = False
    ) -> None:
        super().__init__(GaussianUnits(shape))
        self.levels = levels
        self.shared = shared
        self.conditional_std = conditional_std
        self.narrowest = max(NARROWEST * levels, _OF_NOISE**0.5)
        self.register_buffer("mean", torch.full(shape, 0.5 * levels))
        self.register_buffer("std", torch.empty(shape))
        self._set_std(torch.full(shape, levels**2 / 12.0))

    mean: Tensor
    std: Tensor

    def state(self, x: Tensor, dtype: torch.dtype, generator: Generator | None = None) -> Tensor:
        u = torch.rand(x.shape, generator=generator, dtype=dtype, device=x.device)
        margin = 4.0 * self.levels * torch.finfo(dtype).eps  # rounding must not take v into another integer's cell
        return (x.to(dtype) + u.clamp(margin, 1.0 - margin) - self.mean) / self.std

    def images(self, v: Tensor) -> Tensor:
        """What lies outside the range of the levels becomes the first or the last one."""
        return (v * self.std + self.mean).floor().clamp(0, self.levels - 1).long()

    def field(self, images: Tensor) -> Tensor:
        """0: the states have the mean 0."""
        return torch.zeros(self.units.shape, dtype=torch.float64, device=images.device)

    @torch.no_grad()
    def fit(self, images: Tensor, kept: Container[str] = ()) -> None:
        over = (0, 2, 3) if self.shared else (0,)
        variance, mean = (x[0] for x in torch.var_mean(images.double(), over, correction=0, keepdim=True))
        if "mean" not in kept:
            self.mean.copy_(mean + 0.5)  # that of the noise
        if "std" not in kept:
            self._set_std(variance + _OF_NOISE)

    def log_volume(self) -> Tensor:
        r""":math:`\log |\mathrm{d}v / \mathrm{d}x|`, a scalar, nats."""
        return -self.std.log().sum()

    def _set_std(self, variance: Tensor) -> None:
        self.std.copy_((self.conditional_std * variance.sqrt()).clamp(min=self.narrowest))


def make_pixel_units(
    visible: Visible, shape: tuple[int, int, int], levels: int, conditional_std: float = 1.0
) -> PixelUnits:
    """The visible units that options ask for.

    Arguments:
        visible: their kind.
        shape: (C, H, W) of the images.
        levels: of the images.
        conditional_std: of Gaussian units.

    Raises:
        OptionError: if they are not for so many levels.
    """
    if visible == "gaussian":
        return GaussianPixels(shape, levels, conditional_std)
    if visible == "binary" or (visible == "auto" and levels == 2):
        return BinaryPixels(shape, levels)
    return PottsPixels(shape, levels)
