"""What every network that knows of classes promises: it is told the class of each image, or refuses to answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from contract import class_of, model_of, names, seeded, small, some_images
from torch import Tensor

from davi.evidence import About
from davi.model import Claiming, Classifier, Conditional, Model, Network, Quantized, WithPartition
from davi.runs import load_model, save_model

CLASSES = 3


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


@pytest.fixture(params=names(Conditional))
def network(request: pytest.FixtureRequest) -> Network:
    return small(request.param, (1, 4, 4), 2, CLASSES)


@pytest.fixture(params=[name for name in names(Conditional) if not issubclass(class_of(name), Classifier)])
def model(request: pytest.FixtureRequest) -> Model:
    """Of images; what classifiers promise is in test_contract_classifier.py."""
    return model_of(small(request.param, (1, 4, 4), 2, CLASSES))


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        (None, ValueError, "labels: got None, expected 4 class numbers from 0 to 2"),
        ([0, 1, 2, 0], TypeError, "labels: got list, expected an integer tensor with values 0 to 2"),
        (torch.zeros(4), TypeError, "labels: got torch.float32, expected an integer tensor with values 0 to 2"),
        (torch.zeros(4).bool(), TypeError, "labels: got torch.bool, expected an integer tensor with values 0 to 2"),
        (torch.zeros(3).long(), ValueError, r"labels: got shape \(3,\), expected \[4\]"),
        (torch.zeros(4, 1).long(), ValueError, r"labels: got shape \(4, 1\), expected \[4\]"),
        (torch.tensor([0, 1, 2, 3]), ValueError, "labels: got values 0 to 3, expected 0 to 2"),
        (torch.tensor([0, -1, 2, 1]), ValueError, "labels: got values -1 to 2, expected 0 to 2"),
    ],
)
def test_what_says_no_class_is_refused(network: Network, y: Any, error: type[Exception], words: str) -> None:
    asked: list[Callable[[], object]] = [lambda: network.check_labels(y, 4)]
    if isinstance(network, Claiming):
        x = some_images(network, 4)
        asked += [lambda: network.evidence(x, y=y)]
    if isinstance(network, Model):
        asked += [lambda: network.sample(4, y=y)]
    for ask in asked:
        with pytest.raises(error, match=f"^{words}$"):
            ask()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_the_class_matters_and_any_integers_say_it(model: Model, dtype: torch.dtype) -> None:
    x = some_images(model, 4)
    y = torch.tensor([0, 1, 2, 0])
    evidence = model.evidence(x, seeded(), y.to(dtype))
    assert evidence.about in (About.X_GIVEN_Y, About.X_AND_Y)
    assert torch.equal(evidence.log_px, model.evidence(x, seeded(), y).log_px)
    other = model.evidence(x, seeded(), torch.tensor([1, 1, 2, 0])).log_px
    assert (evidence.log_px != other).tolist() == [True, False, False, False]


def test_several_draws_are_of_the_same_class(model: Model) -> None:
    x, y = some_images(model, 2), torch.tensor([2, 1])
    torch.manual_seed(3)
    found = model(x, 3, y).log_px
    torch.manual_seed(3)
    expected = model.evidence(x.repeat_interleave(3, 0), y=y.repeat_interleave(3)).log_px
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)  # batches may add up in another order


def test_draws_follow_generator_and_class(model: Model) -> None:
    y = torch.arange(60) % CLASSES
    if isinstance(model, WithPartition | Quantized):
        # Where weights, and so classes, matter little, Markov chains with the same noise meet, and codes are the same.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10.0)
    first = model.sample(60, generator=seeded(), y=y)
    model.check_images(first)
    assert torch.equal(first, model.sample(60, generator=seeded(), y=y))
    assert not torch.equal(first, model.sample(60, generator=seeded(), y=(y + 1) % CLASSES))


def test_classes_in_turn(network: Network) -> None:
    turns = network.classes_in_turn(5)
    assert turns is not None
    assert turns.tolist() == [0, 1, 2, 0, 1]


def test_classes_are_saved(model: Model, tmp_path: Path) -> None:
    x, y = some_images(model, 3), torch.tensor([0, 1, 2])
    save_model(tmp_path / "model.safetensors", model)
    again, info = load_model(tmp_path / "model.safetensors")
    assert again.classes == info["classes"] == CLASSES
    found: Tensor = again.evidence(x, seeded(), y).log_px
    assert torch.equal(found, model.evidence(x, seeded(), y).log_px)
