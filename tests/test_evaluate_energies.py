"""``davi evaluate`` and its neighbors on energies: a partition function that is missing is estimated, kept, and its
error told."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import davi
from davi import comparison, measurements, partition
from davi.cli import main
from davi.errors import UserError
from davi.evidence import Kind
from davi.files import read_tensors
from davi.model import Model, Partition, Summable, Unnormalized, WithPartition
from davi.runs import load_network

Capture = pytest.CaptureFixture[str]
RECIPE = "rbm_digits_tiny"
QUICK = ("--ais-temperatures", 20, "--ais-chains", 10)
FEW = ("--limit", 20, "--no-baselines")


def say(*words: object) -> int:
    return main([str(word) for word in words])


def numbers(run: Path) -> dict[str, Any]:
    """The evaluation of a run, in which there must be no word that JSON does not know."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"), parse_constant=refuse)
    return found


def kept(run: Path) -> Path:
    return run / "derived" / "partition.safetensors"


def known(model: Model) -> Partition:
    assert isinstance(model, WithPartition)
    assert model.partition is not None
    return model.partition


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of machines with more hidden units, and pixels, than a sum allows; not to be changed."""
    folder = tmp_path_factory.mktemp("energies")
    for name, hidden in (("wide", 26), ("wider", 30)):
        assert say("train", RECIPE, "--run", folder / name, "--model.hidden", hidden, "--steps", 5) == 0
    assert say("evaluate", folder / "wide", *QUICK, *FEW) == 0
    return folder


@pytest.fixture
def evaluated(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run that was evaluated."""
    return Path(shutil.copytree(trained / "wide", tmp_path / "evaluated"))


