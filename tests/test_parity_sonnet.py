"""Quantizers against those of Sonnet: fixtures agree, a change is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_fixture import Change, Facts, Judge, Tensors
from safetensors.torch import load_file

from davi.published.parity import main


@pytest.fixture
def fixture(need_shared: Callable[[str], Path]) -> Callable[[int], Path]:
    return lambda version: need_shared(f"fixtures/flows/vq_sonnet{version}.safetensors")


@pytest.mark.parametrize("option", [[], ["--float64"]], ids=["float32", "float64"])
@pytest.mark.parametrize("version", [1, 2])
def test_agrees_with_sonnet(
    fixture: Callable[[int], Path], capsys: pytest.CaptureFixture[str], version: int, option: list[str]
) -> None:
    path = fixture(version)
    assert main([str(path), *option]) == 0
    compared = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith(" ok")}
    names = {name for name in load_file(path) if name.startswith("expected/")}
    assert {name.removeprefix("expected/").removeprefix("float64/") for name in names} <= compared
    results = json.loads(path.with_suffix(".json").read_text())["results"]
    assert {f"ema/step{step}/{name}" for step in range(3) for name in ("loss", "perplexity", "counts")} <= compared
    assert ("plain_float64" in results) == ({"plain/vq_loss", "plain/loss_plus_mse"} <= compared) == (version == 2)


def vector(tensors: Tensors, facts: Facts) -> None:
    """A vector that has replaced nothing stays what it is."""
    for name in ("expected", "expected/float64"):
        tensors[f"{name}/ema/step0/embeddings_after"][:, 11] = tensors["embeddings_initial"][:, 11]


def averages(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/float64/ema/step1/ema_dw_hidden_after"] += 1e-8


def smoothing(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["epsilon"] = 0.0


def decay(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["decay"] = 0.91


def commitment(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["commitment_cost"] = 0.26


def gradient(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/float64/plain/grad_embeddings"][0, 0] += 1e-8


@pytest.mark.parametrize(
    ("change", "option", "found"),
    [
        (vector, "", "ema/step0/embeddings_after"),
        (averages, "--float64", "ema/step1/ema_dw_hidden_after"),
        (smoothing, "--float64", "ema/step0/embeddings_after"),
        (decay, "--float64", "ema/step0/ema_cluster_size_hidden_after"),
        (commitment, "", "ema/step0/loss"),
        (gradient, "--float64", "plain/grad_embeddings"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_is_found_and_named(
    fixture: Callable[[int], Path], judge: Judge, change: Change, option: str, found: str
) -> None:
    judge.finds(fixture(2), change, found, *option.split())


def fewer_codes(tensors: Tensors, facts: Facts) -> None:
    facts["config"]["num_embeddings"] = 11


def no_step(tensors: Tensors, facts: Facts) -> None:
    del facts["results"]["ema_float32"][0]


def unknown(tensors: Tensors, facts: Facts) -> None:
    tensors["expected/ema/step3/quantize"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fewer_codes, "embeddings_initial: got [6, 12], expected [6, 11] as configured"),
        (no_step, "results: got 2 steps, expected 3, one for each input"),
        (unknown, "expected/ema/step3/quantize is not something this configuration computes"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(
    fixture: Callable[[int], Path], judge: Judge, change: Change, said: str
) -> None:
    judge.refuses(fixture(2), change, said)
