"""From numbers to JSON and to a table, against values computed by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from davi import __version__
from davi.errors import UserError
from davi.evaluation import Evaluation, Measure
from davi.evaluation.activity import ACTIVE_RULE, INACTIVE_RULE, active_units, inactivity
from davi.evaluation.baselines import Baseline
from davi.evaluation.result import Result
from davi.evidence import About, Kind
from davi.quantity import Statistic
from davi.records import read, to_json
from davi.report import NO_DIVERGENCE, commit, protocol_of, result_of, to_terminal, write_json

LN2 = math.log(2.0)

MODEL = {
    "name": "attentive_vae",
    "shape": [1, 2, 2],
    "levels": 2,
    "config": {"width": 4},
    "parameters": 12345,
    "version": "0.0.9",
    "ema": True,
    "ema_decay": 0.999,
    "step": 77,
    "source": "runs/demo/model.safetensors",
    "rollbacks": 1,
    "protocol": {"set": "mnist", "train_sha256": "ab", "binarization_seed": None, "counts": {}, "flip": True},
}
DATA = {
    "set": "mnist",
    "shape": [1, 2, 2],
    "levels": 2,
    "binarization": "dynamic",
    "binarization_seed": 0,
    "evaluated": "each image drawn once, x ~ Bernoulli(value / 255), seed 0",
    "test_order": "sorted by class: the first images of the test set do not stand for the whole",
}
BASELINES = [
    Baseline("independent pixels", 2.0, 0.5, "counts"),
    Baseline("lossless WebP", None, None, "the format does not hold 1 channel of 65536 levels, 2 x 2 pixels"),
]


def evaluation(**changes: Any) -> Evaluation:
    """Three images of four values; the ELBO's mean is -8, its standard deviation 4."""
    values: dict[str, Any] = {
        "elbo": np.array([-4.0, -8.0, -12.0]),
        "bound": np.array([-3.0, -7.0, -11.0]),
        "terms": {
            "reconstruction": np.array([-1.0, -5.0, -9.0]),
            "kl/00": np.array([-1.0, -1.0, -1.0]),
            "kl/01": np.array([-2.0, -2.0, -2.0]),
        },
        "kind": Kind.LOWER_BOUND,
        "measures": (active_units((3, 0), (4, 8), images=3, draws=16),),
        "samples": 100,
        "seed": 5,
        "batch_size": 64,
        "limit": 3,
        "available": 10,
        "set": "mnist/test",
        "dims": 4,
        "device": "cpu",
        "precision": "float32",
    }
    return Evaluation(**{**values, **changes})


def result(levels: int = 2, **changes: Any) -> Result:
    measured = evaluation(**changes)
    return result_of(measured, BASELINES, protocol_of(measured, MODEL, {**DATA, "levels": levels}))


def test_numbers_by_hand() -> None:
    found = to_json(result())
    error = 4 / math.sqrt(3)
    assert found["kind"] == "LOWER_BOUND"
    assert found["elbo"]["nats"] == pytest.approx({"mean": -8.0, "standard_error": error})
    assert found["elbo"]["bits_per_dim"] == pytest.approx({"mean": 2 / LN2, "standard_error": error / 4 / LN2})
    assert found["bound"]["samples"] == 100
    assert found["bound"]["nats"]["mean"] == pytest.approx(-7.0)
    assert list(found["terms"]) == ["reconstruction"]
    assert found["terms"]["reconstruction"]["nats"]["mean"] == pytest.approx(-5.0)
    assert found["kl"]["total"]["nats"] == pytest.approx({"mean": 3.0, "standard_error": 0.0})
    assert found["kl"]["total"]["bits_per_dim"]["mean"] == pytest.approx(0.75 / LN2)
    assert [(layer["name"], layer["nats"]["mean"]) for layer in found["kl"]["layers"]] == [
        ("kl/00", 1.0),
        ("kl/01", 2.0),
    ]
    assert found["active_units"] == {
        "active": 3,
        "units": 12,
        "layers": [{"active": 3, "units": 4}, {"active": 0, "units": 8}],
        "images": 3,
        "draws": 16,
        "rule": ACTIVE_RULE,
    }
    kl = found["kl"]
    assert (kl["divergence"], kl["inactive"], kl["rule"]) == ([True, True], [], INACTIVE_RULE)
    assert found["baselines"][0] == {
        "name": "independent pixels",
        "bits_per_dim": 2.0,
        "standard_error": 0.5,
        "note": "counts",
    }
    assert found["baselines"][1]["bits_per_dim"] is None


