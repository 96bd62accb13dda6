"""The studies that come with the program: each is whole, and every arm builds the model that it names."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from davi import data, recipes
from davi.evidence import About
from davi.recipes import Recipe
from davi.sets import Geometry
from davi.study.collecting import result_of
from davi.study.folder import changed, check_budgets
from davi.study.format import Arm, Study, find, names, read
from davi.study.tables import to_markdown, to_terminal

OF_THE_LITERATURE = {
    *("attention", "attention_depth", "autoregressive_prior", "collapse", "dbn_layers", "iaf_depth", "iwae"),
    *("iwae_over_time", "layers_and_samples", "league_cifar10", "league_mnist", "nvae_activation", "nvae_cells"),
    *("nvae_depth", "nvae_regularization", "nvae_residual_distributions", "posterior_flows", "revnet"),
    *("utilization", "very_deep_vae_depth", "very_deep_vae_resolutions"),
}
PUBLISHED_ALONE = {"cifar100", "league_imagenet", "league_six_sets", "training_cost", "vq_vae"}

_read = functools.cache(lambda name: read(find(name)))


def study_of(name: str) -> Study:
    found: Study = _read(name)
    return found


@functools.cache
def parameters_of(recipe: str, model: tuple[str, ...], images: Geometry, classes: int) -> int:
    """How many parameters the model of an arm has, built on the meta device once for all arms that share it."""
    with torch.device("meta"):
        network = recipes.build(recipes.load(recipe, model), *images, classes)
    return sum(parameter.numel() for parameter in network.parameters())


def loaded(study: Study, arm: Arm) -> Recipe:
    assert arm.recipe is not None
    return recipes.load(arm.recipe, [*study.overrides, *arm.overrides])


def test_names() -> None:
    assert set(names()) >= OF_THE_LITERATURE | PUBLISHED_ALONE
    assert {name for name in names() if not any(study_of(name).trained())} == PUBLISHED_ALONE


def test_the_page_has_a_row_for_every_study() -> None:
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text("utf-8").partition("## All studies")[2]
    rows = [row.partition(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == names()


@pytest.mark.parametrize("name", names())
def test_every_study_is_whole(name: str) -> None:
    study = study_of(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert len(study.title) <= 80
    assert all(source.link.startswith("https://") for source in study.sources)
    assert study.sources or not any(arm.published for table in study.tables for arm in table.arms)
    for table in study.tables:
        assert table.published or not any(arm.published for arm in table.arms), table.title
        assert all(arm.published for arm in table.arms if arm.recipe is None), table.title
        assert table.axis is None or all(arm.x is not None for arm in table.arms), table.title
    check_budgets(study)


@pytest.mark.parametrize("name", sorted(set(names()) - PUBLISHED_ALONE))
def test_every_arm_is_built(name: str) -> None:
    study = study_of(name)
    for table in study.tables:
        kinds = set()
        for arm in table.trained:
            recipe = loaded(study, arm)
            assert recipe.data is not None
            assert recipe.training is not None
            geometry = data.geometry_of(recipe.data)
            model = tuple(word for word in (*study.overrides, *arm.overrides) if word.startswith("model."))
            assert arm.recipe is not None
            assert parameters_of(arm.recipe, model, geometry, 10 if recipe.data.labels else 0) > 1000, arm.name
            kinds.add((recipe.data.set, recipe.data.binarization, About.Y_GIVEN_X if recipe.data.labels else About.X))
        assert len(kinds) <= 1, table.title  # else they could not be compared


@pytest.mark.parametrize("name", sorted(PUBLISHED_ALONE))
def test_published_numbers_stand_beside_empty_columns(name: str) -> None:
    result = result_of(study_of(name), [])
    for table in result.tables:
        assert table.columns
        assert not table.is_measured
    assert "nothing is measured yet" in to_terminal(result)
    rows = [line.split("|") for line in to_markdown(result).splitlines() if line.startswith("| ") and "---" not in line]
    own = len(result.measured)
    assert all(cell.strip() == "-" for row in rows if row[1].strip() for cell in row[2 : 2 + own])


def test_budgets_of_stages_are_their_own() -> None:
    study = study_of("dbn_layers")
    check_budgets(study)
    with pytest.raises(ValueError, match=r"budget: got 5 minutes for DBN, .*, which is trained in stages"):
        check_budgets(changed(study, {"budget": type(study.budget)(minutes=5)}))
