"""Evaluations are read back as they were written, and nothing that is damaged or foreign is taken for one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from davi import measurements
from davi.errors import UserError
from davi.evaluation import Evaluation
from davi.evaluation.activity import active_units
from davi.evaluation.baselines import Baseline
from davi.evaluation.result import Result
from davi.evidence import Kind
from davi.files import write_tensors
from davi.records import to_json
from davi.report import protocol_of, result_of

MODEL = {"name": "toy", "parameters": 7, "step": 3, "ema": True, "version": "0", "protocol": {"set": "toy", "flip": 0}}
DATA = {"set": "toy", "shape": [1, 2, 2], "levels": 2, "binarization": "none", "test_sha256": "ab"}


def evaluation(n: int = 3, shift: float = 0.0) -> Evaluation:
    rest = np.linspace(-5.0, -1.0, n) + shift
    terms = {"reconstruction": rest - 1.0, "kl/00": np.full(n, -0.5)}
    units = (active_units((1,), (4,), images=n, draws=16),) if n > 1 else ()
    how = (10, 0, 100, None, n, "toy/test", 4, "cpu", "float32", "cd")
    return Evaluation(rest - 1.5, rest, terms, Kind.LOWER_BOUND, *how, measures=units)


def result(measured: Evaluation) -> Result:
    baselines = [Baseline("PNG", 3.0, None, "headers"), Baseline("WebP", None, None, "not there")]
    return result_of(measured, baselines, protocol_of(measured, MODEL, DATA))


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_written_is_read_back(n: int, tmp_path: Path) -> None:
    measured = evaluation(n)
    assert measurements.save(tmp_path, result(measured), measured) == tmp_path / "evaluation.json"
    found = measurements.load(tmp_path)
    assert found.result == result(measured)
    assert json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8")) == to_json(result(measured))
    assert found.kind is Kind.LOWER_BOUND
    assert len(found) == n
    for name in ("elbo", "bound"):
        np.testing.assert_array_equal(getattr(found, name), getattr(measured, name))
    assert list(found.terms) == sorted(measured.terms)
    for name, values in measured.terms.items():
        np.testing.assert_array_equal(found.terms[name], values)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "evaluation.safetensors"}


def test_a_file_of_before_the_format_had_a_number(tmp_path: Path) -> None:
    path = measurements.save(tmp_path, result(evaluation()), evaluation())
    values = to_json(result(evaluation()))
    del values["format"]
    path.write_text(json.dumps({**values, "of a later version": {}}), encoding="utf-8")
    assert measurements.read_result(path) == result(evaluation())


def test_names_keep_evaluations_apart(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 1.0)):
        measurements.save(tmp_path, result(evaluation(shift=shift)), evaluation(shift=shift), name)
    assert measurements.load(tmp_path, "b").bound[0] == measurements.load(tmp_path, "a").bound[0] + 1.0


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_interrupted_write_is_noticed(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the first or the second of the two files: the old pair, or a pair that does not match."""
    measurements.save(tmp_path, result(evaluation()), evaluation())
    calls = 0
    rename = Path.replace

    def fail(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    changed = evaluation(shift=1.0)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        measurements.save(tmp_path, result(changed), changed)
    if fails_at == 1:
        assert measurements.load(tmp_path).bound[0] == evaluation().bound[0]
    else:
        with pytest.raises(UserError, match="got the numbers of another evaluation than"):
            measurements.load(tmp_path)


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.safetensors"])
def test_a_missing_file_names_the_remedy(name: str, tmp_path: Path) -> None:
    measurements.save(tmp_path, result(evaluation()), evaluation())
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"found no {name}, expected .* evaluated; davi evaluate .* writes it"):
        measurements.load(tmp_path)


def test_spaces_do_not_matter_but_content_does(tmp_path: Path) -> None:
    path = measurements.save(tmp_path, result(evaluation()), evaluation())
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(whole), encoding="utf-8")
    measurements.load(tmp_path)
    path.write_text(json.dumps({**whole, "further": 1}), encoding="utf-8")
    with pytest.raises(UserError, match="another evaluation"):
        measurements.load(tmp_path)


