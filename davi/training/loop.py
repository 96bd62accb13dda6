"""The training loop, to be read from top to bottom.

What is minimized, the objective says (:mod:`davi.objectives`); what is reported never passes through its weights.
Accelerate moves things to the device and averages gradients over the processes (:mod:`davi.training.parallel`), of
which only the main one writes files and speaks. They may share the weights (:mod:`davi.training.sharded`).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grads_with_norm_

from davi.batch import Batch
from davi.data import DataSets
from davi.formatting import duration
from davi.model import Hierarchy, Network
from davi.objectives import Loss, Outcome, Progress, Role
from davi.runs import PrintFunction, create
from davi.training import checkpoint, prepare
from davi.training.config import TrainingConfig
from davi.training.failure import RATE_FACTOR, NotFiniteError, diagnosis, first_layer, go_back
from davi.training.lock import locked
from davi.training.optimizer import set_rate, update
from davi.training.parallel import (
    NoiseSeeds,
    ObjectiveState,
    Processes,
    RunningStatistics,
    SharedLog,
    parts_of_batch,
    seed_draws,
    shared_log,
)
from davi.training.prepare import Prepared
from davi.training.recorder import Recorder
from davi.training.roles import generative_parameters, keep_gradients
from davi.training.schedule import Budget
from davi.training.sharded import average_single_numbers, gradient_norm
from davi.training.signals import Interrupted, Signals
from davi.training.stages import Stage, check_stages, single
from davi.training.start import Start, keep_start
from davi.training.state import State
from davi.training.step_filter import Verdict
from davi.training.tensorboard import check_installed


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Arguments:
        step: steps done.
        epoch: whole passes over the training images.
        seconds: time used, over all resumptions.
        budget: the budget that was reached.
        model: the file of the trained (averaged) model.
        validation: the last validation's record; None without validation images.
    """

    step: int
    epoch: int
    seconds: float
    budget: Budget
    model: Path
    validation: dict[str, Any] | None


def train(
    model: Network,
    sets: DataSets,
    config: TrainingConfig,
    run: Path,
    recipe: Mapping[str, Any],
    resume: bool = False,
    print_fn: PrintFunction = print,
    start: Start | None = None,
    stages: Sequence[Stage] = (),
) -> TrainingResult:
    """Train a network and leave a run folder (:mod:`davi.runs`).

    Arguments:
        model: its initial weights, of which a :class:`~davi.model.DataInitialized` one replaces some; it is trained in
            place and left in eval mode, the averaged weights go into the run folder.
        sets: training images and, if any, validation images; the test images are not looked at.
        config: how.
        run: the folder, new or empty unless ``resume``.
        recipe: what to write as the run's ``recipe.yaml``.
        resume: go on from the newest whole checkpoint in ``run``; from the beginning if there is none yet.
        print_fn: takes the lines meant for the user.
        start: where the model's weights come from (:func:`davi.training.start.take_over`), for a new run.
        stages: what is trained one after the other (:mod:`davi.training.stages`), in place of ``config``.

    Raises:
        UserError: if something does not fit, cannot be written, or the loss or gradient stays non-finite.
        Interrupted: after SIGINT or SIGTERM, when everything is saved.
    """
    processes = Processes()
    stages = tuple(stages) or single(config)
    check_stages(model, stages)
    prepare.check_fit(model, sets, stages=stages)
    for stage in stages:
        parts_of_batch(stage.config.batch_size, stage.config.accumulate, processes.count)
    if any(stage.config.tensorboard for stage in stages):
        check_installed()
    run = processes.share(run)
    with ExitStack() as stack:
        with processes.together():
            if processes.main:
                stack.enter_context(locked(run))
                create(run, recipe, resume, lambda: keep_start(run, model, start))
        told = print_fn if processes.main else lambda line: None
        result = _train(processes, model, sets, stages, run, recipe, resume, told)
    model.eval()  # it is measured or sampled from next
    return result


