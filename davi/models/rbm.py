r"""The restricted Boltzmann machine, with binary, Potts or Gaussian visible units and binary hidden ones.

.. math:: E(v, h) = -b \cdot v - c \cdot h - v \cdot W h - \log m(v), \qquad
          F(v) = -b \cdot v - \log m(v) - \sum_j \operatorname{softplus}\Bigl(c_j + \sum_i W_{ij} v_i\Bigr)

with m(v) = 1, but :math:`e^{-|v|^2 / 2}` for Gaussian units. What these have to do with the integers of an image:
:mod:`davi.layers.pixel_units`. The free energies of images and, with the partition function, their likelihoods:
:class:`davi.model.Normalized`.

A Potts unit is a one-hot vector, so a number added to all its fields, or to all its couplings with a hidden unit and
taken from c, changes no probability. The gauge is fixed by the projection P that makes both sum to zero over the levels
of each pixel: the model is that of P b and P W. P is applied to what units receive and to the states that they show to
the others, never to the weights, so gradients are projected as well, and weights that begin in the gauge stay there
(up to rounding; an optimizer that scales each weight by itself, as Adam does, may leave it, without consequences).

References:
    Training Products of Experts by Minimizing Contrastive Divergence, G. E. Hinton, Neural Computation 2002,
    https://doi.org/10.1162/089976602760128018

    A Practical Guide to Training Restricted Boltzmann Machines, G. E. Hinton, 2012,
    https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf (initial weights, Gaussian units)

    Restricted Boltzmann Machines for Collaborative Filtering, R. Salakhutdinov, A. Mnih, G. Hinton, ICML 2007,
    https://doi.org/10.1145/1273496.1273596 (one-hot units)
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn

from davi.evidence import Kind
from davi.layers.pixel_units import GaussianPixels, Visible, make_pixel_units
from davi.layers.units import Bits, Units
from davi.model import Couplings, DataInitialized, Harmonium, WithCouplings, WithFilters
from davi.model.filters import per_level


@dataclass(frozen=True)
class RBMConfig:
    """
    Arguments:
        hidden: binary hidden units.
        weight_std: standard deviation of the initial couplings.
        hidden_bias: initial c of all hidden units; -4 makes them rarely active at first.
        visible: binary, for two levels; potts, one-hot units for any number of levels; gaussian, for standardized
            pixels; auto: binary for two levels, potts for more.
        conditional_std: standard deviation of a Gaussian pixel given the hidden units, in standard deviations of the
            pixel over the training images; below 1 pixels may depend on each other closely.
    """

    hidden: int = 500
    weight_std: float = 0.01
    hidden_bias: float = 0.0
    visible: Visible = "auto"
    conditional_std: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: got {self.hidden}, expected at least 1")
        if not 0 <= self.weight_std < math.inf:
            raise ValueError(f"weight_std: got {self.weight_std}, expected a finite number from 0")
        if not math.isfinite(self.hidden_bias):
            raise ValueError(f"hidden_bias: got {self.hidden_bias}, expected a finite number")
        if not 0 < self.conditional_std <= 1:
            raise ValueError(f"conditional_std: got {self.conditional_std}, expected a number above 0, at most 1")


@final
class RBM(Harmonium, DataInitialized, WithCouplings, WithFilters):
    """A restricted Boltzmann machine (module docstring).

    Raises:
        OptionError: if the visible units are not for images of so many levels.
    """

    name = "rbm"
    Config = RBMConfig
    config: RBMConfig
    images_wanted = 5000

    def __init__(self, shape: tuple[int, int, int], levels: int, config: RBMConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.pixels = make_pixel_units(config.visible, self.shape, levels, config.conditional_std)
        self._hidden = Bits((config.hidden,))
        initial = self.visible.gauge_fixed(config.weight_std * torch.randn(config.hidden, *self.visible.shape))
        # W, [V, H]. In memory hidden units come first, with which the product of its gradient is a tenth faster.
        self.weight = nn.Parameter(initial.flatten(1).T)
        self.b = nn.Parameter(torch.zeros(self.visible.shape))
        self.c = nn.Parameter(torch.full((config.hidden,), config.hidden_bias))

    @property
    def visible(self) -> Units:
        return self.pixels.units

    @property
    def hidden(self) -> Units:
        return self._hidden

    @property
    def claim(self) -> Kind:
        return self.pixels.claim

    @property
    def couplings(self) -> Couplings:
        return Couplings(self.weight, self.b, self.c)

    def visible_field(self) -> Tensor:
        return self.visible.gauge_fixed(self.b)

    def hidden_field(self) -> Tensor:
        return self.c

    def hidden_input(self, v: Tensor) -> Tensor:
        return torch.addmm(self.c, self.visible.gauge_fixed(v).flatten(1), self.weight)

    def visible_input(self, h: Tensor) -> Tensor:
        inputs = torch.addmm(self.b.flatten(), h, self.weight.T)
        return self.visible.gauge_fixed(inputs.view(-1, *self.visible.shape))

    def state(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return self.pixels.state(x, self.weight.dtype, generator)

    def images(self, v: Tensor) -> Tensor:
        return self.pixels.images(v)

    def log_volume(self) -> Tensor:
        return self.pixels.log_volume() if isinstance(self.pixels, GaussianPixels) else super().log_volume()

    @property
    def filter_layers(self) -> int:
        return 1

    @torch.no_grad()
    def receptive_fields(self, layer: int) -> Tensor:
        """The couplings of every hidden unit."""
        alone = torch.eye(self.config.hidden, dtype=self.c.dtype, device=self.c.device)
        return per_level(self.visible_input(alone) - self.visible_field(), self.visible)

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Set b to the field of independent pixels (:meth:`davi.layers.pixel_units.PixelUnits.field`): smoothed log
        odds or log frequencies; 0 for Gaussian units, whose means and standard deviations are set instead."""
        self.pixels.fit(images, [name for name in ("mean", "std") if f"pixels.{name}" in kept])
        if "b" not in kept:
            self.b.copy_(self.pixels.field(images))

    @torch.no_grad()
    def set_parameters(self, weight: Tensor, b: Tensor, c: Tensor) -> None:
        r"""Take over parameters from elsewhere, in whatever gauge: p(v) is what they say.

        With means over the levels l of each pixel i, W and b lose theirs, and the means of W are added to c:

        .. math:: W_{ilj} \leftarrow W_{ilj} - \bar W_{ij}, \qquad b_{il} \leftarrow b_{il} - \bar b_i, \qquad
                  c_j \leftarrow c_j + \sum_i \bar W_{ij}

        which adds the constant :math:`\sum_i \bar b_i` to all free energies and takes it from log Z. Without Potts
        units nothing changes.

        Arguments:
            weight: W, in the order of the visible units, ``[V, H]``.
            b: ``[*visible.shape]``.
            c: ``[H]``.
        """
        units = self.visible
        fixed = units.gauge_fixed(weight.T.reshape(-1, *units.shape)).flatten(1).T
        even = units.mean(torch.zeros_like(b)[None]).flatten()  # 1 / L in all places of Potts units
        self.c.copy_(c + even @ (weight - fixed))
        self.weight.copy_(fixed)
        self.b.copy_(units.gauge_fixed(b))
