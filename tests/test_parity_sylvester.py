"""Posterior flows against the program of the paper on Sylvester flows: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_fixture import Change, Facts, Judge, Tensors
from safetensors.torch import load_file
from sylvester_program import write_fixture

from davi.published.parity import main

KINDS = ("planar", "orthogonal", "householder", "triangular", "iaf")


@pytest.fixture
def fixture(need_shared: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda kind: need_shared(f"fixtures/flows/sylvester_{kind}.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_authors_program(
    fixture: Callable[[str], Path], capsys: pytest.CaptureFixture[str], kind: str, option: list[str]
) -> None:
    path = fixture(kind)
    assert main([str(path), *option]) == 0
    compared = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    prefix = "expected/float64/" if option else "expected/"
    names = [name.removeprefix(prefix) for name in load_file(path) if name.startswith(prefix)]
    expected = {name for name in names if not name.startswith("float64/")}
    weights = json.loads(path.with_suffix(".json").read_text())["results"]["float64"]["grad_l2_of_mean_kl"]
    assert expected | {f"gradient/{weight}" for weight in weights} <= compared
    assert kind != "iaf" or {f"masks/{k}/{name}" for k in range(3) for name in ("z", "zh0", "mean", "std")} <= compared
    assert kind != "orthogonal" or {"converged/zk", "converged/kl_per_sample"} <= compared


SIZES = {"num_ortho_vecs": 2, "num_householder": 3, "made_h_size": 12}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("planar", {"z_size": 2, "num_flows": 1}),
        ("orthogonal", {"z_size": 4, "num_flows": 2, "num_ortho_vecs": 4}),
        ("orthogonal", {"z_size": 5, "num_flows": 1, "num_ortho_vecs": 1}),
        ("householder", {"z_size": 4, "num_flows": 1, "num_householder": 6}),
        ("householder", {"z_size": 3, "num_flows": 2, "num_householder": 1}),
        ("triangular", {"z_size": 5, "num_flows": 4}),
        ("iaf", {"z_size": 4, "num_flows": 5, "made_h_size": 4}),
        ("iaf", {"z_size": 3, "num_flows": 4}),
        ("iaf", {"z_size": 6, "num_flows": 1}),
    ],
)
def test_other_sizes_agree_with_a_program_written_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, sizes: dict[str, int]
) -> None:
    path = tmp_path / "other.safetensors"
    write_fixture(path, {**SIZES, **sizes, "flow": kind})
    status = main([str(path), "--float64"])
    output = capsys.readouterr().out
    if kind == "orthogonal":  # the program written anew has no stopping rule: ours without one is judged
        found = [line for line in output.splitlines() if line.startswith("converged/")]
        assert len(found) == 2
        assert all(line.endswith(" ok") for line in found), output
    else:
        assert status == 0, output


def exchange_flows(tensors: Tensors, facts: Facts) -> None:
    """The number of the flow first, where the program has it last."""
    for own in ("weight", "bias"):
        weight = tensors[f"state_dict/amor_d.{own}"]
        tensors[f"state_dict/amor_d.{own}"] = weight.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1).contiguous()


def other_diagonal(tensors: Tensors, facts: Facts) -> None:
    tensors["state_dict/amor_diag2.0.bias"] = tensors["state_dict/amor_diag2.0.bias"] + 1e-4


def other_latents(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/float64/z/2"] = tensors["expected/float64/z/2"] + 1e-9


def other_gradient(tensors: Tensors, facts: Facts) -> None:
    facts["results"]["float64"]["grad_l2_of_mean_kl"]["amor_q.weight"] *= 1.0 + 1e-5


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (exchange_flows, "params/r1"),
        (other_diagonal, "params/r2"),
        (other_latents, "z/2"),
        (other_gradient, "gradient/amor_q.weight"),
    ],
)
def test_a_change_is_found_and_named(fixture: Callable[[str], Path], judge: Judge, change: Change, found: str) -> None:
    judge.finds(fixture("householder"), change, found, "--float64")


def no_weight(tensors: Tensors, facts: Facts) -> None:
    del tensors["state_dict/amor_q.bias"]


def more_weights(tensors: Tensors, facts: Facts) -> None:
    tensors["state_dict/amor_x.bias"] = torch.zeros(1)


def more_reflections(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["num_householder"] = 4


def unknown_flow(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["flow"] = "radial"


def no_noise(tensors: Tensors, facts: Facts) -> None:
    del tensors["input/eps"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (no_weight, "weights: amor_q.bias is missing"),
        (more_weights, "weights: amor_x.bias is unexpected"),
        (more_reflections, "weights: amor_q.weight has shape [72, 256], which config does not lead to"),
        (unknown_flow, "config.flow: got 'radial', expected one of planar, orthogonal"),
        (no_noise, "fixture lacks 'input/eps'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    fixture: Callable[[str], Path], judge: Judge, change: Change, said: str
) -> None:
    judge.refuses(fixture("householder"), change, said)
