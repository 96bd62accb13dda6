"""The ``training:`` section of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from davi.evaluation.activity import INACTIVE_NATS
from davi.objectives import ObjectiveConfig

_MOST = 1e15
"""Steps, epochs or minutes; more would overflow somewhere, and nobody lives that long."""


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
        optimizer: adamax, adam or sgd (weight decay is an L2 gradient), or adamw (decoupled weight decay).
        learning_rate: the highest.
        betas: decay of the two moments.
        eps: added to the second moment's root; not of sgd.
        eps_inside_root: add it to the second moment instead, before the root is taken; adam only.
        momentum: of sgd, the share of its last step that the next one keeps, 0 to below 1.
        weight_decay: on all parameters with at least one dimension; single numbers (gates) are left alone.
        schedule: constant; cosine from ``learning_rate`` to ``final_learning_rate`` over what the warm-up leaves of the
            budget; cosine_restarts in periods of growing length; staircase, stairs of growing length with a constant
            rate each, from ``learning_rate`` on the first to ``final_learning_rate`` on the last in equal ratios.
        initial_learning_rate: where the warm-up begins.
        final_learning_rate: where every cosine ends, and the last stair.
        warmup_steps, warmup_epochs, warmup_fraction: length of the linear warm-up, at most one of them.
        first_period_epochs: first period of cosine_restarts, counted from the end of the warm-up.
        period_multiplier: each further period or stair is that many times longer.
        stairs: into how many stairs what the warm-up leaves of the budget is divided.
        objective: weight of the KL divergences.
        clip_norm: longer gradients are scaled down to this norm; 0: never.
        skip_norm: a step is skipped if its gradient norm is more than this; 0: never.
        skip_factor: a step is skipped if its gradient norm is more than that many times the ``skip_quantile`` of the
            last ``skip_window`` norms; 0: never.
        skip_quantile: 0 to 1.
        skip_window: how many norms are remembered.
        skip_limit: after that many skips in a row the next step is taken, scaled down to the threshold.
        nonfinite_limit: training stops when the loss or gradient was not finite in that many of the last twice as many
            steps, thus at the latest after that many in a row; such steps never change the model.
        on_nan: what happens then, or when the weights themselves are not finite. stop: training ends with a diagnosis.
            rollback: it goes back to the last good checkpoint and continues with half the learning rate, three times at
            most.
        ema_decay: decay of the moving average of the weights, which is what is kept; it rises to this value as
            (1 + t) / (10 + t). 0: the last weights are kept.
        precision: float32, or bfloat16 for the network while likelihoods and weights stay float32.
        compile: compile the model's blocks, each kind once.
        compile_backend: backend of torch.compile.
        recompute: recompute the activations of the model's blocks in the backward pass instead of keeping them.
        channels_last: keep feature maps with the channels innermost, which convolutions are fastest on; not with
            ``shard``.
        shard: let each of several processes keep a share of the weights, gradients, moments and averaged weights
            instead of all of them; slower, and meant for models that are too large for one device. It changes no number
            but for rounding, and for the values that a dropout drops: they go with the layout of the memory, which
            ``channels_last`` changes.
        validate_every: steps between validations; 0: only at the end.
        validation_images: how many validation images are used, spread evenly over them and always the same; 0: all.
        checkpoint_minutes: minutes between checkpoints; 0: only by steps and at the end.
        checkpoint_steps: steps between checkpoints; 0: only by minutes and at the end.
        keep_checkpoints: how many are kept, the newest.
        log_every: steps between lines of the log.
        collapse_nats: a latent layer whose mean KL divergence is below that many nats per image after the warm-up of
            its weight is reported as inactive, by the rule of :mod:`davi.evaluation.activity`; 0: never.
        plateau_validations: a validation bound that has not improved by a thousandth for that many validations is
            reported as a plateau; 0: never.
        tensorboard: write the log for TensorBoard as well, into the run's folder; needs the extra of that name.
        seed: of the order of the images, their presentation and the model's draws.
        threads: CPU threads; 0: as torch chooses.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamax", "adamw", "adam", "sgd"] = "adamax"
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    eps_inside_root: bool = False
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "cosine_restarts", "staircase"] = "cosine"
    initial_learning_rate: float = 1e-4
    final_learning_rate: float = 1e-4
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_fraction: float = 0.0
    first_period_epochs: float = 300.0
    period_multiplier: float = 2.0
    stairs: int = 8
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    clip_norm: float = 0.0
    skip_norm: float = 0.0
    skip_factor: float = 10.0
    skip_quantile: float = 0.9
    skip_window: int = 100
    skip_limit: int = 10
    nonfinite_limit: int = 10
    on_nan: Literal["stop", "rollback"] = "stop"
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    compile_backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    recompute: bool = False
    channels_last: bool = True
    shard: bool = False
    validate_every: int = 500
    validation_images: int = 0
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2
    log_every: int = 50
    collapse_nats: float = INACTIVE_NATS
    plateau_validations: int = 10
    tensorboard: bool = False
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        self._check_budget()
        self._check_ranges()
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: got {self.accumulate}, expected a divisor of batch_size {self.batch_size}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}, expected numbers from 0 to below 1")
        if sum(map(bool, (self.warmup_steps, self.warmup_epochs, self.warmup_fraction))) > 1:
            raise ValueError("warmup_steps: got more than one warm-up, expected one of steps, epochs and fraction")
        if self.schedule == "cosine_restarts" and not self.first_period_epochs > 0:
            raise ValueError(f"first_period_epochs: got {self.first_period_epochs}, expected more than 0")
        if self.schedule == "staircase" and not min(self.learning_rate, self.final_learning_rate) > 0:
            lowest = min(self.learning_rate, self.final_learning_rate)
            raise ValueError(f"schedule: got staircase with a learning rate of {lowest}, expected rates above 0")
        clock_alone = self.steps is None and self.epochs is None
        if self.schedule == "cosine_restarts" and self.warmup_fraction and clock_alone:
            # Restarts are counted in steps from the end of the warm-up, and here no step is known to be its end.
            raise ValueError(
                f"warmup_fraction: got {self.warmup_fraction}, expected warmup_steps or warmup_epochs, since restarts "
                "are counted in steps and the budget is in minutes alone"
            )

    def _check_budget(self) -> None:
        given = {"steps": self.steps, "epochs": self.epochs, "minutes": self.minutes}
        if all(value is None for value in given.values()):
            raise ValueError("steps: got no budget, expected at least one of steps, epochs and minutes")
        for name, value in given.items():
            if value is not None and not 0 < value <= _MOST:
                raise ValueError(f"{name}: got {value:g}, expected a number above 0, at most {_MOST:g}")

    def _check_ranges(self) -> None:
        at_least_one = ("batch_size", "accumulate", "skip_window", "skip_limit", "nonfinite_limit", "log_every")
        for name in (*at_least_one, "keep_checkpoints", "period_multiplier", "stairs"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        not_negative = ("learning_rate", "eps", "weight_decay", "initial_learning_rate", "final_learning_rate")
        lengths = ("warmup_steps", "warmup_epochs", "clip_norm", "skip_norm", "skip_factor")
        watched = ("validate_every", "validation_images", "collapse_nats", "plateau_validations")
        kept = ("checkpoint_minutes", "checkpoint_steps", "seed", "threads")
        for name in (*not_negative, *lengths, *watched, *kept):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        most_of = {"seed": 2**63 - 1, "threads": 4096, "skip_window": 10**6, "nonfinite_limit": 10**6, "stairs": 1000}
        for name, most in most_of.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at most {most}")
        for name in ("warmup_fraction", "skip_quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to 1")
        for name in ("ema_decay", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to below 1")
        if self.eps_inside_root and self.optimizer != "adam":
            raise ValueError(f"eps_inside_root: got true with the optimizer {self.optimizer}, expected adam")
