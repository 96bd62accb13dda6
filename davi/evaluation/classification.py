r"""How well a network names the class of an image: its error rate, log p(y | x), and its calibration.

Of n images, m are put into a class other than their own. The interval of the rate is Wilson's: with
:math:`\hat p = m / n` and z = 1.96,

.. math:: \frac{1}{1 + z^2 / n} \Bigl(\hat p + \frac{z^2}{2n}
          \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}\Bigr)

which, unlike two standard errors to both sides, holds for rates near 0 as well, and never has an end below it. How far
its probabilities are to be believed is measured by :mod:`davi.evaluation.calibration`.

References:
    Probable inference, the law of succession, and statistical inference, E. B. Wilson, Journal of the American
    Statistical Association 1927, https://doi.org/10.1080/01621459.1927.10502953
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davi.batch import Batch
from davi.evaluation import clusters
from davi.evaluation.calibration import BINS, Reliability, equal_mass, equal_width
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import Array, Evaluation
from davi.evaluation.streaming import double
from davi.evidence import Kind
from davi.model import Claiming, Classifier, Classifying

ERROR_RATE, CLASS_LIKELIHOOD, BLIND_GUESS = "classification error", "log p(y | x)", "a blind guess"
CALIBRATION, ADAPTIVE = "calibration error", "calibration, equal counts"
"""Names of the measures."""

_Z = 1.959963984540054
"""The 97.5 % quantile of the Normal distribution."""


def wilson(wrong: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate of which ``wrong`` in ``n`` were seen (module docstring).

    Example:
        >>> low, high = wilson(0, 100)
        >>> low, round(high, 4)
        (0.0, 0.037)
    """
    rate, spread = wrong / n, _Z**2 / n
    reach = _Z * math.sqrt(rate * (1.0 - rate) / n + spread / (4.0 * n))
    ends = ((rate + 0.5 * spread - reach) / (1.0 + spread), (rate + 0.5 * spread + reach) / (1.0 + spread))
    return (0.0 if wrong == 0 else ends[0], 1.0 if wrong == n else ends[1])


@final
class Classification(Meter):
    """What follows from the log-probabilities of an image's classes, for which the network is asked once: the share of
    images whose most probable class is not their own, the mean log-probability of their own, and calibration."""

    name = ERROR_RATE
    wants = Classifying

    def __init__(self, model: Claiming, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, Classifying)
        self._model: Classifying = model
        self._classes = model.classes
        self._log_p: list[Tensor] = []  # of the image's own class, and of the most probable one
        self._right: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        if batch.y is not None:
            log_p = double(self._model.log_class_probabilities(batch.x))  # [B, classes]
            y = batch.y.to(log_p.device).long()
            named = log_p.argmax(1)
            self._log_p.append(log_p.gather(1, torch.stack([y, named], 1)).T.cpu())
            self._right.append((named == y).cpu())

    def measure(self, evaluation: Evaluation) -> tuple[Measure, ...] | None:
        if not self._right:
            return None
        own, surest = torch.cat(self._log_p, 1).numpy()
        right = torch.cat(self._right).numpy()
        found = [_error_rate(~right, evaluation)]
        if isinstance(self._model, Classifier):  # whose claim is the likelihood
            found.append(_blind_guess(self._classes))
        else:
            found.append(self._likelihood(own, evaluation))
        confidence = np.exp(surest)
        found.append(_calibration(CALIBRATION, f"{BINS} bins of equal width", equal_width(confidence, right)))
        found.append(_calibration(ADAPTIVE, f"{BINS} bins of equally many images", equal_mass(confidence, right)))
        return tuple(found)

    def _likelihood(self, values: Array, evaluation: Evaluation) -> Measure:
        error = clusters.standard_error(values, evaluation.groups)
        rule = "log-probability of an image's class given its pixels; 0 would be certainty, -ln(classes) a blind guess"
        kind = self._model.class_claim
        if kind is not Kind.EXACT:
            rule += "; of a classifier that stands for the model's own p(y | x), which is not known"
        return Measure(CLASS_LIKELIHOOD, "nats", float(values.mean()), error, kind, rule, images=len(values))

    def left_out(self) -> str:
        return "" if self._classes else "the model was built without classes"


def _error_rate(wrong: NDArray[np.bool_], evaluation: Evaluation) -> Measure:
    rule = "images whose most probable class given the pixels is not their own"
    percent, n, unit = 100.0 * float(wrong.mean()), len(wrong), "% of the images"
    if evaluation.groups is not None:  # patches of a file are alike, and Wilson's interval knows nothing of it
        error = clusters.standard_error(100.0 * wrong.astype(np.float64), evaluation.groups)
        return Measure(ERROR_RATE, unit, percent, error, None, rule, images=n)
    low, high = wilson(int(wrong.sum()), n)
    ends = (100.0 * low, 100.0 * high)
    return Measure(ERROR_RATE, unit, percent, None, None, rule, images=n, interval=ends)


def _blind_guess(classes: int) -> Measure:
    rule = f"what gives all {classes} classes the same probability, -ln {classes}"
    return Measure(BLIND_GUESS, "nats", -math.log(classes), None, Kind.EXACT, rule)


def _calibration(name: str, bins: str, found: Reliability) -> Measure:
    rule = (
        "mean distance between the probability of the most probable class and how often it is the right one, over "
        f"{bins}; biased upward where images are few: a calibrated classifier would be expected to show "
        f"{100.0 * found.chance:.2g} % on so many"
    )
    return Measure(name, "%", 100.0 * found.error, None, None, rule, images=int(found.counts.sum()))
