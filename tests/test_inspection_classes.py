"""What an inspection and its page show of classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toys.linear_classifier import LinearClassifier, LinearClassifierConfig

from davi import page
from davi.data import Images
from davi.evaluation import evaluate
from davi.inspection import Classes, Inspection, inspect
from davi.page import Contents
from davi.report import protocol_of, result_of
from davi.runs import describe

NAMES = ("dark", "middle", "light")
N = 60


def images(labeled: bool = True) -> Images:
    random = torch.Generator().manual_seed(1)
    pixels = torch.randint(4, (N, 1, 2, 2), generator=random, dtype=torch.uint8)
    labels = torch.randint(3, (N,), generator=random)
    return Images(pixels, 4, "shades/test", labels=labels if labeled else None, classes=NAMES if labeled else ())


def model() -> LinearClassifier:
    torch.manual_seed(2)
    return LinearClassifier((1, 2, 2), 4, LinearClassifierConfig(2.0), 3).eval()


def classes(found: Inspection) -> Classes:
    assert found.classes is not None
    return found.classes


def test_confusion_and_mistakes() -> None:
    own, network = images(), model()
    found = classes(inspect(network, own, limit=N, batch_size=7))
    assert own.labels is not None
    p = network.log_class_probabilities(own.pixels).double().exp().detach()
    expected = np.zeros((3, 3), dtype=int)
    wrong = []
    for i, label in enumerate(own.labels.tolist()):
        named = int(p[i].argmax())
        expected[label, named] += 1
        if named != label:
            wrong.append((-float(p[i].max()), i))
    assert found.confusion.tolist() == expected.tolist()
    assert [each.name for each in found.mistakes] == [f"test image {i}" for _, i in sorted(wrong)[:12]]
    first = found.mistakes[0]
    place = sorted(wrong)[0][1]
    assert (first.own, first.named) == (NAMES[int(own.labels[place])], NAMES[int(p[place].argmax())])
    assert first.own_probability == pytest.approx(float(p[place, own.labels[place]]))
    assert found.by_confidence.counts.sum() == found.by_rank.counts.sum() == N


def test_some_of_the_images() -> None:
    found = inspect(model(), images(), limit=10)
    assert (found.images, int(classes(found).confusion.sum())) == (10, 10)
    assert not found.samples
    assert not found.chosen


def contents(own: Images, network: LinearClassifier) -> Contents:
    measured = evaluate(network, own)
    data = {"set": "shades", "shape": [1, 2, 2], "levels": 4}
    return Contents(
        title="run",
        facts=[],
        result=result_of(measured, [], protocol_of(measured, describe(network), data)),
        measured="",
        inspection=inspect(network, own, limit=N),
        model=network,
        levels=4,
        records=[
            {"kind": kind, "step": step, "loss": 2.0 / step, "unit": "nats", "terms": {"error_rate": 0.5 / step}}
            for step in (1, 2, 3)
            for kind in ("train", "validation")
        ],
        recipe=None,
    )


def test_the_page_of_a_classifier() -> None:
    made = contents(images(), model())
    sections = page.compose(made, 64)
    anchors = [section.anchor for section in sections]
    assert anchors == ["reliability", "confusion", "mistakes", "curves", "details"]
    text = page.render(made, sections)
    assert "bits/dim" not in text
    assert f"a blind guess {math.log(3):.3f}; error rate" in text
    assert "Does not apply to this model: samples, reconstructions" in text
    figures = [figure.name for section in sections for figure in section.figures()]
    assert figures == ["reliability", "confusion", "mistakes", "curve-loss", "curve-error"]


def test_a_classifier_without_a_mistake() -> None:
    own, network = images(), model()
    named = network.logits(own.pixels).argmax(1)
    right = Images(own.pixels, 4, "shades/test", labels=named, classes=NAMES)
    made = contents(right, network)
    assert not classes(made.inspection).mistakes
    assert page.render(made, page.compose(made, 64)).count("No image is put into a class other than its own.") == 2


def test_many_classes_are_not_drawn() -> None:
    torch.manual_seed(0)
    network = LinearClassifier((1, 2, 2), 4, LinearClassifierConfig(2.0), 50).eval()
    own = images()
    named = tuple(f"class {i}" for i in range(50))
    assert own.labels is not None
    made = contents(Images(own.pixels, 4, "shades/test", labels=own.labels, classes=named), network)
    (section,) = [section for section in page.compose(made, 64) if section.anchor == "confusion"]
    assert not list(section.figures())
    assert "Most frequent mistakes" in page.render(made, [section])
