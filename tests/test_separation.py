"""The nearest class mean at each depth, against means that are taken anew without each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import Tensor

from davi.data import Images
from davi.evaluation import evaluate
from davi.evaluation.classification import wilson
from davi.evaluation.separation import SEPARATION, nearest_mean
from davi.model import Classifier, WithDepths


@dataclass(frozen=True)
class LevelsConfig:
    """
    Arguments:
        blocks: how many.
    """

    blocks: int = 2


@final
class Levels(Classifier, WithDepths):
    """Its stem shows pixels that know nothing of the class; each block adds more of it, and the last shows it alone."""

    name = "levels"
    Config = LevelsConfig

    def logits(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.classes)

    def at_depths(self, x: Tensor) -> list[Tensor]:
        noise = x[:, :1].float()
        label = x[:, 1:].float()
        between = [noise + i * label for i in range(1, self.config.blocks)]
        return [noise, *between, label]


def images(n: int = 60) -> Images:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(3, (n,), generator=generator)
    noise = torch.randint(8, (n, 1, 2, 2), generator=generator)
    label = y[:, None, None, None].expand(n, 1, 2, 2)
    return Images(torch.cat([noise, label], 1).to(torch.uint8), 8, "levels/test", labels=y, classes=("a", "b", "c"))


def without(features: Tensor, y: Tensor, classes: int) -> Tensor:
    """Image by image."""
    found = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        distances = []
        for c in range(classes):
            members = [j for j in others if int(y[j]) == c]
            mean = features[members].mean(0) if members else torch.full(features.shape[1:], float("inf"))
            distances.append(float((features[i] - mean).norm()))
        found.append(min(range(classes), key=distances.__getitem__))
    return torch.tensor(found)


@pytest.mark.parametrize("counts", [(9, 8, 7), (12, 1, 5), (6, 0, 6), (2, 2, 2)])
def test_no_image_helps_to_decide_about_itself(counts: tuple[int, ...]) -> None:
    y = torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])[torch.randperm(sum(counts))]
    features = torch.randn(len(y), 4, dtype=torch.float64) + 0.5 * y[:, None]
    assert torch.equal(nearest_mean(features, y, len(counts)), without(features, y, len(counts)))


def test_the_measure_counts_right_answers_at_each_depth_the_last_first() -> None:
    chosen = images()
    model = Levels(chosen.shape, chosen.levels, LevelsConfig(), 3)
    (measure,) = [m for m in evaluate(model, chosen, batch_size=7).measures if m.name == SEPARATION]
    assert chosen.labels is not None
    expected = [
        100.0 * float((without(h.mean((2, 3)).double(), chosen.labels, 3) == chosen.labels).double().mean())
        for h in model.at_depths(chosen.pixels)
    ]
    assert measure.layers == pytest.approx(expected[::-1])
    assert measure.layers is not None
    assert measure.value == measure.layers[0] == 100.0 > measure.layers[-1]
    assert measure.depths == (2, 1, 0)
    assert measure.images == 60
    assert measure.interval == pytest.approx(tuple(100.0 * end for end in wilson(60, 60)))


def test_a_single_image_has_no_other_to_be_compared_with() -> None:
    chosen = images(1)
    found = evaluate(Levels(chosen.shape, chosen.levels, LevelsConfig(), 3), chosen)
    assert SEPARATION not in [measure.name for measure in found.measures]


def test_of_many_depths_twelve_are_taken_among_them_the_first_and_the_last() -> None:
    chosen = images(12)
    model = Levels(chosen.shape, chosen.levels, LevelsConfig(40), 3)
    (measure,) = [m for m in evaluate(model, chosen).measures if m.name == SEPARATION]
    assert measure.depths is not None
    assert measure.layers is not None
    assert len(measure.depths) == len(measure.layers) == 12
    assert (measure.depths[0], measure.depths[-1]) == (40, 0)