def _train(
    processes: Processes,
    model: Network,
    sets: DataSets,
    stages: Sequence[Stage],
    run: Path,
    recipe: Mapping[str, Any],
    resume: bool,
    print_fn: PrintFunction,
) -> TrainingResult:
    """:func:`train`, once the folder is locked."""
    first = stages[0].config
    if first.threads:
        torch.set_num_threads(first.threads)
    sharers = processes if first.compute.shard and processes.count > 1 else None
    if sharers is not None:
        prepare.check_shares(model, first.objective)
    if first.compute.channels_last and sharers is None:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    accelerator = Accelerator(cpu=processes.on_cpu, mixed_precision="no")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)  # a model that was loaded: its weights want no gradients until somebody trains it
    model.to(accelerator.device).train()
    begun = resume and processes.main_first(lambda: checkpoint.exist(run))
    began_with = {} if begun else prepare.begin(run, model, sets, stages[0], accelerator.device, processes)
    state = State(model, sets, stages, accelerator.device, sharers, began_with)
    if begun:
        processes.main_first(lambda: checkpoint.resume(run, state, sets.protocol, print_fn))
    if resume:
        prepare.say_resumed(run, recipe, state, begun, processes, print_fn)
    prepare.say_stage(state, print_fn)
    unsaved = first.step_filter.on_nan == "rollback" and not begun
    prepared: Prepared | None = None
    with Signals(patient=processes.count > 1) as signals:
        while True:
            if prepared is None or prepared.optimizer is not state.optimizer:
                prepared = prepare.prepared(accelerator, state, processes, print_fn)
            log_of_run = shared_log(processes, run, state.step, print_fn, state.config.tensorboard)
            with log_of_run as log, prepare.enough_for_batch_norms(state):
                job = _Job(processes, accelerator, prepared, state, run, log, signals, begun, unsaved)
                try:
                    budget = job.go()
                    if state.place + 1 == len(stages):
                        return job.finish(budget)
                    job.recorder.end_stage()
                    prepare.next_stage(run, state, processes, log.say)
                    begun, unsaved = False, True
                except NotFiniteError as failure:
                    state.seconds = processes.share(job.recorder.clock())
                    go_back(failure, processes, state, run, print_fn)
                    begun = unsaved = True


