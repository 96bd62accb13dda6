"""davi.config against values worked out by hand: every message word for word, every refusal from a real file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from davi import config
from davi.errors import UserError


@dataclass(frozen=True)
class Noise:
    levels: int = 256
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels: got {self.levels}, expected 2 or more")
        if self.rate < 0:
            raise ValueError("a negative rate\nmakes no sense")


@dataclass(frozen=True)
class Network:
    width: int
    layers: tuple[int, ...] = (4, 2)
    betas: tuple[float, float] = (0.9, 0.999)
    likelihood: Literal["bernoulli", "logistic"] = "logistic"
    attention: bool = True
    noise: Noise = field(default_factory=lambda: Noise(levels=9))
    prior: Noise | None = None
    limit: int | None = None
    name: str = "plain"


@dataclass(frozen=True)
class Recipe:
    model: Network
    seed: int = 0
    rate: float = 0.5


@dataclass(frozen=True)
class Share:
    """A fraction or a number of things, declared in either order."""

    one: float | int = 0
    two: int | float | None = None


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("value", [64, 64.0, 0.25, 1e3])
def test_a_whole_number_stays_whole_where_a_fraction_may_stand(name: str, value: float) -> None:
    found = getattr(config.parse(Share, {name: value}, "x"), name)
    assert (type(found), found) == (type(value), value)


def test_neither_whole_nor_a_fraction() -> None:
    for name in ("one", "two"):
        with pytest.raises(UserError, match=f"x: {name}: got 'some', expected (float or int|int or float or null)"):
            config.parse(Share, {name: "some"}, "x")
        with pytest.raises(UserError, match=f"x: {name}: got true, expected"):
            config.parse(Share, {name: True}, "x")


def parse(values: dict[str, Any]) -> Recipe:
    return config.parse(Recipe, values, "recipe.yaml")


def parse_model(**values: Any) -> Network:
    return parse({"model": {"width": 8, **values}}).model


def test_defaults_stay_at_every_depth() -> None:
    recipe = parse({"model": {"width": 8, "noise": {"rate": 2}, "prior": {"levels": 3}}, "rate": 1})
    network = Network(width=8, noise=Noise(levels=9, rate=2.0), prior=Noise(levels=3))
    assert recipe == Recipe(model=network, seed=0, rate=1.0)
    assert type(recipe.rate) is float
    assert type(recipe.model.noise.rate) is float


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layers", [8], (8,)),
        ("layers", [], ()),
        ("layers", (1, 2, 3), (1, 2, 3)),
        ("betas", [0, 1], (0.0, 1.0)),
        ("betas", ["1e-3", 0.5], (0.001, 0.5)),
        ("likelihood", "bernoulli", "bernoulli"),
        ("attention", False, False),
        ("prior", None, None),
        ("prior", {}, Noise()),
        ("limit", 3, 3),
        ("limit", None, None),
        ("name", "3", "3"),
    ],
)
def test_accepted(key: str, value: Any, expected: Any) -> None:
    result = getattr(parse_model(**{key: value}), key)
    assert result == expected
    assert type(result) is type(expected)
    if isinstance(expected, tuple):
        assert list(map(type, result)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "wide"}, "model.width: got 'wide', expected int"),
        ({"width": "3.5"}, "model.width: got '3.5', expected int"),
        ({"width": 3.0}, "model.width: got 3.0, expected int"),
        ({"width": True}, "model.width: got true, expected int"),
        ({"width": None}, "model.width: got nothing, expected int"),
        ({"width": {"levels": 3}}, "model.width: got {'levels': 3}, expected int"),
        ({"layers": 3}, "model.layers: got 3, expected list of int"),
        ({"layers": [1, "x"]}, "model.layers: got [1, 'x'], expected list of int"),
        ({"layers": [[1]]}, "model.layers: got [[1]], expected list of int"),
        ({"betas": [0.9]}, "model.betas: got [0.9], expected list of 2 (float, float)"),
        ({"betas": [0.9, float("nan")]}, "model.betas: got [0.9, nan], expected list of 2 (float, float)"),
        ({"likelihood": "mse"}, "model.likelihood: got 'mse', expected one of bernoulli, logistic"),
        ({"attention": 1}, "model.attention: got 1, expected true or false"),
        ({"attention": "maybe"}, "model.attention: got 'maybe', expected true or false"),
        ({"limit": "many"}, "model.limit: got 'many', expected int or null"),
        ({"name": 3}, "model.name: got 3, expected text"),
        ({"noise": 3}, "model.noise: got 3, expected a section of keys"),
        ({"noise": None}, "model.noise: got nothing, expected a section of keys"),
        ({"prior": "x.yaml"}, "model.prior: got 'x.yaml', expected a section of keys or null"),
        ({"noise": {"rate": "fast"}}, "model.noise.rate: got 'fast', expected float"),
        ({"prior": {"rate": float("nan")}}, "model.prior.rate: got nan, expected float"),
        ({"noise": {"levels": 1}}, "model.noise.levels: got 1, expected 2 or more"),
        ({"prior": {"levels": 1}}, "model.prior.levels: got 1, expected 2 or more"),
        ({"noise": {"rate": -1}}, "model.noise: a negative rate makes no sense"),
        ({"layrs": [8]}, "unknown key model.layrs; did you mean model.layers?"),
        ({"noise": {"lvls": 3}}, "unknown key model.noise.lvls; did you mean model.noise.levels?"),
        ({"prior": {"rte": 3}}, "unknown key model.prior.rte; did you mean model.prior.rate?"),
        ({"sed": 3}, "unknown key model.sed; did you mean seed?"),
        ({"noise.rate": 3}, "key 'model.noise.rate' contains a dot; expected its sections one inside the other"),
        ({3: 4}, re.compile(r"unknown key model\.3; did you mean .+\?")),
        ({"class_path": "os.system"}, re.compile(r"unknown key model\.class_path; did you mean .+\?")),
    ],
)
def test_refused_in_one_line(values: dict[Any, Any], message: str | re.Pattern[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse({"model": {"width": 8, **values}})
    if isinstance(message, str):
        assert str(caught.value) == f"recipe.yaml: {message}"
    else:
        assert message.fullmatch(str(caught.value).removeprefix("recipe.yaml: "))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "recipe.yaml: missing key model"),
        ({"model": {}}, "recipe.yaml: missing key model.width"),
        ({"model": {"width": 8}, "layers": 3}, "recipe.yaml: unknown key layers; did you mean model.layers?"),
        ({"model": {"width": 8}, "rate": 10**400}, None),
        ({"model": {"width": 8}, "rate": "x\n" * 500}, None),
        ([], "recipe.yaml: got [], expected a mapping of keys to values"),
    ],
)
def test_refused_at_the_top(values: Any, message: str | None) -> None:
    with pytest.raises(UserError) as caught:
        parse(values)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 200
    assert text == message if message else text.startswith("recipe.yaml: rate: got ")


def test_round_trip_through_yaml_and_json(tmp_path: Path) -> None:
    recipe = Recipe(model=Network(width=8, layers=(), prior=Noise(3), betas=(0.0, 1e-12)), rate=1e-5)
    plain = config.to_dict(recipe)
    assert plain["model"]["layers"] == []
    assert plain["model"]["prior"] == {"levels": 3, "rate": 0.001}
    assert parse(json.loads(json.dumps(plain))) == recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert parse(config.load_yaml(path)) == recipe


@pytest.mark.parametrize("value", [3, {"a": 3}, Recipe])
def test_to_dict_wants_an_instance(value: Any) -> None:
    with pytest.raises(TypeError, match="expected an instance of a dataclass"):
        config.to_dict(value)


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], {"model": {"layers": [4]}, "seed": 1}),
        (["model.layers=[8]"], {"model": {"layers": [8]}, "seed": 1}),
        (["--model.layers", "8"], {"model": {"layers": 8}, "seed": 1}),
        (["--model.layers=8", "seed=2"], {"model": {"layers": 8}, "seed": 2}),
        (["--seed", "-3", "--seed=-4"], {"model": {"layers": [4]}, "seed": -4}),
        (["a.b.c=true"], {"model": {"layers": [4]}, "seed": 1, "a": {"b": {"c": True}}}),
        (["a=null", "a.b=2"], {"model": {"layers": [4]}, "seed": 1, "a": {"b": 2}}),
        (["model={width: 3}"], {"model": {"width": 3}, "seed": 1}),
        (["seed="], {"model": {"layers": [4]}, "seed": None}),
        (["name=a=b"], {"model": {"layers": [4]}, "seed": 1, "name": "a=b"}),
    ],
)
def test_override(assignments: list[str], expected: dict[str, Any]) -> None:
    values = {"model": {"layers": [4]}, "seed": 1}
    assert config.override(values, assignments) == expected
    assert values == {"model": {"layers": [4]}, "seed": 1}


def test_overridden_floats_reach_their_field() -> None:
    values = config.override({"model": {"width": 8}}, ["--rate", "1e-3", "model.noise.rate=2e-4"])
    assert parse(values).rate == 0.001
    assert parse(values).model.noise.rate == 0.0002


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["--seed"], "--seed: got no value, expected KEY=VALUE or --KEY VALUE"),
        (["--seed", "--rate"], "--seed: got no value, expected KEY=VALUE or --KEY VALUE"),
        (["seed", "3"], "seed: got no value, expected KEY=VALUE or --KEY VALUE"),
        (["=3"], "'=3': got no key, expected KEY=VALUE or --KEY VALUE"),
        (["a..b=3"], "'a..b=3': got no key, expected KEY=VALUE or --KEY VALUE"),
        ([""], "'': got no key, expected KEY=VALUE or --KEY VALUE"),
        (["seed.deep.er=3"], "seed.deep.er: seed is 1, expected a section of keys"),
        (["model.layers.x=3"], "model.layers.x: model.layers is [4], expected a section of keys"),
        (["seed=[1"], "seed: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (["seed=!!int x"], "seed: not valid YAML: a value cannot be read"),
    ],
)
def test_override_refuses(assignments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config.override({"model": {"layers": [4]}, "seed": 1}, assignments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing, expected a mapping of keys to values"),
        (b"- 1\n- 2\n", "got [1, 2], expected a mapping of keys to values"),
        (b"\xff\xfe", "got bytes that are not UTF-8, expected a YAML text file"),
        (b"a: 1\nb: 2\na: 3\n", "line 3: not valid YAML: key a appears twice"),
        (b"m:\n  a: 1\n  a: 3\n", "line 3: not valid YAML: key a appears twice"),
        (b"a: &x [1]\nb: *x\n", "line 2: not valid YAML: aliases are not accepted"),
        (b"a: 1\nb: c: 2\n", "line 2: not valid YAML: mapping values are not allowed here"),
        (b"a: !!python/name:os.system\n", re.compile(r"line 1: not valid YAML: could not determine a constructor.*")),
        (b"a: 1\n---\nb: 2\n", re.compile(r".*not valid YAML: but found another document")),
        (b"a: \0\n", re.compile(r"not valid YAML: .+")),
        (b"a: 2020-13-45\n", re.compile(r"not valid YAML: .+")),
        (b"a: !!int ''\n", re.compile(r"not valid YAML: .+")),
        (b"a: !!bool x\n", re.compile(r"not valid YAML: .+")),
        (b"a: !!timestamp x\n", re.compile(r"not valid YAML: .+")),
        (b"a: " + b"9" * 5000, re.compile(r"not valid YAML: .+")),
        (b"[" * 5000, re.compile(r"not valid YAML: .+")),
        (b"a: " + b"x" * config.LARGEST_FILE, "got more than 1000000 bytes, expected a YAML file of at most that"),
    ],
    ids=range(17),
)
def test_load_yaml_refuses(content: bytes, message: str | re.Pattern[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load_yaml(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    text = text.removeprefix(f"{path}: ")
    assert text == message if isinstance(message, str) else message.fullmatch(text)


def test_load_yaml_wants_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: no such file$"):
            config.load_yaml(path)
    with pytest.raises(UserError, match=r": cannot be read \(File name too long\)$"):
        config.load_yaml(tmp_path / ("x" * 300))


def test_load_yaml_reads(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model:\n  layers: [8]  # comment\nrate: 1e-3\nname: Ähre\n", encoding="utf-8")
    assert config.load_yaml(path) == {"model": {"layers": [8]}, "rate": "1e-3", "name": "Ähre"}


def test_import_needs_no_torch() -> None:
    code = "import sys, davi.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
