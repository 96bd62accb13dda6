"""Runs that an earlier version has left: they load, measure the same, and go on as if nothing had happened.

``old_runs.tar.xz`` holds one small run of every model, four steps old, as version 0.1.0 of 2026-11-27 wrote it (commit
bc9f401), with what that version did next: the losses of the two steps after a resumption, and the terms of eight test
images.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Generator

import davi
from davi.cli import main
from davi.config import keys as keys_of
from davi.data import DataConfig, load
from davi.metrics import read_metrics
from davi.models import MODELS
from davi.models.attentive_vae import AttentiveVAEConfig
from davi.models.nvae import NVAEConfig
from davi.recipes import load as load_recipe
from davi.renamed import KEYS, VALUES, complaint, upgraded
from davi.training import TrainingConfig

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
        sections = nested(key, value)
        said = complaint(sections)
        assert said == f"{key}: got {value!r}, which is now called {new!r}"
        assert upgraded(sections) == nested(key, new)
        assert complaint(sections) == said  # the argument is left alone
    for old, new in KEYS.items():
        given = {"noise": 0.001} if new.endswith("_bounds") else 3
        sections = nested(old, given)
        assert complaint(sections) == f"{old} is now called {new}"
        assert upgraded(sections) == nested(new, given)
        assert complaint(nested(new, given)) is None


def nested(key: str, value: Any) -> dict[str, Any]:
    """Sections with a single option, by its dotted key."""
    *path, last = key.split(".")
    sections = {last: value}
    for part in reversed(path):
        sections = {part: sections}
    return sections


def test_new_words_are_options() -> None:
    models = (keys_of(config, "model.") for config in (NVAEConfig, AttentiveVAEConfig))
    today = {*keys_of(TrainingConfig, "training."), *itertools.chain(*models)}
    assert {*KEYS.values(), *(key for key, _ in VALUES)} <= today


def test_options_become_sections_of_the_same_name() -> None:
    """Old keys stand beside one another in any order, and an old value under an old key is replaced as well."""
    old = {"clip_norm": 4.0, "stages": 3, "schedule": "stages", "period_multiplier": 1.0, "steps": 5}
    assert upgraded({"training": old}) == {
        "training": {
            "step_filter": {"clip_norm": 4.0},
            "schedule": {"name": "staircase", "stairs": 3, "period_multiplier": 1.0},
            "steps": 5,
        }
    }
    today = {"training": {"schedule": {"name": "cosine"}, "optimizer": None}}
    assert upgraded(today) == today
    assert complaint(today) is None
    wrong = {"training": {"step_filter": 3, "clip_norm": 4.0}}  # the reader will refuse the section
    assert upgraded(wrong) == {"training": {"step_filter": 3}}
    both = {"training": {"eps": 1.0, "optimizer": {"eps": 2.0}}}  # the new word was written last
    assert upgraded(both) == {"training": {"optimizer": {"eps": 2.0}}}


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


def test_bounds_that_were_called_a_prior_and_a_posterior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In what DAVI wrote they are read, in a user's own file they are told their name; a prior of today is one."""
    bounds = {"log_scale_low": -1.0, "log_scale_high": 5.0, "noise": 0.0}
    told = load_recipe("attentive_digits_tiny").to_dict()
    assert "prior_bounds" in told["model"]
    for name in ("prior", "posterior"):
        del told["model"][f"{name}_bounds"]
        told["model"][name] = dict(bounds)  # YAML would write one object as an alias
    for file, expected in (("recipe.yaml", 0), ("mine.yaml", 2)):
        path = tmp_path / file
        path.write_text(yaml.safe_dump(told))
        assert main(["train", str(path), "--plan"]) == expected
    assert capsys.readouterr().err == f"davi: {path}: model.prior is now called model.prior_bounds\n"
    assert load_recipe(tmp_path / "recipe.yaml").to_dict()["model"]["prior_bounds"] == bounds
    for today in (None, {"name": "standard_normal"}, {"components": 3}, {}):
        sections = {"model": {"name": "vae", "prior": today}}
        assert upgraded(sections) == sections
        assert complaint(sections) is None


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


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("clip_norm", "5", "training.clip_norm is now called training.step_filter.clip_norm"),
        ("optimizer", "adam", "training.optimizer is now called training.optimizer.name"),
        ("schedule", "stages", "training.schedule is now called training.schedule.name"),
        ("schedule.name", "stages", "training.schedule.name: got 'stages', which is now called 'staircase'"),
    ],
)
def test_an_option_of_the_command_line_is_told_the_new_word(
    option: str, value: str, said: str, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["vae_digits_tiny"], ["--run", str(old / "vae"), "--resume"]):
        assert main(["train", *words, f"--training.{option}", value]) == 2
        assert capsys.readouterr().err == f"davi: command line: {said}\n"
