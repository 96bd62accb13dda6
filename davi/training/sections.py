"""The sections of a recipe's ``training:`` section, one for each part of the loop that has options of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from davi.evaluation.activity import INACTIVE_NATS


def check_at_least(least: float, config: object, *names: str) -> None:
    """Refuse options of a section that are smaller, or not finite.

    Raises:
        ValueError: one line that begins with the option's name.
    """
    for name in names:
        if not least <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at least {least:g}")


def check_at_most(most: int, config: object, *names: str) -> None:
    """Refuse options of a section that are larger, as :func:`check_at_least` refuses small ones."""
    for name in names:
        if getattr(config, name) > most:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected at most {most}")


def check_share(config: object, *names: str) -> None:
    """Refuse options of a section that are not shares, 0 to 1, as :func:`check_at_least` refuses small ones."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected 0 to 1")


def check_decay(config: object, *names: str) -> None:
    """Refuse options of a section that are no decays, 0 to below 1, as :func:`check_at_least` refuses small ones."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}: got {getattr(config, name)}, expected 0 to below 1")


@dataclass(frozen=True)
class OptimizerConfig:
    """How a gradient moves the weights (:mod:`davi.training.optimizer`).

    Arguments:
        name: adamax, adam or sgd (weight decay is an L2 gradient), or adamw (decoupled weight decay).
        betas: decay of the two moments; not of sgd.
        eps: added to the second moment's root; not of sgd.
        eps_inside_root: add it to the second moment instead, before the root is taken; adam only.
        momentum: of sgd, the share of its last step that the next one keeps, 0 to below 1.
        initial_momentum: that share in the first ``initial_momentum_steps`` steps of a stage, while gradients are
            large; 0.5 and then 0.9 is what Hinton advises for Boltzmann machines.
        initial_momentum_steps: how many those are; 0: none.
        weight_decay: on parameters with at least one dimension; single numbers (gates) are left alone.
        weight_decay_of: all of those; or kernels, of convolutions, and matrices, those with at least two dimensions,
            so that biases and the gains and offsets of norms are left alone too.
    """

    name: Literal["adamax", "adamw", "adam", "sgd"] = "adamax"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    eps_inside_root: bool = False
    momentum: float = 0.9
    initial_momentum: float = 0.5
    initial_momentum_steps: int = 0
    weight_decay: float = 0.0
    weight_decay_of: Literal["all", "kernels"] = "all"

    def __post_init__(self) -> None:
        check_at_least(0, self, "eps", "initial_momentum_steps", "weight_decay")
        check_decay(self, "momentum", "initial_momentum")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas: got {list(self.betas)}, expected numbers from 0 to below 1")
        if self.eps_inside_root and self.name != "adam":
            raise ValueError(f"eps_inside_root: got true with the optimizer {self.name}, expected adam")
        if self.initial_momentum_steps and self.name != "sgd":
            got = f"got {self.initial_momentum_steps} with the optimizer {self.name}"
            raise ValueError(f"initial_momentum_steps: {got}, expected sgd")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes (:mod:`davi.training.schedule`); the highest is ``training.learning_rate``.

    Arguments:
        name: constant; cosine from the highest rate to ``final_learning_rate`` over what the warm-up leaves of the
            budget; linear, the same in a straight line; cosine_restarts in periods of growing length; staircase, stairs
            of growing length with a constant rate each, from the highest on the first to ``final_learning_rate`` on the
            last in equal ratios; exponential, by a constant factor with every step.
        initial_learning_rate: where the warm-up begins.
        final_learning_rate: where every cosine and the straight line ends, and the last stair.
        warmup_steps, warmup_epochs, warmup_fraction: length of the linear warm-up, at most one of them.
        first_period_epochs: first period of cosine_restarts, counted from the end of the warm-up.
        period_multiplier: each further period or stair is that many times longer.
        stairs: into how many stairs what the warm-up leaves of the budget is divided.
        boundaries: where the stairs end but for the last, in shares of what the warm-up leaves, in place of ``stairs``
            and ``period_multiplier``: 0.5 and 0.75 make three of them.
        decay: factor of exponential, 0 to below 1; the first step after the warm-up has it already.
    """

    name: Literal["constant", "cosine", "linear", "cosine_restarts", "staircase", "exponential"] = "cosine"
    initial_learning_rate: float = 1e-4
    final_learning_rate: float = 1e-4
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_fraction: float = 0.0
    first_period_epochs: float = 300.0
    period_multiplier: float = 2.0
    stairs: int = 8
    boundaries: tuple[float, ...] = ()
    decay: float = 0.999995

    def __post_init__(self) -> None:
        check_at_least(0, self, "initial_learning_rate", "final_learning_rate", "warmup_steps", "warmup_epochs")
        check_decay(self, "decay")
        check_share(self, "warmup_fraction")
        check_at_least(1, self, "period_multiplier", "stairs")
        check_at_most(1000, self, "stairs")
        if sum(map(bool, (self.warmup_steps, self.warmup_epochs, self.warmup_fraction))) > 1:
            raise ValueError("warmup_steps: got more than one warm-up, expected one of steps, epochs and fraction")
        if any(not 0 < a < b for a, b in pairwise((*self.boundaries, 1.0))):
            raise ValueError(f"boundaries: got {list(self.boundaries)}, expected rising numbers between 0 and 1")
        if self.boundaries and self.name != "staircase":
            got = f"got {list(self.boundaries)} with the schedule {self.name}"
            raise ValueError(f"boundaries: {got}, expected staircase")
        if self.name == "cosine_restarts" and not self.first_period_epochs > 0:
            raise ValueError(f"first_period_epochs: got {self.first_period_epochs}, expected more than 0")


@dataclass(frozen=True)
class StepFilterConfig:
    """Which steps may change the weights, and how far (:mod:`davi.training.step_filter`).

    Arguments:
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
    """

    clip_norm: float = 0.0
    skip_norm: float = 0.0
    skip_factor: float = 10.0
    skip_quantile: float = 0.9
    skip_window: int = 100
    skip_limit: int = 10
    nonfinite_limit: int = 10
    on_nan: Literal["stop", "rollback"] = "stop"

    def __post_init__(self) -> None:
        check_at_least(1, self, "skip_window", "skip_limit", "nonfinite_limit")
        check_at_least(0, self, "clip_norm", "skip_norm", "skip_factor")
        check_at_most(10**6, self, "skip_window", "nonfinite_limit")
        check_share(self, "skip_quantile")


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; its numbers stay what they are, up to rounding.

    Arguments:
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
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    compile_backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    recompute: bool = False
    channels_last: bool = True
    shard: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved on the way (:mod:`davi.training.checkpoint`); at its end it always is.

    Arguments:
        minutes: between checkpoints; 0: only by steps and at the end.
        steps: between checkpoints; 0: only by minutes and at the end.
        keep: how many are kept, the newest.
    """

    minutes: float = 10.0
    steps: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        check_at_least(0, self, "minutes", "steps")
        check_at_least(1, self, "keep")


@dataclass(frozen=True)
class MonitorConfig:
    """What is reported though it is no error (:mod:`davi.training.monitor`).

    Arguments:
        collapse_nats: a latent layer whose mean KL divergence is below that many nats per image after the warm-up of
            its weight is reported as inactive, by the rule of :mod:`davi.evaluation.activity`; 0: never.
        plateau_validations: a validation bound that has not improved by a thousandth for that many validations is
            reported as a plateau; 0: never.
    """

    collapse_nats: float = INACTIVE_NATS
    plateau_validations: int = 10

    def __post_init__(self) -> None:
        check_at_least(0, self, "collapse_nats", "plateau_validations")
