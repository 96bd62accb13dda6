r"""Harmoniums: energies of two layers of units, each independent within itself given the other.

With visible units v, hidden units h, fields b and c, and couplings W

.. math:: p(v, h) \propto m(v)\, m(h)\, e^{b \cdot v + c \cdot h + v \cdot W h}

Summed over h, with A the log of the sum over the states of a layer (:mod:`davi.layers.units`)

.. math:: F(v) = -b \cdot v - \log m(v) - A_h(c + W^\top v)

A path leads from independent visible units with fields a, the base, to the energy itself. At :math:`\beta` from 0 to 1

.. math:: F_\beta(v) = -\bigl((1 - \beta)\, a + \beta\, b\bigr) \cdot v - \log m(v)
          - A_h\bigl(\beta\,(c + W^\top v)\bigr), \qquad \log Z_0 = A_v(a) + A_h(0)

with one step of Gibbs sampling :math:`h \sim \beta\,(c + W^\top v)`, then
:math:`v \sim (1 - \beta)\, a + \beta\,(b + W h)`. Annealed importance sampling and parallel tempering walk along it.

References:
    Exponential Family Harmoniums with an Application to Information Retrieval, M. Welling, M. Rosen-Zvi, G. Hinton,
    NeurIPS 2004, https://papers.nips.cc/paper/2004/hash/0e900ad84f63618452210ab8baae0218-Abstract.html

    On the Quantitative Analysis of Deep Belief Networks, R. Salakhutdinov, I. Murray, ICML 2008,
    https://doi.org/10.1145/1390156.1390266 (the path)
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, final

import torch
from torch import Generator, Tensor

from davi.layers.units import Bits, Units
from davi.model.bit_sums import log_sum
from davi.model.energy import Energy, Summable

_IN_CACHE, _ON_DEVICE = 2**16, 2**24
"""Natural parameters that a sum over states holds at once, on a CPU and on an accelerator. On a CPU it takes twice as
long with a hundred times more."""


class Clamped(NamedTuple):
    """A harmonium whose visible units are held at some states.

    Arguments:
        v: the states, ``[B, *visible.shape]``.
        inputs: natural parameters of the hidden units, ``[B, *hidden.shape]``.
        free_energy: F of the states, ``[B]``, nats.
    """

    v: Tensor
    inputs: Tensor
    free_energy: Tensor

    def split(self, first: int) -> tuple[Clamped, Clamped]:
        """The first so many of them, and the others."""
        pairs = [(tensor[:first], tensor[first:]) for tensor in self]
        one, other = zip(*pairs, strict=True)
        return Clamped(*one), Clamped(*other)


class Harmonium(Energy, Summable, ABC):
    """An energy of visible and hidden units (module docstring). States are tensors ``[B, *units.shape]`` in the type of
    the weights; integer images become states by :meth:`state`."""

    @property
    @abstractmethod
    def visible(self) -> Units:
        """The visible units."""

    @property
    @abstractmethod
    def hidden(self) -> Units:
        """The hidden units."""

    @abstractmethod
    def visible_field(self) -> Tensor:
        """b, in the shape of the visible units, ``[*visible.shape]``."""

    @abstractmethod
    def hidden_field(self) -> Tensor:
        """c, in the shape of the hidden units, ``[*hidden.shape]``."""

    @abstractmethod
    def hidden_input(self, v: Tensor) -> Tensor:
        """c + W v, the natural parameters of the hidden units given visible states: ``[B, *hidden.shape]``."""

    @abstractmethod
    def visible_input(self, h: Tensor) -> Tensor:
        """b + W h, the natural parameters of the visible units given hidden states: ``[B, *visible.shape]``."""

    # Integer images and states of the visible units

    @abstractmethod
    def state(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """The visible state of integer images ``[B, C, H, W]``; real units add noise from the generator."""

    @abstractmethod
    def images(self, v: Tensor) -> Tensor:
        """The integer images of visible states, ``[B, C, H, W]``."""

    def log_volume(self) -> Tensor:
        r""":math:`\log |\mathrm{d}v / \mathrm{d}x|`, by which the density of a real state becomes one of a dequantized
        image; a scalar, nats, 0 for discrete units."""
        return self.visible_field().new_zeros(())

    # The energy

    def free_energy(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return self.state_free_energy(self.state(x, generator)) - self.log_volume()

    def state_free_energy(self, v: Tensor) -> Tensor:
        """F of visible states ``[B, *visible.shape]``: ``[B]``, nats."""
        return self.clamp(v).free_energy

    def clamp(self, v: Tensor) -> Clamped:
        """Visible states ``[B, *visible.shape]`` with their free energies and what they send up."""
        inputs = self.hidden_input(v)
        return Clamped(v, inputs, -self._linear(self.visible_field(), v) - self.hidden.log_partition(inputs))

    def forward(self, x: Tensor, clamped: bool = False, beside: Tensor | None = None) -> Any:
        """:meth:`free_energy` of integer images; or, for training that needs more of them, :meth:`clamp` of their
        states and of those ``beside`` them, which come last."""
        if not clamped:
            return self.free_energy(x)
        v = self.state(x)
        return self.clamp(v if beside is None else torch.cat([v, beside]))

    @torch.no_grad()
    def gibbs(self, x: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return self.images(self.state_gibbs(self.state(x, generator), steps, generator, temperature))

    @torch.no_grad()
    def state_gibbs(
        self, v: Tensor, steps: int = 1, generator: Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Visible states after ``steps`` steps of Gibbs sampling, ``[B, *visible.shape]``."""
        for _ in range(steps):
            h = self.hidden.sample(self.hidden_input(v), generator, temperature)
            v = self.visible.sample(self.visible_input(h), generator, temperature)
        return v

    @torch.no_grad()
    def chain_states(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return self.state(x, generator)

    @torch.no_grad()
    def chain_gibbs(self, states: Tensor, steps: int = 1, generator: Generator | None = None) -> Tensor:
        return self.state_gibbs(states, steps, generator)

    @torch.no_grad()
    def chain_free_energy(self, states: Tensor) -> Tensor:
        return self.state_free_energy(states) - self.log_volume()

    @torch.no_grad()
    def chain_images(self, states: Tensor, generator: Generator | None = None) -> Tensor:
        return self.images(states)

    # The path from independent units

    @final
    def path_log_z(self, base: Tensor) -> Tensor:
        """log Z at the beginning of the path, a float64 scalar, nats.

        Arguments:
            base: a, ``[*visible.shape]``.
        """
        zero = torch.zeros_like(self.hidden_field()).double()
        return self.visible.log_partition(base.double()[None])[0] + self.hidden.log_partition(zero[None])[0]

    @final
    def path_free_energy(self, v: Tensor, beta: Tensor | float, base: Tensor) -> Tensor:
        """F at ``beta`` of visible states ``[B, *visible.shape]``: ``[B]``, nats.

        Arguments:
            v: visible states.
            beta: one for all, or ``[B]``.
            base: a, ``[*visible.shape]``.
        """
        along = beta.to(v.dtype) if isinstance(beta, Tensor) else beta
        linear = (1.0 - along) * _dot(base, v) + along * _dot(self.visible_field(), v) + self.visible.log_base(v)
        inputs = self.hidden_input(v).to(v.dtype)
        return -linear - self.hidden.log_partition(_spread(beta, inputs) * inputs)

    @final
    def path_log_ratio(self, v: Tensor, inputs: Tensor, lower: float, upper: float, base: Tensor) -> Tensor:
        """F at ``lower`` less F at ``upper`` of visible states, ``[B]``, nats, without the loss of digits of a
        difference.

        Arguments:
            v: visible states, ``[B, *visible.shape]``.
            inputs: :meth:`hidden_input` of them, ``[B, *hidden.shape]``.
            lower, upper: two values of beta, the lower first.
            base: a, ``[*visible.shape]``.
        """
        linear = (upper - lower) * _dot(self.visible_field() - base, v)
        return linear + self.hidden.log_partition_change(inputs, lower, upper)

    @final
    @torch.no_grad()
    def path_gibbs(
        self,
        v: Tensor,
        beta: Tensor | float,
        base: Tensor,
        generator: Generator | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Visible states after one step of Gibbs sampling at ``beta``; arguments as of :meth:`path_free_energy`.

        ``inputs`` are :meth:`hidden_input` of the states, where they are known already.
        """
        inputs = self.hidden_input(v) if inputs is None else inputs
        inputs = inputs.to(base.dtype)  # which autocast may have made less precise than beta has to be
        inputs = self.visible_input(self.hidden.sample(_spread(beta, inputs) * inputs, generator)).to(base.dtype)
        return self.visible.sample(torch.lerp(base, inputs, _spread(beta, inputs)), generator)

    # Exact sums

    @property
    def log2_states(self) -> float:
        return min(self.visible.log2_states, self.hidden.log2_states)

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """By enumeration of the layer with fewer states, in float64, in pieces."""
        own = self.hidden_field()
        other = copy.deepcopy(self).double()
        by_hidden = self.hidden.log2_states <= self.visible.log2_states
        units, width = (self.hidden, self.visible) if by_hidden else (self.visible, self.hidden)
        if isinstance(units, Bits) and isinstance(width, Bits):
            found = other._log_partition_of_bits(by_hidden)
            if found is not None:
                return found
        at_once = max(1, (_IN_CACHE if own.device.type == "cpu" else _ON_DEVICE) // max(1, _size(width)))
        count = round(2**units.log2_states)
        like = own.new_empty(0, dtype=torch.float64)
        total = like.new_full((), -torch.inf)
        for first in range(0, count, at_once):
            states = units.states(first, min(at_once, count - first), like)
            if by_hidden:
                log_p = other.visible.log_partition(other.visible_input(states)) + _dot(other.hidden_field(), states)
            else:
                log_p = -other.state_free_energy(states)
            total = torch.logaddexp(total, log_p.logsumexp(0))
        return total

    def _log_partition_of_bits(self, by_hidden: bool) -> Tensor | None:
        """The same for two layers of bits (:mod:`davi.model.bit_sums`); None where numbers might overflow."""
        units, field, inputs = (
            (self.hidden, self.hidden_field(), self.visible_input)
            if by_hidden
            else (self.visible, self.visible_field(), self.hidden_input)
        )
        count = _size(units)
        alone = torch.eye(count, dtype=field.dtype, device=field.device).view(count, *units.shape)
        offset = inputs(torch.zeros_like(alone[:1])).flatten()
        weights = inputs(alone).flatten(1) - offset
        at_once = _IN_CACHE if field.device.type == "cpu" else _ON_DEVICE // 16
        return log_sum(field.flatten(), offset, weights, at_once)

    def _linear(self, field: Tensor, v: Tensor) -> Tensor:
        """The field's share of minus the energy: field . v + log m(v), ``[B]``."""
        linear = _dot(field, v)
        return linear if self.visible.even else linear + self.visible.log_base(v)


def _dot(field: Tensor, states: Tensor) -> Tensor:
    """field . state of each, ``[B]``."""
    return states.flatten(1) @ field.flatten()


def _spread(beta: Tensor | float, like: Tensor) -> Tensor | float:
    """``beta`` with as many dimensions as states have, if there is one for each."""
    if not isinstance(beta, Tensor) or not beta.ndim:
        return beta
    return beta.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _size(units: Units) -> int:
    return torch.Size(units.shape).numel()
