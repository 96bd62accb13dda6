"""``davi compare`` on real runs: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from davi.cli import main

TINY = "attentive_digits_tiny"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two runs, evaluated on the same 20 images; not to be changed."""
    folder = tmp_path_factory.mktemp("compare")
    names = (str(folder / "long"), str(folder / "short"))
    for name, steps in zip(names, ("3", "1"), strict=True):
        assert main(["train", TINY, "--run", name, "--training.steps", steps]) == 0
        assert main(["evaluate", name, "--limit", "20"]) == 0
    return names


@pytest.fixture
def other(runs: tuple[str, str], tmp_path: Path) -> str:
    """A copy of one, evaluated on fewer images."""
    copy = str(shutil.copytree(runs[0], tmp_path / "other"))
    assert main(["evaluate", copy, "--limit", "10"]) == 0
    return copy


def test_json_holds_what_the_evaluations_say(runs: tuple[str, str], capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["compare", *reversed(runs), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (group,) = result["groups"]
    assert group["reference"] == runs[1]
    rows = {row["run"]: row for row in group["rows"]}
    means = {}
    for name, steps in zip(runs, (3, 1), strict=True):
        evaluated = json.loads((Path(name) / "evaluation.json").read_text(encoding="utf-8"))
        means[name] = evaluated["bound"]["nats"]["mean"]
        assert rows[name]["nats"] == evaluated["bound"]["nats"]
        assert (rows[name]["step"], rows[name]["parameters"]) == (steps, 13_465)
        assert rows[name]["seconds"] > 0
    difference = rows[runs[0]]["to_reference"]["nats"]["mean"]
    assert difference == pytest.approx(means[runs[0]] - means[runs[1]], rel=1e-9)  # a mean of differences


def test_a_table_is_printed_or_written(runs: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert "digits/test: 20 images of the test split" in printed
    assert "lower bound of log p(x), K = 1 importance sample" in printed
    target = tmp_path / "table.md"
    assert main(["compare", *runs, "--markdown", "--out", str(target)]) == 0
    assert capsys.readouterr().out == f"written to {target}\n"
    assert target.read_text(encoding="utf-8").count("\n| ") == 4  # a head, a rule and two rows


def test_a_model_file_can_stand_for_its_run(runs: tuple[str, str], capsys: Capture) -> None:
    assert main(["compare", f"{runs[0]}/model.safetensors", runs[1]]) == 0


def test_other_images_are_not_ranked(runs: tuple[str, str], other: str, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["compare", *runs, other]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "not ranked across groups, since their protocols differ in images: 20 (A), 10 (B); images_sha256: " in printed
    )


def test_strict_refuses_them(runs: tuple[str, str], other: str, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["compare", runs[0], other, "--strict"]) == 2
    said = capsys.readouterr()
    assert said.out  # the table is there all the same
    assert said.err == "davi: --strict: got 2 protocols, expected one; they differ in images, images_sha256\n"
    assert main(["compare", *runs, "--strict"]) == 0


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.safetensors"])
def test_a_damaged_evaluation_costs_one_line(name: str, other: str, runs: tuple[str, str], capsys: Capture) -> None:
    (Path(other) / name).write_bytes(b"{}garbage")
    capsys.readouterr()
    assert main(["compare", runs[0], other]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"davi: {other}/{name}: not ")
    assert said.err.count("\n") == 1