def test_parts_sum_to_the_elbo_in_both_units() -> None:
    found = result()
    assert found.kl is not None
    parts, kl = found.terms["reconstruction"], found.kl.total
    assert parts.nats.mean - kl.nats.mean == pytest.approx(found.elbo.nats.mean)
    sums = sum(part.in_unit("bits_per_dim").mean for part in (parts, kl))
    assert sums == pytest.approx(found.elbo.in_unit("bits_per_dim").mean)


def test_the_protocol_is_whole() -> None:
    protocol = to_json(result())["protocol"]
    assert protocol["set"] == "mnist/test"
    assert protocol["split"] == "test"
    assert (protocol["images"], protocol["images_available"], protocol["limit"]) == (3, 10, 3)
    assert (protocol["importance_samples"], protocol["seed"], protocol["batch_size"]) == (100, 5, 64)
    assert (protocol["device"], protocol["precision"], protocol["dims"]) == ("cpu", "float32", 4)
    assert protocol["version"] == __version__
    assert protocol["torch"]
    assert protocol["data"] == DATA
    assert protocol["model"] == {
        "name": "attentive_vae",
        "parameters": 12345,
        "shape": [1, 2, 2],
        "levels": 2,
        "config": {"width": 4},
        "ema": True,
        "ema_decay": 0.999,
        "step": 77,
        "rollbacks": 1,
        "source": "runs/demo/model.safetensors",
        "weights_sha256": None,
        "trained_with": "0.0.9",
        "trained_on": {"set": "mnist", "train_sha256": "ab", "binarization_seed": None},  # of known kinds alone
    }


def test_commit_names_a_commit_or_nothing() -> None:
    found = commit()
    in_checkout = (Path(__file__).resolve().parents[1] / ".git").exists()
    assert found is None or (in_checkout and re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", found))


def test_no_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_json_is_strict_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_json(path, result())

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == to_json(result())
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_a_number_that_json_lacks_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_json(path, result())
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, result(bound=np.full(3, math.nan)))
    assert json.loads(path.read_text(encoding="utf-8")) == to_json(result())


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/evaluation\.json: cannot be written"):
        write_json(tmp_path / "absent" / "evaluation.json", result())


def test_one_image_has_no_error() -> None:
    one = {name: values[:1] for name, values in evaluation().terms.items()}
    found = result(elbo=np.array([-4.0]), bound=np.array([-3.0]), terms=one)
    assert found.elbo.nats == Statistic(-4.0, None)
    assert found.elbo.in_unit("bits_per_dim").standard_error is None
    assert "-4.00\n" in to_terminal(found) or "-4.00 " in to_terminal(found)


def test_table_of_binary_images() -> None:
    lines = to_terminal(result()).splitlines()
    assert lines[0] == "mnist/test: the first 3 of 10 images, 1 x 2 x 2, 2 levels"
    assert lines[1] == "attentive_vae, 12,345 parameters, step 77, averaged weights"
    assert lines[3].split() == ["nats", "bits/dim"]
    rows = {line[:28].strip(): line[28:].split() for line in lines}
    error, bits = f"{4 / math.sqrt(3):.2f}", f"{7 / 4 / LN2:.4f}"
    assert rows["log p(x) >= L_100"] == ["-7.00", "±", error, bits, "±", f"{1 / math.sqrt(3) / LN2:.4f}"]
    assert rows["ELBO"][0] == "-8.00"
    assert rows["reconstruction"][0] == "-5.00"
    assert rows["KL divergence"][0] == "3.00"
    assert rows["independent pixels"] == [f"{-8 * LN2:.2f}", "±", f"{2 * LN2:.2f}", "2.0000", "±", "0.5000"]
    assert rows["lossless WebP"][:2] == ["not", "available:"]
    assert rows["KL by layer, top first"] == ["1.00", "2.00", "nats"]
    assert rows["active units"] == ["3", "of", "12:", "3/4", "0/8"]
    assert f"{'':<28}(3 images, 16 draws of the latents each)" in lines
    assert "  independent pixels: counts" in lines
    assert rows["binarization"][0] == "dynamic:"
    assert rows["order of the images"][:3] == ["sorted", "by", "class:"]
    assert rows["measured with"][:5] == ["K", "=", "100,", "seed", "5,"]


