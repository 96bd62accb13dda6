r"""The deep belief network: a restricted Boltzmann machine on top of directed layers of binary units.

With hidden layers :math:`h^1, \dots, h^L` and image :math:`x = h^0`

.. math:: p(x, h^1, \dots, h^{L-1}) = \prod_{l=1}^{L-1} p(h^{l-1} \mid h^l)\; \frac{e^{-F(h^{L-1})}}{Z}, \qquad
          p(h^{l-1} \mid h^l) \propto e^{(b_l + W_l h^l) \cdot h^{l-1}}

where F is the free energy of the machine at the top, in which :math:`h^L` is summed out. Hidden units are bits; pixels
are bits or, with more than two levels, Potts units (:mod:`davi.layers.pixel_units`). What lies below the top is
inferred on the way up, :math:`q(h^l_j = 1 \mid h^{l-1}) = \sigma(c_l + R_l^\top h^{l-1})_j`, and

.. math:: \log p(x) \ge E_q\Bigl[\log p(x \mid h^1) + \sum_{l=1}^{L-2} \log p(h^l \mid h^{l+1}) - F(h^{L-1})\Bigr]
          + H(q) - \log Z

**Layer by layer.** Layer l is trained as a restricted Boltzmann machine on states drawn below it; R is the W of that
machine. A layer whose two sizes are those of the layer below, exchanged, begins as its transpose,
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
from typing import final

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.layers.units import Bits
from davi.model import Conditional, Harmonium, Network, Partition, Staged, Unnormalized, WithChain, WithFilters
from davi.model.filters import combined
from davi.models.dbn_bound import ClassifyingDBN, NormalizedDBN
from davi.models.dbn_layers import BeliefNetwork, DBNConfig
from davi.models.label_rbm import LabelRBM


@final
class DBN(BeliefNetwork, Unnormalized, Staged, Conditional, WithChain, WithFilters):
    """A deep belief network (module docstring). Its parts are ``layer_1``, nearest the image, to ``layer_L``."""

    name = "dbn"
    Config = DBNConfig

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
        if self.config.hidden[number] == below.dims and isinstance(below.visible, Bits):
            turned = {"weight": below.weight.T, "b": below.c, "c": below.b}
            values |= {f"layers.{number}.{key}": value for key, value in turned.items()}
        values = {key: value for key, value in values.items() if key not in kept}
        weights = dict(self.named_parameters())
        for key, value in values.items():
            weights[key].copy_(value.reshape(weights[key].shape))
        return frozenset(values)

    # What can be looked at

    @property
    def filter_layers(self) -> int:
        return len(self.layers)

    @torch.no_grad()
    def receptive_fields(self, layer: int) -> Tensor:
        if layer == 1:
            return self.lower[0].receptive_fields(1)
        weight = self.layers[layer - 1].weight  # of bits, [below, own]
        assert isinstance(weight, Tensor)
        return combined(weight.T, self.receptive_fields(layer - 1))

    def chain_states(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """States of the top that are drawn on the way up; with classes one that is drawn given them."""
        with torch.no_grad():
            bits = self.ascend(x, generator).states[-1]
            if not isinstance(self.top, LabelRBM):
                return self.top_state(bits)
            p = self.top.log_class_probabilities(bits).exp()
            return self.top_state(bits, torch.multinomial(p, 1, generator=generator)[:, 0])

    def chain_gibbs(self, states: Tensor, steps: int = 1, generator: Generator | None = None) -> Tensor:
        return self.top.state_gibbs(states, steps, generator)

    @torch.no_grad()
    def chain_free_energy(self, states: Tensor) -> Tensor:
        return self.top.state_free_energy(states)

    @torch.no_grad()
    def chain_images(self, states: Tensor, generator: Generator | None = None) -> Tensor:
        """Drawn on the way down."""
        return self.lower[0].images(self.descend(self.top_bits(states), generator)[0])

    # Training as a whole

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
