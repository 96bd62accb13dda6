"""Flow++ against its authors' program: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_fixture import Change, Facts, Judge, Tensors
from safetensors.torch import load_file

from davi.published.parity import main

FIXTURES = ("flowpp_a", "flowpp_init")


@pytest.fixture
def fixture(need_shared: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda name: need_shared(f"fixtures/flows/{name}.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FIXTURES)
def test_agrees_with_the_authors_program(
    fixture: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, option: list[str]
) -> None:
    path = fixture(name)
    assert main([str(path), *option]) == 0
    compared = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    tensors, facts = load_file(path), json.loads(path.with_suffix(".json").read_text())
    prefix = "expected/float64/" if option else "expected/"
    expected = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    expected |= {key.removeprefix("expected/") for key in tensors if key.startswith("expected/layers/")}
    assert {key for key in expected if not key.startswith("float64/")} | {"inverse"} <= compared
    if option:
        assert {f"gradient/{weight}" for weight in facts["trainable_order"]} <= compared
    if "init/x_uint8" in tensors:
        assert {f"initialization/{weight}" for weight in facts["trainable_order"]} <= compared


def test_whatever_other_fixture_there_is_agrees(shared: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = None if shared is None else shared / "fixtures" / "flows"
    paths = [] if folder is None else sorted(folder.glob("*.json"))
    others = [path for path in paths if path.stem not in FIXTURES and json.loads(path.read_text())["model"] == "flowpp"]
    if not others:
        pytest.skip("needs fixtures of the reference data beyond those with tests of their own")
    failed = [path.name for path in others if main([str(path.with_suffix(".safetensors"))]) != 0]
    assert not failed, capsys.readouterr().out


def exchange_halves(tensors: Tensors, facts: Facts) -> None:
    """The gate becomes what it gates."""
    for own in "Wb":
        name = f"weights/MixLogisticAttnCoupling_5/block0/conv/c2/{own}"
        tensors[name] = torch.cat(tensors[name].chunk(2, -1)[::-1], -1).contiguous()


def turn_a_matrix(tensors: Tensors, facts: Facts) -> None:
    name = "weights/Pointwise_9/W1"
    tensors[name] = tensors[name].T.contiguous()


def other_noise(tensors: Tensors, facts: Facts) -> None:
    tensors["input/eps"] = tensors["input/eps"].flip(0)


def other_start(tensors: Tensors, facts: Facts) -> None:
    name = "init/weights_before/context_proc/c1/c1/W"
    tensors[name] = tensors[name].flip(3)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (exchange_halves, "layers/main/08_MixLogisticAttnCoupling/b"),
        (turn_a_matrix, "layers/main/27_MixLogisticAttnCoupling/b"),
        (other_noise, "layers/dequant/03_MixLogisticAttnCoupling/a"),
        (other_start, "initialization/context_proc/c1/c1/W"),
    ],
)
def test_a_change_is_found_and_named(fixture: Callable[[str], Path], judge: Judge, change: Change, found: str) -> None:
    judge.finds(fixture("flowpp_init"), change, found)


def drop_weight(tensors: Tensors, facts: Facts) -> None:
    del tensors["weights/Norm_3/norm1/g"]


def wider(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["filters"] = 8


def indivisible(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["heads"] = 3


def other_coupling(tensors: Tensors, facts: Facts) -> None:
    facts["layer_order"]["main"][4] = "04_SplineCoupling"


def flat_weight(tensors: Tensors, facts: Facts) -> None:
    tensors["weights/Pointwise/W0"] = tensors["weights/Pointwise/W0"].flatten()


def no_noise(tensors: Tensors, facts: Facts) -> None:
    del tensors["input/eps"]


def whiter_than_white(tensors: Tensors, facts: Facts) -> None:
    tensors["input/x_uint8"] = tensors["input/x_uint8"].int() + 255


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_weight, "1 missing (Norm_3/norm1/g)"),
        (wider, "of another shape"),
        (indivisible, "heads: got 3"),
        (other_coupling, "SplineCoupling"),
        (flat_weight, "fixture cannot be used"),
        (no_noise, "input/eps"),
        (whiter_than_white, "images: got"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    fixture: Callable[[str], Path], judge: Judge, change: Change, said: str
) -> None:
    judge.refuses(fixture("flowpp_init"), change, said)
