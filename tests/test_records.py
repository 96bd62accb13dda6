"""Records of every kind of field are written and read back, and nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from davi.errors import UserError
from davi.evidence import About, Kind
from davi.records import LEFT_OUT, at_least_one, left_out, read, to_json, whole


@dataclass(frozen=True)
class Inner:
    x: float
    word: str | int | None = left_out()


@dataclass(frozen=True)
class Facts:
    name: str
    told: Mapping[str, object] = whole()


@dataclass(frozen=True)
class Outer:
    kind: Kind
    many: tuple[Inner, ...]
    named: Mapping[str, Inner]
    facts: Facts
    count: int = 1
    flag: bool | None = None
    about: About = field(default=About.X, metadata=LEFT_OUT)

    def __post_init__(self) -> None:
        at_least_one(self, "count")


MADE = Outer(
    Kind.LOWER_BOUND,
    (Inner(1.5), Inner(2.0, "b"), Inner(3.0, 4)),
    {"a": Inner(0.0)},
    Facts("f", {"name": "f", "more": [1, None]}),
    about=About.X_AND_Y,
)
VALUES: dict[str, Any] = {
    "kind": "LOWER_BOUND",
    "many": [{"x": 1.5}, {"x": 2.0, "word": "b"}, {"x": 3.0, "word": 4}],
    "named": {"a": {"x": 0.0}},
    "facts": {"name": "f", "more": [1, None]},
    "count": 1,
    "flag": None,
    "about": "x,y",
}


def test_a_record_is_written_in_the_order_of_its_fields_and_read_back() -> None:
    assert json.dumps(to_json(MADE)) == json.dumps(VALUES)
    assert read(Outer, VALUES, "file") == MADE
    assert read(Outer, {**VALUES, "later": 3}, "file") == MADE
    few = {key: VALUES[key] for key in ("kind", "many", "named", "facts")}
    assert read(Outer, few, "file").about is About.X
    assert type(read(Outer, {**VALUES, "many": [{"x": 1}]}, "file").many[0].x) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": 1}, "kind: got 1, expected one of EXACT, LOWER_BOUND, ESTIMATE"),
        ({"about": "X"}, "about: got 'X', expected one of x, x|y, y|x, x,y"),
        ({"many": {"x": 1.5}}, "many: got a dict, expected a list"),
        ({"many": [{}]}, "found no many.0.x, expected a finite number"),
        ({"many": [{"x": "1.5"}]}, "many.0.x: got '1.5', expected a finite number"),
        ({"many": [{"x": True}]}, "many.0.x: got true, expected a finite number"),
        ({"many": [{"x": float("nan")}]}, "many.0.x: got nan, expected a finite number"),
        (
            {"many": [{"x": 0, "word": 0.5}]},
            "many.0.word: got 0.5, expected text or a whole number from 0 or null",
        ),
        ({"named": {"a\nb": 3}}, "named.a b: got 3, expected a mapping"),
        ({"count": -1}, "count: got -1, expected a whole number from 0"),
        ({"count": 0}, "count: got 0, expected a whole number from 1"),
        ({"count": 2**63}, f"count: got {2**63}, expected a whole number from 0"),
        ({"flag": 0}, "flag: got 0, expected true or false or null"),
        ({"facts": None}, "facts: got nothing, expected a mapping"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(Outer, {**VALUES, **change}, "file")
    assert str(error.value) == f"file: {message}"


def test_what_json_lacks_is_not_written() -> None:
    with pytest.raises(TypeError, match="got a value of type set, expected what JSON can hold"):
        to_json(Facts("f", {"s": {1}}))
