r"""The restricted Boltzmann machine.

.. math:: E(v, h) = -b \cdot v - c \cdot h - v \cdot W h, \qquad
          F(v) = -b \cdot v - \sum_j \operatorname{softplus}\Bigl(c_j + \sum_i W_{ij} v_i\Bigr)

The free energies of images and, with the partition function, their likelihoods: :class:`davi.model.Normalized`.

References:
    Training Products of Experts by Minimizing Contrastive Divergence, G. E. Hinton, Neural Computation 2002,
    https://doi.org/10.1162/089976602760128018

    A Practical Guide to Training Restricted Boltzmann Machines, G. E. Hinton, 2012,
    https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf (initial weights)
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn

from davi.layers.units import Bits, Units
from davi.model import DataInitialized, Harmonium, WithFilters
from davi.model.filters import per_level


@dataclass(frozen=True)
class RBMConfig:
    """
    Arguments:
        hidden: binary hidden units.
        weight_std: standard deviation of the initial couplings.
    """

    hidden: int = 500
    weight_std: float = 0.01


@final
class RBM(Harmonium, DataInitialized, WithFilters):
    """A restricted Boltzmann machine (module docstring)."""

    name = "rbm"
    Config = RBMConfig
    config: RBMConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: RBMConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self._visible, self._hidden = Bits(self.shape), Bits((config.hidden,))
        self.weight = nn.Parameter(config.weight_std * torch.randn(self.dims, config.hidden))  # W, [V, H]
        self.b = nn.Parameter(torch.zeros(self.shape))
        self.c = nn.Parameter(torch.zeros(config.hidden))

    @property
    def visible(self) -> Units:
        return self._visible

    @property
    def hidden(self) -> Units:
        return self._hidden

    def visible_field(self) -> Tensor:
        return self.b

    def hidden_field(self) -> Tensor:
        return self.c

    def hidden_input(self, v: Tensor) -> Tensor:
        return torch.addmm(self.c, v.flatten(1), self.weight)

    def visible_input(self, h: Tensor) -> Tensor:
        return self.b + (h @ self.weight.T).view(-1, *self.shape)

    def state(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x.to(self.weight.dtype)

    def images(self, v: Tensor) -> Tensor:
        return v.long()

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
        """Set b to the log odds of the pixels, smoothed by five images."""
        if "b" not in kept:
            self.b.copy_(smoothed_log_odds(images))


def smoothed_log_odds(images: Tensor, smoothing: float = 5.0) -> Tensor:
    """Log odds of binary pixels, ``[C, H, W]``, as if there were so many more images half of which were white.

    Arguments:
        images: integers, ``[N, C, H, W]``.
        smoothing: how many more.
    """
    p = (images.double().sum(0) + 0.5 * smoothing) / (len(images) + smoothing)
    return p.logit()
