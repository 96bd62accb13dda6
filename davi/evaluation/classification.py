r"""How well a network names the class of an image: its error rate, and log p(y | x).

Of n images, m are put in another class than theirs. The interval of the rate is Wilson's: with :math:`\hat p = m / n`
and z = 1.96,

.. math:: \frac{1}{1 + z^2 / n} \Bigl(\hat p + \frac{z^2}{2n}
          \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}}\Bigr)

which, unlike two standard errors to both sides, holds for rates near 0 as well, and never has an end below it.

References:
    Probable inference, the law of succession, and statistical inference, E. B. Wilson, Journal of the American
    Statistical Association 1927, https://doi.org/10.1080/01621459.1927.10502953
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import numpy as np
from torch import Tensor

from davi.batch import Batch
from davi.evaluation import clusters
from davi.evaluation.measure import Measure
from davi.evaluation.meter import Meter
from davi.evaluation.record import Array, Evaluation
from davi.evaluation.streaming import double
from davi.evidence import Kind
from davi.model import Classifying, Model

ERROR_RATE, CLASS_LIKELIHOOD = "classification error", "log p(y | x)"
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


class _OfClasses(Meter, ABC):
    """Makes one number of the log-probabilities of an image's classes, for each image."""

    wants = Classifying

    def __init__(self, model: Model, images: int, seed: int, batch_size: int) -> None:
        assert isinstance(model, Classifying)
        self._model: Classifying = model
        self._classes = model.classes
        self._found: list[Array] = []

    def add(self, batch: Batch) -> None:
        if batch.y is not None:
            log_p = double(self._model.log_class_probabilities(batch.x))  # [B, classes]
            self._found.append(self._of(log_p, batch.y.to(log_p.device)).cpu().numpy())

    @abstractmethod
    def _of(self, log_p: Tensor, y: Tensor) -> Tensor:
        """The number of each image, ``[B]``.

        Arguments:
            log_p: of each class, ``[B, classes]``, float64, nats.
            y: the classes, ``[B]``.
        """

    def _values(self) -> Array | None:
        return np.concatenate(self._found) if self._found else None


@final
class ErrorRate(_OfClasses):
    """The share of images whose most probable class is another than theirs."""

    name = ERROR_RATE

    def _of(self, log_p: Tensor, y: Tensor) -> Tensor:
        return (log_p.argmax(1) != y).double()

    def measure(self, evaluation: Evaluation) -> Measure | None:
        values = self._values()
        if values is None:
            return None
        rule = "images whose most probable class given the pixels is another than theirs"
        percent, n = 100.0 * float(values.mean()), len(values)
        if evaluation.groups is not None:  # patches of a file are alike, and Wilson's interval knows nothing of it
            error = clusters.standard_error(100.0 * values, evaluation.groups)
            return Measure(self.name, "% of the images", percent, error, None, rule, images=n)
        low, high = wilson(round(float(values.sum())), n)
        ends = (100.0 * low, 100.0 * high)
        return Measure(self.name, "% of the images", percent, None, None, rule, images=n, interval=ends)

    def left_out(self) -> str:
        return "" if self._classes else "the model was built without classes"


@final
class ClassLikelihood(_OfClasses):
    """The mean log-probability of an image's class."""

    name = CLASS_LIKELIHOOD

    def _of(self, log_p: Tensor, y: Tensor) -> Tensor:
        return log_p.gather(1, y[:, None])[:, 0]

    def measure(self, evaluation: Evaluation) -> Measure | None:
        values = self._values()
        if values is None:
            return None
        error = clusters.standard_error(values, evaluation.groups)
        rule = "log-probability of an image's class given its pixels; 0 would be certainty, -ln(classes) a blind guess"
        kind = self._model.class_claim
        if kind is not Kind.EXACT:
            rule += "; of a classifier that stands for the model's own p(y | x), which is not known"
        return Measure(self.name, "nats", float(values.mean()), error, kind, rule, images=len(values))
