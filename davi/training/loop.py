"""The training loop, to be read from top to bottom.

What is trained is :func:`davi.objectives.objective`; what is logged, validated and kept is the evidence itself.
Accelerate moves things to the device and averages gradients over the processes (:mod:`davi.training.parallel`), of
which only the main one writes files and speaks. They may share the weights (:mod:`davi.training.sharded`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grads_with_norm_

from davi.data import DataSets, evenly
from davi.formatting import duration
from davi.model import Model
from davi.objectives import objective
from davi.runs import MODEL, PrintFunction, create, read_metrics, save_model
from davi.training import checkpoint, prepare
from davi.training.config import TrainingConfig
from davi.training.failure import MOST_ROLLBACKS, RATE_FACTOR, NotFiniteError, diagnosis, first_layer, go_back, spoiled
from davi.training.lock import locked
from davi.training.log import summary
from davi.training.monitor import Monitor
from davi.training.parallel import Processes, RunningStatistics, SharedLog, noise_seed, parts_of_batch, shared_log
from davi.training.schedule import Budget, Schedule
from davi.training.sharded import average_single_numbers, gradient_norm, whole, whole_again
from davi.training.signals import Interrupted, Signals
from davi.training.start import Start, keep_start
from davi.training.state import BatchLoader, State
from davi.training.step_filter import Verdict
from davi.training.tensorboard import check_installed
from davi.training.validation import last_validation, validate


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
    model: Model,
    sets: DataSets,
    config: TrainingConfig,
    run: Path,
    recipe: Mapping[str, Any],
    resume: bool = False,
    print_fn: PrintFunction = print,
    start: Start | None = None,
) -> TrainingResult:
    """Train a model and leave a run folder (:mod:`davi.runs`).

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

    Raises:
        UserError: if something does not fit, cannot be written, or the loss or gradient stays non-finite.
        Interrupted: after SIGINT or SIGTERM, when everything is saved.
    """
    processes = Processes()
    prepare.check_fit(model, sets, config.objective)
    parts_of_batch(config.batch_size, config.accumulate, processes.count)
    if config.tensorboard:
        check_installed()
    run = processes.share(run)
    with ExitStack() as stack:
        with processes.together():
            if processes.main:
                stack.enter_context(locked(run))
                create(run, recipe, resume, lambda: keep_start(run, model, start))
        told = print_fn if processes.main else lambda line: None
        result = _train(processes, model, sets, config, run, recipe, resume, told)
    model.eval()  # whoever goes on with it measures or draws
    return result


def _train(
    processes: Processes,
    model: Model,
    sets: DataSets,
    config: TrainingConfig,
    run: Path,
    recipe: Mapping[str, Any],
    resume: bool,
    print_fn: PrintFunction,
) -> TrainingResult:
    """:func:`train` in a folder that nobody else trains in."""
    if config.threads:
        torch.set_num_threads(config.threads)
    sharded = config.compute.shard and processes.count > 1
    if sharded:
        prepare.check_shares(model, config.objective)
    if config.compute.channels_last and not sharded:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    accelerator = Accelerator(cpu=processes.on_cpu, mixed_precision="no")
    model.to(accelerator.device).train()
    begun = resume and processes.main_first(lambda: checkpoint.exist(run))
    images = BatchLoader(sets, config, accelerator.device)
    began_with = {} if begun else prepare.begin(run, model, images, config, processes)
    state = State.fresh(model, sets, config, accelerator.device, processes if sharded else None, began_with)
    if begun:
        processes.main_first(lambda: checkpoint.resume(run, state, sets.protocol, print_fn))
    if resume:
        prepare.say_resumed(run, recipe, state, begun, processes, print_fn)
    state.parts = prepare.cut(state, config.batch_size, processes, print_fn)
    prepare.prepare_blocks(model, config.compute)
    network, optimizer = (model, state.optimizer) if sharded else prepare.replicated(accelerator, state)
    unsaved = config.step_filter.on_nan == "rollback" and not begun
    with Signals(patient=processes.count > 1) as signals:
        while True:
            log_of_run = shared_log(processes, run, state.step, print_fn, config.tensorboard)
            with log_of_run as log, prepare.enough_for_batch_norms(state):
                job = _Run(
                    processes, accelerator, network, optimizer, state, sets, config, run, log, signals, begun, unsaved
                )
                try:
                    return job.go()
                except NotFiniteError as failure:
                    state.seconds = processes.share(job.clock())
                    go_back(failure, processes, state, sets, config, run, print_fn)
                    begun = unsaved = True


@dataclass
class _Run:
    """The way from a state to a model or a failure: :meth:`go` is the loop, the rest is what it calls."""

    processes: Processes
    accelerator: Accelerator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    state: State
    sets: DataSets
    config: TrainingConfig
    run: Path
    log: SharedLog
    signals: Signals
    resumed: bool
    unsaved: bool
    """Whether the state is one to which a kill must not forget the way: that after a rollback, or its first goal."""

    def __post_init__(self) -> None:
        config, state = self.config, self.state
        self.schedule = Schedule(config, state.loader.sampler.batches_per_epoch)
        self.statistics = RunningStatistics(state.model, self.processes)
        share = state.parts // self.processes.count
        self.own = range(self.processes.rank * share, (self.processes.rank + 1) * share)
        self.began = time.monotonic() - state.seconds
        self.now = state.seconds
        """Time used up to the end of the last step, the same in all processes: what is decided by the clock."""
        self.asked: int | None = None
        """The signal that one of the processes has received."""
        self.start = self.logged = (state.step, state.seconds)
        self.saved = state.seconds
        self.records = self.processes.share(read_metrics(self.run) if self.processes.main else [])
        self.validated = last_validation(self.records, state.step) if self.resumed else (-1, None)
        self.protocol = {**self.sets.protocol, **state.started_from}
        validates = config.validate_every and self.sets.validation is not None
        self.monitor = Monitor(config.monitor, self.schedule, "validation" if validates else "train")

    def clock(self) -> float:
        """Time used, over all resumptions."""
        return time.monotonic() - self.began

    def go(self) -> TrainingResult:
        """Train until a budget is reached, then write the model."""
        config, state, schedule = self.config, self.state, self.schedule
        bfloat16 = config.compute.precision == "bfloat16"
        self._begin()
        while (budget := schedule.exhausted(state.step, self.now)) is None:
            rate = schedule.learning_rate(state.step, self.now) * RATE_FACTOR ** len(state.rollbacks)
            beta = schedule.kl_weight(state.step, self.now)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

            # One batch, forward and backward, in parts, of which each process computes its share. Gradients are summed
            # over a process's parts, then averaged over the processes: hence the factor.
            parts = next(state.loader).tensor_split(state.parts)  # of [B, C, H, W]
            self.statistics.begin()
            for part in self.own:
                weight = len(parts[part]) / state.loader.sampler.batch_size
                self._begin_part(part, state.step)
                with nullcontext() if part == self.own[-1] else self.accelerator.no_sync(self.network):
                    # Not Accelerate's own mixed precision: that rewrites the model's forward and is global to the
                    # process. Distributions compute in float32 whatever the network's outputs are.
                    with torch.autocast(state.loader.device.type, torch.bfloat16, enabled=bfloat16):
                        evidence = self.network(parts[part], config.objective.draws)
                    loss = objective(evidence, config.objective, beta)
                    self.accelerator.backward(loss * (weight * self.processes.count))
                self.statistics.end_part(weight)
                state.meters.add(evidence, loss, weight)
            self.statistics.end()
            if isinstance(self.network, FSDPModule):
                average_single_numbers(state.model, self.processes)

            # The one place where the host waits for the device: whether the weights may change must be known before
            # they change, and by all processes alike. It is one transfer of a few floats a step.
            norm = gradient_norm(state.model, self.processes)
            values, norm_value = self._agree(norm)
            verdict = state.step_filter.judge(values[0], norm_value)
            if verdict.update:
                if norm_value > verdict.limit:
                    for group in self.optimizer.param_groups:  # one of them may be cut up and the other not
                        clip_grads_with_norm_(group["params"], verdict.limit, norm)
                self.optimizer.step()
                state.average.update(state.model)
            else:
                self.statistics.undo()  # batch norms have seen the batch; they forget it
            if verdict.reason not in ("loss", "gradient"):
                state.meters.count(values)
            state.step += 1
            if verdict.reason is not None:
                self._refused(verdict, values, norm_value, parts)
            self.optimizer.zero_grad()
            self._report(rate, beta)
            self._keep()
        return self._finish(budget)

    def _begin(self) -> None:
        """Put in order what a kill or a rollback has left, and make sure that there is something to go back to."""
        state = self.state
        if self.unsaved:
            self._save()
        written = sum(record["kind"] == "rollback" for record in self.records)
        for number, record in list(enumerate(state.rollbacks, 1))[written:]:
            self.log.event("rollback", **record)
            self.log.say(
                f"rollback {number} of {MOST_ROLLBACKS}: step {record['failed_step']} was not finite, "
                f"{record['where']}; back at step {record['step']}, the learning rate is multiplied by "
                f"{record['learning_rate_factor']:g} from here on"
            )
        reported = [record.get("message") for record in self.records if record["kind"] == "watch"]
        for record in self.records:
            for change in self.monitor.see(record):
                if record["step"] == state.step and change["message"] not in reported:
                    self._say_watched(change)

    def _begin_part(self, part: int, step: int) -> None:
        """Make what a part of a batch starts from independent of the parts before it, and of who computed them."""
        self.statistics.begin_part()
        torch.manual_seed(noise_seed(self.config.seed, step, part))

    def _agree(self, norm: torch.Tensor) -> tuple[list[float], float]:
        """The batch's numbers and the gradient's norm; and, in passing, the clock and the signals of all processes."""
        main, received = self.processes.main, self.signals.received
        own = torch.cat([self.state.meters.take(), (norm if main else torch.zeros_like(norm)).reshape(1).float()])
        asked = [float(received == number) for number in (signal.SIGINT, signal.SIGTERM)]
        *values, norm_value, self.now, interrupted, terminated = self.processes.sum_to_host(
            own, [self.clock() if main else 0.0, *asked]
        )
        self.asked = signal.SIGTERM if terminated else signal.SIGINT if interrupted else None
        return values, norm_value

    def _refused(self, verdict: Verdict, values: Sequence[float], norm: float, parts: Sequence[torch.Tensor]) -> None:
        """Log a step that was skipped or forced; give up when too many were not finite."""
        state = self.state
        state.skipped += not verdict.update
        finite = verdict.reason in ("norm", "forced")
        where = "" if finite else diagnosis(state.meters.names, values, state.model)
        told = {"reason": verdict.reason, "loss": values[0], "norm": norm, "threshold": verdict.threshold}
        self.log.event("skip", state.step, **told, where=where, updated=verdict.update)
        if not finite and state.step_filter.hopeless():
            draws = self.config.objective.draws
            layer = first_layer(state.model, parts, draws, lambda part: self._begin_part(part, state.step - 1))
            where += f" (first layer: {layer})" if layer else ""
            raise NotFiniteError(state.step_filter.account(state.step), where, state.step, self.run)

    def _check_weights(self) -> None:
        """Refuse to keep weights or running statistics that the last update has spoiled: nothing could use them."""
        name = spoiled(whole(self.state.model.state_dict()))
        if name is not None:
            what = f"the weights after step {self.state.step} are not finite"
            raise NotFiniteError(what, f"first in {name}", self.state.step, self.run)

    def _report(self, rate: float, beta: float) -> None:
        """The log's line and the validation, when they are due."""
        state, config, schedule = self.state, self.config, self.schedule
        seconds = self.now
        ended = schedule.exhausted(state.step, seconds) is not None
        self.log.advance(schedule.fraction(state.step, seconds))
        if (state.step % config.log_every == 0 or ended) and state.meters.steps:
            means = state.meters.read()
            loss = means.pop("loss")
            steps, time_used = state.step - self.logged[0], max(seconds - self.logged[1], 1e-9)
            record = {
                "total_steps": schedule.total_steps,
                "epoch": schedule.epoch(state.step),
                "seconds": seconds,
                "seconds_left": self._seconds_left(seconds),
                "loss": loss,
                **summary(means, state.model.dims, state.meters.no_divergence),
                "kl_weight": beta,
                "learning_rate": rate,
                "images_per_second": steps * state.loader.sampler.batch_size / time_used,
                "gradient_norm": state.step_filter.norms[-1] if state.step_filter.norms else None,
                "skipped": state.skipped,
            }
            self.log.train(state.step, **record)
            self._look("train", record)
            state.skipped, self.logged = 0, (state.step, seconds)
        if config.validate_every and state.step % config.validate_every == 0:
            self._validate()

    def _look(self, kind: str, record: Mapping[str, Any]) -> None:
        """Let the monitor see a record that has just been written."""
        for change in self.monitor.see({"kind": kind, "step": self.state.step, **record}):
            self._say_watched(change)

    def _say_watched(self, change: Mapping[str, Any]) -> None:
        self.log.event("watch", self.state.step, **change)
        self.log.say(f"monitor at step {self.state.step}: {change['message']}")

    def _seconds_left(self, seconds: float) -> float:
        """Time until the first budget is reached, at the pace since the start or the resumption."""
        schedule, (step, before) = self.schedule, self.start
        left = []
        if schedule.total_seconds is not None:
            left.append(schedule.total_seconds - seconds)
        if schedule.total_steps is not None:
            left.append((schedule.total_steps - self.state.step) * (seconds - before) / max(1, self.state.step - step))
        return max(0.0, min(left))

    def _validate(self) -> None:
        """Measure the averaged model on the validation images, unless that has been done at this step."""
        state, images, config = self.state, self.sets.validation, self.config
        if images is None or self.validated[0] == state.step:
            return
        some, began = evenly(images, config.validation_images or None), self.clock()
        batch_size = max(1, config.batch_size // state.parts)
        with whole_again(state.average.model):
            record = validate(state.average.model, some, batch_size, config.seed, self.processes)
        record["images_per_second"] = len(some) / max(self.clock() - began, 1e-9)
        record = {"epoch": self.schedule.epoch(state.step), "seconds": self.now, **record}
        self.log.validation(state.step, **record)
        self.validated = (state.step, record)
        self._look("validation", record)

    def _keep(self) -> None:
        """Save when it is due, and end when a signal asked for it.

        While losses or gradients are not finite nothing is saved unasked: the weights may be spoiled, and the good
        checkpoints would be pushed out one by one before training gives up.
        """
        state, due = self.state, self.config.checkpoints
        by_steps = due.steps and state.step % due.steps == 0
        by_clock = due.minutes and self.now - self.saved >= 60.0 * due.minutes
        if ((by_steps or by_clock) and not state.step_filter.nonfinite) or self.asked is not None:
            folder = self._save()
            if self.asked is not None:
                raise Interrupted(self.asked, state.step, folder)

    def _save(self) -> Path:
        state = self.state
        self._check_weights()
        state.seconds, self.saved = self.clock(), self.now
        tensors = state.tensors()
        with self.processes.together():
            if self.processes.main:
                checkpoint.save(self.run, state, tensors, self.config.checkpoints.keep, self._extra())
        self.log.event("checkpoint", state.step, seconds=state.seconds)
        return checkpoint.folder_of(self.run, state.step)

    def _extra(self) -> dict[str, Any]:
        """What the file of the averaged model says besides its description."""
        decay, state = float(self.config.ema_decay), self.state
        averaged = {"ema": bool(decay), "ema_decay": decay}
        return {"step": state.step, **averaged, "rollbacks": len(state.rollbacks), "protocol": self.protocol}

    def _finish(self, budget: Budget) -> TrainingResult:
        """The last validation, checkpoint and the model's file; what a resumption finds done is not done again."""
        state, path = self.state, self.run / MODEL
        ended = self.resumed and state.step == self.start[0]
        self._check_weights()
        self._validate()
        if not ended:
            self._save()
        weights = state.tensors().average
        with self.processes.together():
            if self.processes.main:
                if ended:  # what was killed while it removed old checkpoints has left some
                    checkpoint.prune(self.run, state.step, self.config.checkpoints.keep)
                save_model(path, state.average.model, self._extra(), weights)
        if ended:
            self.log.say(
                f"{self.run} has ended with step {state.step}, its budget of {budget} is used up; a larger one would "
                f"prolong it; the model is {path}"
            )
        else:
            self.log.say(f"trained {state.step} steps in {duration(self.clock())}; the model is {path}")
        return TrainingResult(
            state.step, self.schedule.epoch(state.step), self.clock(), budget, path, self.validated[1]
        )
