"""What a recipe will cost, from two real steps: memory by what it is for, and time.

References:
    Training Deep Nets with Sublinear Memory Cost, T. Chen, B. Xu, C. Zhang, C. Guestrin, 2016,
    https://arxiv.org/abs/1604.06174 (why the activations kept for the backward pass are counted by themselves)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from davi.data import DataSets
from davi.errors import UserError
from davi.formatting import duration
from davi.model import Network
from davi.objectives import Progress
from davi.training.config import TrainingConfig
from davi.training.optimizer import update
from davi.training.parallel import Processes, RunningStatistics
from davi.training.prepare import check_fit, cut, enough_for_batch_norms, prepare_blocks
from davi.training.stages import Stage
from davi.training.state import State

_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """Memory in bytes and time in seconds of training by a recipe.

    Arguments:
        device: where it was measured.
        parameters: how many.
        memory: what for -> bytes. ``activations`` are those that one part of a batch keeps for its backward pass; with
            ``recompute`` those of one block come on top while it is recomputed. Images that are read from a memory map
            take none.
        peak: most memory that the second step had allocated on a CUDA device; None elsewhere.
        batch_size: images per step.
        seconds_per_step: of the second step; the first one also compiles and fills caches.
        steps_per_epoch: batches in one pass over the training images.
        total_steps: until the first budget is used up, at that pace. Validation and checkpoints come on top.
    """

    device: torch.device
    parameters: int
    memory: dict[str, int]
    peak: int | None
    batch_size: int
    seconds_per_step: float
    steps_per_epoch: int
    total_steps: int

    def lines(self) -> list[str]:
        """The plan as the program prints it."""
        rows = {**self.memory, "total": sum(self.memory.values())}
        if self.peak is not None:
            rows[f"peak on {self.device}"] = self.peak
        memory = [f"  {name:<18}{size / _MIB:>10.1f} MiB" for name, size in rows.items()]
        memory[0] += f" ({self.parameters:,})"
        epoch, whole = (duration(self.seconds_per_step * n) for n in (self.steps_per_epoch, self.total_steps))
        return [
            f"memory on {self.device}, {self.batch_size} images a step:",
            *memory,
            f"time: {self.seconds_per_step:.3g} s a step, {self.batch_size / self.seconds_per_step:.3g} images/s",
            f"  an epoch of {self.steps_per_epoch:,} steps: {epoch}",
            f"  the budget of {self.total_steps:,} steps: {whole}",
        ]


class SavedTensors(saved_tensors_hooks):
    """Counts the bytes that autograd keeps for the backward pass of what is computed in a ``with`` block.

    A storage counts once, however many views of it are kept, and not at all if it is one of ``known``.

    Arguments:
        known: tensors that are there anyway: parameters and buffers.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__(self._pack, lambda saved: saved)
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._kept: dict[int, int] = {}
        self.most = 0
        """Bytes kept in that one of the blocks which kept most."""

    def __enter__(self) -> None:
        self._kept = {}  # by address, which is used again once a backward pass has freed the storage
        super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self.most = max(self.most, sum(self._kept.values()))

    def _pack(self, saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # a hook that hands back its own argument keeps the graph alive for ever


def saved_bytes(run: Callable[[], object], known: Iterable[Tensor]) -> int:
    """What :class:`SavedTensors` counts of a call.

    Arguments:
        run: makes a graph, and returns what holds it.
        known: tensors that are there anyway.
    """
    saved = SavedTensors(known)
    with saved:
        graph = run()  # while it lasts no address is given away again
    del graph
    return saved.most


def plan(model: Network, sets: DataSets, config: TrainingConfig, stage: Stage | None = None) -> Plan:
    """Take two steps as :func:`davi.training.train` takes them, and say what they cost.

    Arguments:
        model: its initial weights; it is trained in place.
        sets: the images.
        config: how.
        stage: which part is trained, and how, in place of ``config``. Parts that stages before it would have trained
            are as they are: neither memory nor time depends on that.

    Raises:
        UserError: if the images do not fit the model, or a batch cannot be cut into its parts.
    """
    stage = stage or Stage(config)
    config = stage.config
    check_fit(model, sets, stages=[stage])
    processes = Processes()
    if processes.count > 1:
        raise UserError(f"--plan: got {processes.count} processes, expected 1")
    device = Accelerator(cpu=processes.on_cpu, mixed_precision="no").device
    if config.compute.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    state = State(model.to(device), sets, [stage], device)
    state.parts = cut(state, config.batch_size, processes, print)
    prepare_blocks(state.trained, config.compute)
    statistics = RunningStatistics(model, processes)
    saved = SavedTensors([*model.parameters(), *model.buffers()])
    with enough_for_batch_norms(state):
        _step(state, config, saved)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    gradients = _step(state, config, nullcontext())
    seconds = time.perf_counter() - began
    memory = {
        "parameters": _nbytes(model.parameters()),
        "buffers": _nbytes([*model.buffers(), *statistics.before, *statistics.mean]),
        "gradients": gradients,
        "optimizer state": _nbytes(state.moments().values()),
        "averaged weights": _nbytes(state.average.model.state_dict().values()),
        "activations": saved.most,
        "images": sum(
            x.pixels.nbytes for x in (sets.train, sets.validation, sets.test) if x is not None and not x.mapped
        ),
    }
    schedule = state.schedule()
    limits = [] if schedule.total_steps is None else [schedule.total_steps]
    if schedule.total_seconds is not None:
        limits.append(max(1, round(schedule.total_seconds / seconds)))
    return Plan(
        device=device,
        parameters=sum(parameter.numel() for parameter in state.trained.parameters()),
        memory=memory,
        peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        batch_size=state.loader.sampler.batch_size,
        seconds_per_step=seconds,
        steps_per_epoch=schedule.steps_per_epoch,
        total_steps=min(limits),
    )


def _step(state: State, config: TrainingConfig, forward: AbstractContextManager[None]) -> int:
    """One step, each part of whose forward pass happens within a context; the size of its gradients."""
    model, device = state.trained, state.device
    batch = next(state.loader)
    settled = Progress(2**62, 2**62, 1.0)
    for part in batch.parts(state.parts):
        own = state.stage.view(state.model, part)
        with forward, torch.autocast(device.type, torch.bfloat16, enabled=config.compute.precision == "bfloat16"):
            loss = state.objective.loss(model, model, own, settled)
        loss.backward(len(part.x) / len(batch.x))
    update(state.optimizer)
    state.average.update(state.model)
    gradients = _nbytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    state.optimizer.zero_grad()
    loss.value.item()  # waits for an accelerator, which steps in training do as well
    return gradients


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
