"""What a run writes while it is trained: the log, validations, checkpoints and, at its end, the model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Generator

from davi.batch import Batch
from davi.data import Images, evenly
from davi.data.binarization import binarized
from davi.metrics import read_metrics
from davi.model import Classifier
from davi.model.quantized import Quantized
from davi.objectives import Progress
from davi.objectives.remedies import remedy
from davi.runs import MODEL, save_model
from davi.training import checkpoint
from davi.training.code_report import code_lines, code_record
from davi.training.failure import MOST_ROLLBACKS, NotFiniteError, spoiled
from davi.training.log import summary
from davi.training.monitor import Monitor
from davi.training.parallel import Processes, SharedLog, noise_seed
from davi.training.sharded import whole, whole_again
from davi.training.state import State
from davi.training.validation import last_validation, validate, validation_batch

_PACE_SECONDS = 1.0
"""When and how often the rate is shown."""

_CODE_IMAGES = 1000
"""At most so many, at the end of a stage of a quantized model, where the recipe does not say."""


class Recorder:
    """Keeps what happens in a stage of a run.

    Arguments:
        state: of the run.
        run: its folder.
        log: of the run.
        processes: all of them call everything here.
        resumed: whether the state was read from a checkpoint.
    """

    def __init__(self, state: State, run: Path, log: SharedLog, processes: Processes, resumed: bool) -> None:
        self.state, self.run, self.log, self.processes, self.resumed = state, run, log, processes, resumed
        config = state.config
        self.schedule = state.schedule()
        self.began = time.monotonic() - state.seconds
        self.now = state.seconds
        """Time used up to the end of the last step, the same in all processes: what is decided by the clock."""
        self.start = self.logged = (state.step, state.seconds)
        self.paced = state.seconds
        self.saved = state.seconds
        self.saved_step = -1
        self.records = processes.share(read_metrics(run) if processes.main else [])
        stage = state.stage.name
        self.validated = last_validation(self.records, state.step, stage) if resumed else (-1, None)
        validates = config.validate_every and state.sets.validation is not None
        kind = "validation" if validates else "train"
        self.monitor = Monitor(config.monitor, self._settled, kind, stage, self._remedy)
        self.told: dict[str, Any] = {"stage": stage} if stage else {}
        """What every record of the stage says."""
        unit = state.objective.unit
        self.of_loss = {"unit": unit} if unit else {}
        """What every record with a loss says beside it."""

    def _settled(self, step: int, seconds: float) -> bool:
        state = self.state
        return step >= state.first_step and state.objective.settled(self.schedule.at(*state.within(step, seconds)))

    def _remedy(self, layers: list[str]) -> str:
        """What to try; in a run of stages options have other names."""
        return "" if self.state.stage.name else remedy(self.state.trained, self.state.config.objective, layers)

    def clock(self) -> float:
        """Time used, over all resumptions."""
        return time.monotonic() - self.began

    def begin(self, unsaved: bool) -> None:
        """Clean up after a kill or a rollback, and make sure that there is a checkpoint to go back to."""
        state = self.state
        if unsaved:
            self.save()
        written = sum(record["kind"] == "rollback" for record in self.records)
        for number, record in list(enumerate(state.rollbacks, 1))[written:]:
            self.log.event("rollback", **self.told, **record)
            self.log.say(
                f"rollback {number} of {MOST_ROLLBACKS}: step {record['failed_step']} was not finite, "
                f"{record['where']}; back at step {record['step']}, the learning rate is multiplied by "
                f"{record['learning_rate_factor']:g} from here on"
            )
        reported = [(record["step"], record.get("message")) for record in self.records if record["kind"] == "watch"]
        for record in self.records:
            for change in self.monitor.see(record):
                if record["step"] == state.step and (state.step, change["message"]) not in reported:
                    self._say_watched(change)

    def report(self, rate: float, at: Progress) -> None:
        """The log's line and the validation, when they are due, after a step that began at ``at``."""
        state, schedule, config = self.state, self.schedule, self.state.config
        within = state.within(state.step, self.now)
        ended = schedule.exhausted(*within) is not None
        self.log.advance(schedule.fraction(*within))
        due = ended or schedule.is_logged(state.step, self.now, self.logged[1])
        if due and state.meters.steps:
            record = self._train_record(rate, at)
            self.log.train(state.step, **record)
            self._look("train", record)
            state.skipped, self.logged, self.paced = 0, (state.step, self.now), self.now
        elif self.now - self.paced >= _PACE_SECONDS:
            self.paced = self.now
            self.log.pace(state.step, **self._pace(self.logged))
        if config.validate_every and state.step % config.validate_every == 0:
            self.validate()

    def _train_record(self, rate: float, at: Progress) -> dict[str, Any]:
        """Means since the last such record, and where the run stands."""
        state, schedule, seconds = self.state, self.schedule, self.now
        means = state.meters.read()
        loss = means.pop("loss")
        pace = self._pace(self.logged)
        within = state.within(state.step, seconds)
        return {
            **self.told,
            "total_steps": pace["total_steps"],
            "epoch": schedule.epoch(within[0]),
            "seconds": seconds,
            "seconds_left": pace["seconds_left"],
            "loss": loss,
            **self.of_loss,
            **summary(means, state.model.dims, state.meters.no_divergence, state.meters.claim),
            **state.objective.reports(state.trained, at),
            "learning_rate": rate,
            "images_per_second": pace["images_per_second"],
            "gradient_norm": state.step_filter.norms[-1] if state.step_filter.norms else None,
            "skipped": state.skipped,
        }

    def _pace(self, since: tuple[int, float]) -> dict[str, Any]:
        """How fast it goes since a step and its time, and how long it will take."""
        steps, seconds = self.state.step - since[0], max(self.now - since[1], 1e-9)
        total = self.schedule.total_steps
        return {
            "total_steps": None if total is None else self.state.first_step + total,
            "seconds_left": self._seconds_left(self.now),
            "images_per_second": steps * self.state.loader.sampler.batch_size / seconds,
        }

    def _look(self, kind: str, record: Mapping[str, Any]) -> None:
        """Let the monitor see a record that has just been written."""
        for change in self.monitor.see({"kind": kind, "step": self.state.step, **record}):
            self._say_watched(change)

    def _say_watched(self, change: Mapping[str, Any]) -> None:
        self.log.event("watch", self.state.step, **self.told, **change)
        for told in ("message", "remedy"):
            if told in change:
                self.log.say(f"monitor at step {self.state.step}: {change[told]}")

    def _seconds_left(self, seconds: float) -> float:
        """Time until the first budget is reached, at the pace since the start or the resumption."""
        schedule, state, (step, before) = self.schedule, self.state, self.start
        done, used = state.within(state.step, seconds)
        left = []
        if schedule.total_seconds is not None:
            left.append(schedule.total_seconds - used)
        if schedule.total_steps is not None:
            left.append((schedule.total_steps - done) * (seconds - before) / max(1, state.step - step))
        return max(0.0, min(left))

    def validate(self) -> None:
        """Measure the averaged model on the validation images, unless that has been done at this step."""
        state, images, config = self.state, self.state.sets.validation, self.state.config
        if images is None or self.validated[0] == state.step:
            return
        some, began, batch_size = evenly(images, config.validation_images or None), self.clock(), self._batch_size()
        with whole_again(state.average.model):
            record = validate(state.average.model, some, batch_size, config.seed, self.processes, state.stage)
            if state.objective.compares_training_images:
                train = self._training_images(len(some))
                other = validate(state.average.model, train, batch_size, config.seed, self.processes, state.stage)
                record |= {"training_loss": other["loss"], "gap": record["loss"] - other["loss"]}
        record["images_per_second"] = len(some) / max(self.clock() - began, 1e-9)
        epoch = self.schedule.epoch(state.within(state.step, self.now)[0])
        record = {**self.told, "epoch": epoch, "seconds": self.now, **self.of_loss, **record}
        self.log.validation(state.step, **record)
        self.validated = (state.step, record)
        self._look("validation", record)

    def _training_images(self, count: int) -> Images:
        """So many training images, always the same, presented as validation images are."""
        some, binarization = evenly(self.state.sets.train, count), self.state.loader.augment.binarization
        if binarization != "dynamic":
            return some
        return binarized(some, binarization, Generator().manual_seed(noise_seed(self.state.config.seed, count)))

    def validation_batches(self) -> Iterator[Batch]:
        """The validation images as the trained part sees them; nothing where there are none."""
        state, images, size = self.state, self.state.sets.validation, self._batch_size()
        if images is None:
            return
        some = evenly(images, state.config.validation_images or None)
        for number in range(-(-len(some) // size)):
            yield validation_batch(state.model, some, number, size, state.config.seed, state.stage)[0]

    def _batch_size(self) -> int:
        """Of validation images: as many as a part of a batch in training has."""
        return max(1, self.state.config.batch_size // self.state.parts)

    def save_if_due(self) -> None:
        """Save a checkpoint when it is due.

        While losses or gradients are not finite nothing is saved unasked: the weights may be spoiled, and the good
        checkpoints would be pushed out one by one before training gives up.
        """
        state, config = self.state, self.state.config.checkpoints
        by_steps = config.steps and state.step % config.steps == 0
        by_clock = config.minutes and self.now - self.saved >= 60.0 * config.minutes
        if (by_steps or by_clock) and not state.step_filter.nonfinite:
            self.save()

    def save(self) -> Path:
        """Save a checkpoint; its folder."""
        state = self.state
        self._check_weights()
        state.seconds, self.saved, self.saved_step = self.clock(), self.now, state.step
        tensors = state.tensors()
        with self.processes.together():
            if self.processes.main:
                checkpoint.save(self.run, state, tensors, state.config.checkpoints.keep, self._extra())
        self.log.event("checkpoint", state.step, seconds=state.seconds)
        return checkpoint.folder_of(self.run, state.step)

    def _check_weights(self) -> None:
        """Refuse to keep weights or running statistics that the last update has spoiled: nothing could use them."""
        name = spoiled(whole(self.state.model.state_dict()))
        if name is not None:
            what = f"the weights after step {self.state.step} are not finite"
            raise NotFiniteError(what, f"first in {name}", self.state.step, self.run)

    def _extra(self) -> dict[str, Any]:
        """What the file of the averaged model says besides its description."""
        decay, state = float(self.state.config.ema_decay), self.state
        averaged = {"ema": bool(decay), "ema_decay": decay}
        protocol = {**state.sets.protocol, **state.started_from}
        names = {"class_names": list(state.sets.classes)} if isinstance(state.model, Classifier) else {}
        return {"step": state.step, **averaged, "rollbacks": len(state.rollbacks), "protocol": protocol, **names}

    def _tell_codes(self) -> None:
        """How the bits of a quantized model divide at the end of a stage, unless that has been told."""
        state, model, own = self.state, self.state.average.model, self.state.stage.name
        told = [(record["step"], record.get("stage", "")) for record in self.records if record["kind"] == "codes"]
        if not isinstance(model, Quantized) or (state.step, own) in told:
            return
        images = state.sets.validation
        most = state.config.validation_images or _CODE_IMAGES
        some = self._training_images(_CODE_IMAGES) if images is None else evenly(images, most)
        record: dict[str, Any] = {}
        with self.processes.together():
            if self.processes.main:
                record = code_record(model, some, self._batch_size(), state.config.seed)
        record = self.processes.share(record)
        self.log.event("codes", state.step, **self.told, **record)
        for line in code_lines(record, own, model.levels, model.dims):
            self.log.say(line)

    def end_stage(self) -> None:
        """The last validation of a stage that others follow."""
        state, stage = self.state, self.state.stage
        self._check_weights()
        self.validate()
        ended = [record for record in self.records if record["kind"] == "stage"]
        if stage.name not in [record.get("stage") for record in ended]:
            self._tell_codes()
            self.log.event("stage", state.step, stage=stage.name, part=stage.part)
        state.seconds = self.processes.share(self.clock())  # from which all count the time of the next one

    def finish(self) -> tuple[Path, bool]:
        """The last validation, checkpoint and the model's file; what a resumption finds done is not done again.

        Returns:
            The file, and whether the run had ended before.
        """
        state, path = self.state, self.run / MODEL
        ended = self.resumed and state.step == self.start[0]
        self._check_weights()
        self.validate()
        if not ended:
            self._tell_codes()
            self.save()
        weights = state.tensors().average
        with self.processes.together():
            if self.processes.main:
                if ended:  # what was killed while it removed old checkpoints has left some
                    checkpoint.prune(self.run, state.step, state.config.checkpoints.keep)
                save_model(path, state.average.model, self._extra(), weights)
        return path, ended
