"""Recipes: all that are shipped can be read, build what the papers built, and mistakes in them are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import davi
from davi import Kind, Model, data, recipes
from davi.config import load_yaml
from davi.errors import UserError
from davi.layers import DepthAttention
from davi.models.attentive_vae import AttentiveVAEConfig
from davi.objectives import make_objective
from davi.published.importers import IMPORTERS
from davi.recipes.catalog import CATALOG
from davi.sets import FILES, GEOMETRY
from davi.training import TrainingConfig
from davi.training.schedule import Schedule

EXPECTED = {
    "attentive_cifar10",
    "attentive_cifar10_900",
    "attentive_cifar10_baseline",
    "attentive_digits",
    "attentive_digits_tiny",
    "attentive_fashion_mnist",
    "attentive_mnist",
    "attentive_mnist_full",
    "attentive_omniglot",
    "attentive_photos",
}

CLASSES = {"imagenet224": 1000, "imagenet256": 1000}
"""Of sets that have others than ten."""


def on_paper(name: str, *overrides: str) -> Model:
    """The model of a recipe on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return davi.build(name, *overrides)


def training(name: str) -> TrainingConfig:
    found = recipes.load(name).training
    assert found is not None
    return found


def test_names() -> None:
    assert set(recipes.names()) >= EXPECTED
    assert recipes.names() == sorted(recipes.names())


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_whole(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.description == recipes.describe(name)
    assert 20 <= len(recipe.description) <= 130
    assert "\n" not in recipe.description
    assert recipe.data is not None
    assert recipe.training is not None
    with torch.device("meta"):
        classes = CLASSES.get(recipe.data.set, 10) if recipe.data.labels else 0
        model = recipes.build(recipe, *data.geometry_of(recipe.data), classes)
    assert (model.shape, model.levels) == data.geometry_of(recipe.data)
    assert sum(parameter.numel() for parameter in model.parameters()) == CATALOG[name].parameters


@pytest.mark.parametrize("name", recipes.names())
def test_what_a_run_writes_down_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    assert recipes.load(path) == recipe


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("attentive_cifar10", 118_974_679),
        ("attentive_cifar10_900", 118_974_679),
        ("attentive_cifar10_baseline", 79_206_420),
        ("attentive_omniglot", 7_875_675),
        ("attentive_mnist_full", 7_875_675),
    ],
)
def test_published_configurations_have_the_official_number_of_parameters(name: str, parameters: int) -> None:
    """Counted in the authors' program, which does not train the scales of the depth-wise attentions."""
    model = on_paper(name)
    scales = sum(
        p.numel() for module in model.modules() if isinstance(module, DepthAttention) for p in module.parameters()
    )
    assert sum(p.numel() for p in model.parameters()) - scales == parameters


def test_the_papers_schedule() -> None:
    """313 steps an epoch in the paper, 312 here: the last half batch of an epoch is not used."""
    schedule = Schedule(training("attentive_cifar10"), 312)
    assert schedule.total_steps == 400 * 312
    assert schedule.learning_rate(0, 0.0) == 1e-4
    assert schedule.learning_rate(5 * 312, 0.0) == pytest.approx(1e-2, rel=1e-12)
    middle = (5 + 395 / 2) * 312
    assert schedule.learning_rate(round(middle), 0.0) == pytest.approx((1e-2 + 1e-4) / 2, rel=1e-9)
    assert schedule.learning_rate(400 * 312, 0.0) == pytest.approx(1e-4, rel=1e-9)
    objective, model = make_objective(training("attentive_cifar10").objective), davi.build("vae_digits_tiny")
    weights = [objective.reports(model, schedule.at(epoch * 312, 0.0))["kl_weight"] for epoch in (0, 8, 16, 399)]
    assert weights == pytest.approx([0.1, 0.55, 1.0, 1.0])


