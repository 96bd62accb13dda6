r"""Data-parallel training whose numbers are those of one process.

Every step's batch of B images is cut into parts. Part k with :math:`n_k` images contributes

.. math:: \mathcal L = \sum_k \frac{n_k}{B}\, \mathcal L_k, \qquad
          \mathrm{buffers} \leftarrow \sum_k \frac{n_k}{B}\, \mathrm{buffers}_k,

the model's draws in part k of step s depend on (seed, s, k) alone, and each part finds the running statistics as they
were before the step. So it does not matter which process computes which part: two processes with one part each do
what one process with two parts does, up to the order in which floating-point numbers are added.

References:
    PyTorch Distributed: Experiences on Accelerating Data Parallel Training, S. Li et al., VLDB 2020,
    https://arxiv.org/abs/2006.15704
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn

from davi.errors import UserError
from davi.layers.quantizer import Quantizer
from davi.metrics import Metrics
from davi.objectives import Objective
from davi.runs import PrintFunction
from davi.training.log import Log
from davi.training.tensorboard import Board

T = TypeVar("T")

_SEEDS_AHEAD = 100
"""Steps for which seeds are made at a time."""

_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""What launchers can ask Accelerate for (``ACCELERATE_USE_...``) that is more than copies of the model."""


class Processes:
    """The processes of a run, as ``torchrun`` or ``accelerate launch`` began them; a single one without these.

    Whatever is called here has to be called by all of them. A single process never waits for anything.

    Raises:
        UserError: if the launcher asks for more than processes: how they share the model is the recipe's to say.
    """

    def __init__(self) -> None:
        for name in _SHARDED:
            if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
                more = "; --training.compute.shard true shares the weights" if name == "FSDP" else ""
                raise UserError(f"training: got {name} from the launcher, expected data-parallel processes (DDP){more}")
        # Unless it is told to use the CPU, Accelerate takes each process on a machine without accelerator for alone.
        asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        self.on_cpu = asked or ("LOCAL_RANK" in os.environ and not torch.accelerator.is_available())
        self._state = PartialState(cpu=self.on_cpu)

    @property
    def count(self) -> int:
        """How many there are."""
        return self._state.num_processes

    @property
    def rank(self) -> int:
        """Number of this one, from 0."""
        return self._state.process_index

    @property
    def main(self) -> bool:
        """Whether this one writes files and speaks to the user."""
        return self.rank == 0

    def share(self, value: T) -> T:
        """The main process's value, for all."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self._state.device)
        return box[0]

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the main process's weights and buffers."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        box: list[Any] = [None] * self.count
        distributed.all_gather_object(box, value)
        return box

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over the processes."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def from_main(self, values: Tensor) -> Tensor:
        """The main process's values of a tensor."""
        if self.count > 1:
            values = values.clone()
            distributed.broadcast(values, 0)
        return values

    def sum_to_host(self, values: Tensor, more: Sequence[float]) -> list[float]:
        """Sums over the processes of numbers on the device and of numbers known here, in one transfer to the host."""
        if self.count == 1:
            return [*values.tolist(), *more]
        return self.sum(torch.cat([values.double(), values.new_tensor(more, dtype=torch.float64)])).tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of one process in all of them, so that none is left waiting.

        Raises:
            UserError: in every process that of the first process which has one.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as caught:
            if self.count == 1:
                raise
            error = caught
        for line in self.gather(None if error is None else str(error)):
            if line is not None:
                raise UserError(line) from None

    def main_first(self, act: Callable[[], T]) -> T:
        """Do something in the main process, then in the others, which find what it has left on the disk."""
        done: list[T] = []
        for turn in (True, False):
            with self.together():
                if self.main == turn:
                    done.append(act())
        return done[0]

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Let only the main process print while the block lasts; after it, the processes know no more of each other."""
        try:
            with Path(os.devnull).open("w") as nowhere, nullcontext() if self.main else redirect_stdout(nowhere):
                yield
        finally:
            self._state.destroy_process_group()


def parts_of_batch(batch_size: int, accumulate: int, processes: int, begun: int = 1) -> int:
    """Into how many parts a batch is cut: as few as are a multiple of all that is asked for.

    Arguments:
        batch_size: images per step, of all processes together.
        accumulate: parts asked for by the recipe.
        processes: how many share the work.
        begun: parts with which the run was begun; results stay the same only with these.

    Raises:
        UserError: if the batch cannot be cut that way.
    """
    parts = math.lcm(accumulate, processes, begun)
    if batch_size % parts:
        raise UserError(
            f"batch_size: got {batch_size} for {processes} processes and {math.lcm(accumulate, begun)} parts, expected "
            f"a multiple of {parts}"
        )
    return parts


def noise_seed(*key: int) -> int:
    """A seed for torch that depends on the key, such as (seed, step, part), and is unrelated to that of any other."""
    # Zeros at its end would make no difference to a SeedSequence, hence the 1.
    return int(np.random.SeedSequence((*key, 1)).generate_state(1, np.uint64)[0])


class NoiseSeeds:
    """:func:`noise_seed` of (seed, step, part), made for many steps at a time: between two steps of training a
    processor forgets how it is done, and would take ten times as long.

    Arguments:
        seed: of the run.
        parts: numbers of the parts that are asked for.
    """

    def __init__(self, seed: int, parts: Sequence[int]) -> None:
        self.seed, self.parts = seed, parts
        self.known: dict[tuple[int, int], int] = {}

    def __call__(self, step: int, part: int) -> int:
        """The seed of a part of a step."""
        if (step, part) not in self.known:
            steps = range(step, step + _SEEDS_AHEAD)
            self.known = {(ahead, own): noise_seed(self.seed, ahead, own) for ahead in steps for own in self.parts}
        return self.known[step, part]


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed torch's default generators, of which work on ``device`` draws.

    On a CPU alone it is quicker than ``torch.manual_seed``, which notes a traceback for devices that are not there.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


class RunningStatistics:
    """The buffers of a model over the parts of one step (module docstring).

    Real buffers become the mean over the parts; of whole numbers (a batch norm's count of batches) the last part's is
    kept, so they advance by one a step. Those of quantizers are left alone, to the last digit: no part moves them, but
    the objective, once the parts have ended.

    Arguments:
        model: its buffers are changed in place.
        processes: that compute the parts.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self.processes = processes
        quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
        others = {id(buffer) for quantizer in quantizers for buffer in quantizer.buffers()}
        self.buffers = [buffer for buffer in model.buffers() if id(buffer) not in others]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.real = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        self.mean = [torch.zeros_like(buffer) for buffer in self.real]

    def begin(self) -> None:
        """Remember them before the step."""
        _copy(self.buffers, self.before)
        if self.mean:
            torch._foreach_zero_(self.mean)

    def begin_part(self) -> None:
        """Put them where they were before the step."""
        _copy(self.before, self.buffers)

    undo = begin_part

    def end_part(self, weight: float) -> None:
        """Take in what a part has made of them; the weights of all parts sum to 1."""
        if self.mean:
            with torch.no_grad():
                torch._foreach_add_(self.mean, self.real, alpha=weight)

    def end(self) -> None:
        """Put them where all parts together have moved them."""
        if self.mean and self.processes.count > 1:
            flat = self.processes.sum(torch.cat([mean.flatten() for mean in self.mean]))
            parts = flat.split([mean.numel() for mean in self.mean])
            _copy([part.view_as(mean) for part, mean in zip(parts, self.mean, strict=True)], self.mean)
        _copy(self.mean, self.real)


class ObjectiveState:
    """The state of an objective over the parts of one step: what it was, to be put back, and what the processes have
    made of it together. Every process changes it by what its parts add, and the changes are summed.

    Arguments:
        objective: whose.
        processes: that compute the parts.
    """

    def __init__(self, objective: Objective, processes: Processes) -> None:
        self.objective, self.processes = objective, processes
        self.before: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Remember it before the step."""
        self.before = {name: tensor.clone() for name, tensor in self.objective.state().items()}

    def undo(self) -> None:
        """Put it where it was before the step."""
        if self.before:
            self.objective.load_state(self.before)

    def end(self) -> None:
        """Put it where all parts together have moved it."""
        if self.before and self.processes.count > 1:
            after = self.objective.state()
            moved = {name: self.processes.sum(after[name] - before) for name, before in self.before.items()}
            self.objective.load_state({name: before + moved[name] for name, before in self.before.items()})

    def share(self) -> None:
        """Put it where the main process has moved it after the step: a choice between two phases may hang on the last
        digit of a number."""
        if self.before and self.processes.count > 1:
            tensors = self.objective.state().items()
            self.objective.load_state({name: self.processes.from_main(tensor) for name, tensor in tensors})


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        with torch.no_grad():
            torch._foreach_copy_(target, source)


class SharedLog:
    """The log that the main process keeps. All processes call it, so that what cannot be written ends all of them.

    Arguments:
        log: the main process's; None in the others.
        processes: all of them.
    """

    def __init__(self, log: Log | None, processes: Processes) -> None:
        self._log, self._processes = log, processes

    def _tell(self, tell: Callable[[Log], None]) -> None:
        with self._processes.together():
            if self._log is not None:
                tell(self._log)

    def say(self, line: str) -> None:
        """See :meth:`davi.training.log.Log.say`."""
        if self._log is not None:
            self._log.say(line)

    def advance(self, fraction: float) -> None:
        """See :meth:`davi.training.log.Log.advance`."""
        if self._log is not None:
            self._log.advance(fraction)

    def pace(self, step: int, **values: Any) -> None:
        """See :meth:`davi.training.log.Log.pace`."""
        if self._log is not None:
            self._log.pace(step, **values)

    def train(self, step: int, **values: Any) -> None:
        """See :meth:`davi.training.log.Log.train`."""
        self._tell(lambda log: log.train(step, **values))

    def validation(self, step: int, **values: Any) -> None:
        """See :meth:`davi.training.log.Log.validation`."""
        self._tell(lambda log: log.validation(step, **values))

    def event(self, kind: str, step: int, **values: Any) -> None:
        """See :meth:`davi.training.log.Log.event`."""
        self._tell(lambda log: log.event(kind, step, **values))


@contextmanager
def shared_log(
    processes: Processes, run: Path, step: int, print_fn: PrintFunction, tensorboard: bool
) -> Iterator[SharedLog]:
    """Open the log of a run after so many steps; what was logged about later ones is void."""
    with ExitStack() as stack:
        log = None
        with processes.together():
            if processes.main:
                board = Board(run, step) if tensorboard else None
                log = stack.enter_context(Log(Metrics(run, step), print_fn, board))
        yield SharedLog(log, processes)
