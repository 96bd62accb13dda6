r"""The convolutional deep belief network.

Layers of convolutional restricted Boltzmann machines (:mod:`davi.models.conv_rbm`), trained one after the other. Layer
l + 1 sees the pooled units :math:`p_l` of layer l, drawn given what layer l sees; :math:`p_0 = x`. The stack is read
from the top: with E the energy of the top layer and Z its partition function,

.. math:: p(x, h) = \frac{e^{-F(p_{L-1})}}{Z} \prod_{l=1}^{L-1} p(h_l \mid p_l)\, p(p_{l-1} \mid h_l)

where of a block that is on each unit is equally probable, :math:`p(h_l \mid p_l) = \prod_{\text{on}} 1 / C^2`, and
:math:`p(p_{l-1} \mid h_l)` is that of layer l, fields :math:`b + \sum_k W^k * h^k`. With the factorial
:math:`q(h_l \mid p_{l-1})` of layer l, for all options,

.. math:: \log p(x) \ge E_q\Bigl[-F(p_{L-1}) + \sum_{l=1}^{L-1} \log
          \frac{p(h_l \mid p_l)\, p(p_{l-1} \mid h_l)}{q(h_l \mid p_{l-1})}\Bigr] - \log Z

One layer is its machine, with :math:`-F(x) - \log Z`.

Inference from below and above together (section 3.6 of the paper) belongs to another model, the undirected network

.. math:: \tilde p(x, h) \propto m(x)\, e^{b \cdot x + \sum_l h_l \cdot (c_l + W_l \star p_{l-1})}

in which the input of a unit of layer l is I plus what layer l + 1 sends to its block. It has no likelihood that can be
computed. Gibbs sampling of it gives features of an image (:meth:`ConvDBN.features`) and what is behind a mask
(:meth:`ConvDBN.fill`).

References:
    Convolutional Deep Belief Networks for Scalable Unsupervised Learning of Hierarchical Representations, H. Lee,
    R. Grosse, R. Ranganath, A. Ng, ICML 2009, https://doi.org/10.1145/1553374.1553453

    A fast learning algorithm for deep belief nets, G. E. Hinton, S. Osindero, Y.-W. Teh, Neural Computation 2006,
    https://www.cs.toronto.edu/~hinton/absps/fastnc.pdf (the bound)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import conv_transpose2d

from davi.batch import Batch
from davi.errors import UserError
from davi.evidence import Evidence, Kind
from davi.model import (
    Model,
    Network,
    Partition,
    Staged,
    Temperature,
    Unnormalized,
    WithChain,
    WithFilters,
    WithPartition,
    known,
)
from davi.model.base import check_draw
from davi.models.conv_rbm import ConvRBM, ConvRBMConfig


@dataclass(frozen=True)
class ConvDBNConfig:
    """One number for each layer, the lowest first.

    Arguments:
        filters: channels of hidden units.
        filter_size: height and width of a filter.
        pool: height and width of a block of hidden units, of which one pooled unit is made; 1: none are pooled.
        weight_std: standard deviation of the initial weights, the same in all layers.
        hidden_bias: initial field of the hidden units, the same in all layers.
    """

    filters: tuple[int, ...] = (24, 40)
    filter_size: tuple[int, ...] = (9, 5)
    pool: tuple[int, ...] = (2, 2)
    weight_std: float = 0.01
    hidden_bias: float = 0.0

    def __post_init__(self) -> None:
        for name in ("filters", "filter_size", "pool"):
            given = getattr(self, name)
            if not given or min(given) < 1:
                raise ValueError(f"{name}: got {list(given)}, expected one positive number for each layer")
            if len(given) != len(self.filters):
                raise ValueError(
                    f"{name}: got {len(given)} numbers, expected one for each of {len(self.filters)} layers"
                )
        if not 0 <= self.weight_std < math.inf:
            raise ValueError(f"weight_std: got {self.weight_std}, expected a finite number from 0")
        if not math.isfinite(self.hidden_bias):
            raise ValueError(f"hidden_bias: got {self.hidden_bias}, expected a finite number")

    def layer(self, number: int) -> ConvRBMConfig:
        """The options of a layer, counted from 0."""
        own = (self.filters[number], self.filter_size[number], self.pool[number])
        return ConvRBMConfig(*own, self.weight_std, self.hidden_bias)


@final
class ConvDBN(Unnormalized, Staged, WithChain, WithFilters):
    """A convolutional deep belief network (module docstring)."""

    name = "conv_dbn"
    Config = ConvDBNConfig
    config: ConvDBNConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: ConvDBNConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.layers = nn.ModuleList()
        for number in range(len(config.filters)):
            layer = ConvRBM(shape, levels, config.layer(number))
            self.layers.append(layer)
            shape, levels = layer.hidden.pooled_shape, 2

    def layer(self, number: int) -> ConvRBM:
        """A layer, counted from 0."""
        found = self.layers[number]
        assert isinstance(found, ConvRBM)
        return found

    @property
    def energy(self) -> ConvRBM:
        """The top layer."""
        return self.layer(-1)

    def normalized(self, partition: Partition | None) -> Model:
        """:class:`NormalizedConvDBN`."""
        return NormalizedConvDBN(self, partition)

    # Parts

    def part(self, name: str) -> Network:
        """``layer_1``, next to the image, ``layer_2`` ...: a convolutional restricted Boltzmann machine."""
        return self.layer(self._number(name))

    @torch.no_grad()
    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        """Pooled units of the layer below, drawn from the bottom up; images for the first layer."""
        below = self._number(name)
        if not below:
            return batch._replace(y=None)
        return Batch(self._pooled_below(batch.x, below, generator).to(torch.uint8), start=batch.start)

    def energy_images(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        return self.view(f"layer_{len(self.layers)}", batch, generator).x

    def _pooled_below(self, x: Tensor, number: int, generator: Generator | None) -> Tensor:
        """What a layer sees of images, drawn from the bottom up."""
        state = self.layer(0).state(x, generator)
        for below in range(number):
            layer = self.layer(below)
            state = layer.hidden.pool(layer.hidden.sample(layer.hidden_input(state), generator))
        return state

    def _number(self, name: str) -> int:
        names = [f"layer_{number + 1}" for number in range(len(self.layers))]
        if name not in names:
            raise KeyError(f"got {name}, expected {' or '.join(names)}")
        return names.index(name)

    # What can be looked at

    @torch.no_grad()
    def chain_states(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """What the top layer sees, drawn from the bottom up."""
        return self._pooled_below(x, len(self.layers) - 1, generator)

    def chain_gibbs(self, states: Tensor, steps: int = 1, generator: Generator | None = None) -> Tensor:
        return self.energy.state_gibbs(states, steps, generator)

    def chain_free_energy(self, states: Tensor) -> Tensor:
        return self.energy.chain_free_energy(states)

    @torch.no_grad()
    def chain_images(self, states: Tensor, generator: Generator | None = None) -> Tensor:
        """Drawn on the way down."""
        return self.descend(states, generator)

    @torch.no_grad()
    def descend(self, state: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Integer images drawn on the way down from what the top layer sees, ``[B, K, h, w]``; energies are divided by
        the temperature, the place of a unit in its block is always drawn evenly."""
        for number in reversed(range(len(self.layers) - 1)):
            layer = self.layer(number)
            inputs = layer.visible_input(layer.hidden.unpool(state, generator))
            state = layer.visible.sample(inputs, generator, temperature)
        return self.layer(0).images(state)

    @property
    def filter_layers(self) -> int:
        return len(self.layers)

    @torch.no_grad()
    def receptive_fields(self, layer: int) -> Tensor:
        """The filters of the first layer. Of a layer above, the sum of the filters below, placed where a unit looks for
        them and weighted by its own; each of the C x C positions that are pooled has an equal share."""
        found = self.layer(layer - 1).weight.detach().clone()
        for number in reversed(range(layer - 1)):
            below = self.layer(number)
            block = below.config.pool
            spread = found.repeat_interleave(block, 2).repeat_interleave(block, 3) / block**2
            found = conv_transpose2d(spread, below.weight)
        return found

    # Inference

    @torch.no_grad()
    def features(self, x: Tensor, sweeps: int = 0, generator: Generator | None = None) -> list[Tensor]:
        """Expected pooled units of each layer, ``[B, K, h, w]``, the lowest layer first.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
            sweeps: of Gibbs sampling, from below and above; expectations are averaged over the second half.
                0: from the bottom up, each layer given what is expected of the one below it.
            generator: source of the draws.
        """
        self.check_images(x)
        v = self.layer(0).state(x, generator)
        if not sweeps:
            return self._bottom_up(v)
        hidden = self._drawn_upwards(v, len(self.layers), generator)
        total = [torch.zeros_like(pooled) for pooled in self._bottom_up(v)]
        for sweep in range(sweeps):
            for number, inputs in enumerate(self._sweep(v, hidden, generator)):
                if sweep >= sweeps // 2:
                    total[number] += self.layer(number).hidden.pooled_mean(inputs)
        return [pooled / (sweeps - sweeps // 2) for pooled in total]

    @torch.no_grad()
    def fill(
        self, x: Tensor, given: Tensor, sweeps: int = 200, generator: Generator | None = None, layers: int | None = None
    ) -> Tensor:
        """What is expected behind a mask, by Gibbs sampling of the undirected network: levels as real numbers,
        ``[B, C, H, W]``, averaged over the second half of the sweeps; what is given is as it was.

        Arguments:
            x: integer images, ``[B, C, H, W]``; what is not given plays no part.
            given: true where a value is known, of a shape that can be expanded to that of ``x``.
            sweeps: of all layers and the values that are not given, at least 1.
            generator: source of the draws.
            layers: the lowest so many layers; None: all.

        Raises:
            ValueError: if there are no sweeps, or not so many layers.
        """
        self.check_images(x)
        count = len(self.layers) if layers is None else layers
        if sweeps < 1 or not 1 <= count <= len(self.layers):
            raise ValueError(
                f"sweeps, layers: got {sweeps}, {count}, expected at least 1, and 1 to {len(self.layers)} layers"
            )
        first = self.layer(0)
        known_v = first.state(x, generator)
        v = torch.where(given, known_v, first.visible.sample(first.visible_field().expand(x.shape), generator))
        hidden = self._drawn_upwards(v, count, generator)
        total = torch.zeros_like(v)
        for sweep in range(sweeps):
            self._sweep(v, hidden, generator)
            inputs = first.visible_input(hidden[0])
            v = torch.where(given, known_v, first.visible.sample(inputs, generator))
            if sweep >= sweeps // 2:
                total += first.visible.mean(inputs)
        return torch.where(given, x.to(total), first.expected_levels(total / (sweeps - sweeps // 2)))

    def _bottom_up(self, v: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for number in range(len(self.layers)):
            layer = self.layer(number)
            found.append(layer.hidden.pooled_mean(layer.hidden_input(found[-1] if found else v)))
        return found

    def _drawn_upwards(self, v: Tensor, layers: int, generator: Generator | None) -> list[Tensor]:
        """Hidden units of the lowest layers, each drawn given the pooled units below it."""
        found: list[Tensor] = []
        for number in range(layers):
            layer = self.layer(number)
            below = self.layer(number - 1).hidden.pool(found[-1]) if found else v
            found.append(layer.hidden.sample(layer.hidden_input(below), generator))
        return found

    def _sweep(self, v: Tensor, hidden: list[Tensor], generator: Generator | None) -> list[Tensor]:
        """Draw the hidden units of each layer given those below and above it, in place; the inputs that they had."""
        found = []
        for number in range(len(hidden)):
            layer = self.layer(number)
            inputs = layer.hidden_input(self.layer(number - 1).hidden.pool(hidden[number - 1]) if number else v)
            if number + 1 < len(hidden):
                inputs = inputs + layer.hidden.spread(self.layer(number + 1).sent_down(hidden[number + 1]))
            hidden[number] = layer.hidden.sample(inputs, generator)
            found.append(inputs)
        return found


@final
class NormalizedConvDBN(WithPartition):
    """A convolutional deep belief network with the partition function of its top layer.

    Arguments:
        network: with its weights.
        partition: of the top layer; None: it is not known, and only samples can be drawn.
    """

    network: ConvDBN

    @property
    def claim(self) -> Kind:
        """A lower bound; exact for one layer of binary units."""
        return self.network.energy.claim if len(self.network.layers) == 1 else Kind.LOWER_BOUND

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """The bound (module docstring), with one draw of the hidden units."""
        self.check_images(x)
        self.check_labels(y, len(x))
        partition = known(self.partition, self.name)
        *below, top = map(self.network.layer, range(len(self.network.layers)))
        state = self.network.layer(0).state(x, generator)
        log_joint, negative_log_q = dict[str, Tensor](), dict[str, Tensor]()
        for number, layer in enumerate(below):
            inputs = layer.hidden_input(state)
            h = layer.hidden.sample(inputs, generator)
            pooled = layer.hidden.pool(h)
            log_joint[f"hidden/{number}" if number else "reconstruction"] = layer.visible.log_prob(
                state, layer.visible_input(h)
            )
            log_joint[f"within_blocks/{number + 1}"] = layer.hidden.log_unpool(pooled)
            negative_log_q[f"negative_log_q/{number + 1}"] = -layer.hidden.log_prob(h, inputs)
            state = pooled
        log_joint["negative_free_energy"] = -top.state_free_energy(state)
        log_joint["negative_log_z"] = torch.full_like(log_joint["negative_free_energy"], -partition.log_z)
        image = "reconstruction" if below else "negative_free_energy"
        log_joint[image] = log_joint[image] + self.network.layer(0).log_volume()

        def log_weight_fn(joint: bool = False) -> Tensor:
            summed = log_joint if joint else terms
            return torch.stack([term.double() for term in summed.values()]).sum(0)

        kind, terms = Kind.weakest(partition.kind, self.claim), {**log_joint, **negative_log_q}
        if self.claim is Kind.EXACT:
            return Evidence(terms, kind, dims=self.dims, deterministic=True)
        return Evidence(terms, kind, log_weight_fn, dims=self.dims)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """From the ends of ``n`` Gibbs chains of the top layer, which begin with uniform noise, one pass down.

        Raises:
            UserError: a ``ValueError``, if the temperature is 0, by which energies are divided.
        """
        factor = check_draw(n, temperature)
        if factor == 0.0:
            raise UserError("temperature: got 0, expected a number above 0, by which energies are divided")
        top = self.network.energy
        noise = torch.randint(top.levels, (n, *top.shape), generator=generator, device=top.b.device)
        state = top.state_gibbs(top.state(noise, generator), top.chain_steps, generator, factor)
        return self.network.descend(state, generator, factor)