def test_table_of_other_images_gives_bits_first() -> None:
    lines = to_terminal(result(levels=256)).splitlines()
    assert next(line for line in lines if "nats" in line).split() == ["bits/dim", "nats"]
    assert next(line for line in lines if line.startswith("ELBO")).split()[1] == f"{2 / LN2:.4f}"


def with_terms(*nats: float, no_divergence: Collection[str] = ()) -> Result:
    """The result of a model whose layers have these terms."""
    terms = {f"kl/{i:02d}": np.full(3, -value) for i, value in enumerate(nats)}
    measures = (inactivity({f"kl/{i:02d}": value for i, value in enumerate(nats)}, no_divergence),)
    terms = {"reconstruction": np.zeros(3), **terms}
    return result(terms=terms, no_divergence=frozenset(no_divergence), measures=measures)


def labeled(found: Result, label: str) -> str:
    """What a row of the table says; nothing if it is missing."""
    lines = to_terminal(found).splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(label)), len(lines))
    end = next((i for i in range(start + 1, len(lines)) if lines[i][:1] != " "), len(lines))
    return " ".join(line[28:].strip() for line in lines[start:end])


def inactive(found: Result) -> tuple[str, ...]:
    assert found.kl is not None
    return found.kl.inactive


def test_inactive_layers_are_named_by_their_divergence() -> None:
    """Active units, of which the second layer has none, say something else."""
    found = with_terms(2.0, 0.0101)
    assert inactive(found) == ()
    assert "inactive" not in to_terminal(found)
    found = with_terms(2.0, 0.0099)
    assert inactive(found) == ("kl/01",)
    assert labeled(found, "inactive layers") == "kl/01 (KL divergence below 0.01 nats; kl/00 is the top)"
    assert labeled(found, "KL by layer, top first") == "2.00  0.0099 nats"


def test_terms_that_are_no_divergences_are_called_so_and_judged_together() -> None:
    found = with_terms(2.0, -1.26, 0.5, no_divergence=["kl/01", "kl/02"])
    assert found.kl is not None
    assert (found.kl.divergence, found.kl.inactive) == ((True, False, False), ())
    assert labeled(found, "term by layer, top first") == "2.00  -1.26  0.50 nats"
    assert labeled(found, "no KL divergence") == f"kl/01, kl/02: {NO_DIVERGENCE}"
    assert "inactive" not in to_terminal(found)
    assert "KL by layer" not in to_terminal(found)
    assert labeled(found, "  KL divergence").startswith("1.24")  # of all latents together it is one, in nats
    nothing = with_terms(2.0, -1.9901, no_divergence=["kl/01"])
    assert inactive(nothing) == ("kl/00", "kl/01")
    assert labeled(nothing, "inactive layers") == "kl/00, kl/01 (all layers together below 0.01 nats)"


def test_results_of_older_versions_are_shown() -> None:
    values = to_json(with_terms(2.0, 0.001))
    for key in ("divergence", "inactive", "rule"):
        del values["kl"][key]
    values["active_units"] = {"active": 1, "units": 2, "layers": [{"active": 1, "units": 2}], "rule": "active"}
    del values["format"]
    found = read(Result, values, "old")
    assert labeled(found, "active units") == "1 of 2: 1/2"
    assert labeled(found, "KL by layer, top first") == "2.00  0.001 nats"
    assert "inactive" not in to_terminal(found)


def test_rollbacks_are_said() -> None:
    for number in (2, 0):
        protocol = protocol_of(evaluation(), {**MODEL, "rollbacks": number}, DATA)
        lines = to_terminal(result_of(evaluation(), BASELINES, protocol)).splitlines()
        told = [line.split(maxsplit=3)[3] for line in lines if line.startswith("rollbacks in training")]
        assert told == ([f"{number}, each of which halved the learning rate"] if number else [])


def test_a_subset_that_is_spread_evenly_needs_no_word_about_the_order() -> None:
    text = to_terminal(result(subset="3 of 10 images, spread evenly, seed 0"))
    assert text.startswith("mnist/test: 3 of 10 images, spread evenly, seed 0, 1 x 2 x 2, 2 levels\n")
    assert "order of the images" not in text


