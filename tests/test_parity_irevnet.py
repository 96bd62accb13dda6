"""i-RevNet against the program of its authors: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_fixture import Change, Facts, Judge, Tensors, changed
from safetensors.torch import load_file

from davi.published.irevnet.parity import IRevNetParity
from davi.published.parity import main, read_fixture


@pytest.fixture(params=["a", "b"])
def fixture(need_shared: Callable[[str], Path], request: pytest.FixtureRequest) -> Path:
    return need_shared(f"fixtures/flows/irevnet_{request.param}.safetensors")


@pytest.fixture
def injective(need_shared: Callable[[str], Path]) -> Path:
    return need_shared("fixtures/flows/irevnet_a.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
def test_agrees_with_the_authors_program(fixture: Path, capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert main([str(fixture), *option]) == 0
    compared = {line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    prefix = "expected/"
    names = {name.removeprefix(prefix) for name in load_file(fixture) if name.startswith(prefix)}
    results = json.loads(fixture.with_suffix(".json").read_text())["results"]["float64"]
    assert {name.removeprefix("float64/") for name in names} - compared == {"arbitrary_out_bij"}  # which is an input
    assert {f"gradient/{name}" for name in (*results["train_mode"]["grad_l2"], "input")} <= compared
    assert {
        "input",
        "inverse",
        "forward of inverse of arbitrary",
        "cross_entropy",
        "train_mode/cross_entropy",
    } <= compared


def test_the_inverse_of_an_arbitrary_point_is_another_image_and_the_first_convolution_learns_nothing(
    injective: Path, need_shared: Callable[[str], Path]
) -> None:
    for path, comes_back in ((injective, False), (need_shared("fixtures/flows/irevnet_b.safetensors"), True)):
        tensors, facts = read_fixture(path)
        found = {each.name: each.ours for each in IRevNetParity(tensors, facts, torch.float64).comparisons()}
        assert (float(found["forward of inverse of arbitrary"]) < 1e-9) == comes_back
        assert (float(found["gradient/stack.0.bottleneck_block.0.weight"]) == 0.0) != comes_back


def swapped(tensors: Tensors, facts: Facts) -> None:
    """As if the halves had not been exchanged."""
    first, second = (tensors[f"expected/blocks/0/{half}"].clone() for half in ("first", "second"))
    tensors["expected/blocks/0/first"], tensors["expected/blocks/0/second"] = second, first


def kernel(tensors: Tensors, facts: Facts) -> None:
    tensors["state_dict/stack.3.bottleneck_block.5.weight"] *= 1.001


def dropped_in_front(tensors: Tensors, facts: Facts) -> None:
    """As if the appended channels were the first ones."""
    x = tensors["expected/inverse_of_out_bij"]
    tensors["expected/inverse_of_out_bij"] = x.roll(1, 1).contiguous()


def momentum(tensors: Tensors, facts: Facts) -> None:
    """As if the last norm moved by a tenth."""
    after, before = "expected/train_mode/state_dict_after/bn1.running_mean", tensors["state_dict/bn1.running_mean"]
    tensors[after] = before + (tensors[after] - before) / 9.0


def gradient(tensors: Tensors, facts: Facts) -> None:
    facts["results"]["float64"]["train_mode"]["grad_l2"]["stack.5.bottleneck_block.9.weight"] *= 1.0 + 1e-5


def zero_gradient(tensors: Tensors, facts: Facts) -> None:
    facts["results"]["float64"]["train_mode"]["grad_l2"]["stack.1.bottleneck_block.0.weight"] = 0.0


@pytest.mark.parametrize(
    ("change", "option", "found"),
    [
        (swapped, "", "blocks/0/first"),
        (kernel, "", "blocks/3/second"),
        (dropped_in_front, "", "inverse_of_out_bij"),
        (momentum, "", "train_mode/state_dict_after/bn1.running_mean"),
        (gradient, "--float64", "gradient/stack.5.bottleneck_block.9.weight"),
        (zero_gradient, "--float64", "gradient/stack.1.bottleneck_block.0.weight"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_is_found_and_named(injective: Path, judge: Judge, change: Change, option: str, found: str) -> None:
    judge.finds(injective, change, found, *option.split())


def no_weight(tensors: Tensors, facts: Facts) -> None:
    del tensors["state_dict/stack.1.bottleneck_block.2.weight"]


def more_blocks(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["nBlocks"] = [2, 2, 3]


def three(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["init_ds"] = 3


def not_affine(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["affineBN"] = False


def narrow(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["nChannels"] = [8, 32, 120]


def unknown(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/blocks/9/first"] = torch.zeros(1)


def counted(tensors: Tensors, facts: Facts) -> None:
    facts["trainable_parameters"] = 151_363


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_weight, "weights: 1 missing (stack.1.bottleneck_block.2.weight)"),
        (more_blocks, "missing (stack.6.bottleneck_block."),
        (three, "config.init_ds: got 3, expected 0, 2 or 4"),
        (not_affine, "config.affineBN: got False, expected true"),
        (narrow, "got 120 in stage 3, expected 128"),
        (unknown, "expected/blocks/9/first is not something this configuration computes"),
        (counted, "trainable_parameters: got 151363, expected 151362"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_used_is_refused_in_a_line(injective: Path, judge: Judge, change: Change, said: str) -> None:
    judge.refuses(injective, change, said)


def test_the_programs_default_widths(injective: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """nChannels None: each stage four times as wide, from half the channels of the first."""

    def default(tensors: Tensors, facts: Facts) -> None:
        facts["config"] |= {"nChannels": None, "init_ds": 2}

    assert main([str(changed(tmp_path, injective, default))]) == 2
    assert "stack.0.bottleneck_block.0.weight [2, 8, 3, 3], expected [1, 6, 3, 3]" in capsys.readouterr().err
