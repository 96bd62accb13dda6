r"""The deep belief network: a restricted Boltzmann machine on top of directed layers of binary units.

With hidden layers :math:`h^1, \dots, h^L` and image :math:`x = h^0`

.. math:: p(x, h^1, \dots, h^{L-1}) = \prod_{l=1}^{L-1} p(h^{l-1} \mid h^l)\; \frac{e^{-F(h^{L-1})}}{Z}, \qquad
          p(h^{l-1} \mid h^l) \propto e^{(b_l + W_l h^l) \cdot h^{l-1}}

where F is the free energy of the machine at the top, in which :math:`h^L` is summed out. What lies below is inferred on
the way up, :math:`q(h^l_j = 1 \mid h^{l-1}) = \sigma(c_l + R_l^\top h^{l-1})_j`, and

.. math:: \log p(x) \ge E_q\Bigl[\log p(x \mid h^1) + \sum_{l=1}^{L-2} \log p(h^l \mid h^{l+1}) - F(h^{L-1})\Bigr]
          + H(q) - \log Z

**Layer by layer.** Layer l is trained as a restricted Boltzmann machine on states drawn below it; R is the W of that
machine. A layer that has the sizes of the one below turned round begins as that one turned round,
:math:`W_l = W_{l-1}^\top`, :math:`b_l = c_{l-1}`, :math:`c_l = b_{l-1}`: the two together are then the machine below,
q is the posterior, and the bound is tight. From there on each step up in the likelihood of the layer lifts the bound.

**Untied**, R is a weight of its own, which begins as W when the layer above begins. Only then can the whole be trained
(:mod:`davi.objectives.up_down`).

**Classes** are a group of K visible units of the top machine, beside :math:`h^{L-1}`. The model is then of both, the
bound is on :math:`\log p(x, y)`, and the free energies of the classes, given what was inferred, make a classifier.

References:
    A fast learning algorithm for deep belief nets, G. E. Hinton, S. Osindero, Y.-W. Teh, Neural Computation 2006,
    https://www.cs.toronto.edu/~hinton/absps/fastnc.pdf

    On the Quantitative Analysis of Deep Belief Networks, R. Salakhutdinov, I. Murray, ICML 2008,
    https://doi.org/10.1145/1390156.1390266 (the bound with a partition function)
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.distributions import Bernoulli, Distribution
from davi.errors import OptionError, UserError
from davi.evidence import About, Evidence, Kind
from davi.layers.units import Bits
from davi.model import (
    Classifying,
    Conditional,
    Harmonium,
    LatentModel,
    Network,
    Partition,
    Staged,
    Temperature,
    Unnormalized,
    WithPartition,
    known,
)
from davi.model.base import check_draw
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


@final
class DBN(Unnormalized, Staged, Conditional):
    """A deep belief network (module docstring). Its parts are ``layer_1``, nearest the image, to ``layer_L``."""

    name = "dbn"
    Config = DBNConfig
    config: DBNConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: DBNConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        if len(config.hidden) < 2:
            raise OptionError("hidden", f"got {list(config.hidden)}, expected at least two layers; one layer is an rbm")
        if levels != 2:
            raise OptionError("levels", f"got {levels}, expected 2: the pixels are binary units")
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

    @property
    def energy(self) -> Harmonium:
        """The machine at the top."""
        return self.top

    def normalized(self, partition: Partition | None) -> NormalizedDBN:
        """The model with the partition function of the machine at the top."""
        return (ClassifyingDBN if self.classes else NormalizedDBN)(self, partition)

    # Parts

    def part(self, name: str) -> Network:
        names = [f"layer_{number}" for number in range(1, len(self.layers) + 1)]
        if name not in names:
            raise KeyError(f"got {name}, expected {', '.join(names[:-1])} or {names[-1]}")
        found = self.layers[names.index(name)]
        assert isinstance(found, Network)
        return found

    def _number(self, part: Network) -> int:
        """The place of a part, 0 nearest the image."""
        return [layer is part for layer in self.layers].index(True)

    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        """Units drawn on the way up, ``[B, 1, 1, units]``, for the top with the class behind them as a one-hot
        vector."""
        part = self.part(name)
        if part is self.layers[0]:
            return batch._replace(y=None)
        seen = self.ascend(batch.x, generator, depth=self._number(part)).states[-1]
        if part is self.top:
            seen = self.top_state(seen, batch.y)
        return Batch(seen.flatten(1)[:, None, None].long(), start=batch.start)

    def energy_images(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        return self.view(f"layer_{len(self.layers)}", batch, generator).x

    @torch.no_grad()
    def begin_part(self, name: str, kept: Container[str] = ()) -> frozenset[str]:
        """The recognition weights of the layer below become its couplings, and the layer begins as that one turned
        round where the sizes allow it."""
        number = self._number(self.part(name))
        if number == 0:
            return frozenset()
        below = self.lower[number - 1]
        values: dict[str, Tensor] = {}
        if self.config.untied:
            values[f"recognition.{number - 1}"] = below.weight
        if self.config.hidden[number] == below.dims:
            turned = {"weight": below.weight.T, "b": below.c, "c": below.b}
            values |= {f"layers.{number}.{key}": value for key, value in turned.items()}
        values = {key: value for key, value in values.items() if key not in kept}
        weights = dict(self.named_parameters())
        for key, value in values.items():
            weights[key].copy_(value.reshape(weights[key].shape))
        return frozenset(values)

    # Up and down

    def recognition_input(self, number: int, below: Tensor) -> Tensor:
        """Natural parameters of hidden layer ``number`` (0 is nearest the image) given what is below it, under q:
        ``[B, units]``."""
        layer = self.lower[number]
        if not self.config.untied:
            return layer.hidden_input(below)
        return torch.addmm(layer.c, below.flatten(1), self.recognition[number])

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
            inputs, last = layer.visible_input(states[0]), number == 0
            drawn = (
                layer.visible.mean(inputs) if last and means else layer.visible.sample(inputs, generator, temperature)
            )
            states.insert(0, drawn if last else drawn.flatten(1))
        return states

    def forward(self, wake: Sequence[Tensor], start: Tensor, end: Tensor, sleep: Sequence[Tensor]) -> dict[str, Tensor]:
        """What up-down lowers, ``[B]`` each: minus log p of states that were drawn on the way up, each layer given the
        one above (``generative``); F of the top at the start of a chain minus F at its end (``top``); and minus log q
        of states that were drawn on the way down (``recognition``).

        Arguments:
            wake: states of images and of the hidden layers below the top.
            start, end: visible states of the top.
            sleep: states of images and of the hidden layers below the top.
        """
        numbers = range(len(self.layers) - 1)
        generative = [-self.log_below(i, wake[i], wake[i + 1]) for i in numbers]
        found = [self.lower[i].hidden.log_prob(sleep[i + 1], self.recognition_input(i, sleep[i])) for i in numbers]
        top = self.top.state_free_energy(start) - self.top.state_free_energy(end)
        return {
            "generative": torch.stack(generative).sum(0),
            "top": top,
            "recognition": -torch.stack(found).sum(0),
        }

    def log_class_probabilities(self, x: Tensor) -> Tensor:
        """log p(y | h) at the top, where probabilities that are computed on the way up stand for states: ``[B,
        classes]``, nats. For a network with classes."""
        assert isinstance(self.top, LabelRBM)
        return self.top.log_class_probabilities(self.ascend(x, sample=False).states[-1])


class NormalizedDBN(LatentModel, WithPartition):
    """A deep belief network with the partition function of its top: a lower bound on log p(x) or, with an estimated
    partition function, an estimate (module docstring).

    Arguments:
        network: with its weights.
        partition: of the machine at the top; None: it is not known, and only samples can be drawn.
    """

    def __init__(self, network: DBN, partition: Partition | None) -> None:
        super().__init__(network.shape, network.levels, network.config, network.classes)
        self.network = network
        self.partition = partition

    @property
    def name(self) -> str:  # type: ignore[override]  # of the network, which recipes know
        """The network's."""
        return self.network.name

    @property
    def saved(self) -> Network:
        """The network."""
        return self.network

    @property
    def claim(self) -> Kind:
        """A lower bound."""
        return Kind.LOWER_BOUND

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """The bound with one draw on the way up, entropies in closed form; with classes about log p(x, y)."""
        self.check_images(x)
        self.check_labels(y, len(x))
        partition = known(self.partition, self.name)
        ascent = self.network.ascend(x, generator)
        terms = self.log_joint(ascent.states, y)
        entropies, log_q = [], []
        for layer, inputs, state in zip(self.network.lower, ascent.inputs, ascent.states[1:], strict=True):
            entropies.append(-layer.hidden.log_prob(layer.hidden.mean(inputs), inputs))
            log_q.append(layer.hidden.log_prob(state, inputs))
        log_z = torch.full_like(entropies[0], partition.log_z)
        joint = {**terms, "negative_log_z": -log_z}

        def log_weight_fn(joint_alone: bool = False) -> Tensor:
            total = torch.stack([term.double() for term in joint.values()]).sum(0)
            return total if joint_alone else total - torch.stack(log_q).double().sum(0)

        about = About.X_AND_Y if self.classes else About.X
        kind = Kind.weakest(partition.kind, self.claim)
        stated = {**terms, "entropy": torch.stack(entropies).sum(0), "negative_log_z": -log_z}
        return Evidence(stated, kind, log_weight_fn, about=about, dims=self.dims)

    def log_joint(self, states: Sequence[Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of log p(x, h) + log Z for states as :class:`Ascent` has them, ``[B]`` each, nats."""
        network = self.network
        terms = {"reconstruction": network.log_below(0, states[0], states[1])}
        for number in range(1, len(states) - 1):
            terms[f"hidden/{number}"] = network.log_below(number, states[number], states[number + 1])
        terms["negative_free_energy"] = -network.top.state_free_energy(network.top_state(states[-1], y))
        return terms

    @torch.no_grad()
    def latents(self, x: Tensor, sample: bool = False, generator: Generator | None = None) -> list[Tensor]:
        """Probabilities of the hidden units below the top machine's hidden layer, computed one from the other on the
        way up, or states drawn there; ``[B, units]``, the top first."""
        self.check_images(x)
        return self.network.ascend(x, generator, sample).states[:0:-1]

    def decode(self, latents: Sequence[Tensor]) -> Distribution:
        """p(x | h^1): the layers above say nothing more about the image."""
        shapes = [[size] for size in self.config.hidden[-2::-1]]
        if [list(z.shape[1:]) for z in latents] != shapes:
            got = [list(z.shape) for z in latents]
            raise ValueError(f"latents: got {got}, expected {[['B', *shape] for shape in shapes]}")
        return Bernoulli(self.network.lower[0].visible_input(latents[-1]))

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """One pass down from the ends of ``n`` Gibbs chains at the top, which begin at independent units and are
        :attr:`davi.model.Energy.chain_steps` long; classes are held fixed.

        Raises:
            UserError: a ``ValueError``, if the temperature is 0.
        """
        factor = check_draw(n, temperature)
        if factor == 0.0:
            raise UserError("temperature: got 0, expected a number above 0, by which energies are divided")
        network, top = self.network, self.network.top
        units = Bits((self.config.hidden[-2],))
        bits = units.sample(top.visible_field().new_zeros(n, *units.shape), generator)
        start = network.top_state(bits, y)
        if isinstance(top, LabelRBM):
            end = top.given_label(start, top.chain_steps, generator, factor)
        else:
            end = top.state_gibbs(start, top.chain_steps, generator, factor)
        states = network.descend(network.top_bits(end), generator, factor)
        return network.lower[0].images(states[0])


@final
class ClassifyingDBN(NormalizedDBN, Classifying):
    """A deep belief network of images and classes."""

    def log_class_probabilities(self, x: Tensor) -> Tensor:
        """Of the machine at the top, given probabilities that are computed on the way up."""
        self.check_images(x)
        return self.network.log_class_probabilities(x)
