"""Learning rates and budgets against numbers computed by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from davi.training.config import TrainingConfig
from davi.training.schedule import Schedule
from davi.training.sections import CheckpointConfig, MonitorConfig, OptimizerConfig, ScheduleConfig, StepFilterConfig

PAPER = ScheduleConfig(initial_learning_rate=1e-4, final_learning_rate=1e-4, warmup_epochs=5.0)


def rate(schedule: Schedule, epoch: float) -> float:
    return schedule.learning_rate(round(epoch * schedule.steps_per_epoch), 0.0)


def test_warmup_then_cosine() -> None:
    schedule = Schedule(TrainingConfig(epochs=405, learning_rate=1e-2, schedule=PAPER), 100)
    assert schedule.learning_rate(0, 0.0) == pytest.approx(1e-4, rel=1e-12)
    assert schedule.learning_rate(1, 0.0) == pytest.approx(
        1e-4 + 9.9e-3 / 500, rel=1e-12
    )  # every step, not every epoch
    assert schedule.learning_rate(250, 0.0) == pytest.approx(5.05e-3, rel=1e-12)
    assert rate(schedule, 5) == pytest.approx(1e-2, rel=1e-12)
    # 400 epochs of cosine: a quarter, a half and all of it
    assert rate(schedule, 105) == pytest.approx(1e-4 + 0.5 * 9.9e-3 * (1 + math.sqrt(0.5)), rel=1e-9)
    assert rate(schedule, 205) == pytest.approx(5.05e-3, rel=1e-9)
    assert rate(schedule, 405) == pytest.approx(1e-4, rel=1e-9)


def test_a_straight_line_after_warmup() -> None:
    line = ScheduleConfig("linear", warmup_steps=10, initial_learning_rate=0.0, final_learning_rate=0.2)
    schedule = Schedule(TrainingConfig(steps=50, learning_rate=1.0, schedule=line), 7)
    rates = [schedule.learning_rate(step, 0.0) for step in (0, 5, 10, 20, 30, 50)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.8, 0.6, 0.2])
    clock = Schedule(TrainingConfig(minutes=1.0, learning_rate=1.0, schedule=ScheduleConfig("linear")), 7)
    assert clock.learning_rate(3, 30.0) == pytest.approx(0.5 * (1.0 + 1e-4))


def test_restarts_of_300_and_600_epochs() -> None:
    restarts = replace(PAPER, name="cosine_restarts", first_period_epochs=300.0)
    config = TrainingConfig(epochs=905, learning_rate=1e-2, schedule=restarts)
    schedule = Schedule(config, 313)
    assert rate(schedule, 5) == pytest.approx(1e-2, rel=1e-12)
    assert rate(schedule, 155) == pytest.approx(5.05e-3, rel=1e-9)  # half of the first period
    before, after = (schedule.learning_rate(305 * 313 + shift, 0.0) for shift in (-1, 0))
    assert before == pytest.approx(1e-4, rel=1e-4)  # one step before the end the cosine is flat
    assert after == pytest.approx(1e-2, rel=1e-12)
    assert rate(schedule, 455) == pytest.approx(1e-4 + 0.5 * 9.9e-3 * (1 + math.sqrt(0.5)), rel=1e-9)  # 150 of 600
    assert rate(schedule, 605) == pytest.approx(5.05e-3, rel=1e-9)
    assert schedule.learning_rate(905 * 313 - 1, 0.0) == pytest.approx(1e-4, rel=1e-4)


def test_stairs_that_end_at_boundaries() -> None:
    """As published with reversible residual networks: the new rate holds from the step at the boundary on."""
    stairs = ScheduleConfig("staircase", final_learning_rate=0.001, boundaries=(0.5, 0.75))
    schedule = Schedule(TrainingConfig(steps=80_000, learning_rate=0.1, schedule=stairs), 500)
    steps = (0, 39_999, 40_000, 59_999, 60_000, 79_999)
    rates = [schedule.learning_rate(step, 0.0) for step in steps]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-12)
    warm = replace(stairs, warmup_steps=40_000, initial_learning_rate=0.1)
    assert Schedule(TrainingConfig(steps=80_000, learning_rate=0.1, schedule=warm), 500).learning_rate(
        59_999, 0.0
    ) == pytest.approx(0.1)


def test_exponential_after_warmup() -> None:
    """PixelCNN++ multiplies the rate by its decay before each step, the first one included."""
    decaying = ScheduleConfig("exponential", decay=0.5)
    config = TrainingConfig(steps=100, learning_rate=1.0, schedule=decaying)
    assert [Schedule(config, 7).learning_rate(step, 0.0) for step in (0, 1, 3)] == [0.5, 0.25, 0.0625]
    warmed = replace(config, schedule=replace(decaying, warmup_steps=2, initial_learning_rate=0.0))
    assert [Schedule(warmed, 7).learning_rate(step, 0.0) for step in (0, 1, 2, 3)] == [0.0, 0.5, 0.5, 0.25]


def test_constant_after_warmup_by_steps() -> None:
    constant = ScheduleConfig("constant", warmup_steps=4, initial_learning_rate=0.0)
    config = TrainingConfig(steps=100, learning_rate=1.0, schedule=constant)
    rates = [Schedule(config, 7).learning_rate(step, 0.0) for step in (0, 1, 2, 3, 4, 99)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-12)


def test_a_budget_in_minutes_follows_the_clock() -> None:
    cosine = ScheduleConfig(warmup_fraction=0.1, final_learning_rate=0.0)
    config = TrainingConfig(minutes=10, learning_rate=2.0, schedule=cosine)
    schedule = Schedule(config, 7)
    assert schedule.learning_rate(123, 30.0) == pytest.approx(1e-4 + (2.0 - 1e-4) / 2, rel=1e-12)
    assert schedule.learning_rate(5, 60.0) == pytest.approx(2.0, rel=1e-12)
    assert schedule.learning_rate(5, 60.0 + 270.0) == pytest.approx(1.0, rel=1e-9)
    assert schedule.learning_rate(5, 600.0) == pytest.approx(0.0, abs=1e-12)
    assert schedule.exhausted(10**9, 599.0) is None
    assert schedule.exhausted(0, 600.0) == "minutes"


def test_with_steps_the_clock_changes_nothing_but_the_end() -> None:
    schedule = Schedule(TrainingConfig(steps=100, minutes=1, schedule=ScheduleConfig(warmup_fraction=0.1)), 10)
    for step in (0, 5, 10, 50, 99):
        assert schedule.learning_rate(step, 0.0) == schedule.learning_rate(step, 59.0)
        assert schedule.at(step, 0.0) == schedule.at(step, 59.0)
    assert schedule.exhausted(99, 59.0) is None
    assert schedule.exhausted(100, 0.0) == "steps"
    assert schedule.exhausted(3, 60.0) == "minutes"


def test_the_first_budget_counts() -> None:
    schedule = Schedule(TrainingConfig(steps=100, epochs=2.5), 10)
    assert schedule.total_steps == 25
    assert schedule.exhausted(24, 0.0) is None
    assert schedule.exhausted(25, 0.0) == "epochs"
    assert schedule.epoch(19) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "steps: got no budget"),
        ({"steps": 0}, "steps: got 0"),
        ({"minutes": math.inf}, "minutes: got inf"),
        ({"steps": 1, "batch_size": 10, "accumulate": 4}, "accumulate: got 4, expected a divisor"),
        ({"steps": 1, "learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"steps": 1, "ema_decay": 1.0}, "ema_decay: got 1.0"),
        (
            {"minutes": 1, "schedule": ScheduleConfig("cosine_restarts", warmup_fraction=0.1)},
            "schedule.warmup_fraction: got 0.1",
        ),
        (
            {"steps": 1, "schedule": ScheduleConfig("staircase", final_learning_rate=0.0)},
            "schedule.name: got staircase with a learning rate of 0.0",
        ),
        ({"steps": 1, "learning_rate": 0.0, "schedule": ScheduleConfig("staircase")}, "schedule.name: got staircase"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as caught:
        TrainingConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (OptimizerConfig, {"betas": (0.9, 1.0)}, "betas: got [0.9, 1.0], expected numbers from 0 to below 1"),
        (OptimizerConfig, {"eps": math.inf}, "eps: got inf, expected at least 0"),
        (OptimizerConfig, {"momentum": 1.0}, "momentum: got 1.0, expected 0 to below 1"),
        (ScheduleConfig, {"warmup_steps": 2, "warmup_epochs": 1.0}, "warmup_steps: got more than one warm-up"),
        (ScheduleConfig, {"warmup_fraction": 1.5}, "warmup_fraction: got 1.5, expected 0 to 1"),
        (ScheduleConfig, {"decay": 1.0}, "decay: got 1.0, expected 0 to below 1"),
        (ScheduleConfig, {"stairs": 1001}, "stairs: got 1001, expected at most 1000"),
        (
            ScheduleConfig,
            {"boundaries": (0.5, 0.5)},
            "boundaries: got [0.5, 0.5], expected rising numbers between 0 and 1",
        ),
        (ScheduleConfig, {"boundaries": (1.0,)}, "boundaries: got [1.0], expected rising numbers between 0 and 1"),
        (ScheduleConfig, {"boundaries": (0.5,)}, "boundaries: got [0.5] with the schedule cosine, expected staircase"),
        (ScheduleConfig, {"period_multiplier": 0.5}, "period_multiplier: got 0.5, expected at least 1"),
        (
            ScheduleConfig,
            {"name": "cosine_restarts", "first_period_epochs": 0.0},
            "first_period_epochs: got 0.0, expected more than 0",
        ),
        (StepFilterConfig, {"skip_quantile": 1.5}, "skip_quantile: got 1.5, expected 0 to 1"),
        (StepFilterConfig, {"skip_window": 0}, "skip_window: got 0, expected at least 1"),
        (CheckpointConfig, {"keep": 0}, "keep: got 0, expected at least 1"),
        (CheckpointConfig, {"minutes": -1.0}, "minutes: got -1.0, expected at least 0"),
        (MonitorConfig, {"collapse_nats": math.nan}, "collapse_nats: got nan, expected at least 0"),
    ],
)
def test_options_of_a_section_that_make_no_sense(section: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        section(**options)


def lines(config: TrainingConfig, seconds_a_step: float) -> int:
    """How many lines the log of a whole run gets."""
    schedule, step, before, count = Schedule(config, 100), 0, 0.0, 0
    while schedule.exhausted(step, step * seconds_a_step) is None:
        step += 1
        if schedule.is_logged(step, step * seconds_a_step, before):
            count, before = count + 1, step * seconds_a_step
    return count


@pytest.mark.parametrize(
    ("budget", "seconds_a_step", "fewest", "most"),
    [
        ({"steps": 31}, 1.0, 31, 31),
        ({"steps": 199}, 1.0, 199, 199),
        ({"steps": 1500}, 1.0, 100, 100),
        ({"epochs": 2000.0}, 1.0, 400, 400),  # 200,000 steps: never more than 500 apart
        ({"minutes": 0.5}, 0.01, 95, 101),
        ({"minutes": 600.0}, 1.0, 600, 600),  # never more than a minute apart
        ({"minutes": 1.0, "steps": 10**6}, 0.1, 85, 101),  # the clock ends it, and its steps are far apart
    ],
)
def test_curves_have_a_hundred_points(budget: dict[str, Any], seconds_a_step: float, fewest: int, most: int) -> None:
    assert fewest <= lines(TrainingConfig(**budget), seconds_a_step) <= most


def test_a_recipe_can_say_how_far_apart_lines_are() -> None:
    assert lines(TrainingConfig(steps=100, log_every=40), 1.0) == 2
