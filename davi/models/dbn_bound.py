r"""A deep belief network with the partition function of its top: a bound on the probability of images.

.. math:: \log p(x) \ge E_q\Bigl[\log p(x \mid h^1) + \sum_{l=1}^{L-2} \log p(h^l \mid h^{l+1}) - F(h^{L-1})\Bigr]
          + H(q) - \log Z, \qquad
          w = \frac{p(x, h^1, \dots, h^{L-1})}{q(h^1, \dots, h^{L-1} \mid x)}, \quad E_q[w] = p(x)

The terms carry these names: ``reconstruction``, ``hidden/1`` and so on, ``negative_free_energy``, ``entropy`` and
``negative_log_z``. The entropy of each layer is in closed form given the one below, the rest is one draw. K importance
weights make a tighter bound (:func:`davi.evaluation.evaluate`), and a Markov chain another
(:mod:`davi.evaluation.chib`).

References:
    On the Quantitative Analysis of Deep Belief Networks, R. Salakhutdinov, I. Murray, ICML 2008,
    https://doi.org/10.1145/1390156.1390266
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions import Bernoulli, Categorical, Distribution
from davi.errors import UserError
from davi.evidence import About, Evidence, Kind
from davi.layers.units import Bits, Potts
from davi.model import Classifying, Conditional, LatentModel, Temperature, WithPartition, known
from davi.model.base import check_draw
from davi.models.dbn_layers import BeliefNetwork
from davi.models.label_rbm import LabelRBM


class NormalizedDBN(LatentModel, WithPartition):
    """A deep belief network with the partition function of its top: a lower bound on log p(x) or, with an estimated
    partition function, an estimate (module docstring).

    Arguments:
        network: with its weights.
        partition: of the machine at the top; None: it is not known, and only samples can be drawn.
    """

    network: BeliefNetwork

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
        log_joint = {**terms, "negative_log_z": -log_z}

        def log_weight_fn(joint: bool = False) -> Tensor:
            total = torch.stack([term.double() for term in log_joint.values()]).sum(0)
            return total if joint else total - torch.stack(log_q).double().sum(0)

        about = About.X_AND_Y if self.classes else About.X
        kind = Kind.weakest(partition.kind, self.claim)
        stated = {**terms, "entropy": torch.stack(entropies).sum(0), "negative_log_z": -log_z}
        return Evidence(stated, kind, log_weight_fn, about=about, dims=self.dims)

    def log_joint(self, states: Sequence[Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of log p(x, h) + log Z for states of the image and of the hidden layers below the top, ``[B]``
        each, nats."""
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
        layer = self.network.lower[0]
        inputs = layer.visible_input(latents[-1])
        return Categorical(inputs.movedim(-1, 1)) if isinstance(layer.visible, Potts) else Bernoulli(inputs)

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
class ClassifyingDBN(NormalizedDBN, Classifying, Conditional):
    """A deep belief network of images and classes."""

    class_claim = Kind.ESTIMATE

    def log_class_probabilities(self, x: Tensor) -> Tensor:
        """Of the machine at the top, given probabilities that are computed on the way up. They stand for hidden states,
        over which log p(y | x) of the network itself is a sum, so this is an estimate of that."""
        self.check_images(x)
        return self.network.log_class_probabilities(x)
