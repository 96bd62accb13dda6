"""Learning rates and budgets against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from davi.training.config import TrainingConfig
from davi.training.schedule import Schedule

PAPER = {"learning_rate": 1e-2, "initial_learning_rate": 1e-4, "final_learning_rate": 1e-4, "warmup_epochs": 5.0}


def rate(schedule: Schedule, epoch: float) -> float:
    return schedule.learning_rate(round(epoch * schedule.steps_per_epoch), 0.0)


def test_warmup_then_cosine() -> None:
    schedule = Schedule(TrainingConfig(epochs=405, **PAPER), 100)
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


def test_restarts_of_300_and_600_epochs() -> None:
    config = TrainingConfig(epochs=905, schedule="cosine_restarts", first_period_epochs=300.0, **PAPER)
    schedule = Schedule(config, 313)
    assert rate(schedule, 5) == pytest.approx(1e-2, rel=1e-12)
    assert rate(schedule, 155) == pytest.approx(5.05e-3, rel=1e-9)  # half of the first period
    before, after = (schedule.learning_rate(305 * 313 + shift, 0.0) for shift in (-1, 0))
    assert before == pytest.approx(1e-4, rel=1e-4)  # one step before the end the cosine is flat
    assert after == pytest.approx(1e-2, rel=1e-12)
    assert rate(schedule, 455) == pytest.approx(1e-4 + 0.5 * 9.9e-3 * (1 + math.sqrt(0.5)), rel=1e-9)  # 150 of 600
    assert rate(schedule, 605) == pytest.approx(5.05e-3, rel=1e-9)
    assert schedule.learning_rate(905 * 313 - 1, 0.0) == pytest.approx(1e-4, rel=1e-4)


def test_constant_after_warmup_by_steps() -> None:
    config = TrainingConfig(
        steps=100, schedule="constant", warmup_steps=4, learning_rate=1.0, initial_learning_rate=0.0
    )
    rates = [Schedule(config, 7).learning_rate(step, 0.0) for step in (0, 1, 2, 3, 4, 99)]
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], rel=1e-12)


def test_a_budget_in_minutes_follows_the_clock() -> None:
    config = TrainingConfig(minutes=10, warmup_fraction=0.1, learning_rate=2.0, final_learning_rate=0.0)
    schedule = Schedule(config, 7)
    assert schedule.learning_rate(123, 30.0) == pytest.approx(1e-4 + (2.0 - 1e-4) / 2, rel=1e-12)
    assert schedule.learning_rate(5, 60.0) == pytest.approx(2.0, rel=1e-12)
    assert schedule.learning_rate(5, 60.0 + 270.0) == pytest.approx(1.0, rel=1e-9)
    assert schedule.learning_rate(5, 600.0) == pytest.approx(0.0, abs=1e-12)
    assert schedule.exhausted(10**9, 599.0) is None
    assert schedule.exhausted(0, 600.0) == "minutes"


def test_with_steps_the_clock_changes_nothing_but_the_end() -> None:
    schedule = Schedule(TrainingConfig(steps=100, minutes=1, warmup_fraction=0.1), 10)
    for step in (0, 5, 10, 50, 99):
        assert schedule.learning_rate(step, 0.0) == schedule.learning_rate(step, 59.0)
        assert schedule.kl_weight(step, 0.0) == schedule.kl_weight(step, 59.0)
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
        ({"steps": 1, "betas": (0.9, 1.0)}, "betas: got"),
        ({"steps": 1, "warmup_steps": 2, "warmup_epochs": 1.0}, "more than one warm-up"),
        ({"steps": 1, "learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"steps": 1, "ema_decay": 1.0}, "ema_decay: got 1.0"),
        ({"steps": 1, "skip_quantile": 1.5}, "skip_quantile: got 1.5"),
        ({"steps": 1, "keep_checkpoints": 0}, "keep_checkpoints: got 0"),
        ({"steps": 1, "schedule": "cosine_restarts", "first_period_epochs": 0.0}, "first_period_epochs: got 0.0"),
        ({"minutes": 1, "schedule": "cosine_restarts", "warmup_fraction": 0.1}, "warmup_fraction: got 0.1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TrainingConfig(**options)
    assert "\n" not in str(caught.value)