@dataclass
class _Job:
    """The way from a state to the end of its stage or a failure: :meth:`go` is the loop, the rest is what it calls."""

    processes: Processes
    accelerator: Accelerator
    prepared: Prepared
    state: State
    run: Path
    log: SharedLog
    signals: Signals
    resumed: bool
    unsaved: bool
    """Whether the next step must first save a checkpoint: after a rollback, or with no checkpoint to go back to."""

    def __post_init__(self) -> None:
        state = self.state
        self.recorder = Recorder(state, self.run, self.log, self.processes, self.resumed)
        self.statistics = RunningStatistics(state.trained, self.processes)
        self.objective_state = ObjectiveState(state.objective, self.processes)
        share = state.parts // self.processes.count
        self.own = range(self.processes.rank * share, (self.processes.rank + 1) * share)
        self.seeds = NoiseSeeds(state.config.seed, [*self.own, state.parts])
        self.parameters = list(state.trained.parameters())
        self.asked: int | None = None
        """The signal that one of the processes has received."""
        self.generative: frozenset[str] | None = None
        """Names of the generative parameters, once an objective has asked for them."""

    def go(self) -> Budget:
        """Train until a budget is reached; which one."""
        state, recorder, schedule = self.state, self.recorder, self.recorder.schedule
        network, optimizer = self.prepared.network, self.prepared.optimizer
        recorder.begin(self.unsaved)
        while (budget := schedule.exhausted(*state.within(state.step, recorder.now))) is None:
            within = state.within(state.step, recorder.now)
            rate = schedule.learning_rate(*within) * RATE_FACTOR ** len(state.rollbacks)
            at = schedule.at(*within)
            set_rate(optimizer, state.config.optimizer, rate, at.step)

            # One batch, forward and backward, in parts, of which each process computes its share. Gradients are summed
            # over a process's parts, then averaged over the processes: hence the factor.
            parts = next(state.loader).parts(state.parts)
            self.statistics.begin()
            self.objective_state.begin()
            for part in self.own:
                weight = len(parts[part].x) / state.loader.sampler.batch_size
                with nullcontext() if part == self.own[-1] else self.accelerator.no_sync(network):
                    loss = self._loss(parts, part, state.step, at)
                    loss.backward(weight * self.processes.count)
                self.statistics.end_part(weight)
                state.meters.add(loss, weight)
            self.statistics.end()
            self.objective_state.end()
            if isinstance(network, FSDPModule):
                average_single_numbers(state.model, self.processes)
            self._keep_moving(at)
            state.objective.after_backward(state.trained, at)

            # The one place where the host waits for the device: whether the weights may change must be known before
            # they change, and by all processes alike. It is one transfer of a few floats a step.
            norm = gradient_norm(self.parameters, self.processes)
            values, norm_value = self._agree(norm)
            verdict = state.step_filter.judge(values[0], norm_value)
            if verdict.update:
                if norm_value > verdict.limit:
                    for group in optimizer.param_groups:  # one of them may be cut up and the other not
                        clip_grads_with_norm_(group["params"], verdict.limit, norm)
                update(optimizer)
                self._end_step(at, values[0])
                state.average.update(state.model)
            else:
                self.statistics.undo()  # undo what batch norms took from the batch
                self.objective_state.undo()
            if verdict.reason not in ("loss", "gradient"):
                state.meters.count(values)
            state.step += 1
            if verdict.reason is not None:
                self._refused(verdict, values, norm_value, parts, at)
            for parameter in self.parameters:
                parameter.grad = None
            recorder.report(rate, at)
            recorder.save_if_due()
            if self.asked is not None:
                raise Interrupted(self.asked, state.step, self._saved())
        return budget

    def _loss(self, parts: Sequence[Batch], part: int, step: int, at: Progress) -> Loss:
        """The loss of a part of a batch, in the precision of the recipe.

        What it starts from is independent of the parts before it, and of who computed them.
        """
        state = self.state
        self.statistics.begin_part()
        seed_draws(self.seeds(step, part), state.device)
        batch = state.stage.view(state.model, parts[part])
        # Not Accelerate's own mixed precision: that rewrites the model's forward and is global to the process.
        # Distributions compute in float32 whatever the network's outputs are.
        bfloat16 = state.config.compute.precision == "bfloat16"
        with torch.autocast(state.device.type, torch.bfloat16, enabled=bfloat16):
            return state.objective.loss(self.prepared.network, state.trained, batch, at)

    def _keep_moving(self, at: Progress) -> None:
        """Drop the gradients of parameters that the objective does not move in this step."""
        role, model = self.state.objective.moves(at), self.state.trained
        if role is Role.ALL:
            return
        if self.generative is None:
            assert isinstance(model, Hierarchy)
            self.generative = generative_parameters(model)
        keep_gradients(model, role, self.generative)

    def _end_step(self, at: Progress, loss: float) -> None:
        """What the objective does after an update, with draws that are the same in all processes."""
        state = self.state
        if state.objective.ends_steps:
            seed_draws(self.seeds(state.step, state.parts), state.device)  # no part has that number
            outcome = Outcome(loss, state.loader.sampler.batches_per_epoch, self.recorder.validation_batches)
            state.objective.end_step(state.trained, at, outcome)
            self.objective_state.share()

    def _agree(self, norm: torch.Tensor) -> tuple[list[float], float]:
        """The batch's numbers and the gradient's norm; and, in passing, the clock and the signals of all processes."""
        main, received, recorder = self.processes.main, self.signals.received, self.recorder
        own = torch.cat([self.state.meters.take(), (norm if main else torch.zeros_like(norm)).reshape(1).float()])
        asked = [float(received == number) for number in (signal.SIGINT, signal.SIGTERM)]
        *values, norm_value, recorder.now, interrupted, terminated = self.processes.sum_to_host(
            own, [recorder.clock() if main else 0.0, *asked]
        )
        self.asked = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        return values, norm_value

    def _refused(
        self, verdict: Verdict, values: Sequence[float], norm: float, parts: Sequence[Batch], at: Progress
    ) -> None:
        """Log a step that was skipped or forced; give up when too many were not finite."""
        state = self.state
        state.skipped += not verdict.update
        finite = verdict.reason in ("norm", "forced")
        where = "" if finite else diagnosis(state.meters.names, values, state.trained)
        told = {"reason": verdict.reason, "loss": values[0], "norm": norm, "threshold": verdict.threshold}
        self.log.event("skip", state.step, **told, where=where, updated=verdict.update)
        if not finite and state.step_filter.hopeless():
            layer = first_layer(state.trained, len(parts), lambda part: self._loss(parts, part, state.step - 1, at))
            where += f" (first layer: {layer})" if layer else ""
            raise NotFiniteError(state.step_filter.account(state.step), where, state.step, self.run)

    def _saved(self) -> Path:
        """A checkpoint of this step, saved now unless it has just been."""
        folder = checkpoint.folder_of(self.run, self.state.step)
        return folder if self.recorder.saved_step == self.state.step else self.recorder.save()

    def finish(self, budget: Budget) -> TrainingResult:
        """Write the model, and say so."""
        state, recorder = self.state, self.recorder
        path, ended = recorder.finish()
        if ended:
            self.log.say(
                f"{self.run} has ended with step {state.step}, its budget of {budget} is used up; a larger one would "
                f"prolong it; the model is {path}"
            )
        else:
            self.log.say(f"trained {state.step} steps in {duration(recorder.clock())}; the model is {path}")
        epoch = recorder.schedule.epoch(state.within(state.step, recorder.now)[0])
        return TrainingResult(state.step, epoch, recorder.clock(), budget, path, recorder.validated[1])