GARBAGE: list[tuple[bytes, str]] = [
    (b"", "not valid JSON"),
    (b"\xff\xfe\x00", "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"kind": NaN}', "NaN is no number of JSON"),
    (b" " * (measurements.LARGEST_FILE + 1), "got more than"),
    (b"[]", "got a list, expected a mapping"),
    (b"3", "got 3, expected a mapping"),
    (b"{}", "found no kind"),
]


@pytest.mark.parametrize(("content", "message"), GARBAGE, ids=[message for _, message in GARBAGE])
def test_what_is_no_result_costs_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = measurements.save(tmp_path, result(evaluation()), evaluation())
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        measurements.load(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def put(*keys: str | int, to: object) -> Callable[[Any], None]:
    """Changes one value in nested ones."""

    def change(values: Any) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = to

    return change


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (put("kind", to="CERTAIN"), "kind: got 'CERTAIN', expected one of EXACT, LOWER_BOUND, ESTIMATE"),
    (put("kind", to=["EXACT"]), "kind: got a list, expected one of"),
    (put("bound", to=3), "bound: got 3, expected a mapping"),
    (put("bound", "samples", to=0), "bound.samples: got 0, expected a whole number from 1"),
    (put("bound", "samples", to=True), "bound.samples: got true, expected a whole number"),
    (put("bound", "nats", "mean", to="much\n"), r"bound.nats.mean: got 'much\\n', expected a finite number"),
    (put("bound", "nats", "mean", to=10**400), "bound.nats.mean: got 1000"),
    (put("elbo", "nats", "mean", to=1e101), "elbo.nats.mean: got 1e[+]101, expected a finite number"),
    (put("elbo", "bits_per_dim", to={"mean": 1.0}), "found no elbo.bits_per_dim.standard_error"),
    (put("terms", "x\n", to=None), "terms.x: got nothing, expected a mapping"),
    (put("kl", "layers", to={}), "kl.layers: got a dict, expected a list"),
    (put("kl", "layers", 0, to=1.5), "kl.layers.0: got 1.5, expected a mapping"),
    (put("active_units", "rule", to=None), "active_units.rule: got nothing, expected text"),
    (put("baselines", 1, "note", to=1), "baselines.1.note: got 1, expected text"),
    (put("protocol", to={}), "found no protocol.set, expected text"),
    (put("protocol", "model", "config", to=3), "protocol.model.config: got 3, expected a mapping or null"),
    (put("about", to="y|z"), r"about: got 'y\|z', expected one of x, x\|y, y\|x, x,y"),
    (put("format", to=2), "format: got 2, expected 1"),
    (put("protocol", "images", to=2**63), "protocol.images: got 9223372036854775808, expected a whole number"),
    (put("protocol", "dims", to=0), "protocol.dims: got 0, expected a whole number from 1"),
    (put("protocol", "data", "shape", to=[1, "2"]), "protocol.data.shape.1: got '2', expected a whole number"),
    (put("protocol", "data", "shape", to=[1, 0]), "protocol.data.shape: got 0, expected whole numbers from 1"),
    (put("protocol", "model", "ema", to=1), "protocol.model.ema: got 1, expected true or false"),
    (put("protocol", "model", "trained_on", "flip", to=[]), "trained_on.flip: got a list, expected text or a whole"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_every_field_that_is_used_is_checked(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    path = measurements.save(tmp_path, result(evaluation()), evaluation())
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        measurements.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"elbo": torch.zeros(3).double()}, "got 1 arrays, expected elbo and bound"),
        ({"elbo": torch.zeros(2).double()}, r"elbo: got torch.float64 \[2\], expected 3 finite numbers"),
        ({"bound": torch.zeros(3)}, r"bound: got torch.float32 \[3\], expected 3 finite numbers of torch.float64"),
        ({"bound": torch.full((3,), math.nan).double()}, "expected 3 finite numbers"),
        ({"bound": torch.zeros(3, 1).double()}, r"torch.float64 \[3, 1\]"),
    ],
)
def test_the_numbers_of_the_images_are_checked(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    measurements.save(tmp_path, result(evaluation()), evaluation())
    path = tmp_path / "evaluation.safetensors"
    write_tensors(path, tensors, {"result_sha256": measurements._digest(to_json(result(evaluation())))})
    with pytest.raises(UserError, match=message):
        measurements.load(tmp_path)


def test_damaged_numbers_of_the_images(tmp_path: Path) -> None:
    measurements.save(tmp_path, result(evaluation()), evaluation())
    path = tmp_path / "evaluation.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="the tensors are not those that were written"):
        measurements.load(tmp_path)
    path.write_bytes(content[:50])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        measurements.load(tmp_path)


def test_a_number_that_json_lacks_leaves_what_was_there(tmp_path: Path) -> None:
    measurements.save(tmp_path, result(evaluation()), evaluation())
    with pytest.raises(ValueError, match="JSON"):
        measurements.save(tmp_path, result(evaluation(shift=math.nan)), evaluation())
    assert measurements.load(tmp_path).result == result(evaluation())
