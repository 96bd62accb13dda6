r"""Where a run stands in its budget, and the learning rate there.

A warm-up of length w rises linearly, :math:`\eta_s = \eta_0 + (\eta - \eta_0)\, s / w`; after it a cosine falls,

.. math:: \eta_s = \eta_T + \frac{1}{2} (\eta - \eta_T) (1 + \cos \pi p)

with p the share used up of what remains after the warm-up, or of the current period when the cosine restarts. In place
of the cosine there may be a straight line, :math:`\eta + (\eta_T - \eta)\, p`, or n stairs, each m times as long as the
one before it, or of given lengths, with the rate

.. math:: \eta_i = \eta \, (\eta_T / \eta)^{i / (n - 1)}, \qquad i = 0 \ldots n - 1

References:
    SGDR: Stochastic Gradient Descent with Warm Restarts, I. Loshchilov, F. Hutter, ICLR 2017,
    https://arxiv.org/abs/1608.03983

    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519
    (the staircase)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from davi.objectives import Progress
from davi.training.config import TrainingConfig
from davi.training.sections import ScheduleConfig

Budget = Literal["steps", "epochs", "minutes"]

LINES = 100
"""About how many lines the log of a whole stage has, if it has so many steps and ``log_every`` is 0."""

_FARTHEST_STEPS, _FARTHEST_SECONDS = 500, 60.0
"""Lines are never farther apart, however large the budget."""


@dataclass(frozen=True)
class Schedule:
    """The budget of a stage and its learning rate, as functions of the steps done in it and the seconds used by it.

    Arguments:
        config: the recipe's section.
        steps_per_epoch: batches in one pass over the training images.
    """

    config: TrainingConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int | None:
        """The budget in steps, at least 1; None if only the clock ends the run."""
        epochs = self.config.epochs
        limits = [self.config.steps, None if epochs is None else math.ceil(epochs * self.steps_per_epoch)]
        given = [limit for limit in limits if limit is not None]
        return min(given) if given else None

    @property
    def total_seconds(self) -> float | None:
        """The budget on the clock."""
        return None if self.config.minutes is None else 60.0 * self.config.minutes

    def epoch(self, step: int) -> int:
        """Whole passes over the training images after that many steps."""
        return step // self.steps_per_epoch

    def fraction(self, step: int, seconds: float) -> float:
        """Share of the budget that is used up, 0 to 1: of the steps if they are limited, else of the clock."""
        if self.total_steps is not None:
            return min(1.0, step / self.total_steps)
        assert self.total_seconds is not None
        return min(1.0, seconds / self.total_seconds)

    def exhausted(self, step: int, seconds: float) -> Budget | None:
        """Which budget is used up; None while there is some left."""
        if self.total_steps is not None and step >= self.total_steps:
            return "steps" if self.total_steps == self.config.steps else "epochs"
        if self.total_seconds is not None and seconds >= self.total_seconds:
            return "minutes"
        return None

    def is_logged(self, step: int, seconds: float, before: float) -> bool:
        """Whether the log gets a line after ``step`` steps of the run and ``seconds``, the last one at ``before``.

        With ``log_every`` 0 lines are so close together that learning curves have enough points for any budget.
        """
        if self.config.log_every:
            return step % self.config.log_every == 0
        steps, clock = self.total_steps, self.total_seconds
        by_steps = steps is not None and step % max(1, min(steps // LINES, _FARTHEST_STEPS)) == 0
        by_clock = clock is not None and seconds - before >= min(clock / LINES, _FARTHEST_SECONDS)
        return by_steps or by_clock

    def at(self, step: int, seconds: float) -> Progress:
        """Where the step after ``step`` steps stands."""
        return Progress(step, self.epoch(step), self.fraction(step, seconds))

    def learning_rate(self, step: int, seconds: float) -> float:
        """Learning rate of the step after ``step`` steps (the first has ``step`` 0)."""
        schedule, highest = self.config.schedule, self.config.learning_rate
        warm = self._warmup(step, seconds)
        if warm < 1.0:
            return schedule.initial_learning_rate + (highest - schedule.initial_learning_rate) * warm
        if schedule.name == "constant":
            return highest
        if schedule.name == "staircase":
            return self._rate_of_stair(self._after_warmup(step, seconds))
        if schedule.name == "exponential":
            return highest * schedule.decay ** (step + 1 - self._warmup_steps())
        if schedule.name == "linear":
            return highest + (schedule.final_learning_rate - highest) * self._after_warmup(step, seconds)
        rest = self._after_warmup(step, seconds) if schedule.name == "cosine" else self._in_period(step)
        swing = 0.5 * (highest - schedule.final_learning_rate)
        return schedule.final_learning_rate + swing * (1.0 + math.cos(math.pi * rest))

    def _warmup_steps(self) -> float:
        """Length of the warm-up in steps; 0 if there is none or it is a share of the clock."""
        schedule = self.config.schedule
        if schedule.warmup_fraction:
            return 0.0 if self.total_steps is None else schedule.warmup_fraction * self.total_steps
        return schedule.warmup_steps or schedule.warmup_epochs * self.steps_per_epoch

    def _warmup(self, step: int, seconds: float) -> float:
        """Share of the warm-up that is done, 1 from its end on."""
        if self.config.schedule.warmup_fraction and self.total_steps is None:
            return min(1.0, self.fraction(step, seconds) / self.config.schedule.warmup_fraction)
        length = self._warmup_steps()
        return min(1.0, step / length) if length else 1.0

    def _after_warmup(self, step: int, seconds: float) -> float:
        """Share used up of what the warm-up leaves of the budget.

        When only the clock limits the run and the warm-up is counted in steps, it is not known beforehand what it will
        leave; then it is the share of the whole clock.
        """
        if self.total_steps is not None:
            warm = self._warmup_steps()
            return min(1.0, (step - warm) / max(self.total_steps - warm, 1.0))
        warm = self.config.schedule.warmup_fraction
        return min(1.0, (self.fraction(step, seconds) - warm) / max(1.0 - warm, 1e-9))

    def _in_period(self, step: int) -> float:
        """Share used up of the current period of a cosine that restarts."""
        since = step - self._warmup_steps()
        period = max(1.0, self.config.schedule.first_period_epochs * self.steps_per_epoch)
        while since >= period:
            since -= period
            period *= self.config.schedule.period_multiplier
        return since / period

    def _rate_of_stair(self, share: float) -> float:
        """Learning rate when that share of what the warm-up leaves of the budget is used up."""
        schedule, highest = self.config.schedule, self.config.learning_rate
        ends = _ends_of_stairs(schedule)
        last = len(ends) - 1
        # A share that is an end except for rounding counts as one: the next stair begins.
        stair = min(last, sum(share >= end - 1e-12 for end in ends))
        return highest * (schedule.final_learning_rate / highest) ** (stair / max(1, last))


def _ends_of_stairs(schedule: ScheduleConfig) -> list[float]:
    """Shares of what the warm-up leaves of the budget, the last one 1."""
    if schedule.boundaries:
        return [*schedule.boundaries, 1.0]
    last = schedule.stairs - 1
    lengths = [schedule.period_multiplier ** (i - last) for i in range(schedule.stairs)]  # the longest: 1
    return list(accumulate(length / sum(lengths) for length in lengths))
