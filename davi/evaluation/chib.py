r"""How probable a deep belief network finds images, by Markov chains over its hidden layers: Chib's way, unbiased.

For any state h* of the hidden layers below the top

.. math:: p(x) = \frac{p(x, h^*)}{p(h^* \mid x)}

and the probability of h* is found by a chain that leaves :math:`p(h \mid x)` alone, with transitions T and, in the
opposite order, :math:`\tilde T`: with s drawn evenly from 1 to S,

.. math:: h^{(s)} \sim \tilde T(\cdot \leftarrow h^*), \qquad
          h^{(t+1)} \sim T(\cdot \leftarrow h^{(t)}) \text{ for } t \ge s, \qquad
          h^{(t-1)} \sim \tilde T(\cdot \leftarrow h^{(t)}) \text{ for } t \le s,

.. math:: \hat p(x) = p(x, h^*) \Big/ \frac 1S \sum_{t=1}^S T(h^* \leftarrow h^{(t)}), \qquad E[\hat p(x)] = p(x)

The expectation of :math:`\log \hat p(x)` is therefore at most :math:`\log p(x)`, whatever S and h*; with an estimated
partition function it is an estimate.

Here a transition draws every hidden unit once given all others, the image and, where there is one, the class; the
hidden layer at the top is summed out,

.. math:: \operatorname{logit} p(h^l_j = 1 \mid \ldots) =
          \log \frac{p(h^{l-1} \mid h^l_j = 1)}{p(h^{l-1} \mid h^l_j = 0)}
          + \log \frac{p(h^l_j = 1 \mid h^{l+1})}{p(h^l_j = 0 \mid h^{l+1})}

with free energies of the top in the last fraction for :math:`l = L - 1`. The state h* is drawn from q, moved by some
transitions, and then uphill: for each unit its more probable value.

References:
    Evaluating probabilities under high-dimensional latent variable models, I. Murray, R. Salakhutdinov, NeurIPS 2008,
    https://papers.nips.cc/paper/2008/hash/38913e1d6a7b94cb0f55994f679f5956-Abstract.html

    Marginal Likelihood from the Gibbs Output, S. Chib, Journal of the American Statistical Association 1995,
    https://doi.org/10.1080/01621459.1995.10476635
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from davi.batch import Batch
from davi.data.subsets import positions
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import Array, Evaluation
from davi.evaluation.streaming import double
from davi.evidence import About
from davi.model import Model, known
from davi.models.dbn_bound import NormalizedDBN

CHIB = "Chib-style estimate"
"""Name of the measure."""
CHIB_IMAGES = 20
"""At most so many images, spread evenly over those that are evaluated, are estimated for the measure."""
CHIB_STEPS = 30
"""S, for the measure."""
_BEFORE, _UPHILL = 10, 2
"""Transitions from a draw of q to h*, and then steps uphill."""
_AT_ONCE = 2**23
"""Numbers that a pass over many states holds at once."""


def chib_rule(about: About) -> str:
    """What the measure is, in the words that go into every result.

    Arguments:
        about: what the claim of the model is about.
    """
    log_p = f"log p({about.value})"
    return (
        f"{log_p}: the mean bound of all images, and by how much Chib-style estimates (S = {CHIB_STEPS}) of some lie "
        f"above theirs; in expectation at most {log_p}, but for an estimated partition function"
    )


@final
class HiddenChain:
    """Transitions of the hidden layers below the top of a deep belief network, given images (module docstring).

    States are lists of ``[B, units]``, of the layer nearest the image first.

    Arguments:
        model: the network.
        x: integer images, ``[B, C, H, W]``.
        y: their classes, for a model with classes.
    """

    def __init__(self, model: NormalizedDBN, x: Tensor, y: Tensor | None = None) -> None:
        self.model, self.network, self.y = model, model.network, y
        self.image = self.network.lower[0].state(x)
        lower, top = self.network.lower, self.network.top
        self.down = []  # what a unit adds to the input of all those below it, [units, ...]
        for layer in lower:
            alone = torch.eye(layer.hidden.shape[0], dtype=self.image.dtype, device=self.image.device)
            self.down.append(layer.visible_input(alone) - layer.visible_input(torch.zeros_like(alone[:1])))
        bits = lower[-1].hidden.shape[0]
        count = top.visible_field().numel()
        alone = torch.eye(count, dtype=self.image.dtype, device=self.image.device).view(count, *top.visible.shape)
        self.up = (top.hidden_input(alone) - top.hidden_field())[:bits]  # what it adds to the hidden units of the top

    def log_joint(self, h: list[Tensor]) -> Tensor:
        """log p(x, h) + log Z of states, ``[B]``, float64."""
        terms = self.model.log_joint([self.image, *h], self.y)
        return torch.stack([double(term) for term in terms.values()]).sum(0)

    def pass_over(
        self,
        h: list[Tensor],
        choose: Callable[[int, int, Tensor], Tensor],
        backward: bool = False,
        copies: int = 1,
    ) -> tuple[list[Tensor], Tensor]:
        """Visit every unit once.

        Arguments:
            h: states, ``[copies * B, units]`` each, of each image all copies one after the other.
            choose: ``choose(layer, unit, logit)`` gives the new values of a unit, 0 or 1, ``[copies * B]``.
            backward: in the opposite order.
            copies: states of each image.

        Returns:
            The states after that, and the log-probability of all that was chosen, ``[copies * B]``, float64.
        """
        h = list(h)
        total = torch.zeros(len(h[0]), dtype=torch.float64, device=h[0].device)
        for layer in _ordered(len(h), backward):
            h[layer], found = self._layer(h, layer, choose, backward, copies)
            total = total + found
        return h, total

    def _layer(
        self,
        h: list[Tensor],
        layer: int,
        choose: Callable[[int, int, Tensor], Tensor],
        backward: bool,
        copies: int,
    ) -> tuple[Tensor, Tensor]:
        """A layer's turn in :meth:`pass_over`."""
        states, own = h[layer].clone(), self.network.lower[layer]
        below = self.image.repeat_interleave(copies, 0) if layer == 0 else h[layer - 1].view(-1, *own.visible.shape)
        down, inputs = self.down[layer], own.visible_input(states)
        partition = own.visible.log_partition(inputs)  # A of what is below, as it is now
        pulls = below.flatten(1) @ down.flatten(1).T  # [B, units]
        above = self._above(h, layer, copies)
        total = torch.zeros(len(states), dtype=torch.float64, device=states.device)
        for unit in _ordered(states.shape[1], backward):
            now = states[:, unit]
            sign = 1.0 - 2.0 * now
            other = inputs + sign.view(-1, *[1] * (inputs.ndim - 1)) * down[unit]
            flipped = own.visible.log_partition(other)
            logit = pulls[:, unit] - sign * (flipped - partition) + above.logit(unit, now)
            new = choose(layer, unit, logit)
            total += double(logsigmoid((2.0 * new - 1.0) * logit))
            moved = new != now
            inputs = torch.where(moved.view(-1, *[1] * (inputs.ndim - 1)), other, inputs)
            partition = torch.where(moved, flipped, partition)
            above.move(unit, moved)
            states[:, unit] = new
        return states, total

    def _above(self, h: list[Tensor], layer: int, copies: int) -> _Directed | _Top:
        if layer + 1 < len(h):
            return _Directed(self.network.lower[layer + 1].visible_input(h[layer + 1]).flatten(1))
        y = None if self.y is None else self.y.repeat_interleave(copies, 0)
        inputs = self.network.top.hidden_input(self.network.top_state(h[layer], y))
        return _Top(inputs, self.up, self.network.top.visible_field().flatten(), self.network.top.hidden.log_partition)


