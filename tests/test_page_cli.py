"""``davi inspect`` on a small run, from the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from davi import measurements
from davi.cli import main
from davi.cli.closing import closing

Capture = pytest.CaptureFixture[str]
TINY = "attentive_digits_tiny"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    run = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", TINY, "--run", str(run), "--training.steps", "4", "--training.checkpoints.steps=2"]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def say(*words: object) -> int:
    return main([str(word) for word in words])


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_a_run_gives_a_page_and_figures(run: Path, capsys: Capture) -> None:
    assert say("inspect", run, "--limit", 8, "--importance-samples", 2) == 0
    said = capsys.readouterr()
    number, files, following = said.out.splitlines()[-3:]  # what a user is left with
    assert re.fullmatch(
        r"number: digits/test costs at most \d\.\d{3} ± 0\.\d{3} bits/dim \(\d+\.\d nats an image\); "
        r"independent pixels 2\.\d{3} \(8 of 397 images, spread evenly, seed 0\)",
        number,
    )
    assert files == f"open:   {run / 'inspection.html'}"
    assert following == "next:   davi train attentive_photos --data FOLDER  (on images of your own)"
    page = text(run / "inspection.html")
    assert "measured for this page: 8 of 397 images, spread evenly, seed 0; davi evaluate measures all images" in page
    assert "name: attentive_digits_tiny" in page
    assert "<dt>Training</dt><dd>" in page
    assert "4 steps, averaged weights</dd>" in page
    assert "digits, 1 x 8 x 8, 17 levels" in page
    for name in (
        "curve-bits",
        "samples",
        "reconstructions",
        "variations",
        "kl",
        "depth-generative",
        "depth-inference",
        "bits",
    ):
        assert (run / "inspection" / f"{name}.png").is_file()
        assert (run / "inspection" / f"{name}.svg").is_file()


def test_the_numbers_of_an_evaluation_are_shown_if_they_are_of_this_model(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("davi.cli.inspect._LIMIT", 7)  # images where no number is asked for; 100 take long
    assert say("evaluate", run, "--limit", 5) == 0
    assert say("inspect", run, "--no-figures") == 0
    assert "(5 of 397 images, spread evenly, seed 0)" in capsys.readouterr().out
    assert "those of evaluation.json" in text(run / "inspection.html")
    assert not (run / "inspection").exists()
    assert say("inspect", run, "--no-figures", "--limit", 6) == 0  # asked for others: measured
    assert "6 of 397 images" in capsys.readouterr().out
    measured = measurements.load(run).result
    for name, recipe in (("attentive_vae", "attentive_photos"), ("nvae", "nvae_photos"), ("glow", "attentive_photos")):
        facts = dataclasses.replace(measured.protocol.model, name=name)
        told = closing(
            dataclasses.replace(measured, protocol=dataclasses.replace(measured.protocol, model=facts)),
            run,
            run / "page.html",
        )
        assert told.endswith(f"next:   davi train {recipe} --data FOLDER  (on images of your own)")
    result = json.loads(text(run / "evaluation.json"))
    model, others = {**result["protocol"]["model"], "step": 3}, "0" * 64
    for change in ({"model": model}, {"images_sha256": others}):  # another model, other images by the same name
        changed = {**result, "protocol": {**result["protocol"], **change}}
        (run / "evaluation.json").write_text(json.dumps(changed), encoding="utf-8")
        assert say("inspect", run, "--no-figures") == 0
        assert "7 of 397 images" in capsys.readouterr().out
    (run / "evaluation.json").write_text("{", encoding="utf-8")
    assert say("inspect", run, "--no-figures", "--split", "train") == 0
    assert "digits/train" in capsys.readouterr().out


def test_a_run_in_training_has_a_page(run: Path, capsys: Capture) -> None:
    (run / "model.safetensors").unlink()
    (run / "metrics.jsonl").unlink()
    out = run / "other.html"
    assert say("inspect", run, "--no-figures", "--limit", 4, "--out", out) == 0
    assert "using the checkpoint of step 4" in capsys.readouterr().err
    assert "the run has written no metrics" in text(out)


def test_what_cannot_be(run: Path, tmp_path: Path, capsys: Capture) -> None:
    for words, message in (
        (["--out", "page.png"], "--out: got 'page.png', expected the path of a .html file"),
        (["--limit", "0"], "--limit: got '0', expected a whole number from 1"),
        (["--out", tmp_path / "absent" / "page.html"], f"no such folder {tmp_path / 'absent'}"),
    ):
        assert say("inspect", run, *words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
