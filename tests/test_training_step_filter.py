"""The step_filter never ends a run in silence; the average is the average it says; the optimizer spares the gates."""

from __future__ import annotations

import json
import math
from typing import Literal

import pytest
import torch
from tiny import Logistic, vae

from davi.training.optimizer import Average, make_optimizer
from davi.training.sections import OptimizerConfig, StepFilterConfig
from davi.training.step_filter import StepFilter


def test_threshold_is_a_multiple_of_the_quantile() -> None:
    step_filter = StepFilter(StepFilterConfig(skip_factor=3.0, skip_quantile=0.9, skip_window=11))
    for norm in range(10, -1, -1):
        assert step_filter.judge(0.0, float(norm)).update
    assert step_filter.threshold() == 27.0  # the 0.9 quantile of 0 .. 10 is 9
    assert step_filter.judge(0.0, 27.0).update
    verdict = step_filter.judge(0.0, 1000.0)
    assert (verdict.update, verdict.reason) == (False, "norm")


def test_nothing_is_skipped_before_norms_are_known_or_when_off() -> None:
    young, off = StepFilter(StepFilterConfig()), StepFilter(StepFilterConfig(skip_factor=0.0))
    assert young.judge(0.0, 1.0).update
    assert young.judge(0.0, 1e9).update
    assert all(off.judge(0.0, 10.0**i).update for i in range(40))


@pytest.mark.parametrize("growth", [1.5, 12.0, 1000.0])
def test_ever_larger_norms_never_stall(growth: float) -> None:
    config = StepFilterConfig(skip_factor=2.0, skip_window=20, skip_limit=5)
    step_filter, norm, gap, longest = StepFilter(config), 1.0, 0, 0
    for _ in range(80):
        verdict = step_filter.judge(0.0, norm)
        gap = 0 if verdict.update else gap + 1
        longest = max(longest, gap)
        if verdict.reason == "forced":
            assert verdict.limit == verdict.threshold < norm  # taken, but no longer than the threshold
        norm *= growth
    assert longest <= config.skip_limit


def test_a_lasting_rise_becomes_normal() -> None:
    config = StepFilterConfig(skip_factor=5.0, skip_window=20, skip_limit=1000)
    step_filter = StepFilter(config)
    for _ in range(20):
        step_filter.judge(0.0, 1.0)
    verdicts = [step_filter.judge(0.0, 100.0) for _ in range(20)]
    # 0.9 quantile of 20 norms: number round(0.9 * 19) = 17 of the ordered ones, so three large ones suffice
    assert [verdict.update for verdict in verdicts] == [False] * 3 + [True] * 17


def test_nonfinite_steps_are_counted_apart_and_teach_nothing() -> None:
    step_filter = StepFilter(StepFilterConfig())
    for loss, norm, reason in ((math.nan, 1.0, "loss"), (math.inf, math.nan, "loss"), (0.0, math.inf, "gradient")):
        verdict = step_filter.judge(loss, norm)
        assert (verdict.update, verdict.reason) == (False, reason)
    assert step_filter.nonfinite == 3
    assert not step_filter.norms
    assert step_filter.judge(0.0, 1.0).update
    assert step_filter.nonfinite == 0


def test_scattered_nonfinite_steps_count_too() -> None:
    config = StepFilterConfig(nonfinite_limit=3)

    def ends_at(pattern: str) -> int | None:
        """The step, from 1, at which it is hopeless; ``x`` is a step that is not finite."""
        step_filter = StepFilter(config)
        for step, what in enumerate(pattern, 1):
            step_filter.judge(math.nan if what == "x" else 0.0, 1.0)
            if step % 2:  # as if interrupted after every other step
                state, step_filter = json.loads(json.dumps(step_filter.state_dict())), StepFilter(config)
                step_filter.load_state_dict(state)
            if step_filter.hopeless():
                return step
        return None

    assert ends_at("xxx") == 3
    assert ends_at(".x.x.x") == 6
    assert ends_at("x....x") is None  # two of six
    assert ends_at("x..x.x") == 6  # the first and the sixth lie within six steps
    assert ends_at("x..x..x") is None  # the seventh no longer
    assert ends_at("x..x..x.x") == 9