@final
class _Directed:
    """What units hear from a directed layer above them: the same, whatever they are."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def logit(self, unit: int, now: Tensor) -> Tensor:
        return self.inputs[:, unit]

    def move(self, unit: int, moved: Tensor) -> None:
        return


@final
class _Top:
    """What units hear from the machine at the top, whose hidden units are summed out."""

    def __init__(self, inputs: Tensor, rows: Tensor, field: Tensor, log_partition: Callable[[Tensor], Tensor]) -> None:
        self.inputs, self.rows, self.field, self.log_partition = inputs, rows, field, log_partition
        self.partition = log_partition(inputs)

    def logit(self, unit: int, now: Tensor) -> Tensor:
        sign = 1.0 - 2.0 * now
        self.other = self.inputs + sign[:, None] * self.rows[unit]
        self.flipped = self.log_partition(self.other)
        return self.field[unit] + sign * (self.flipped - self.partition)

    def move(self, unit: int, moved: Tensor) -> None:
        self.inputs = torch.where(moved[:, None], self.other, self.inputs)
        self.partition = torch.where(moved, self.flipped, self.partition)


def _ordered(count: int, backward: bool) -> Iterable[int]:
    return reversed(range(count)) if backward else range(count)


@torch.no_grad()
def chib_log_likelihood(
    model: NormalizedDBN,
    x: Tensor,
    y: Tensor | None = None,
    steps: int = 100,
    generator: Generator | None = None,
    start: list[Tensor] | None = None,
) -> Tensor:
    """Estimates of log p(x), or log p(x, y) with classes (module docstring), without gradients.

    Every transition takes as many small steps as there are hidden units below the top, all images side by side. One s
    is drawn for all images.

    Arguments:
        model: with its partition function.
        x: integer images, ``[B, C, H, W]``.
        y: their classes, for a model with classes.
        steps: S.
        generator: source of the draws; torch's default when None.
        start: h*, of the layer nearest the image first, ``[B, units]`` each; None: found as the module docstring says.

    Returns:
        ``[B]``, float64, nats.

    Raises:
        ValueError: if ``steps`` is not positive.
        UserError: if the partition function is not known.
    """
    model.check_images(x)
    model.check_labels(y, len(x))
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    log_z = known(model.partition, model.name).log_z
    chain = HiddenChain(model, x, y)

    def draw(layer: int, unit: int, logit: Tensor) -> Tensor:
        noise = torch.rand(logit.shape, generator=generator, dtype=logit.dtype, device=logit.device)
        return (noise < logit.sigmoid()).to(logit.dtype)

    h = start if start is not None else _probable(chain, model.network.ascend(x, generator).states[1:], draw)
    place = int(torch.randint(1, steps + 1, (), generator=generator, device=x.device))
    first, _ = chain.pass_over(h, draw, backward=True)
    states = [first]
    for count, backward in ((steps - place, False), (place - 1, True)):
        state = first
        for _ in range(count):
            state, _ = chain.pass_over(state, draw, backward)
            states.append(state)
    return chain.log_joint(h) - log_z - _log_mean_transition(chain, states, h)


def _probable(chain: HiddenChain, h: list[Tensor], draw: Callable[[int, int, Tensor], Tensor]) -> list[Tensor]:
    """A state that is probable given the images, from one that is drawn from q."""
    for _ in range(_BEFORE):
        h, _ = chain.pass_over(h, draw)
    for _ in range(_UPHILL):
        h, _ = chain.pass_over(h, lambda layer, unit, logit: (logit > 0.0).to(logit.dtype))
    return h


def _log_mean_transition(chain: HiddenChain, states: list[list[Tensor]], target: list[Tensor]) -> Tensor:
    """log of the mean of T(target <- state) over states, ``[B]``, float64."""
    widest = max(chain.image[0].numel(), chain.up.shape[1])
    together = max(1, _AT_ONCE // (widest * len(target[0])))
    found = []
    for begin in range(0, len(states), together):
        some = states[begin : begin + together]
        stacked = [torch.stack(layer, 1).flatten(0, 1) for layer in zip(*some, strict=True)]  # [B * copies, units]
        wanted = [layer.repeat_interleave(len(some), 0) for layer in target]
        _, log_p = chain.pass_over(stacked, partial(_given, wanted), copies=len(some))
        found.append(log_p.view(-1, len(some)))
    return torch.cat(found, 1).logsumexp(1) - math.log(len(states))


def _given(wanted: list[Tensor], layer: int, unit: int, logit: Tensor) -> Tensor:
    """What a unit is to become."""
    return wanted[layer][:, unit]


@final
class ChibEstimate(Meter):
    """The mean log-likelihood of all images: their mean bound, and what :data:`CHIB_IMAGES` of them have above theirs.

    That difference varies far less from image to image than the log-likelihood itself.
    """

    name = CHIB
    wants = NormalizedDBN

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, NormalizedDBN)
        self._model = model
        self._places = positions(images, CHIB_IMAGES)
        self._seen = 0
        self._found: list[Array] = []
        self._generator = Generator(next(model.parameters()).device).manual_seed(seed)

    def add(self, batch: Batch) -> None:
        own = self._places[(self._places >= self._seen) & (self._places < self._seen + len(batch.x))] - self._seen
        self._seen += len(batch.x)
        if not len(own):
            return
        chosen = own.to(batch.x.device)
        y = None if batch.y is None else batch.y[chosen]
        found = chib_log_likelihood(self._model, batch.x[chosen], y, CHIB_STEPS, self._generator)
        self._found.append(found.cpu().numpy())

    def measure(self, evaluation: Evaluation) -> Measure | None:
        bound, found = evaluation.bound, np.concatenate(self._found)
        if len(found) < 2:
            return None
        above = found - bound[self._places.numpy()]
        error = math.sqrt(bound.var(ddof=1) / len(bound) + above.var(ddof=1) / len(above))
        value = float(bound.mean() + above.mean())
        rule = chib_rule(evaluation.about)
        return Measure(CHIB, "nats", value, error, evaluation.kind, rule, images=len(found), draws=CHIB_STEPS)
