"""The layers of a deep belief network, and the ways up and down; :mod:`davi.models.dbn` has the symbols."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from davi.errors import OptionError
from davi.model import Harmonium, Network
from davi.models.label_rbm import LabelRBM
from davi.models.rbm import RBM, RBMConfig


@dataclass(frozen=True)
class DBNConfig:
    """
    Arguments:
        hidden: binary units of each hidden layer, the one nearest the image first; at least two layers.
        weight_std: standard deviation of the initial couplings, where these do not come from the layer below.
        untied: recognition weights of their own for all layers but the top, which up-down needs.
    """

    hidden: tuple[int, ...] = (500, 2000)
    weight_std: float = 0.01
    untied: bool = False


class Ascent(NamedTuple):
    """The way up.

    Arguments:
        states: of the image and of the hidden layers below the top, ``[B, units]`` each, the first in its own shape.
        inputs: natural parameters from which each hidden layer was drawn, ``[B, units]``.
    """

    states: list[Tensor]
    inputs: list[Tensor]


class BeliefNetwork(Network, ABC):
    """A restricted Boltzmann machine on top of directed layers of binary units."""

    config: DBNConfig
    """The options it was built with."""

    def __init__(self, shape: tuple[int, int, int], levels: int, config: DBNConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        if len(config.hidden) < 2:
            raise OptionError("hidden", f"got {list(config.hidden)}, expected at least two layers; one layer is an rbm")
        sizes = list(zip(config.hidden, config.hidden[1:], strict=False))
        layers: list[Harmonium] = [RBM(self.shape, levels, self._options(config.hidden[0]))]
        for below, own in sizes[:-1] if classes else sizes:
            layers.append(RBM((1, 1, below), 2, self._options(own)))
        if classes:
            below, own = sizes[-1]
            layers.append(LabelRBM(below, classes, self._options(own)))
        self.layers = nn.ModuleList(layers)
        own_weights = [layer.weight.detach().clone() for layer in self.lower if config.untied]
        self.recognition = nn.ParameterList(own_weights)  # R, [V, H] of each layer but the top

    def _options(self, hidden: int) -> RBMConfig:
        return RBMConfig(hidden=hidden, weight_std=self.config.weight_std)

    @property
    def lower(self) -> list[RBM]:
        """All layers but the top, the one nearest the image first."""
        return [layer for layer in list(self.layers)[:-1] if isinstance(layer, RBM)]

    @property
    def top(self) -> Harmonium:
        """The restricted Boltzmann machine at the top."""
        found = self.layers[-1]
        assert isinstance(found, Harmonium)
        return found

    def recognition_input(self, number: int, below: Tensor) -> Tensor:
        """Natural parameters of hidden layer ``number`` (0 is nearest the image) given what is below it, under q:
        ``[B, units]``."""
        layer = self.lower[number]
        if not self.config.untied:
            return layer.hidden_input(below)
        return torch.addmm(layer.c, layer.visible.gauge_fixed(below).flatten(1), self.recognition[number])

    def ascend(
        self, x: Tensor, generator: Generator | None = None, sample: bool = True, depth: int | None = None
    ) -> Ascent:
        """The way up from images, with hidden states drawn from q, or with their probabilities in place of states.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
            generator: source of the draws; torch's default when None.
            sample: whether states are drawn.
            depth: hidden layers to climb; all below the top when None.
        """
        states, inputs = [self.lower[0].state(x, generator)], list[Tensor]()
        for number in range(len(self.layers) - 1 if depth is None else depth):
            inputs.append(self.recognition_input(number, states[-1]))
            units = self.lower[number].hidden
            states.append(units.sample(inputs[-1], generator) if sample else units.mean(inputs[-1]))
        return Ascent(states, inputs)

    def top_state(self, bits: Tensor, y: Tensor | None = None) -> Tensor:
        """The visible state of the top given the units of the layer below it, ``[B, units]``, and the class."""
        if isinstance(self.top, LabelRBM):
            self.check_labels(y, len(bits))
            assert y is not None
            return self.top.joined(bits, y)
        return bits.view(-1, *self.top.visible.shape)

    def top_bits(self, v: Tensor) -> Tensor:
        """The units of the layer below the top, ``[B, units]``, within its visible state."""
        return v.flatten(1)[:, : self.config.hidden[-2]]

    def log_below(self, number: int, below: Tensor, above: Tensor) -> Tensor:
        """log p of the states below hidden layer ``number`` given that layer, ``[B]``, nats."""
        layer = self.lower[number]
        return layer.visible.log_prob(below.view(-1, *layer.visible.shape), layer.visible_input(above))

    def descend(
        self, bits: Tensor, generator: Generator | None = None, temperature: float = 1.0, means: bool = False
    ) -> list[Tensor]:
        """The way down from units of the layer below the top, drawn: states of the image and of all hidden layers below
        the top, as :class:`Ascent` has them.

        Arguments:
            bits: ``[B, units]``.
            generator: source of the draws.
            temperature: divides the energies.
            means: whether the image is made of probabilities, as which it is not drawn.
        """
        states = [bits]
        for number in reversed(range(len(self.layers) - 1)):
            layer = self.lower[number]
            inputs = layer.visible_input(states[0])
            if number:
                states.insert(0, layer.visible.sample(inputs, generator, temperature).flatten(1))
            elif means:
                states.insert(0, layer.visible.mean(inputs))
            else:
                states.insert(0, layer.visible.sample(inputs, generator, temperature))
        return states

    def log_class_probabilities(self, x: Tensor) -> Tensor:
        """log p(y | h) at the top, where probabilities that are computed on the way up stand for states: ``[B,
        classes]``, nats. For a network with classes."""
        assert isinstance(self.top, LabelRBM)
        return self.top.log_class_probabilities(self.ascend(x, sample=False).states[-1])
