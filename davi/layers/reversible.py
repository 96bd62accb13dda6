r"""Residual networks that can be run backwards, and therefore need not keep their activations.

The feature map is kept in two halves. One *additive coupling step* changes one of them by a function of the other and
exchanges them:

.. math:: (x_1, x_2) \mapsto (y_1, y_2) = (\psi x_2,\; \psi x_1 + F(x_2)), \qquad
          x_2 = \psi^{-1} y_1, \quad x_1 = \psi^{-1}(y_2 - F(x_2))

where :math:`\psi` moves pixels into channels (:mod:`davi.layers.space_to_depth`) or is the identity, and F may be
anything. The unit of a RevNet, :math:`y_1 = x_1 + F(x_2),\; y_2 = x_2 + G(y_1)`, is two such steps.

:class:`Reversible` is a row of steps that keeps its last outputs alone. In the backward pass it goes through the steps
from the last to the first; at each it computes F once more, this time for its gradient too, and the value it gets is
what takes the step back. Memory for activations does not depend on the number of steps; the price is one further
forward pass.

**Drift.** In floating point :math:`(x_1 + F) - F` is not quite :math:`x_1`, and errors add up from step to step. They
stay within a row: each row keeps its own outputs, which are the inputs of what comes next, so that the error begins at
zero again wherever a row ends, that is, at the boundaries between stages. :meth:`davi.layers.Reversible.drift` reports
it.

References:
    The Reversible Residual Network: Backpropagation Without Storing Activations, A. N. Gomez, M. Ren, R. Urtasun,
    R. B. Grosse, NeurIPS 2017, https://arxiv.org/abs/1707.04585

    i-RevNet: Deep Invertible Networks, J.-H. Jacobsen, A. Smeulders, E. Oyallon, ICLR 2018,
    https://arxiv.org/abs/1802.07088
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from davi.distributions.base import at_least_float32
from davi.layers.checkpointed import Checkpointed, frozen_statistics
from davi.layers.space_to_depth import depth_to_space, space_to_depth

Halves = tuple[Tensor, Tensor]


@final
class AdditiveStep(nn.Module):
    """One additive coupling step (module docstring).

    Arguments:
        function: F, from ``[B, C, H, W]`` and the context to what is added, ``[B, block^2 C, H/block, W/block]``. It
            must not change its input in place.
        block: side of the blocks of pixels that psi moves into channels; 1: psi is the identity.
    """

    def __init__(self, function: nn.Module, block: int = 1) -> None:
        super().__init__()
        self.function = function
        self.block = block

    def extra_repr(self) -> str:
        return f"block={self.block}" if self.block > 1 else ""

    def forward(self, x1: Tensor, x2: Tensor, *context: Tensor) -> Halves:
        """``[B, C, H, W]`` each to ``[B, block^2 C, H/block, W/block]`` each."""
        return self.moved(x2), self.moved(x1) + self.function(x2, *context)

    def inverse(self, y1: Tensor, y2: Tensor, *context: Tensor) -> Halves:
        """The inputs of which ``y1`` and ``y2`` are the outputs. Batch norms have to be in the mode, or get the batch,
        that they had on the way there."""
        x2 = self.moved_back(y1)
        return self.moved_back(y2 - self.function(x2, *context)), x2

    def moved(self, x: Tensor) -> Tensor:
        """psi."""
        return space_to_depth(x, self.block)

    def moved_back(self, y: Tensor) -> Tensor:
        """The inverse of psi."""
        return depth_to_space(y, self.block)


@final
class Reversible(Checkpointed):
    """A row of additive steps whose activations are re-created in the backward pass.

    The gradients are those of plain differentiation, and so is everything else that a training step changes: running
    statistics move once (the second computation normalizes by the batch's statistics too), dropouts drop the same
    values, generators are left where one forward pass leaves them. Under autocast the two halves are float32, only the
    functions compute in the lower precision: in bfloat16 a step could not be taken back. A step may occur more than
    once. Gradients reach inputs, context and the functions' weights, and nothing else that a function might look at;
    gradients of gradients need ``recompute = False``.

    Arguments:
        steps: in the order of the forward pass.

    Attributes:
        recompute: re-create the activations from the outputs; False: keep them, as any other module does.
        monitored: measure the drift in each backward pass. The inputs are then kept as well.
    """

    recompute = True

    def __init__(self, steps: Sequence[AdditiveStep]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.monitored = False
        self._drift: Tensor | None = None

    def __iter__(self) -> Iterator[AdditiveStep]:
        for step in self.steps:
            assert isinstance(step, AdditiveStep)
            yield step

    def forward(self, x1: Tensor, x2: Tensor, *context: Tensor) -> Halves:
        """The halves after the last step.

        Arguments:
            x1, x2: ``[B, C, H, W]`` each.
            context: what every function gets besides its half; gradients reach it.
        """
        if x1.is_meta:  # there is nothing to keep
            return self.compute(x1, x2, *context)
        if torch.is_autocast_enabled(x1.device.type):
            x1, x2 = at_least_float32(x1), at_least_float32(x2)
        # A compiler that has got the whole row decides itself what it keeps.
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._forgetful(x1, x2, *context)
        return self.compute(x1, x2, *context)

    def compute(self, x1: Tensor, x2: Tensor, *context: Tensor) -> Halves:
        for step in self:
            x1, x2 = step(x1, x2, *context)
        return x1, x2

    def _forgetful(self, *inputs: Tensor) -> Halves:
        # Inputs and weights are arguments, so that autograd asks for their gradients and hands them on as ever.
        weights = {id(weight): weight for weight in self.parameters() if weight.requires_grad}
        result: Halves = _Forgetful.apply(self, len(inputs), *inputs, *weights.values())  # type: ignore[no-untyped-call]  # torch ships no annotation
        return result

    def inverse(self, y1: Tensor, y2: Tensor, *context: Tensor) -> Halves:
        """The inputs of which ``y1`` and ``y2`` are the outputs; see :meth:`AdditiveStep.inverse`."""
        for step in reversed(list(self)):
            y1, y2 = step.inverse(y1, y2, *context)
        return y1, y2

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the functions: what is between them is no work for a compiler."""
        for step in self:
            step.function.compile(*args, **kwargs)

    def drift(self) -> float | None:
        """The largest absolute difference between an input and what the last backward pass made of it; None if that
        has not been ``monitored``."""
        return None if self._drift is None else float(self._drift)

    def measure_drift(self, given: Halves, found: Halves) -> None:
        """Keep the largest difference, on the device."""
        differences = [(one - other).abs().amax() for one, other in zip(given, found, strict=True)]
        self._drift = torch.stack(differences).amax()


@final
class ReversibleStack(nn.Module):
    r"""Residual cells at one width, each as two additive steps on the halves of the channels.

    A cell :math:`x + f(x)` becomes :math:`y_1 = x_1 + F(x_2),\; y_2 = x_2 + G(y_1)`, with F and G built like f at half
    the width, so that both halves have changed after it.

    Arguments:
        channels: of input and output.
        cells: how many.
        function: makes an F of its number of channels.

    Raises:
        ValueError: if the number of channels is odd.
    """

    def __init__(self, channels: int, cells: int, function: Callable[[int], nn.Module]) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(
                f"reversible: got residual cells of {channels} channels, expected an even number: each half changes by "
                "a function of the other"
            )
        self.row = Reversible([AdditiveStep(function(channels // 2)) for _ in range(2 * cells)])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        x1, x2 = x.chunk(2, 1)
        return torch.cat(self.row(x1, x2), 1)


class _Kept(NamedTuple):
    """What a second computation has to find again."""

    states: list[_RandomState]
    """Before each step. Steps that draw nothing share one."""
    autocast: tuple[bool, torch.dtype]
    given: Halves | None
    """The inputs, if the drift is to be measured."""


class _RandomState(NamedTuple):
    """Of the generators that a function may draw from: the CPU's and the device's."""

    cpu: Tensor
    device: Tensor | None

    @staticmethod
    def now(device: torch.device) -> _RandomState:
        own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return _RandomState(torch.get_rng_state(), own)

    def equals(self, other: _RandomState) -> bool:
        same = self.device is None or (other.device is not None and torch.equal(self.device, other.device))
        return same and torch.equal(self.cpu, other.cpu)

    @contextmanager
    def restored(self, device: torch.device) -> Iterator[None]:
        """While the block lasts; then the generators go on from where they were."""
        before = _RandomState.now(device)
        self._set(device)
        try:
            yield
        finally:
            before._set(device)

    def _set(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device, device)


class _Forgetful(torch.autograd.Function):
    """A row of steps as one operation that saves its outputs and its context."""

    @staticmethod
    def forward(ctx: Any, row: Reversible, count: int, *tensors: Tensor) -> Halves:
        (x1, x2, *context), weights = tensors[:count], tensors[count:]
        device = x1.device
        # Plain attributes: saved like other tensors they would come back as copies, and they are no activations.
        ctx.row, ctx.weights = row, weights
        ctx.named = [dict(step.function.named_parameters(remove_duplicate=False)) for step in row]
        autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        states = [_RandomState.now(device)]
        y1, y2 = x1.detach(), x2.detach()
        with _autocast(device, autocast):
            for step in row:
                y1, y2 = step(y1, y2, *context)
                after = _RandomState.now(device)
                states.append(states[-1] if states[-1].equals(after) else after)
        ctx.kept = _Kept(states[:-1], autocast, (x1.detach(), x2.detach()) if row.monitored else None)
        ctx.condition = _condition(row, weights)
        ctx.save_for_backward(y1, y2, *context)
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g1: Tensor, g2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2, *context = ctx.saved_tensors
        row, kept = ctx.row, ctx.kept
        if ctx.condition != _condition(row, ctx.weights):
            raise RuntimeError(
                "a weight, a running statistic or the mode of a reversible row was changed between its forward and "
                "backward pass"
            )
        wanted = ctx.needs_input_grad[4:]
        context = [x.detach().requires_grad_(want) for x, want in zip(context, wanted, strict=False)]
        # Weights have others stand in for them, so that hooks on them see the sums alone, and once.
        weights = {id(weight): nn.Parameter(weight.detach()) for weight in ctx.weights}
        totals = _Totals([*(x for x in context if x.requires_grad), *weights.values()])
        halves, gradients = (y1, y2), (g1, g2)
        with frozen_statistics(row):
            for step, named, state in reversed(list(zip(row, ctx.named, kept.states, strict=True))):
                x2 = step.moved_back(halves[0]).detach().requires_grad_()
                own = {name: weights.get(id(weight), weight) for name, weight in named.items()}
                with state.restored(y1.device), _autocast(y1.device, kept.autocast), torch.enable_grad():
                    value = functional_call(step.function, own, (x2, *context))
                used = [*context, *{id(weight): weight for weight in own.values()}.values()]
                halves, gradients = _back(step, (x2, value), halves[1], gradients, used, totals)
        if kept.given is not None:
            row.measure_drift(kept.given, halves)
        of_weights = (totals.of(weights[id(weight)]) for weight in ctx.weights)
        return None, None, *gradients, *(totals.of(x) for x in context), *of_weights


def _condition(row: Reversible, weights: Sequence[Tensor]) -> tuple[bool, list[int]]:
    """What must be the same in the second computation: the mode, and the versions of weights and, where it is
    normalized by them, of running statistics."""
    statistics = [] if row.training else list(row.buffers())
    return row.training, [x._version for x in (*weights, *statistics)]


def _autocast(device: torch.device, enabled: tuple[bool, torch.dtype]) -> AbstractContextManager[None]:
    # Without its cache, which would hand weights cast outside of the graph to whoever uses them next.
    context: AbstractContextManager[None] = torch.autocast(
        device.type, enabled=enabled[0], dtype=enabled[1], cache_enabled=False
    )
    return context


class _Totals:
    """Gradients of tensors that several steps use."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = {id(x): x for x in tensors}
        self.sums: dict[int, Tensor] = {}

    def of(self, x: Tensor) -> Tensor | None:
        return self.sums.get(id(x))

    def add(self, x: Tensor, gradient: Tensor | None) -> None:
        if gradient is not None:
            before = self.of(x)
            self.sums[id(x)] = gradient if before is None else before + gradient


def _back(
    step: AdditiveStep,
    again: tuple[Tensor, Tensor],
    y2: Tensor,
    gradients: Halves,
    used: Sequence[Tensor],
    totals: _Totals,
) -> tuple[Halves, Halves]:
    """The inputs of a step and their gradients.

    Arguments:
        step: to take back.
        again: x2 and F(x2), computed anew with its graph; it serves both.
        y2: second output.
        gradients: of the outputs.
        used: context of the row and weights of the step.
        totals: where gradients of context and weights are added up.
    """
    (x2, value), (g1, g2) = again, gradients
    x1 = step.moved_back(y2 - value.detach())
    back1, back2 = step.moved_back(g2), step.moved_back(g1)
    if value.requires_grad:
        used = [x for x in used if id(x) in totals.tensors]
        found = torch.autograd.grad(value, [x2, *used], g2.to(value.dtype), allow_unused=True)
        back2 = back2 if found[0] is None else back2 + found[0]
        for x, gradient in zip(used, found[1:], strict=True):
            totals.add(x, gradient)
    return (x1, x2.detach()), (back1, back2)
