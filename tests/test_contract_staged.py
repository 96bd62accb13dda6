"""What every network with parts promises: they are networks, each shown what the parts before it make of images."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import pytest
import torch
import toys
from contract import all_images, assert_frequencies, names, place, seeded, shake, small
from torch import Tensor
from toys.belief_net import BeliefNet
from toys.halves import Halves

from davi.batch import Batch
from davi.errors import UserError
from davi.model import Network, Staged
from davi.models import DBN, VQVAE, VQVAE2, ConvDBN
from davi.training import TrainingConfig
from davi.training.stages import Stage

PARTS = {Halves.name: ("top", "bottom"), DBN.name: ("layer_1", "layer_2")}
PARTS[ConvDBN.name] = PARTS[DBN.name]
PARTS[VQVAE.name] = PARTS[VQVAE2.name] = ("autoencoder", "prior")
"""The parts of each network, in the order in which they are trained."""


class Case(NamedTuple):
    """A network on images of six pixels, and its parts."""

    network: Network
    parts: tuple[str, ...]

    @property
    def staged(self) -> Staged:
        assert isinstance(self.network, Staged)
        return self.network


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


@pytest.fixture(params=names(Staged))
def case(request: pytest.FixtureRequest) -> Case:
    network = small(request.param, (1, 2, 3), 2)
    return Case(network, PARTS[network.name])


def test_parts_are_networks_with_weights_of_their_own(case: Case) -> None:
    parts = [case.staged.part(name) for name in case.parts]
    assert all(isinstance(part, Network) for part in parts)
    own = [{id(x) for x in part.parameters()} for part in parts]
    assert all(own)
    assert len(set().union(*own)) == sum(map(len, own))
    assert set().union(*own) <= {id(x) for x in case.network.parameters()}
    assert all(case.staged.part(name) is part for name, part in zip(case.parts, parts, strict=True))


def test_an_unknown_part_is_named_in_one_line(case: Case) -> None:
    with pytest.raises(KeyError, match="got nonsense, expected ") as caught:
        case.staged.part("nonsense")
    (words,) = caught.value.args
    assert "\n" not in words
    assert all(name in words for name in case.parts)
    with pytest.raises(UserError, match=f"^{re.escape('stages.one.part: ' + words)}$"):
        Stage(TrainingConfig(steps=1), "one", "nonsense").trained(case.network)


def test_a_view_is_a_batch_of_the_part(case: Case) -> None:
    batch = Batch(all_images(case.network)[7:19], torch.arange(12), start=7)
    for name in case.parts:
        part = case.staged.part(name)
        seen = case.staged.view(name, batch, seeded())
        assert len(seen.x) == 12
        assert seen.start == 7
        part.check_images(seen.x)
        again = case.staged.view(name, batch, seeded())
        assert torch.equal(seen.x, again.x)
        assert not seen.x.requires_grad


def test_a_view_depends_on_the_parts_before_it_alone(case: Case) -> None:
    batch = Batch(all_images(case.network))
    views = [case.staged.view(name, batch, seeded()).x for name in case.parts]
    for i in reversed(range(len(case.parts))):
        shake(case.staged.part(case.parts[i]))
        for name, before in list(zip(case.parts, views, strict=True))[: i + 1]:
            assert torch.equal(case.staged.view(name, batch, seeded()).x, before)


# The two halves


@pytest.fixture
def halves() -> Halves:
    found = small(Halves.name, (1, 2, 3), 2).double()
    assert isinstance(found, Halves)
    return found


def logit(part: BeliefNet, x: list[int], i: int) -> float:
    return part.bias[0].tolist()[i] + sum(part.weight.tolist()[i][j] * x[j] for j in range(i))


def by_hand(model: Halves, x: list[int]) -> float:
    """log p of an image, pixel by pixel."""
    top, bottom = x[:3], x[3:]
    differs = [int((logit(model.top, top, i) > 0.0) != bool(bottom[i])) for i in range(3)]
    total = 0.0
    for part, values in ((model.top, top), (model.bottom, differs)):
        for i in range(3):
            total -= math.log1p(math.exp((-1.0 if values[i] else 1.0) * logit(part, values, i)))
    return total


def log_probabilities(model: Halves) -> Tensor:
    return model.evidence(all_images(model)).log_px.detach()


def test_halves_by_hand(halves: Halves) -> None:
    log_p = log_probabilities(halves)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    expected = [by_hand(halves, x) for x in all_images(halves).flatten(1).tolist()]
    assert log_p.tolist() == pytest.approx(expected, abs=1e-12)


def test_halves_are_drawn_as_they_should_be(halves: Halves) -> None:
    assert_frequencies(place(halves.sample(4000, generator=seeded()), 2), log_probabilities(halves))
