"""Runs that an earlier version has left: they load, measure the same, and go on as if nothing had happened.

``old_runs.tar.xz`` holds one small run of every model, four steps old, as version 0.1.0 of 2026-11-27 wrote it (commit
bc9f401), with what that version did next: the losses of the two steps after a resumption, and the terms of eight test
images.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

import davi
from davi.cli import main
from davi.data import DataConfig, load
from davi.models import MODELS
from davi.recipes import load as load_recipe
from davi.renamed import KEYS, VALUES, complaint, upgraded
from davi.runs import read_metrics

NAMES = ("attentive", "biva", "iaf_vae", "ladder_vae", "nvae", "vae", "very_deep_vae")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).with_name("old_runs.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def expected(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "expected.json").read_text())
    return found


def test_there_is_one_of_every_model_of_that_time(old: Path) -> None:
    assert sorted(path.name for path in old.iterdir()) == sorted(NAMES)
    assert {load_recipe(old / name / "recipe.yaml").model_name for name in NAMES} <= set(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_model_measures_the_same(name: str, old: Path) -> None:
    model = davi.load(old / name)
    x = load(DataConfig(set="digits", validation=64)).test.pixels[:8]
    terms = model.evidence(x, Generator().manual_seed(0)).terms
    for term, values in expected(old / name)["terms"].items():
        # The same operations on the same numbers; another processor may round and sum otherwise, in float32.
        torch.testing.assert_close(terms[term], torch.tensor(values), rtol=1e-5, atol=1e-4)
    assert list(terms) == list(expected(old / name)["terms"])


@pytest.mark.parametrize("name", NAMES)
def test_an_old_run_goes_on(name: str, old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the moments, the order of the images and the draws it would have had: the losses are those of the version
    that began it."""
    run = old / name
    assert main(["train", "--run", str(run), "--resume", "--training.steps", "6"]) == 0, capsys.readouterr().err
    losses = {str(record["step"]): record["loss"] for record in read_metrics(run) if record["kind"] == "train"}
    for step, loss in expected(run)["losses"].items():
        assert losses[step] == pytest.approx(loss, rel=1e-5)  # float32, as above
    assert complaint(json.loads(json.dumps(load_recipe(run / "recipe.yaml").to_dict()))) is None


def keys(value: Any, where: str = "") -> set[str]:
    """Every key in nested mappings, with dots."""
    if isinstance(value, Mapping):
        return {inner for key in value for inner in {f"{where}.{key}", *keys(value[key], f"{where}.{key}")}}
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return keys(value[0], f"{where}[]")
    return set()


def test_results_still_have_every_key_they_had(old: Path) -> None:
    """Options of the model apart, which have names of their own (davi.renamed)."""
    run = old / "nvae"
    before = keys(json.loads((run / "evaluation.json").read_text()))
    assert main(["evaluate", str(run), "--limit", "3", "--importance-samples", "2"]) == 0
    after = keys(json.loads((run / "evaluation.json").read_text()))
    lost = {key for key in before - after if not key.startswith(".protocol.model.config.")}
    assert lost == set()


def test_old_words_are_read_where_davi_wrote_them_and_explained_elsewhere(tmp_path: Path) -> None:
    for (key, value), new in VALUES.items():
        sections: dict[str, Any] = {}
        inner = sections
        *path, last = key.split(".")
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
        said = complaint(sections)
        assert said == f"{key}: got {value!r}, which is now called {new!r}"
        assert complaint(upgraded(sections)) is None
        assert complaint(sections) == said  # the argument is left alone
    assert all(not upgraded({}).get(old) for old in KEYS)


def test_the_options_of_old_that_are_a_section_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"name": "nvae", "likelihood": "logistic_mixture", "mixture_components": 3, "likelihood_form": "nvae"}
    section = {"family": "logistic_mixture", "components": 3, "form": "nvae"}
    assert upgraded({"model": old}) == {"model": {"name": "nvae", "likelihood": section}}
    assert upgraded({"model": {"mixture_components": 3}}) == {"model": {"likelihood": {"components": 3}}}
    assert upgraded({"model": {"likelihood": section}}) == {"model": {"likelihood": section}}
    path = tmp_path / "mine.yaml"
    path.write_text("model: {name: vae, mixture_components: 3}\ndata: {set: digits}\ntraining: {steps: 1}\n")
    assert main(["train", str(path)]) == 2
    assert (
        capsys.readouterr().err == f"davi: {path}: model.mixture_components is now called model.likelihood.components\n"
    )
    said = "davi: command line: model.likelihood is now called model.likelihood.family\n"
    weights = tmp_path / "weights.th"
    torch.save({"decoder.dec_blocks.0.z_proj.weight": torch.zeros(1)}, weights)
    for words in (
        ["train", "vae_digits_tiny"],
        ["import", "vdvae", str(weights), "--run", str(tmp_path / "run")],
        ["train", "--from", str(weights), "--run", str(tmp_path / "run")],
    ):
        assert main([*words, "--model.likelihood", "bernoulli"]) == 2
        assert capsys.readouterr().err == said


def test_a_recipe_of_ones_own_is_told_the_new_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, key, old, new = "iwae_mnist", "gradient", "doubly_reparametrised", "doubly_reparameterized"
    path = tmp_path / "mine.yaml"
    text = (Path(davi.recipes.find(name))).read_text()
    assert "bound: importance_weighted}" in text
    path.write_text(text.replace("importance_weighted}", f"importance_weighted, {key}: {old}}}"))
    said = f"training.objective.{key}: got {old!r}, which is now called {new!r}\n"
    assert main(["train", str(path)]) == 2
    assert capsys.readouterr().err == f"davi: {path}: {said}"
    assert main(["train", name, f"--training.objective.{key}", old]) == 2
    assert capsys.readouterr().err == f"davi: command line: {said}"
