"""Runs of a quantized model: killed anywhere they end as if nothing had happened; stages keep to their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import forked
import killed_runs
import pytest
import torch
from safetensors.torch import load_file
from staged import CODE_STAGES, CODES, FIRST, quantized
from test_stages import check_same, history
from tiny import sets

from davi.batch import Batch
from davi.model import Network
from davi.models import VQVAE2
from davi.runs import checkpoint_folders, load_network
from davi.training import Interrupted, train
from davi.training.signals import Signals
from davi.training.stages import Stage
from davi.training.start import take_over

POINTS = (
    *("part:5", "average:7"),  # in the first stage
    *("between/validate:1", "between/rename:3", "between/rename:8"),
    *("verdict:13", "rename:24"),  # in the second
    "between/rename:7+part:9",
)


def go(run: Path, resume: bool = False, stages: Sequence[Stage] = CODE_STAGES, model: Network | None = None) -> None:
    trained = quantized() if model is None else model
    train(trained, sets(), FIRST, run, CODES, resume=resume, print_fn=lambda line: None, stages=stages)


def test_killed_anywhere(tmp_path: Path) -> None:
    done = forked.call(killed_runs.main, tmp_path, [*POINTS], "quantized", folder=tmp_path)
    assert done.status == 0, done.out + done.err
    assert done.out.splitlines() == [f"{point}: killed {1 + point.count('+')}" for point in POINTS]
    whole = tmp_path / "whole"
    assert [record["step"] for record in history(whole) if record["kind"] == "stage"] == [10]
    for point in POINTS:
        check_same(tmp_path / point.replace(":", "-").replace("/", "-"), whole)


def signalled(self: Signals) -> Signals:
    self.received = 2
    return self


def test_stopped_by_a_signal_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [replace(stage, config=replace(stage.config, steps=3)) for stage in CODE_STAGES]
    whole, run = tmp_path / "whole", tmp_path / "run"
    go(whole, stages=stages)
    with monkeypatch.context() as patch:
        patch.setattr(Signals, "__enter__", signalled)
        for step in range(1, 6):
            with pytest.raises(Interrupted) as caught:
                go(run, resume=True, stages=stages)
            assert caught.value.step == step
            begun = load_file(checkpoint_folders(run)[-1] / "model.safetensors")["prior_begun"]
            assert bool(begun) == (step > 3)
    go(run, resume=True, stages=stages)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert history(run) == history(whole)


def test_each_stage_moves_its_own_part(tmp_path: Path) -> None:
    start = quantized().state_dict()
    go(tmp_path / "first", stages=CODE_STAGES[:1])
    go(tmp_path / "both")
    between, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "both"))
    steps = ((start, between), (between, after))
    moved = [{name for name in start if not torch.equal(old[name], new[name])} for old, new in steps]
    assert {name.partition(".")[0] for name in moved[0]} == {"autoencoder"}
    assert {name.partition(".")[0] for name in moved[1]} == {"prior", "prior_begun"}
    vectors = [f"autoencoder.quantizers.{layer}.{kind}" for layer in (0, 1) for kind in ("vectors", "frequencies")]
    assert {*vectors} <= moved[0]


def test_after_the_first_stage_codes_are_equally_probable_and_after_the_second_they_are_not(tmp_path: Path) -> None:
    x = sets().test.pixels.long()
    go(tmp_path / "first", stages=CODE_STAGES[:1])
    go(tmp_path / "both")
    found = []
    for name in ("first", "both"):
        network, _ = load_network(tmp_path / name)
        assert isinstance(network, VQVAE2)
        model: VQVAE2 = network
        found.append(model.evidence(x))
        codes = model.view("prior", Batch(x)).x
    terms = [float(-(evidence.terms["kl/00"] + evidence.terms["kl/01"]).mean()) for evidence in found]
    assert terms[0] == pytest.approx(5 * math.log(4.0), rel=1e-6)
    assert torch.equal(found[0].terms["reconstruction"], found[1].terms["reconstruction"])
    prior = model.prior.evidence(codes)  # the claim of the part is a part of the claim of the whole
    assert terms[1] == pytest.approx(-float(prior.log_px.mean()), rel=1e-5)


def test_a_lent_prior_goes_on_from_where_it_was(tmp_path: Path) -> None:
    go(tmp_path / "both")
    source, _ = load_network(tmp_path / "both")
    model = quantized()
    take_over(model, source, "both")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )
    assert bool(model.prior_begun)
