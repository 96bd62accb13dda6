"""When numbers are no longer finite: a diagnosis, and the rollback."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from davi.errors import UserError
from davi.runs import PrintFunction, checkpoint_folders
from davi.training import checkpoint
from davi.training.parallel import Processes
from davi.training.state import State

MOST_ROLLBACKS = 3
RATE_FACTOR = 0.5
"""Factor on the learning rate of each rollback."""


class NotFiniteError(UserError):
    """Training cannot go on from here.

    Arguments:
        what: what happened.
        where: the term, layer or parameter that is not finite.
        step: the step after which it was found.
        run: the run's folder, whose last checkpoint is named.
    """

    def __init__(self, what: str, where: str, step: int, run: Path) -> None:
        folders = checkpoint_folders(run)
        last = f"the last good checkpoint is {folders[-1]}" if folders else "there is no checkpoint yet"
        super().__init__(f"training: {what}, {where}; {last}")
        self.where, self.step = where, step


def diagnosis(names: Sequence[str], values: Sequence[float], model: nn.Module) -> str:
    """Where a step's numbers stopped being finite: the first term of the evidence, else the first gradient.

    Arguments:
        names: ``loss``, then the terms.
        values: their means over the batch.
        model: with its gradients.
    """
    for name, value in zip(names[1:], values[1:], strict=True):
        if not math.isfinite(value):
            return f"first in the term {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"first in the gradient of {name}"
    return "in the objective alone"


@torch.no_grad()
def first_layer(model: nn.Module, parts: int, compute: Callable[[int], object]) -> str | None:
    """The module whose output is the first that is not finite when the parts of a batch pass the model again.

    Arguments:
        model: its running statistics change.
        parts: how many there are.
        compute: lets a part pass the model, given its number.
    """
    found: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        for number in range(parts):
            compute(number)
            if found:
                return found[0]
    finally:
        for handle in handles:
            handle.remove()
    return None


def spoiled(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite.

    Largest magnitudes, not lengths: those of weights that are large but finite can overflow.
    """
    named = {name: x for name, x in tensors.items() if x.is_floating_point() and x.numel()}
    finite = torch.stack(torch._foreach_norm(list(named.values()), math.inf)).isfinite().tolist()
    return next((name for name, good in zip(named, finite, strict=True) if not good), None)


def rollback(failure: NotFiniteError, step: int, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of a rollback.

    Arguments:
        failure: why.
        step: of the checkpoint.
        before: records of earlier rollbacks.
    """
    factor = RATE_FACTOR ** (len(before) + 1)
    return {"step": step, "failed_step": failure.step, "where": failure.where, "learning_rate_factor": factor}


def go_back(
    failure: NotFiniteError,
    processes: Processes,
    state: State,
    run: Path,
    print_fn: PrintFunction,
) -> None:
    """Put the state where the last good checkpoint was taken, to go on from there with a lower learning rate.

    The order of the images is the same again; only the learning rate differs. The clock is not put back.
    """
    before, seconds, parts, place = state.rollbacks, state.seconds, state.parts, state.place
    if state.config.step_filter.on_nan == "stop":
        raise failure
    if len(before) == MOST_ROLLBACKS:
        raise UserError(f"{failure}; {MOST_ROLLBACKS} rollbacks have not helped") from None
    processes.main_first(lambda: checkpoint.resume(run, state, state.sets.protocol, print_fn))
    state.rollbacks = [*before, rollback(failure, state.step, before)]
    state.seconds = seconds
    if state.place == place:  # else the stage before has its own, which are found when it begins again
        state.parts = parts
    state.step_filter.forget()
    state.optimizer.zero_grad()
