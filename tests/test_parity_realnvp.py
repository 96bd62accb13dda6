"""Real NVP against the program of its authors: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_fixture import Change, Facts, Judge, Tensors
from real_nvp_program import write_fixture
from safetensors.torch import load_file

from davi.published.parity import main


@pytest.fixture
def fixture(need_shared: Callable[[str], Path]) -> Path:
    return need_shared("fixtures/flows/realnvp_a.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
def test_agrees_with_the_authors_program(fixture: Path, capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert main([str(fixture), *option]) == 0
    compared = {line.split("  ")[0].strip() for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    prefix = "expected/"
    names = {name.removeprefix(prefix) for name in load_file(fixture) if name.startswith(prefix)}
    results = json.loads(fixture.with_suffix(".json").read_text())["results"]
    terms = ("log_det", "log_p_z", "total", "bits_per_dim")
    assert {name.removeprefix("float64/") for name in names} <= compared
    assert {f"gradient/{name}" for name in results["train_grad_l2_float64"]} <= compared
    assert {f"{mode}/{term}" for mode in ("eval", "train") for term in terms} <= compared


@pytest.mark.parametrize(
    ("options", "shape", "batch"),
    [
        ({"n_scale": 1, "residual_blocks": 1, "base_dim": 3}, (4, 3, 2), 2),
        ({"n_scale": 2, "residual_blocks": 2, "base_dim": 2}, (2, 6, 1), 3),
        ({"n_scale": 4, "residual_blocks": 1, "base_dim": 1}, (8, 16, 3), 2),
        ({"n_scale": 3, "residual_blocks": 1, "base_dim": 1}, (4, 4, 1), 5),
    ],
    ids=["odd width", "odd at the last scale", "four scales", "a single pixel"],
)
def test_other_sizes_agree_with_a_program_written_anew(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, int],
    shape: tuple[int, int, int],
    batch: int,
) -> None:
    path = tmp_path / "other.safetensors"
    write_fixture(path, options, shape, batch)
    status = main([str(path), "--float64"])
    output = capsys.readouterr().out
    assert status == 0, output
    assert "train/moving_after/scale_0/coupling_2/bn_out/var" in output


def trunk(tensors: Tensors, facts: Facts) -> None:
    """A skip connection that is hardly there."""
    tensors["weights/scale_1/coupling_4/resnet/skip_0/magnitude"] *= 0.999


def order(tensors: Tensors, facts: Facts) -> None:
    """Groups of channels in the order of rows and columns, not of diagonals."""
    for name in ("z", "log_diff_map"):
        x = tensors[f"expected/eval/{name}"]
        x[:, ::2, 1::2], x[:, 1::2, ::2] = x[:, 1::2, ::2].clone(), x[:, ::2, 1::2].clone()


def latents(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/float64/train/z"] += 1e-8


def moved(tensors: Tensors, facts: Facts) -> None:
    """As if the variance had been corrected for the size of the batch."""
    tensors["expected/train/moving_after/scale_2/coupling_3/bn_out/var"] *= 1.0 + 1e-3


def gradient(tensors: Tensors, facts: Facts) -> None:
    facts["results"]["train_grad_l2_float64"]["scale_0/coupling_1/rescaling_scale"] *= 1.0 + 1e-5


@pytest.mark.parametrize(
    ("change", "option", "found"),
    [
        (trunk, "--float64", "eval/scale1/coupling_4/output"),
        (order, "", "eval/z"),
        (latents, "--float64", "train/z"),
        (gradient, "--float64", "gradient/scale_0/coupling_1/rescaling_scale"),
        (moved, "", "train/moving_after/scale_2/coupling_3/bn_out/var"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_is_found_and_named(fixture: Path, judge: Judge, change: Change, option: str, found: str) -> None:
    judge.finds(fixture, change, found, *option.split())


def no_weight(tensors: Tensors, facts: Facts) -> None:
    del tensors["weights/scale_0/coupling_4/scale"]


def more_blocks(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["hparams"]["residual_blocks"] = 2


def bottleneck(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["hparams"]["bottleneck"] = 1


def odd_size(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["H"] = 18


def unknown(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/eval/scale9/coupling_0/output"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_weight, "weights: 1 missing (scale_0/coupling_4/scale)"),
        (more_blocks, "missing (scale_0/coupling_0/resnet/block_1/"),
        (bottleneck, "config.hparams.bottleneck: got 1, expected 0"),
        (odd_size, "config: got images of 18 x 16, expected multiples of 4"),
        (unknown, "expected/eval/scale9/coupling_0/output is not something this configuration computes"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(fixture: Path, judge: Judge, change: Change, said: str) -> None:
    judge.refuses(fixture, change, said)
