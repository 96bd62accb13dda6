"""Measures of classification: error rates with Wilson's interval, and log p(y | x)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import final

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Generator, Tensor

from davi import records
from davi.data import Images
from davi.evaluation import Measure, clusters, evaluate
from davi.evaluation.calibration import equal_mass, equal_width
from davi.evaluation.classification import (
    ADAPTIVE,
    BLIND_GUESS,
    CALIBRATION,
    CLASS_LIKELIHOOD,
    ERROR_RATE,
    wilson,
)
from davi.evidence import About, Evidence, Kind
from davi.model import Classifying, Conditional, Model, Temperature
from davi.report import in_words

N = 40


@dataclass(frozen=True)
class NoConfig:
    """No options."""


@final
class Brightness(Model, Conditional, Classifying):
    """Says class 1 the surer the brighter the only pixel is; of the images it claims that all are alike."""

    name = "brightness"
    Config = NoConfig

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        self.check_labels(y, len(x))
        alike = torch.full((len(x),), -math.log(self.levels * max(self.classes, 1)), dtype=torch.float64)
        return Evidence({"uniform": alike}, Kind.EXACT, about=About.X_AND_Y, dims=1)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return torch.zeros(n, *self.shape, dtype=torch.uint8)

    def log_class_probabilities(self, x: Tensor) -> Tensor:
        logit = x.flatten(1).double()[:, 0] - 2.5
        return torch.stack([-logit, torch.zeros_like(logit)], 1).log_softmax(1)


def model(classes: int = 2) -> Brightness:
    return Brightness((1, 1, 1), 6, NoConfig(), classes)


def images(groups: Tensor | None = None) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(6, (N, 1, 1, 1), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (N,), generator=generator)
    return Images(pixels, 6, "bright/test", labels=labels, classes=("dark", "bright"), groups=groups)


@pytest.mark.parametrize(("wrong", "n"), [(0, 7), (7, 7), (1, 400), (13, 50), (125, 10_000)])
def test_the_interval_is_wilsons(wrong: int, n: int) -> None:
    expected = binomtest(wrong, n).proportion_ci(method="wilson")
    assert wilson(wrong, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_error_rate_and_likelihood_of_the_classes() -> None:
    own = images()
    found = evaluate(model(), own, batch_size=7)
    bright, labels = own.pixels[:, 0, 0, 0].double().numpy() - 2.5, own.labels
    assert labels is not None
    truth = labels.numpy()
    wrong = (bright > 0) != (truth == 1)
    rate = found.measure(ERROR_RATE)
    assert rate is not None
    assert 0 < wrong.sum() < N
    assert rate.value == pytest.approx(100.0 * wrong.mean())
    expected = binomtest(int(wrong.sum()), N).proportion_ci(method="wilson")
    assert rate.interval == pytest.approx((100.0 * expected.low, 100.0 * expected.high))
    assert (rate.standard_error, rate.kind, rate.images) == (None, None, N)
    log_p = -np.log1p(np.exp(np.where(truth == 1, -bright, bright)))
    likelihood = found.measure(CLASS_LIKELIHOOD)
    assert likelihood is not None
    assert likelihood.value == pytest.approx(log_p.mean(), rel=1e-12)
    assert likelihood.standard_error == pytest.approx(log_p.std(ddof=1) / math.sqrt(N), rel=1e-12)
    assert likelihood.kind is Kind.EXACT
    assert "stands for" not in likelihood.rule


def test_a_classifier_that_stands_for_the_model_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Brightness, "class_claim", Kind.ESTIMATE)
    likelihood = evaluate(model(), images()).measure(CLASS_LIKELIHOOD)
    assert likelihood is not None
    assert likelihood.kind is Kind.ESTIMATE
    assert likelihood.rule.endswith("a classifier that stands for the model's own p(y | x), which is not known")


def test_patches_of_a_file_have_no_interval_of_independent_images() -> None:
    groups = torch.arange(N) // 4
    found = evaluate(model(), images(groups)).measure(ERROR_RATE)
    assert found is not None
    assert found.interval is None
    own = images()
    assert own.labels is not None
    wrong = ((own.pixels[:, 0, 0, 0] > 2) != (own.labels == 1)).double().numpy()
    assert found.standard_error == pytest.approx(clusters.standard_error(100.0 * wrong, groups.numpy()))


def test_a_joint_model_has_calibration_as_well() -> None:
    own = images()
    found = evaluate(model(), own, batch_size=7)
    assert own.labels is not None
    logit = own.pixels[:, 0, 0, 0].double().numpy() - 2.5
    confidence = 1 / (1 + np.exp(-np.abs(logit)))
    right = (logit > 0) == (own.labels.numpy() == 1)
    for name, of in ((CALIBRATION, equal_width), (ADAPTIVE, equal_mass)):
        measure = found.measure(name)
        assert measure is not None
        assert (measure.unit, measure.images) == ("%", N)
        assert measure.value == pytest.approx(100 * of(confidence, right).error, rel=1e-9)
        assert "biased upward" in measure.rule
    assert found.measure(BLIND_GUESS) is None


def test_without_classes_it_is_left_out() -> None:
    found = evaluate(model(classes=0), images())
    assert found.measure(ERROR_RATE) is None
    assert [(one.name, one.reason) for one in found.left_out] == [(ERROR_RATE, "the model was built without classes")]


def test_in_words_and_in_files() -> None:
    measure = evaluate(model(), images()).measure(ERROR_RATE)
    assert measure is not None
    told = dataclasses.replace(measure, value=12.5, interval=(5.46, 26.11))
    assert in_words(told) == "12.5 % of the images (95 % interval 5.46 to 26.11, 40 images)"
    assert records.read(Measure, records.to_json(told), "file") == told
    with pytest.raises(ValueError, match="interval: got 1 numbers, expected two"):
        records.read(Measure, {**records.to_json(told), "interval": [5.0]}, "file")
