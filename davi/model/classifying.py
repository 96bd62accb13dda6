"""Networks that say which class an image is of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from davi.evidence import Kind


class Classifying(ABC):
    """A network that knows log p(y | x): a joint model of images and classes, or a classifier."""

    class_claim: ClassVar[Kind] = Kind.EXACT
    """How what it says of classes relates to its log p(y | x): an estimate where something stands for that."""

    @abstractmethod
    def log_class_probabilities(self, x: Tensor) -> Tensor:
        r"""The log-probability of each class given the image, nats; :math:`\sum_y e^{\log p(y \mid x)} = 1`.

        Arguments:
            x: integer images, ``[B, C, H, W]``.

        Returns:
            ``[B, classes]``.
        """
