"""The training loop, to be read from top to bottom.

What is trained is :func:`davi.objectives.negative_elbo`; what is logged, validated and kept is the evidence itself.
Accelerate moves things to the device, cuts batches into parts and adds up their gradients. Training is one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from davi.data import DataSets
from davi.errors import UserError
from davi.evidence import Evidence
from davi.model import Model
from davi.objectives import negative_elbo
from davi.runs import MODEL, Echo, Metrics, checkpoint_folders, create, read_metrics, save_model, write_recipe
from davi.training import checkpoint
from davi.training.config import TrainingConfig
from davi.training.guard import Verdict
from davi.training.log import Log, duration, summary
from davi.training.schedule import Budget, Schedule
from davi.training.signals import Interrupted, Signals
from davi.training.state import State
from davi.training.validation import validate


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
    echo: Echo = print,
) -> TrainingResult:
    """Train a model and leave a run folder (:mod:`davi.runs`).

    Arguments:
        model: its initial weights; it is trained in place, the averaged weights go into the run folder.
        sets: training images and, if any, validation images; the test images are not looked at.
        config: how.
        run: the folder, new or empty unless ``resume``.
        recipe: what to write as the run's ``recipe.yaml``.
        resume: go on from the newest whole checkpoint in ``run``; from the beginning if there is none yet.
        echo: takes the lines meant for the user.

    Raises:
        UserError: if something does not fit, cannot be written, or the loss or gradient stays non-finite.
        Interrupted: after SIGINT or SIGTERM, when everything is saved.
    """
    _check_fit(model, sets)
    accelerator = Accelerator(mixed_precision="no", gradient_accumulation_steps=config.accumulate)
    if accelerator.num_processes > 1:  # each would see the same batches and write the same files
        raise UserError(
            f"training: got {accelerator.num_processes} processes, expected 1; data-parallel training is not there yet"
        )
    create(run, recipe, resume)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    state = State.fresh(model.to(accelerator.device).train(), sets, config, accelerator.device)
    found = False
    if resume:
        found = checkpoint.resume(run, state, sets.protocol, echo)
        write_recipe(run, recipe)
        echo(f"resuming {run} after step {state.step}" if found else f"nothing to resume in {run}: from the beginning")
    _prepare_blocks(model, config)
    with Signals() as signals, Log(Metrics(run, state.step), echo) as log:
        try:
            return _Run(accelerator, state, sets, config, run, log, signals, found).go()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            part = state.feed.order.batch_size // config.accumulate
            raise UserError(
                f"batch_size: got parts of {part} image of {list(model.shape)}, of which a single pixel is left at the "
                "coarsest scale; expected at least 2 images, whose statistics a batch norm needs"
            ) from None


def _check_fit(model: Model, sets: DataSets) -> None:
    if (model.shape, model.levels) != (sets.shape, sets.levels):
        raise UserError(
            f"data: got images {list(sets.shape)} with {sets.levels} levels, expected {list(model.shape)} with "
            f"{model.levels} levels, for which the model was built"
        )


def _prepare_blocks(model: Model, config: TrainingConfig) -> None:
    """Switches of the blocks. The averaged model is a copy made before and stays as it is."""
    blocks = list(model.blocks())
    if config.compile:
        # Blocks of one class share their compiled forms, one for each width and shape. Beyond its limit (8) torch would
        # run the remaining kinds uncompiled and say so only in a warning.
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 2 * len(blocks))
    for block in blocks:
        if config.recompute:
            block.recompute = True  # type: ignore[assignment]  # a plain switch, not a submodule
        if config.compile:
            block.compile(backend=config.compile_backend)


class _Run:
    """One call of :func:`train`: :meth:`go` is the loop, the rest is what it calls."""

    def __init__(
        self,
        accelerator: Accelerator,
        state: State,
        sets: DataSets,
        config: TrainingConfig,
        run: Path,
        log: Log,
        signals: Signals,
        resumed: bool,
    ) -> None:
        self.accelerator, self.state, self.config = accelerator, state, config
        self.sets, self.run, self.log, self.signals = sets, run, log, signals
        self.schedule = Schedule(config, state.feed.order.batches_per_epoch)
        self.network, self.optimizer = accelerator.prepare(state.model, state.optimizer)
        self.buffers = list(state.model.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.began = time.monotonic() - state.seconds
        self.start = self.logged = (state.step, state.seconds)
        self.saved = state.seconds
        self.resumed = resumed
        self.validated = _validated(run, state.step) if resumed else (-1, None)

    def seconds(self) -> float:
        """Time used, over all resumptions."""
        return time.monotonic() - self.began

    def go(self) -> TrainingResult:
        """Train until a budget is reached, then write the model."""
        config, state, schedule = self.config, self.state, self.schedule
        bfloat16 = config.precision == "bfloat16"
        while (budget := schedule.exhausted(state.step, self.seconds())) is None:
            rate = schedule.learning_rate(state.step, self.seconds())
            beta = schedule.kl_weight(state.step, self.seconds())
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            _copy(self.buffers, self.buffers_before)

            # One batch, forward and backward, in parts. Accelerate divides each loss by the number of parts, and leaves
            # the gradients of all but the last part unsynchronised.
            batch = next(state.feed)  # [B, C, H, W]
            for x in batch.tensor_split(config.accumulate):
                with self.accelerator.accumulate(self.network):
                    # Not Accelerate's own mixed precision: that rewrites the model's forward and is global to the
                    # process. Distributions compute in float32 whatever the network's outputs are.
                    with torch.autocast(state.feed.device.type, torch.bfloat16, enabled=bfloat16):
                        evidence = self.network(x)
                    loss = negative_elbo(evidence, beta)
                    self.accelerator.backward(loss * (len(x) * config.accumulate / len(batch)))
                state.meters.add(evidence, loss, len(x) / len(batch))

            # The one place where the host waits for the device: whether the weights may change must be known before
            # they change, and each refusal is logged with its numbers. It is one transfer of two floats a step.
            norm = get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
            loss_value, norm_value = torch.stack([state.meters.loss(), norm]).tolist()
            verdict = state.guard.judge(loss_value, norm_value)
            if verdict.update:
                if norm_value > verdict.limit:
                    clip_grads_with_norm_(state.model.parameters(), verdict.limit, norm)
                self.optimizer.step()
                state.average.update(state.model)
            else:
                _copy(self.buffers_before, self.buffers)  # batch norms have seen the batch; they forget it
            state.meters.end_batch(counted=verdict.reason not in ("loss", "gradient"))
            state.step += 1
            if verdict.reason is not None:
                self._refused(verdict, loss_value, norm_value, evidence)
            self.optimizer.zero_grad()
            self._report(rate, beta)
            self._keep()
        return self._finish(budget)

    def _refused(self, verdict: Verdict, loss: float, norm: float, evidence: Evidence) -> None:
        """Log a step that was skipped or forced; give up when too many were not finite."""
        state = self.state
        state.skipped += not verdict.update
        finite = verdict.reason in ("norm", "forced")
        where = "" if finite else _diagnosis(evidence, state.model)
        values = {"reason": verdict.reason, "loss": loss, "norm": norm, "threshold": verdict.threshold}
        self.log.event("skip", state.step, **values, where=where, updated=verdict.update)
        if not finite and state.guard.hopeless():
            count, among = state.guard.nonfinite, "steps in a row"
            if count < self.config.nonfinite_limit:
                count, among = self.config.nonfinite_limit, f"of the last {2 * self.config.nonfinite_limit} steps"
            raise self._failure(f"{count} {among} without finite loss and gradient up to step {state.step}, {where}")

    def _failure(self, what: str) -> UserError:
        """The error that ends training: what happened, and from where it could go on."""
        folders = checkpoint_folders(self.run)
        last = f"the last good checkpoint is {folders[-1]}" if folders else "there is no checkpoint yet"
        return UserError(f"training: {what}; {last}")

    def _check_weights(self) -> None:
        """Refuse to keep weights or running statistics that the last update has spoiled: nothing could use them.

        Largest magnitudes, not lengths: those of weights that are large but finite can overflow.
        """
        named = {name: x for name, x in self.state.model.state_dict().items() if x.is_floating_point() and x.numel()}
        finite = torch.stack(torch._foreach_norm(list(named.values()), math.inf)).isfinite().tolist()
        if not all(finite):
            first = next(name for name, good in zip(named, finite, strict=True) if not good)
            raise self._failure(f"the weights after step {self.state.step} are not finite, first in {first}")

    def _report(self, rate: float, beta: float) -> None:
        """The log's line and the validation, when they are due."""
        state, config, schedule = self.state, self.config, self.schedule
        seconds = self.seconds()
        ended = schedule.exhausted(state.step, seconds) is not None
        self.log.advance(schedule.fraction(state.step, seconds))
        if (state.step % config.log_every == 0 or ended) and state.meters.steps:
            means = state.meters.read()
            loss = means.pop("loss")
            steps, time_used = state.step - self.logged[0], max(seconds - self.logged[1], 1e-9)
            self.log.train(
                state.step,
                total_steps=schedule.total_steps,
                epoch=schedule.epoch(state.step),
                seconds=seconds,
                seconds_left=self._seconds_left(seconds),
                loss=loss,
                **summary(means, state.model.dims),
                kl_weight=beta,
                learning_rate=rate,
                images_per_second=steps * state.feed.order.batch_size / time_used,
                gradient_norm=state.guard.norms[-1] if state.guard.norms else None,  # the last finite one
                skipped=state.skipped,
            )
            state.skipped, self.logged = 0, (state.step, seconds)
        if config.validate_every and state.step % config.validate_every == 0:
            self._validate()

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
        some = images.subset(slice(config.validation_images)) if config.validation_images else images
        record = validate(state.average.model, some, max(1, config.batch_size // config.accumulate), config.seed)
        record = {"epoch": self.schedule.epoch(state.step), "seconds": self.seconds(), **record}
        self.log.validation(state.step, **record)
        self.validated = (state.step, record)

    def _keep(self) -> None:
        """Save when it is due, and end when a signal asked for it.

        While losses or gradients are not finite nothing is saved unasked: the weights may be spoiled, and the good
        checkpoints would be pushed out one by one before training gives up.
        """
        state, config = self.state, self.config
        by_steps = config.checkpoint_steps and state.step % config.checkpoint_steps == 0
        by_clock = config.checkpoint_minutes and self.seconds() - self.saved >= 60.0 * config.checkpoint_minutes
        asked = self.signals.received
        if ((by_steps or by_clock) and not state.guard.nonfinite) or asked is not None:
            folder = self._save()
            if asked is not None:
                raise Interrupted(asked, state.step, folder)

    def _save(self) -> Path:
        state = self.state
        self._check_weights()
        state.seconds = self.saved = self.seconds()
        folder = checkpoint.save(self.run, state, self.config.keep_checkpoints, self._extra())
        self.log.event("checkpoint", state.step, seconds=state.seconds)
        return folder

    def _extra(self) -> dict[str, Any]:
        """What the file of the averaged model says besides its description."""
        decay = float(self.config.ema_decay)
        return {"step": self.state.step, "ema": bool(decay), "ema_decay": decay, "protocol": self.sets.protocol}

    def _finish(self, budget: Budget) -> TrainingResult:
        """The last validation, checkpoint and the model's file; what a resumption finds done is not done again."""
        state, path = self.state, self.run / MODEL
        ended = self.resumed and state.step == self.start[0]
        self._check_weights()
        self._validate()
        if ended:  # what was killed while it removed old checkpoints has left some
            checkpoint.prune(self.run, state.step, self.config.keep_checkpoints)
        else:
            self._save()
        save_model(path, state.average.model, self._extra())
        if ended:
            self.log.say(
                f"{self.run} has ended with step {state.step}, its budget of {budget} is used up; a larger one would "
                f"prolong it; the model is {path}"
            )
        else:
            self.log.say(f"trained {state.step} steps in {duration(self.seconds())}; the model is {path}")
        epoch = self.schedule.epoch(state.step)
        return TrainingResult(state.step, epoch, self.seconds(), budget, path, self.validated[1])


def _validated(run: Path, step: int) -> tuple[int, dict[str, Any] | None]:
    """The validation that a run has recorded at its present step, in the form of :attr:`_Run.validated`."""
    for record in reversed(read_metrics(run)):
        if record["step"] == step and record.get("kind") == "validation":
            return step, {key: value for key, value in record.items() if key not in ("kind", "step")}
    return -1, None


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)


def _diagnosis(evidence: Evidence, model: nn.Module) -> str:
    """Where a number stopped being finite: the first term of the evidence, else the first gradient."""
    for name, term in evidence.terms.items():
        if not bool(term.isfinite().all()):
            return f"first in the term {name}"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"first in the gradient of {name}"
    return "in an earlier part of the batch"
