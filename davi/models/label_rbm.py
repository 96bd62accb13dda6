r"""A restricted Boltzmann machine of bits and the class that they belong to: the top of a deep belief network.

Its visible units are bits v and a group of K units y, of which exactly one is on,

.. math:: E(v, y, h) = -b \cdot v - d \cdot y - c \cdot h - v \cdot W h - y \cdot U h

Given the bits, every class has a free energy, and these make a classifier,

.. math:: \log p(y \mid v) = -F(v, y) + F(v), \qquad F(v) = -\log \sum_y e^{-F(v, y)}

References:
    A fast learning algorithm for deep belief nets, G. E. Hinton, S. Osindero, Y.-W. Teh, Neural Computation 2006,
    https://www.cs.toronto.edu/~hinton/absps/fastnc.pdf

    Classification using Discriminative Restricted Boltzmann Machines, H. Larochelle, Y. Bengio, ICML 2008,
    https://doi.org/10.1145/1390156.1390224 (the classifier)
"""

from __future__ import annotations

from collections.abc import Container
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import one_hot

from davi.layers.pixel_units import SMOOTHING
from davi.layers.units import Bits, Joined, Potts, Units
from davi.model import DataInitialized, Harmonium
from davi.models.rbm import RBM, RBMConfig


@final
class LabelRBM(Harmonium, DataInitialized):
    """Bits and a class (module docstring). Its images are ``[B, 1, 1, bits + labels]``: the bits, and behind them the
    class as a one-hot vector.

    Arguments:
        bits: how many.
        labels: K, the number of classes.
        config: of the hidden units.
    """

    name = "label_rbm"
    Config = RBMConfig
    config: RBMConfig
    images_wanted = RBM.images_wanted

    def __init__(self, bits: int, labels: int, config: RBMConfig) -> None:
        super().__init__((1, 1, bits + labels), 2, config)
        self._visible = Joined(Bits((bits,)), Potts((1, labels)))
        self._hidden = Bits((config.hidden,))
        self.bits, self.labels = bits, labels
        self.weight = nn.Parameter(config.weight_std * torch.randn(bits, config.hidden))  # W
        self.label_weight = nn.Parameter(config.weight_std * torch.randn(labels, config.hidden))  # U
        self.b = nn.Parameter(torch.zeros(bits))
        self.label_b = nn.Parameter(torch.zeros(labels))  # d
        self.c = nn.Parameter(torch.full((config.hidden,), config.hidden_bias))

    @property
    def visible(self) -> Joined:
        return self._visible

    @property
    def hidden(self) -> Units:
        return self._hidden

    def visible_field(self) -> Tensor:
        return torch.cat([self.b, self.label_b])

    def hidden_field(self) -> Tensor:
        return self.c

    def hidden_input(self, v: Tensor) -> Tensor:
        return torch.addmm(self.c, v, torch.cat([self.weight, self.label_weight]))

    def visible_input(self, h: Tensor) -> Tensor:
        return torch.addmm(self.visible_field(), h, torch.cat([self.weight, self.label_weight]).T)

    def state(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x.flatten(1).to(self.weight.dtype)

    def images(self, v: Tensor) -> Tensor:
        return v.long().view(-1, *self.shape)

    def joined(self, bits: Tensor, y: Tensor) -> Tensor:
        """The visible state of bits ``[B, bits]`` of classes ``[B]``: ``[B, bits + labels]``."""
        return self.visible.join(bits, one_hot(y.long(), self.labels).to(bits.dtype))

    def log_class_probabilities(self, bits: Tensor) -> Tensor:
        """log p(y | v) of bits ``[B, bits]``, or of probabilities of bits: ``[B, labels]``, nats."""
        inputs = torch.addmm(self.c, bits, self.weight)
        energies = [self.hidden.log_partition(inputs + own) for own in self.label_weight]
        return (torch.stack(energies, 1) + self.label_b).log_softmax(1)

    @torch.no_grad()
    def given_label(
        self, v: Tensor, steps: int, generator: Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """States ``[B, bits + labels]`` after Gibbs steps of the bits and hidden units, with the class held fixed."""
        _, label = self.visible.split(v)
        for _ in range(steps):
            bits, _ = self.visible.split(self.state_gibbs(v, 1, generator, temperature))
            v = self.visible.join(bits, label)
        return v

    @torch.no_grad()
    def with_label_means(self, v: Tensor, steps: int, generator: Generator | None = None) -> Tensor:
        """States after steps in which the bits are drawn, but the class is replaced by its probabilities."""
        for _ in range(steps):
            inputs = self.visible_input(self.hidden.sample(self.hidden_input(v), generator))
            bits, label = self.visible.split(inputs)
            v = self.visible.join(self.visible.first.sample(bits, generator), self.visible.second.mean(label))
        return v

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Set b to the log odds of the bits, and d to the log frequencies of the classes, smoothed as
        in :mod:`davi.layers.pixel_units`."""
        even = self.visible.mean(torch.zeros_like(self.visible_field(), dtype=torch.float64)[None])[0]
        mean = (images.flatten(1).double().sum(0) + SMOOTHING * even) / (len(images) + SMOOTHING)
        field = self.visible.natural(mean[None])
        for name, values in zip(("b", "label_b"), self.visible.split(field), strict=True):
            if name not in kept:
                self.get_parameter(name).copy_(values.flatten())