@pytest.fixture
def unknown(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run whose partition function is not known."""
    return Path(shutil.copytree(trained / "wider", tmp_path / "unknown"))


def keep(run: Path, **facts: Any) -> None:
    """Leave an estimate of the weights of a run in its folder."""
    network, _ = load_network(run)
    assert isinstance(network, Unnormalized)
    partition.write(network, run, Partition(kind=Kind.ESTIMATE, **facts))


def test_what_is_missing_is_estimated_and_kept(unknown: Path, capsys: Capture) -> None:
    assert say("evaluate", unknown, *QUICK, *FEW) == 0
    said = capsys.readouterr()
    assert "over images, ± " in said.out
    assert f"log Z: kept in {kept(unknown)}\n" in said.err
    found, model = numbers(unknown), davi.load(unknown)
    told, own = found["log_z"], known(model)
    assert (found["kind"], told["kind"], told["claim"]) == ("ESTIMATE", "ESTIMATE", "EXACT")
    assert (told["chains"], told["temperatures"], told["base_images"], told["seed"]) == (10, 20, 1200, 0)
    assert told["low"] < told["log_z"] < told["high"]
    assert told["standard_error"] == pytest.approx(math.expm1(told["high"] - told["log_z"]) / 3.0)
    assert told["bits_per_dim_error"] == pytest.approx(told["standard_error"] / (64 * math.log(2.0)))
    assert 1.0 <= told["effective_samples"] <= 10.0
    same = {
        name: getattr(own, name) for name in ("log_z", "low", "high", "effective_samples", "chains", "temperatures")
    }
    assert same == {name: told[name] for name in same}
    assert model.evidence(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).kind is Kind.ESTIMATE
    assert found["terms"]["negative_log_z"]["nats"]["mean"] == pytest.approx(-own.log_z, rel=1e-6)


def test_the_estimate_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert say("train", RECIPE, "--run", run, "--steps", 5) == 0
    monkeypatch.setattr(partition, "MOST_STATES", 4)
    assert say("evaluate", run, "--ais-temperatures", 100, *FEW) == 0
    network, _ = load_network(run)
    assert isinstance(network, Summable)
    exact, own = float(network.log_partition()), known(davi.load(run))
    error = own.standard_error
    assert error is not None
    assert 0.0 < error < 0.05
    assert own.log_z == pytest.approx(exact, abs=4.0 * error)
    assert own.log_z != exact


def test_what_is_kept_is_used(evaluated: Path, capsys: Capture) -> None:
    before, first = kept(evaluated).read_bytes(), numbers(evaluated)["log_z"]
    for words in ((), QUICK, ("--ais-base", "data"), ("--seed", 3)):
        assert say("evaluate", evaluated, *words, *FEW) == 0
        assert kept(evaluated).read_bytes() == before
        assert numbers(evaluated)["log_z"] == first
    assert "log Z: kept" not in capsys.readouterr().err


def test_other_settings_estimate_again_and_leave_the_rest_as_it_was(evaluated: Path) -> None:
    def facts() -> tuple[Any, ...]:
        told = numbers(evaluated)["log_z"]
        return told["temperatures"], told["chains"], told["base_images"], "reverse" in told

    before = numbers(evaluated)["log_z"]["log_z"]
    assert say("evaluate", evaluated, "--ais-temperatures", 12, *FEW) == 0
    assert facts() == (12, 10, 1200, False)
    assert say("evaluate", evaluated, "--ais-base", "uniform", "--ais-chains", 8, *FEW) == 0
    assert facts() == (12, 8, 0, False)
    assert say("evaluate", evaluated, "--ais-base", "data", "--ais-chains", 10, "--ais-temperatures", 20, *FEW) == 0
    assert facts() == (20, 10, 1200, False)
    assert numbers(evaluated)["log_z"]["log_z"] == before  # the same seed makes the same draws
    assert say("evaluate", evaluated, "--ais-again", "--seed", 1, *FEW) == 0
    assert facts() == (20, 10, 1200, False)
    assert numbers(evaluated)["log_z"]["log_z"] != before


def test_the_way_back_is_kept_as_well(evaluated: Path, capsys: Capture) -> None:
    assert say("evaluate", evaluated, "--ais-reverse", *FEW) == 0
    back, own = numbers(evaluated)["log_z"]["reverse"], known(davi.load(evaluated))
    assert (back["log_z"], back["low"], back["high"]) == (own.reverse, own.reverse_low, own.reverse_high)
    assert back["low"] < back["log_z"] < back["high"]
    assert "log Z, reverse estimate" in capsys.readouterr().out


def test_no_number_of_importance_samples_matters_where_nothing_is_drawn(evaluated: Path, capsys: Capture) -> None:
    first = numbers(evaluated)
    assert say("evaluate", evaluated, "--importance-samples", 7, *FEW) == 0
    assert "it does not depend on K" in " ".join(capsys.readouterr().out.split())
    again = numbers(evaluated)
    assert again["bound"] == {**first["bound"], "samples": 7}
    assert again["deterministic"]


@pytest.mark.parametrize("low", [-math.inf, 38.0])
def test_a_limit_that_is_infinite_is_said_in_words(evaluated: Path, capsys: Capture, low: float) -> None:
    keep(evaluated, log_z=40.0, low=low, high=40.0 + math.log1p(3 * 0.4), effective_samples=3.0, chains=10)
    assert say("evaluate", evaluated, *FEW) == 0
    said, told = " ".join(capsys.readouterr().out.split()), numbers(evaluated)["log_z"]
    assert told["standard_error"] == pytest.approx(0.4)
    assert "± 0.40 from log Z" in said
    if low == -math.inf:
        assert told["low"] is None
        assert told["unlimited"] == "no lower limit: three standard errors of Z reach below 0"
        assert "at most 40.79; no lower limit" in said
    else:
        assert told["low"] == low
        assert "38.00 to 40.79 (three standard errors)" in said
    assert "warning only 3 of 10 chains are effective, fewer than half; " in said


def test_killed_while_it_estimates_nothing_is_left(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(partition, "estimate_partition", killed)
        assert say("evaluate", unknown, *QUICK, *FEW) == 130
    with monkeypatch.context() as patch:
        patch.setattr("davi.derived.write_tensors", killed)
        assert say("evaluate", unknown, *QUICK, *FEW) == 130
    assert not kept(unknown).exists()
    assert not (unknown / "evaluation.json").exists()
    assert say("evaluate", unknown, *QUICK, *FEW) == 0


def test_where_nothing_can_be_written_the_numbers_are_told_all_the_same(unknown: Path, capsys: Capture) -> None:
    (unknown / "derived").write_bytes(b"a file where a folder should be")
    assert say("evaluate", unknown, *QUICK, *FEW) == 0
    said = capsys.readouterr()
    assert "log Z: not kept: " in said.err
    assert "from log Z" in said.out


def test_that_of_other_weights_is_not_used(evaluated: Path, trained: Path) -> None:
    shutil.copy(trained / "wider" / "model.safetensors", evaluated / "model.safetensors")
    model = davi.load(evaluated)
    assert isinstance(model, WithPartition)
    assert model.partition is None


def test_options_that_would_do_nothing_are_refused(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    assert say("train", RECIPE, "--run", run, "--steps", 2) == 0
    assert say("evaluate", run, *FEW) == 0
    exact = numbers(run)
    assert (exact["kind"], exact["log_z"]["kind"]) == ("EXACT", "EXACT")
    assert exact["log_z"]["low"] == exact["log_z"]["log_z"] == exact["log_z"]["high"]
    capsys.readouterr()
    for words, option in ((("--ais-chains", 5), "--ais-chains"), (("--ais-again",), "--ais-again")):
        assert say("evaluate", run, *words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(f"davi: {option}: got it for rbm, whose partition function is known exactly; ")


def test_more_chains_than_the_memory_holds(unknown: Path, capsys: Capture) -> None:
    chains = 10**14
    assert say("evaluate", unknown, "--ais-chains", chains, *FEW) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"davi: --ais-chains: got {chains}, too many for the memory, expected fewer"
    assert not kept(unknown).exists()


def test_scores_tell_the_error_of_log_z_and_no_draws(evaluated: Path, capsys: Capture) -> None:
    assert say("score", evaluated, "--held-out", 20, "--top", 2) == 0
    said = capsys.readouterr().out
    error = known(davi.load(evaluated)).standard_error
    assert error is not None
    assert f"its error, ± {error / (64 * math.log(2.0)):.2g} bits/dim, is the same for all files" in said
    assert "log Z: " in said
    assert "K = " not in said


def test_a_gap_that_there_is_not_is_refused_before_anything_is_estimated(unknown: Path, capsys: Capture) -> None:
    assert say("evaluate", unknown, "--gap") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("davi: --gap: got it for rbm, which has no latents; ")
    assert not kept(unknown).exists()


def test_verbs_that_need_a_likelihood_say_how_to_get_it(unknown: Path, capsys: Capture) -> None:
    remedy = f"davi evaluate {unknown} estimates it\n"
    assert say("score", unknown) == 2
    said = capsys.readouterr().err
    assert said.endswith(remedy)
    assert said.count("\n") == 1
    assert say("sample", unknown, "--n", 2) == 0
    assert say("reconstruct", unknown) == 2
    capsys.readouterr()
    with pytest.raises(UserError, match="davi evaluate RUN estimates it"):
        davi.load(unknown).evidence(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    words = remedy.split()[1:3]  # as it is typed
    assert say(*words, *QUICK, *FEW) == 0
    assert say("score", unknown, "--held-out", 20, "--importance-samples", 1) == 0


def test_in_python_as_well(unknown: Path) -> None:
    run = davi.Run(unknown)
    assert isinstance(run.model, WithPartition)
    assert run.model.partition is None
    found = run.evaluate(ais_temperatures=20, ais_chains=10, limit=20, no_baselines=True)
    assert found.result.log_z is not None
    assert found.result.log_z.log_z == known(run.model).log_z
    assert "from log Z" in repr(found)


def test_the_error_of_log_z_does_not_cancel_in_differences(evaluated: Path, trained: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(trained / "wide", tmp_path / "other"))
    for run, error in ((evaluated, 0.3), (other, 0.4)):
        high = 40.0 + math.log1p(3 * error)
        keep(run, log_z=40.0, low=math.log(0.1) + 40.0 if error < 1 / 3 else -math.inf, high=high)
        assert say("evaluate", run, *FEW) == 0
    (group,) = comparison.compare([comparison.read(evaluated), comparison.read(other)]).groups
    assert [row.log_z_error for row in group.rows] == pytest.approx([0.3, 0.4])
    pair = group.rows[1].to_reference
    assert pair is not None  # the same weights and log Z, but one has no lower limit
    assert (pair.nats.mean, pair.nats.standard_error, pair.nats.interval, pair.significant) == (0.0, None, None, False)
    keep(other, log_z=41.0, low=40.0, high=41.0 + math.log1p(3 * 0.4))
    assert say("evaluate", other, *FEW) == 0
    (group,) = comparison.compare([comparison.read(evaluated), comparison.read(other)]).groups
    pair = group.rows[1].to_reference
    assert pair is not None
    assert pair.nats.mean == pytest.approx(-1.0, abs=1e-4)
    assert pair.nats.standard_error == pytest.approx(0.5, abs=1e-4)  # of both, though image by image nothing differs
    assert pair.in_unit("bits_per_dim").standard_error == pytest.approx(0.5 / (64 * math.log(2.0)), abs=1e-5)
    assert pair.significant is (pair.nats.interval is not None and pair.nats.interval[1] < 0.0)


def test_estimates_are_not_ranked_among_exact_numbers(evaluated: Path, tmp_path: Path, capsys: Capture) -> None:
    exact = tmp_path / "exact"
    assert say("train", RECIPE, "--run", exact, "--steps", 2) == 0
    assert say("evaluate", exact, *FEW) == 0
    capsys.readouterr()
    assert say("compare", evaluated, exact) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not ranked across groups, since their protocols differ in kind: estimate (A), exact (B)" in said
    assert "estimates may lie on either side of log p(x), so they are not ranked among bounds or exact values" in said
    assert "± from log Z" in said
    assert say("compare", evaluated, exact, "--markdown") == 0
    assert "| ± from log Z |" in capsys.readouterr().out


def test_results_that_know_nothing_of_it_are_read(evaluated: Path) -> None:
    """Of an older version: the keys are missing."""
    path = evaluated / "evaluation.json"
    old = {key: value for key, value in numbers(evaluated).items() if key not in ("log_z", "deterministic")}
    path.write_text(json.dumps(old), encoding="utf-8")
    result = measurements.read_result(path)
    assert (result.log_z, result.deterministic, result.kind) == (None, False, Kind.ESTIMATE)


def test_the_file_holds_everything(evaluated: Path) -> None:
    tensors, _ = read_tensors(kept(evaluated))
    wanted = {"log_z", "low", "high", "effective_samples", "chains", "temperatures", "base_images", "seed"}
    assert set(tensors) == wanted
    assert all(tensor.dtype == torch.float64 for tensor in tensors.values())


def test_a_page_is_not_about_another_log_z(evaluated: Path, capsys: Capture) -> None:
    keep(evaluated, log_z=40.0, low=39.0, high=40.0 + math.log1p(3 * 0.2))
    assert say("inspect", evaluated, "--no-figures") == 0
    said = capsys.readouterr().out
    assert "is with another partition function than the run holds now; measuring anew" in said
    assert "over images, ± 0.20 from log Z, nats an image" in said
    page = (evaluated / "inspection.html").read_text(encoding="utf-8")
    assert "over images, ± 0.20 from log Z" in page
    assert "39.00 to 40.47 (three standard errors)" in page
