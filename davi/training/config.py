"""The ``training:`` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from davi.config import Named
from davi.objectives import EvidenceConfig, ObjectiveConfig, objective_configs
from davi.training.sections import (
    CheckpointConfig,
    ComputeConfig,
    MonitorConfig,
    OptimizerConfig,
    ScheduleConfig,
    StepFilterConfig,
    check_at_least,
    check_at_most,
    check_decay,
)

_MOST = 1e15
"""Steps, epochs or minutes; larger numbers could overflow."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    At least one budget is given; training ends at the first that is reached. With a budget in steps or epochs the
    learning rate and the KL weight are functions of the step alone, and a run can be repeated bit for bit. With
    minutes alone they follow the share of the clock that is used up, which no second run repeats exactly.

    Arguments:
        steps: budget in steps; every batch counts, also one whose update was skipped.
        epochs: budget in passes over the training images.
        minutes: budget on the clock, including validation and checkpoints; time before a resume counts.
        batch_size: images per step, of all processes together.
        accumulate: parts into which a batch is cut, to save memory; gradients are added up. Several processes share the
            parts; batches are cut further until each has as many. A batch norm sees one part at a time.
        learning_rate: the highest.
        optimizer: how a gradient moves the weights.
        schedule: how the learning rate changes.
        objective: what is minimized (:mod:`davi.objectives`), and its options.
        step_filter: which steps may change the weights.
        ema_decay: decay of the moving average of the weights, which is what is kept; it rises to this value as
            (1 + t) / (10 + t). 0: the last weights are kept.
        compute: how a step is computed.
        validate_every: steps between validations; 0: only at the end.
        validation_images: how many validation images are used, spread evenly over them and always the same; 0: all.
        checkpoints: when a run is saved on the way.
        log_every: steps between lines of the log, the points of learning curves; 0: as many as give about a hundred
            over the budget, in steps where it is counted in steps or epochs, else by the clock.
        monitor: what is reported though it is no error.
        tensorboard: write the log for TensorBoard as well, into the run's folder; needs the extra of that name.
        seed: of the order of the images, their presentation and the model's draws.
        threads: CPU threads; 0: as torch chooses.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 0.01
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: Annotated[ObjectiveConfig, Named(objective_configs)] = field(default_factory=EvidenceConfig)
    step_filter: StepFilterConfig = field(default_factory=StepFilterConfig)
    ema_decay: float = 0.999
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    validate_every: int = 500
    validation_images: int = 0
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    log_every: int = 0
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    tensorboard: bool = False
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        self._check_budget()
        check_at_least(1, self, "batch_size", "accumulate")
        check_at_least(0, self, "learning_rate", "validate_every", "validation_images", "log_every", "seed", "threads")
        check_at_most(2**63 - 1, self, "seed")
        check_at_most(4096, self, "threads")
        check_decay(self, "ema_decay")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: got {self.accumulate}, expected a divisor of batch_size {self.batch_size}")
        self._check_schedule()

    def _check_budget(self) -> None:
        given = {"steps": self.steps, "epochs": self.epochs, "minutes": self.minutes}
        if all(value is None for value in given.values()):
            raise ValueError("steps: got no budget, expected at least one of steps, epochs and minutes")
        for name, value in given.items():
            if value is not None and not 0 < value <= _MOST:
                raise ValueError(f"{name}: got {value:g}, expected a number above 0, at most {_MOST:g}")

    def _check_schedule(self) -> None:
        """Whether it fits the highest learning rate and the budget."""
        schedule, clock_alone = self.schedule, self.steps is None and self.epochs is None
        lowest = min(self.learning_rate, schedule.final_learning_rate)
        if schedule.name == "staircase" and not lowest > 0:
            raise ValueError(f"schedule.name: got staircase with a learning rate of {lowest}, expected rates above 0")
        if schedule.name == "cosine_restarts" and schedule.warmup_fraction and clock_alone:
            # Restarts are counted in steps from the end of the warm-up, and here no step is known to be its end.
            raise ValueError(
                f"schedule.warmup_fraction: got {schedule.warmup_fraction}, expected warmup_steps or warmup_epochs, "
                "since restarts are counted in steps and the budget is in minutes alone"
            )