def test_errors_of_patches_are_clustered_by_file() -> None:
    """-3, -7 and -11 with the first two of one file: residuals 4, 0, -4, sums 4 and -4, sqrt(2 (16 + 16)) / 3 = 8/3."""
    found = result(groups=np.array([7, 7, 9]), limit=None, available=3)
    assert found.bound.nats.standard_error == pytest.approx(8 / 3, rel=1e-14)
    assert found.bound.in_unit("bits_per_dim").standard_error == pytest.approx(8 / 3 / 4 / LN2, rel=1e-14)
    assert found.protocol.files == 2
    text = " ".join(to_terminal(found).split())
    assert text.startswith("mnist/test: 3 patches of 2 files, 1 x 2 x 2")
    assert "clustered by file; from fewer than 5 files no interval and no significance follows" in text
    some = result(groups=np.array([7, 7, 7]), subset="3 of 10 images, spread evenly, seed 0")
    assert some.bound.nats.standard_error is None  # one file says nothing about others
    assert "3 of 10 images, spread evenly, seed 0 (3 patches of 1 file), 1 x" in " ".join(to_terminal(some).split())


def test_the_whole_set_needs_no_word_about_its_order() -> None:
    text = to_terminal(result(available=3, limit=None))
    assert text.startswith("mnist/test: 3 images,")
    assert "order of the images" not in text


@pytest.mark.parametrize(
    ("kind", "samples", "headline", "claim"),
    [
        (Kind.LOWER_BOUND, 1, "log p(x) >= ELBO", "lower bound: log p(x) is at least this"),
        (Kind.LOWER_BOUND, 5000, "log p(x) >= L_5000", "lower bound: log p(x) is at least this"),
        (Kind.EXACT, 1, "log p(x)", "exact: this is log p(x)"),
        (Kind.ESTIMATE, 1, "log p(x), estimated", "estimate: log p(x) may be more or less;"),
    ],
)
def test_the_kind_of_claim_is_said(kind: Kind, samples: int, headline: str, claim: str) -> None:
    text = to_terminal(result(kind=kind, samples=samples))
    assert f"kind of claim               {claim}" in text
    assert any(line[:28].strip() == headline for line in text.splitlines())
    assert text.count(">=") == (kind is Kind.LOWER_BOUND)


def test_a_model_without_latents_has_one_row() -> None:
    measured = evaluation(kind=Kind.EXACT, terms={"pixels": np.zeros(3)}, measures=())
    found = result_of(measured, (), protocol_of(measured, MODEL, DATA))
    values = to_json(found)
    assert (values["kl"], values["active_units"], values["baselines"]) == (None, None, [])
    lines = to_terminal(found).splitlines()
    assert [line[:28].strip() for line in lines[3:7]] == ["", "log p(x)", "kind of claim", ""]
    assert "ELBO" not in to_terminal(found)


@pytest.mark.parametrize(("samples", "rows"), [(1, ["log p(x), lower bound"]), (9, ["log p(x) >= L_9", "lower bound"])])
def test_a_bound_without_latents_is_no_elbo(samples: int, rows: list[str]) -> None:
    found = result(terms={"base": np.zeros(3), "log_det": np.ones(3)}, measures=(), samples=samples)
    text = to_terminal(found)
    assert [line[:28].strip() for line in text.splitlines()[4 : 4 + len(rows)]] == rows
    assert "ELBO" not in text


def test_what_the_claim_is_about_is_said_where_it_is_not_the_image_alone() -> None:
    assert "about" not in to_json(result())
    found = result(about=About.X_GIVEN_Y)
    assert to_json(found)["about"] == "x|y"
    assert read(Result, to_json(found), "file") == found
    assert "log p(x|y) >= L_100" in to_terminal(found)
    assert "lower bound: log p(x|y) is at least this" in to_terminal(found)


def test_further_measures_are_told_and_kept() -> None:
    assert "measures" not in to_json(result())
    perplexity = Measure("code perplexity", "codes", 12.5, 0.25, Kind.ESTIMATE, "exp of the entropy of the codes")
    found = result(measures=(perplexity,))
    assert labeled(found, "code perplexity") == "12.50 ± 0.25 codes (estimate)"
    assert read(Result, to_json(found), "file") == found


def test_the_table_fits_into_eighty_columns() -> None:
    layers = 45
    terms = {f"kl/{i:02d}": np.full(3, -123456.789) for i in range(layers)}
    units = active_units((10240,) * layers, (20480,) * layers, images=500, draws=16)
    found = result(
        elbo=np.array([-123456.0, -1234567.0, -1.0]),
        terms={"reconstruction": np.array([-1e6, -2e6, -3e6]), **terms},
        measures=(units,),
    )
    text = to_terminal(found)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("10240/20480") == layers
    assert text == text.rstrip()
