"""Networks without numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from davi import recipes
from davi.errors import UserError
from davi.model.meta import at_most, largest, on_meta
from davi.models import MODELS


def test_what_is_built_has_the_shapes_and_no_numbers() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5), nn.ConvTranspose2d(2, 2, 2))

    with on_meta():
        found = build().state_dict()
    expected = build().state_dict()
    assert all(tensor.is_meta for tensor in found.values())
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }


def test_tensors_that_have_numbers_are_filled() -> None:
    with on_meta():
        ours = torch.zeros(3, device="cpu")
        nn.init.uniform_(ours, 1.0, 2.0)
        assert (ours >= 1.0).all()
        nn.init.constant_(ours, 5.0)
        assert ours.tolist() == [5.0, 5.0, 5.0]
        assert ours.normal_().tolist() != [5.0, 5.0, 5.0]


def test_a_model_of_too_many_tensors_is_given_up_early() -> None:
    with pytest.raises(MemoryError, match="enough"), at_most(3, MemoryError("enough")), on_meta():
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(10**9)))


def test_the_largest_number_of_nested_options() -> None:
    assert largest({"a": [1, {"b": (-7, "x")}], "c": None, "d": True}) == 7
    assert largest([math.nan]) == math.inf
    assert largest({}) == 0.0


@pytest.mark.parametrize("option", ["layers=[4000000000000]", "width=2000000"])
def test_absurd_options_are_refused_before_anything_is_built(option: str) -> None:
    recipe = recipes.load("attentive_digits_tiny", [f"model.{option}"])
    name = option.split("=")[0]
    with pytest.raises(UserError, match=rf"model\.{name}: got .*, expected numbers up to 1,048,576"):
        recipes.build(recipe, (1, 8, 8), 17)


@pytest.mark.parametrize(("name", "most"), [("glow", 5), ("real_nvp", 6)])
def test_a_flow_is_not_made_of_padding(name: str, most: int) -> None:
    def built(scales: int) -> None:
        with on_meta():
            model = recipes.load(f"{name}_digits_tiny", [f"model.scales={scales}", "model.width=4"]).model
            MODELS[name]((1, 8, 8), 17, model)

    built(most)
    with pytest.raises(ValueError, match=f"scales: got {most + 1}, expected at most {most} for images of 8x8"):
        built(most + 1)
