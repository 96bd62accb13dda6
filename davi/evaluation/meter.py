"""The protocol of measures, numbers beside the claim of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from davi.batch import Batch
from davi.evaluation.measure import Measure
from davi.evaluation.record import Evaluation
from davi.model import Claiming


class Meter(ABC):
    """Measures one number, or several of the same kind, of models that have what it wants.

    Everything is called within :func:`davi.evaluation.measuring`, or after all images have been measured.

    Arguments:
        model: has the capability :attr:`wants`.
        images: how many will be given, all together.
        seed: of all draws.
        batch_size: images per pass.
    """

    name: ClassVar[str]
    """Of the measure, or the first of them."""
    wants: ClassVar[type]
    """The capability that a model must have."""

    def __init__(self, model: Claiming, images: int, seed: int, batch_size: int) -> None:
        return  # where the number follows from the evaluation, nothing is kept

    def add(self, batch: Batch) -> None:
        """Take in the next images, and their classes if the model has some. Nothing to do where the number follows from
        the evaluation."""
        return

    @abstractmethod
    def measure(self, evaluation: Evaluation) -> Measure | tuple[Measure, ...] | None:
        """The number, or several that are found together; None where there are too few images.

        Arguments:
            evaluation: of all images, as yet without measures.
        """

    def left_out(self) -> str:
        """Why this model has no such number although it has the capability; empty where it has, or the images are too
        few."""
        return ""
