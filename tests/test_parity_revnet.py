"""RevNet against the program of its authors: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_fixture import Change, Facts, Judge, Tensors
from safetensors.torch import load_file

from davi.published.parity import main


@pytest.fixture(params=["revnet_plain", "revnet_bottleneck"])
def any_fixture(request: pytest.FixtureRequest, need_shared: Callable[[str], Path]) -> Path:
    return need_shared(f"fixtures/flows/{request.param}.safetensors")


@pytest.fixture
def fixture(need_shared: Callable[[str], Path]) -> Path:
    return need_shared("fixtures/flows/revnet_plain.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
def test_agrees_with_the_authors_program(
    any_fixture: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert main([str(any_fixture), *option]) == 0
    compared = {line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    prefix = "expected/"
    names = {name.removeprefix(prefix) for name in load_file(any_fixture) if name.startswith(prefix)}
    results = json.loads(any_fixture.with_suffix(".json").read_text())["results"]
    assert {name for name in names if not name.startswith("float64/")} <= compared
    gradients = {name.removeprefix("float64/") for name in names if "grad_with" in name}
    assert len(gradients) > 20
    assert not option or {f"{way}/{name}" for way in ("manual", "plain") for name in gradients} <= compared
    for way in ("manual", "plain"):
        norms = results[f"grad_l2_float64_{way}_with_weight_decay"]
        assert {f"{way}/norm/{name}" for name in norms} <= compared
        assert {f"manual beside plain/{name}" for name in norms} <= compared


def padding(tensors: Tensors, facts: Facts) -> None:
    """As if a stride of 2 put one zero on each side."""
    y = tensors["expected/eval/unit_2_0/y1"]
    tensors["expected/eval/unit_2_0/y1"] = torch.roll(y, 1, 1)


def epsilon(tensors: Tensors, facts: Facts) -> None:
    """As if the batch norm behind the stem had another epsilon."""
    tensors["weights/init/init_bn/ema_var"] += 1e-3


def kept(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/eval/saved_hidden/2/1"][0, 0, 0, 0] += 1.0


def moved(tensors: Tensors, facts: Facts) -> None:
    """As if the variance had been corrected for the size of the batch."""
    tensors["expected/train/ema_after_one_step/unit_last/final_bn/ema_var"] *= 1.0 + 1e-4


def decay(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["wd"] = 1e-4


def gradient(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/float64/grad_with_weight_decay/unit_1_0/f/sub1/conv1/w"][0, 0, 0, 0] += 1e-8


def length(tensors: Tensors, facts: Facts) -> None:
    facts["results"]["grad_l2_float64_plain_with_weight_decay"]["unit_3_1/g/sub2/bn2/beta"] *= 1.0 + 1e-5


@pytest.mark.parametrize(
    ("change", "option", "found"),
    [
        (epsilon, "", "eval/saved_hidden/0"),
        (padding, "", "eval/unit_2_0/y1"),
        (kept, "", "eval/saved_hidden/2/1"),
        (decay, "", "train/weight_decay"),
        (moved, "", "train/ema_after_one_step/unit_last/final_bn/ema_var"),
        (gradient, "--float64", "manual/grad_with_weight_decay/unit_1_0/f/sub1/conv1/w"),
        (length, "--float64", "plain/norm/unit_3_1/g/sub2/bn2/beta"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_is_found_and_named(fixture: Path, judge: Judge, change: Change, option: str, found: str) -> None:
    judge.finds(fixture, change, found, *option.split())


def no_weight(tensors: Tensors, facts: Facts) -> None:
    del tensors["weights/logit/b"]


def more_units(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["num_residual_units"] = [2, 3, 2]


def strides(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["strides"] = [1, 2, 1]


def stem(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["init_stride"] = 2


def unknown(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/eval/unit_9_0/y1"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_weight, "weights: 1 missing (logit/b)"),
        (more_units, "missing (unit_2_2/f/sub1/bn1/"),
        (strides, "config.strides: got [1, 2, 1], expected [1, 2, 2]"),
        (stem, "config.init_filter, init_stride, init_max_pool: got (3, 2, False), expected (3, 1, False) or"),
        (unknown, "expected/eval/unit_9_0/y1 is not something this configuration computes"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(fixture: Path, judge: Judge, change: Change, said: str) -> None:
    judge.refuses(fixture, change, said)
