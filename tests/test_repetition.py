"""Every image several times, whatever its parts are kept in."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from davi.distributions import Normal
from davi.layers import LayerMemory
from davi.repetition import repeat_images

X = torch.arange(4.0).view(2, 2)
TWICE = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 3.0], [2.0, 3.0]])


class Pair(NamedTuple):
    left: Tensor
    right: list[Tensor]


def test_tensors_and_what_consists_of_them() -> None:
    assert torch.equal(repeat_images(X, 2), TWICE)
    found = repeat_images({"a": [X], 3: (X, Pair(X, [X]))}, 2)
    assert list(found) == ["a", 3]
    assert torch.equal(found["a"][0], TWICE)
    one, pair = found[3]
    assert isinstance(pair, Pair)
    assert all(torch.equal(x, TWICE) for x in (one, pair.left, pair.right[0]))


def test_distributions_and_memories() -> None:
    normal = repeat_images(Normal(X, X + 1.0), 2)
    assert torch.equal(normal.mean, TWICE)
    assert torch.equal(normal.scale, TWICE + 1.0)
    memory = LayerMemory()
    memory.offer(X[..., None, None], X[..., None, None] + 1.0)
    keys, values = repeat_images(memory, 2).read((1, 1))
    assert torch.equal(keys[0][..., 0, 0], TWICE)
    assert torch.equal(values[0][..., 0, 0], TWICE + 1.0)


def test_once_is_the_same_object() -> None:
    context = [X]
    assert repeat_images(context, 1) is context


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match="context: got str, expected tensors"):
        repeat_images([X, "x"], 2)
