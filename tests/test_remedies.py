"""What is named against inactive layers: it fits the model and the objective, and works as it is typed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from inspected import contents, result

import davi
from davi import recipes
from davi.cli import main
from davi.cli.closing import to_try
from davi.data import geometry_of
from davi.metrics import read_metrics
from davi.model import Network
from davi.objectives import EvidenceConfig, make_objective
from davi.objectives.base import ObjectiveConfig
from davi.objectives.lagging import LaggingConfig
from davi.objectives.remedies import remedies, remedy
from davi.page.latents import divergences
from davi.recipes import Recipe

PLAIN = "--training.objective={name: evidence}"
AUTOREGRESSIVE = "very_deep_vae_autoregressive_digits_tiny"
OBJECTIVE, LIKELIHOOD, TOP = "--training.objective", "--model.likelihood", "--model.constant_rate.name"


def built(recipe: Recipe) -> Network:
    assert recipe.data is not None
    return recipes.build(recipe, *geometry_of(recipe.data))


def objective_of(recipe: Recipe) -> ObjectiveConfig:
    assert recipe.training is not None
    return recipe.training.objective


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("vae_convolutional_digits_tiny", [TOP]),
        ("nvae_digits_tiny", []),  # its top layer has a flow of its own
        (AUTOREGRESSIVE, [f"{LIKELIHOOD}.network.layers", f"{LIKELIHOOD}.input_dropout", TOP]),
        ("pixelvae_digits_tiny", [f"{LIKELIHOOD}.network.layers", f"{LIKELIHOOD}.input_dropout", TOP]),
    ],
)
def test_every_switch_works_as_typed_and_is_not_named_again(name: str, further: list[str]) -> None:
    words, named = [PLAIN], []
    while True:
        recipe = recipes.load(name, words)
        model, config = built(recipe), objective_of(recipe)
        make_objective(config).check(model)
        left = remedies(model, config, ["kl/00"])
        if not left:
            break
        named.append(left[0].switch.split()[0])
        words += left[0].switch.split()
        assert len(named) < 9
    assert named == [f"{OBJECTIVE}.kl_fraction", f"{OBJECTIVE}.free_nats", *further]


def test_what_does_not_fit_is_not_named() -> None:
    model = davi.build("vae_digits_tiny")
    bound = EvidenceConfig(bound="importance_weighted", draws=5)
    assert [one.switch for one in remedies(model, bound, ["kl/00"])] == ["--model.constant_rate.name von_mises_fisher"]
    doubly = dataclasses.replace(bound, gradient="doubly_reparameterized")
    assert [one.switch for one in remedies(model, doubly, ["kl/00"])] == ["--model.constant_rate.name fixed_normal"]
    assert remedies(model, bound, ["kl/01"]) == []  # it is for the top layer
    assert remedies(model, EvidenceConfig(), []) == []
    assert remedy(model, bound, ["kl/01"]) == ""
    lagging = remedies(model, LaggingConfig(), ["kl/01"])
    assert [one.switch.split()[0] for one in lagging] == [
        "--training.objective.evidence.kl_fraction",
        "--training.objective.evidence.free_nats",
    ]
    no_window = davi.build(AUTOREGRESSIVE, "model.likelihood.network={name: pixelcnn_pp, width: 2, blocks: 1}")
    assert [one.switch for one in remedies(no_window, None, ["kl/01"])] == ["--model.likelihood.input_dropout 0.3"]


def test_the_monitor_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = [PLAIN, "--training.steps=2", "--training.validate_every=2", "--training.monitor.collapse_nats=1e6"]
    assert main(["train", "vae_digits_tiny", "--run", str(run), *words]) == 0
    message, advice = [line for line in capsys.readouterr().out.splitlines() if "monitor at step" in line]
    assert message == "monitor at step 2: all 2 latent layers are inactive: together below 1e+06 nats per image"
    (watched,) = [record for record in read_metrics(run) if record["kind"] == "watch"]
    assert advice == f"monitor at step 2: {watched['remedy']}"
    assert watched["remedy"].startswith("train again with --training.objective.kl_fraction 0.5 added (")


def test_evaluation_and_page_say_it(tmp_path: Path) -> None:
    found = result()
    assert found.kl is not None
    hollow = dataclasses.replace(found, kl=dataclasses.replace(found.kl, inactive=("kl/00",)))
    model = davi.build("vae_digits_tiny")
    assert to_try(model, tmp_path, found) is None
    assert to_try(model, tmp_path, hollow) == remedies(model, None, ["kl/00"])[0]
    text = (Path(recipes.__file__).parent / "pixelvae_digits_tiny.yaml").read_text("utf-8")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    first = to_try(model, tmp_path, hollow)
    assert first is not None
    assert first.switch == "--training.objective.free_nats 2 --training.objective.free_group layer"
    section = divergences(contents(remedy=str(first)), 0)
    assert next(section.figures()).caption == f"1 of 3 layers is inactive: layer 0. To change that, {first}."
    made = contents(remedy=str(first))
    judged = tuple(dataclasses.replace(layer, inactive=False) for layer in made.inspection.layers)
    made = dataclasses.replace(made, inspection=dataclasses.replace(made.inspection, layers=judged))
    assert next(divergences(made, 0).figures()).caption == "No layer is inactive."  # other images than the result's
