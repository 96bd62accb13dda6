"""The watch says what has changed, once, and a resumed run says no more and no less."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from killed_runs import CONFIG
from tiny import RECIPE, sets, vae

from davi.metrics import read_metrics
from davi.objectives import EvidenceConfig, make_objective
from davi.training import TrainingConfig, train
from davi.training.monitor import Monitor
from davi.training.schedule import Schedule
from davi.training.sections import CheckpointConfig, MonitorConfig, ScheduleConfig


def watch(kind: str = "validation", objective: EvidenceConfig | None = None, **options: Any) -> Monitor:
    config = TrainingConfig(steps=100, objective=objective or EvidenceConfig())
    schedule, objective = Schedule(config, 10), make_objective(config.objective)
    return Monitor(MonitorConfig(**options), lambda step, seconds: objective.settled(schedule.at(step, seconds)), kind)


def record(step: int, nats: float, *kl: float, kind: str = "validation") -> dict[str, Any]:
    terms = {"reconstruction": -nats + sum(kl), **{f"kl/{layer:02d}": -value for layer, value in enumerate(kl)}}
    return {"kind": kind, "step": step, "seconds": 1.0, "nats": nats, "terms": terms}


def test_collapse_is_said_when_it_changes() -> None:
    eye = watch(collapse_nats=0.1)
    told = [eye.see(record(step, 50.0 - step, *kl)) for step, kl in enumerate([(1, 1), (1, 0.09), (1, 0), (0, 0)])]
    assert told[0] == told[2] == []
    assert [change["layers"] for change in (*told[1], *told[3])] == [["kl/01"], ["kl/00", "kl/01"]]
    assert told[1][0]["message"] == "1 of 2 latent layers is inactive, KL divergence below 0.1 nats: kl/01"
    assert told[3][0]["message"] == "2 of 2 latent layers are inactive, KL divergence below 0.1 nats: kl/00, kl/01"
    (over,) = eye.see(record(4, 40.0, 0.1, 0.1))
    assert (over["what"], over["active"], over["layers"]) == ("collapse", False, [])
    assert over["message"] == ("no latent layer is inactive any more: KL divergences are at least 0.1 nats per image")


def test_a_remedy_is_named_once_until_it_is_another() -> None:
    eye = watch(collapse_nats=0.1)
    eye.remedy = lambda layers: f"remedy of {len(layers)}"
    values = [(1, 0), (1, 1), (1, 0), (0, 0), (1, 1), (0, 1)]
    told = [eye.see(record(step, 50.0 - step, *kl))[0].get("remedy") for step, kl in enumerate(values)]
    assert told == ["remedy of 1", None, None, "remedy of 2", None, "remedy of 1"]


def test_of_terms_that_are_no_divergences_the_sum_is_judged() -> None:
    eye = watch()
    values = [(2.0, -1.26), (2.0, -1.995), (0.005, 1.0), (2.0, 0.0)]
    records = [{**record(step, 50.0 - step, *kl), "no_divergence": ["kl/01"]} for step, kl in enumerate(values)]
    told = [[change["message"] for change in eye.see(one)] for one in records]
    assert told == [
        [],
        ["all 2 latent layers are inactive: together below 0.01 nats per image"],
        ["1 of 2 latent layers is inactive, KL divergence below 0.01 nats: kl/00"],
        ["no latent layer is inactive any more: KL divergences are at least 0.01 nats per image"],
    ]
    assert len(watch().see(record(1, 50.0, 2.0, -1.26))) == 1  # a divergence, estimated, would be inactive


def test_nothing_is_said_while_the_divergences_weigh_less() -> None:
    eye = watch(collapse_nats=0.1, plateau_validations=1, objective=EvidenceConfig(kl_steps=30))
    assert [len(eye.see(record(step, 50.0, 0.0))) for step in (10, 20, 29, 30, 40)] == [0, 0, 0, 1, 1]


def test_a_plateau_begins_and_ends() -> None:
    eye = watch(plateau_validations=2, collapse_nats=0.0)
    # A thousandth of the best bound is 0.1 and then less; 99.95 and 99.905 are not better enough.
    bounds = [100.0, 99.95, 99.905, 120.0, 99.8, 99.75, 99.75]
    told = [eye.see(record(step, nats, 1.0)) for step, nats in enumerate(bounds, 1)]
    assert [[(change["what"], change["active"]) for change in changes] for changes in told] == [
        [],
        [],
        [("plateau", True)],
        [],
        [("plateau", False)],
        [],
        [("plateau", True)],
    ]
    assert told[2][0]["message"] == (
        "plateau: no better validation bound than 100.00 nats (step 1) in the last 2 records"
    )
    assert told[4][0]["message"] == "plateau is over: the validation bound is 99.80 nats (step 5)"
    negative = watch(plateau_validations=1)  # densities can exceed 1: the bound in nats falls below zero
    assert [len(negative.see(record(step, nats, 1.0))) for step, nats in enumerate((-100.0, -100.2, -100.25))] == [
        0,
        0,
        1,
    ]


@pytest.mark.parametrize("off", [{"plateau_validations": 0}, {"plateau_validations": 1, "collapse_nats": 0.0}])
def test_it_can_be_switched_off(off: dict[str, Any]) -> None:
    eye = watch(**off)
    kinds = {change["what"] for step in range(5) for change in eye.see(record(step, 50.0, 0.0))}
    assert kinds == {"collapse" if "collapse_nats" not in off else "plateau"}


def test_other_records_are_not_looked_at() -> None:
    eye = watch("train")
    assert eye.see({"kind": "checkpoint", "step": 1, "seconds": 1.0}) == []
    assert eye.see(record(1, 50.0, 0.0)) == []
    assert eye.see({**record(1, 50.0, 0.0, kind="train"), "nats": None}) == []
    assert len(eye.see(record(1, 50.0, 0.0, kind="train"))) == 1


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    eye = watch("train")
    for change in ({"nats": "x"}, {"seconds": None}, {"terms": 3}):
        assert eye.see({**record(1, 50.0, 0.0, kind="train"), **change}) == []
    assert eye.see({"kind": "train", "step": 1}) == []
    assert eye.see({**record(1, 50.0, 0.0, kind="train"), "terms": {"kl/00": "x"}}) == []
    go(tmp_path, dataclasses.replace(EAGER, steps=2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "watch", "step": 2}\n{"kind": "validation", "step": 2}\n')
    assert any("has ended" in line for line in go(tmp_path, dataclasses.replace(EAGER, steps=2), resume=True))


EAGER = dataclasses.replace(
    CONFIG,
    validate_every=2,
    checkpoints=CheckpointConfig(minutes=0.0, steps=4),
    monitor=MonitorConfig(collapse_nats=1e3, plateau_validations=1),
)
"""Every layer counts as collapsed."""


def go(run: Path, config: TrainingConfig, resume: bool = False) -> list[str]:
    lines: list[str] = []
    train(vae(), sets(), config, run, RECIPE, resume=resume, print_fn=lines.append)
    return lines


def told(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run) if record["kind"] == "watch"]


def test_a_run_tells_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    lines = go(whole, EAGER)
    first = told(whole)[0]
    assert (first["step"], first["what"], first["layers"]) == (2, "collapse", ["kl/00", "kl/01"])
    assert f"monitor at step 2: {first['message']}" in lines
    assert [record["what"] for record in told(whole)].count("collapse") == 1
    # Constant learning rate: the shorter run begins as the longer one.
    flat = dataclasses.replace(EAGER, schedule=ScheduleConfig("constant"), learning_rate=0.0)
    go(whole := tmp_path / "flat", flat)
    assert [(record["step"], record["what"]) for record in told(whole)] == [(2, "collapse"), (4, "plateau")]
    go(run, dataclasses.replace(flat, steps=8))
    go(run, flat, resume=True)
    assert told(run) == told(whole)


def test_a_change_that_a_kill_has_left_unsaid_is_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = dataclasses.replace(EAGER, steps=2)
    go(run, config)
    expected = told(run)
    assert len(expected) == 1
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in text if '"watch"' not in line))
    go(run, config, resume=True)
    assert told(run) == expected
    go(run, config, resume=True)
    assert told(run) == expected


def test_without_validations_the_log_is_looked_at(tmp_path: Path) -> None:
    go(tmp_path / "run", dataclasses.replace(EAGER, validate_every=0))
    assert told(tmp_path / "run")[0]["step"] == CONFIG.log_every


def test_what_a_resumption_changes_is_said(tmp_path: Path) -> None:
    run, lines = tmp_path / "run", list[str]()
    recipe = {**RECIPE, "training": {"steps": 4, "objective": {"kl_steps": 5}, "optimizer": {"betas": [0.9, 0.99]}}}
    train(vae(), sets(), dataclasses.replace(CONFIG, steps=4), run, recipe, print_fn=[].append)
    other = {**RECIPE, "training": {"steps": 6, "objective": {"kl_steps": 3}, "optimizer": {"betas": (0.9, 0.99)}}}
    train(vae(), sets(), dataclasses.replace(CONFIG, steps=6), run, other, resume=True, print_fn=lines.append)
    assert lines[:2] == [
        f"resuming {run} after step 4",
        "changed in its recipe: training.steps 4 -> 6, training.objective.kl_steps 5 -> 3",
    ]
    lines.clear()
    train(vae(), sets(), dataclasses.replace(CONFIG, steps=6), run, other, resume=True, print_fn=lines.append)
    assert not any("changed" in line for line in lines)