def test_the_papers_longer_schedule_restarts_once() -> None:
    schedule = Schedule(training("attentive_cifar10_900"), 312)
    assert schedule.total_steps == 905 * 312
    rate = [schedule.learning_rate(epoch * 312, 0.0) for epoch in (5, 155, 305, 605, 904)]
    assert rate[:4] == pytest.approx([1e-2, (1e-2 + 1e-4) / 2, 1e-2, (1e-2 + 1e-4) / 2], rel=1e-9)
    assert rate[4] == pytest.approx(1e-4, rel=1e-2)


def test_the_papers_optimizer_and_batches() -> None:
    paper = training("attentive_cifar10")
    optimizer = paper.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamax", (0.9, 0.999), 1e-3)
    assert paper.learning_rate == 0.01
    # Keras's l2(0.00015) adds 0.00015 w^2 to the loss, whose gradient is 0.0003 w.
    assert optimizer.weight_decay == pytest.approx(2 * 1.5e-4, rel=1e-12)
    assert (paper.batch_size, paper.batch_size // paper.accumulate) == (160, 40)


def test_the_baseline_has_no_attention_of_any_kind() -> None:
    names = [name for name, _ in on_paper("attentive_cifar10_baseline").named_parameters()]
    assert not [name for name in names if "attention" in name or "gate" in name]


@pytest.mark.parametrize("name", sorted(GEOMETRY))
def test_what_is_known_of_named_sets_is_true(name: str, need_shared: Callable[[str], Path]) -> None:
    root = None if name not in FILES else str(need_shared(f"data/{name}").parent)
    sets = data.load(data.DataConfig(set=name, root=root))
    assert data.geometry_of(data.DataConfig(set=name)) == (sets.shape, sets.levels)


def test_binarization_leaves_two_levels() -> None:
    assert data.geometry_of(data.DataConfig(set="mnist", binarization="threshold")) == ((1, 28, 28), 2)


def test_geometry_of_a_users_own_array(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "mine.npy", np.zeros((20, 6, 10, 3), np.uint8))
    config = data.DataConfig(set=str(tmp_path / "mine.npy"))
    assert data.geometry_of(config) == ((3, 6, 10), 256)


def test_overrides_are_laid_over_the_recipe() -> None:
    recipe = recipes.load("attentive_mnist", ["--model.layers", "[8]", "training.minutes=null", "training.steps=7"])
    assert isinstance(recipe.model, AttentiveVAEConfig)
    assert recipe.model.layers == (8,)
    assert recipe.training is not None
    assert (recipe.training.minutes, recipe.training.steps) == (None, 7)


def test_sections_other_than_the_model_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text(
        "model: {name: attentive_vae, layers: [2], width: 4, likelihood: {family: bernoulli}}\n", encoding="utf-8"
    )
    recipe = recipes.load(path)
    assert (recipe.name, recipe.data, recipe.training) == ("bare", None, None)
    assert davi.build(path, shape=(2, 5, 7), levels=2).evidence(torch.ones(1, 2, 5, 7).int()).kind is Kind.LOWER_BOUND
    with pytest.raises(UserError, match="got no data section, expected one, or shape and levels"):
        davi.build(path)


@pytest.mark.parametrize(
    ("name", "assignments", "message"),
    [
        (
            "atentive_digits",
            [],
            "recipe: got 'atentive_digits', expected the name of a recipe or the path of a .yaml file; did you mean "
            "attentive_digits",
        ),
        ("zzz", [], "davi recipes lists the names"),
        ("absent.yaml", [], "absent.yaml: no such file"),
        ("attentive_digits", ["model.layrs=[2]"], "command line: unknown key model.layrs; did you mean model.layers?"),
        ("attentive_digits", ["layers=[2]"], "command line: unknown key layers; did you mean model.layers?"),
        ("attentive_digits", ["model.width=wide"], "command line: model.width: got 'wide', expected int"),
        ("attentive_digits", ["model.width=0"], "command line: model.width: got 0, expected at least 1"),
        ("attentive_digits", ["model.name=gan"], "command line: model.name: got 'gan', expected one of attentive_vae"),
        ("attentive_digits", ["model=null"], "command line: model: got nothing, expected a section with the name"),
        ("attentive_digits", ["training.batch_size=0"], "training.batch_size: got 0, expected at least 1"),
        ("attentive_digits", ["training.steps=null"], "training.steps: got no budget"),
        ("attentive_digits", ["data.set=3"], "data.set: got 3, expected text"),
        ("attentive_digits", ["data.flip=up"], "data.flip: got 'up', expected one of none, horizontal, both"),
        ("attentive_digits", ["data=7"], "data: got 7, expected a section of keys"),
    ],
)
def test_mistakes_are_named_in_one_line(name: str, assignments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load(name, assignments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_file_is_not_blamed_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {name: attentive_vae, wdith: 8}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^.*mine\.yaml: unknown key model\.wdith; did you mean model\.width\?$"):
        recipes.load(path, ["model.nodes=1"])


@pytest.mark.parametrize(
    ("overrides", "shape", "levels", "message"),
    [
        (
            ["model.likelihood.family=bernoulli"],
            None,
            None,
            "likelihood.family: got bernoulli for 17 levels, expected 2",
        ),
        ([], (0, 8, 8), None, "expected three positive numbers"),
        ([], None, 1, "levels: got 1, expected 2 to 65536"),
        (["model.width=1000000"], None, None, "the model cannot be built for images [1, 8, 8]: "),
    ],
)
def test_models_that_do_not_fit_are_refused_in_one_line(
    overrides: list[str], shape: tuple[int, int, int] | None, levels: int | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        davi.build("attentive_digits_tiny", *overrides, shape=shape, levels=levels)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in recipes.names() if name.endswith("_tiny")])
def test_forms_of_published_weights_are_for_models_of_which_there_are_some(name: str) -> None:
    recipe = recipes.load(name)
    published = recipe.model_name in {form.model for form in IMPORTERS.values()}
    if not hasattr(recipe.model, "likelihood"):
        pytest.skip("a model whose likelihood has no form")
    family = ["model.likelihood.family=logistic_mixture", "model.likelihood.network=null"]
    if published:
        assert recipes.load(name, [*family, "model.likelihood.form=nvae"]).model.likelihood.form == "nvae"
        return
    with pytest.raises(UserError, match=r"^command line: model\.likelihood: got form nvae, expected exact: this model"):
        recipes.load(name, [*family, "model.likelihood.form=nvae"])


def test_files_can_be_read_without_torch() -> None:
    code = (
        "import sys; from davi import recipes; "
        "print(len([recipes.describe(name) for name in recipes.names()])); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(len(recipes.names())), "")


def test_built_models_are_in_evaluation_mode() -> None:
    """As loaded ones are: nobody shall measure with the batch norms and the dropout of training by accident."""
    assert not any(module.training for module in davi.build("nvae_digits_tiny").modules())


def test_the_public_names() -> None:
    assert set(dir(davi)) >= {"build", "load", "Evidence", "Kind", "Model", "LatentModel", "Hierarchy", "__version__"}
    assert davi.Kind is Kind
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = davi.absent


def test_recipe_files_are_readable_pages() -> None:
    """Each option once, its file short enough to be read and copied."""
    for name in recipes.names():
        text = recipes.find(name).read_text(encoding="utf-8")
        assert max(map(len, text.splitlines())) <= 130
        sections = ["description", "model", "data", "training"]
        assert list(load_yaml(recipes.find(name))) in (sections, [*sections, "stages"])


def test_the_beginning_of_a_name_is_nearly_the_name() -> None:
    with pytest.raises(
        UserError, match=r"unknown key training\.clip; did you mean training\.step_filter\.clip_norm\?$"
    ):
        recipes.load("attentive_digits", ["training.clip=1"])
