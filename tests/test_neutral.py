"""That the comparison of two trees finds what differs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from neutral import Record, compare, differences

ONE, NEXT, NEAR = ((1.0).hex(), math.nextafter(1.0, 2.0).hex(), (1.0 + 5e-6).hex())
BEFORE: Record = {"a_tiny/initial/kl/00": [ONE, ONE], "a_tiny/initial/log_weight": [ONE], "b_tiny/initial/x": None}


def test_the_same_numbers_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(BEFORE))
    assert compare(file, file, 0.0) == 0
    assert capsys.readouterr().out == "3 entries agree in every bit\n"
    assert not list(differences(BEFORE, {**BEFORE, "c_tiny/initial/x": [ONE]}))  # a new recipe changes no number


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"a_tiny/initial/kl/00": [ONE, NEXT]}, "a_tiny/initial/kl/00: 1.0 before, 1.0000000000000002 after"),
        ({"a_tiny/initial/kl/00": [ONE]}, "a_tiny/initial/kl/00: 2 numbers before, 1 after"),
        ({"a_tiny/initial/log_weight": [NEXT]}, "a_tiny/initial/log_weight: 1.0 before"),
        ({"b_tiny/initial/x": [ONE]}, "b_tiny/initial/x: 0 numbers before, 1 after"),
        ({"b_tiny/initial/y": [ONE]}, "b_tiny/initial/y: not there before"),
    ],
)
def test_a_difference_is_found(
    change: Record, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(BEFORE))
    second.write_text(json.dumps({**BEFORE, **change}))
    assert compare(first, second, 0.0) == 1
    assert capsys.readouterr().out.startswith(expected)


def test_what_is_missing_is_found() -> None:
    after = {path: numbers for path, numbers in BEFORE.items() if path != "b_tiny/initial/x"}
    assert list(differences(BEFORE, after)) == ["b_tiny/initial/x: missing afterwards"]


def test_only_log_weights_have_a_tolerance() -> None:
    near: Record = {"a_tiny/initial/kl/00": [ONE, NEAR], "a_tiny/initial/log_weight": [NEAR], "b_tiny/initial/x": None}
    assert [line.partition(":")[0] for line in differences(BEFORE, near, 1e-5)] == ["a_tiny/initial/kl/00"]
    assert len(list(differences(BEFORE, near, 1e-6))) == 2