def test_guard_goes_on_from_its_state() -> None:
    config = StepFilterConfig(skip_factor=2.0, skip_window=16, skip_limit=3)
    norms = torch.rand(60, generator=torch.Generator().manual_seed(0)).pow(4).mul(10).tolist()
    whole, first, second = StepFilter(config), StepFilter(config), StepFilter(config)
    expected = [whole.judge(0.0, norm) for norm in norms]
    got = [first.judge(0.0, norm) for norm in norms[:31]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.judge(0.0, norm) for norm in norms[31:]]
    assert got == expected
    assert {verdict.reason for verdict in expected} >= {None, "norm"}


def test_average_in_closed_form() -> None:
    model = Logistic((1, 2, 2), 2).double()
    average = Average(model, 0.5)
    values, expected = [3.0, -1.0, 4.0, 10.0, 2.0], 0.0
    for t, value in enumerate(values):
        with torch.no_grad():
            model.gate.fill_(value)
            assert model.norm.running_mean is not None
            assert model.norm.num_batches_tracked is not None
            model.norm.running_mean.fill_(-value)
            model.norm.num_batches_tracked.fill_(t)
        average.update(model)
        decay = [0.0, 2 / 11, 3 / 12, 4 / 13, 5 / 14][t]  # (1 + t) / (10 + t), still below 0.5
        expected = decay * expected + (1 - decay) * value
        # float64 throughout: only rounding may differ
        assert float(average.model.gate) == pytest.approx(expected, rel=1e-14)
        assert float(average.model.norm.running_mean) == pytest.approx(-expected, rel=1e-14)
        assert int(average.model.norm.num_batches_tracked) == t
    assert average.updates == len(values)
    assert average.decay_at(10**6) == 0.5
    assert not average.model.training


def test_without_a_decay_the_average_is_the_newest_weights() -> None:
    model = Logistic((1, 2, 2), 2).double()
    average = Average(model, 0.0)
    for value in (3.0, -1.0):
        with torch.no_grad():
            model.gate.fill_(value)
        average.update(model)
    assert float(average.model.gate) == -1.0
    with torch.no_grad():
        model.gate.fill_(7.0)
    assert float(average.model.gate) == -1.0  # a copy
    assert average.updates == 2


def test_without_decay_the_average_is_the_newest() -> None:
    model = vae()
    average = Average(model, 0.0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        average.update(model)
        pairs = zip(average.model.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["adamax", "adamw"])
def test_one_step_by_hand(name: Literal["adamax", "adamw"]) -> None:
    model = Logistic((1, 2, 2), 2).double()
    optimizer = make_optimizer(model, OptimizerConfig(name, eps=1e-3, weight_decay=0.01), 0.1)
    before, gate = model.logits.detach().clone(), model.gate.item()
    model.logits.grad, model.gate.grad = torch.full_like(before, 0.5), torch.tensor(-2.0, dtype=torch.float64)
    optimizer.step()
    # The first step of both methods: bias correction makes the moments g and |g| (Adamax), g and sqrt(g^2) (AdamW).
    if name == "adamax":  # L2: the decay is part of the gradient; eps is added inside the maximum's argument
        g = 0.5 + 0.01 * before
        expected = before - 0.1 * g / (g.abs() + 1e-3)
    else:  # decoupled: the decay shrinks the weights
        expected = before * (1 - 0.1 * 0.01) - 0.1 * 0.5 / (0.5 + 1e-3)
    torch.testing.assert_close(model.logits.detach(), expected, rtol=1e-12, atol=0)
    # the gate is a single number and is not decayed
    assert model.gate.item() == pytest.approx(gate + 0.1 * 2.0 / (2.0 + 1e-3), rel=1e-12)
