"""Networks that say which class an image is of, and nothing about how probable the image is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

from torch import Generator, Tensor

from davi.distributions.base import at_least_float32
from davi.errors import OptionError
from davi.evidence import About, Evidence, Kind
from davi.model.claiming import Claiming
from davi.model.classifying import Classifying
from davi.model.network import Conditional

CLASS = "class"
"""Name of the one term of a classifier's claim."""


class Classifier(Claiming, Classifying, Conditional, ABC):
    r"""A distribution over the classes of an image.

    .. math:: \log p(y \mid x) = a_y(x) - \log \sum_c e^{a_c(x)}

    with a logit :math:`a_c` for each class. The claim is about y given x, exact, in nats; it has no bits per dimension.

    Arguments:
        shape, levels, config: as for :class:`~davi.model.Network`.
        classes: number of classes, at least 2.

    Raises:
        ValueError: if there are fewer.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int, config: Any, classes: int = 0) -> None:
        if classes < 2:
            expected = f"at least 2 for {self.name}: images with labels (--data.labels true)"
            raise OptionError("classes", f"got {classes}, expected {expected}")
        super().__init__(shape, levels, config, classes)

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """A number for each class, ``[B, classes]``: log-probabilities up to a constant of the image.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
        """

    def forward(self, x: Tensor) -> Tensor:
        """:meth:`logits`. Training calls it, so that wrappers which intercept calls (data parallelism, hooks) work."""
        self.check_images(x)
        return self.logits(x)

    @final
    def log_class_probabilities(self, x: Tensor) -> Tensor:
        return at_least_float32(self(x)).log_softmax(1)

    @final
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """log p(y | x) of each image's class; nothing is drawn."""
        self.check_labels(y, len(x))
        assert y is not None
        log_p = self.log_class_probabilities(x).gather(1, y.long()[:, None])[:, 0]
        return Evidence({CLASS: log_p}, Kind.EXACT, about=About.Y_GIVEN_X, deterministic=True)
