"""What every network promises, whatever it can be asked: how it is built, what it refuses, what it says of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import torch
import toys
from contract import CLASSES, TINY, class_of, names, shaken, some_images

import davi
from davi import recipes
from davi.errors import OptionError, UserError
from davi.model import Classifier, Conditional, Energy, Network
from davi.models import MODELS
from davi.runs import load_model, load_network, save_model


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


@pytest.fixture(scope="module", params=names(Network))
def network(request: pytest.FixtureRequest) -> Network:
    """No test here changes it."""
    return shaken(request.param)


def test_there_is_a_tiny_recipe_for_every_model() -> None:
    assert {recipes.load(name).model_name for name in TINY} == set(MODELS) - set(toys.TOYS)


def test_it_knows_what_it_was_built_with(network: Network) -> None:
    channels, height, width = network.shape
    assert network.dims == channels * height * width
    again = type(network)(network.shape, network.levels, network.config, network.classes)
    assert (again.shape, again.levels, again.config) == (network.shape, network.levels, network.config)
    assert isinstance(network.config, type(network).Config)
    assert network.classes == again.classes == (CLASSES if isinstance(network, Classifier) else 0)
    assert (network.classes_in_turn(3) is None) == (network.classes == 0)
    assert {name: x.shape for name, x in again.named_parameters()} == {
        name: x.shape for name, x in network.named_parameters()
    }


@pytest.mark.parametrize(
    ("shape", "levels", "words"),
    [
        ((8, 8), 2, "shape: got (8, 8), expected three positive numbers"),
        ((1, 0, 8), 2, "shape: got (1, 0, 8), expected three positive numbers"),
        ((1, 8, 8), 1, "levels: got 1, expected 2 to 65536"),
        ((1, 8, 8), 65537, "levels: got 65537, expected 2 to 65536"),
    ],
)
def test_impossible_images_are_refused(network: Network, shape: Any, levels: int, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        type(network)(shape, levels, network.config, network.classes)
    assert "\n" not in str(caught.value)


def test_classes_are_for_those_that_use_them(network: Network) -> None:
    cls = type(network)
    with pytest.raises(OptionError, match=r"^classes: got -1, expected ") as negative:
        cls(network.shape, network.levels, network.config, -1)
    assert negative.value.option == "classes"
    if isinstance(network, Conditional):
        assert cls(network.shape, network.levels, network.config, 3).classes == 3
        return
    with pytest.raises(OptionError, match=f"^classes: got 3, expected 0: {network.name} makes no use of labels$"):
        cls(network.shape, network.levels, network.config, 3)


def test_images_of_another_kind_are_refused(network: Network) -> None:
    x = some_images(network, 2)
    network.check_images(x)
    network.check_images(x[:0])
    with pytest.raises(TypeError, match=r"images: got torch.float32, expected an integer tensor"):
        network.check_images(x.float())
    with pytest.raises(ValueError, match=r"images: got shape .*, expected \[B, "):
        network.check_images(x[..., 1:])
    with pytest.raises(ValueError, match=f"images: got values .* to {network.levels}, expected 0 to "):
        network.check_images(torch.full_like(x, network.levels))


def test_labels_are_refused_without_classes(network: Network) -> None:
    if network.classes:  # test_contract_conditional.py asks what has classes
        with pytest.raises(ValueError, match=r"^labels: got None, expected 2 class numbers from 0 to 2$"):
            network.check_labels(None, 2)
        return
    network.check_labels(None, 2)
    with pytest.raises(ValueError, match=f"^labels: got some, expected None: {network.name} was built without classes"):
        network.check_labels(torch.zeros(2, dtype=torch.int64), 2)


def test_saved_and_loaded_it_is_the_same_network(network: Network, tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", network)
    again, info = load_network(tmp_path / "model.safetensors")
    assert type(again) is type(network)
    assert info["name"] == network.name
    assert not any(module.training for module in again.modules())
    ours, theirs = network.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@final
class Bare(Network):
    """A network that can be asked nothing."""

    name = "bare"

    @dataclass(frozen=True)
    class Config:
        pass


def test_what_gives_no_probability_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, Bare.name, Bare)
    save_model(tmp_path / "model.safetensors", Bare((1, 2, 2), 2, Bare.Config()))
    assert isinstance(load_network(tmp_path)[0], Bare)
    with pytest.raises(UserError, match=r"got bare, which has no likelihood, expected a model that has one$"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", names(Energy))
def test_an_energy_alone_is_no_model(name: str, tmp_path: Path) -> None:
    recipe = toys.recipe(tmp_path, name) if name in toys.TOYS else name
    assert isinstance(recipes.build(recipes.load(recipe), (1, 8, 8), 2), class_of(name))
    with pytest.raises(UserError, match=f"got {class_of(name).name}, which has no likelihood by itself"):
        davi.build(recipe)


def test_every_block_is_part_of_the_network(network: Network) -> None:
    modules = set(network.modules())
    assert all(block in modules for block in network.blocks())


def test_repr_names_layers_grids_and_parameters_in_a_few_lines(network: Network) -> None:
    first, *lines = repr(network).splitlines()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert first.startswith(f"{type(network).__name__} for images {list(network.shape)} with {network.levels} levels")
    assert first.endswith(f"{count:,} parameters")
    assert len(lines) <= 3
    parts = dict(re.findall(r"(\w+) ([\d,]+)(?:, |$)", lines[-1].partition(": ")[2] if lines else ""))
    assert sum(int(number.replace(",", "")) for number in parts.values()) <= count
    assert all(f"({name}): " in torch.nn.Module.__repr__(network) for name, _ in network.named_children())
