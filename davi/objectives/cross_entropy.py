r"""Cross entropy: what a classifier is trained with.

.. math:: -\frac 1B \sum_b \sum_c t_{bc} \log p(c \mid x_b), \qquad
          t_{bc} = (1 - \epsilon) [c = y_b] + \frac{\epsilon}{\text{classes}}

in nats, with label smoothing :math:`\epsilon`, 0 unless asked for. What is validated is :math:`-\log p(y \mid x)`
itself, without smoothing.

Reference:
    Rethinking the Inception Architecture for Computer Vision, C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna,
    CVPR 2016, https://arxiv.org/abs/1512.00567 (section 7: label smoothing)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.distributions.base import at_least_float32
from davi.model import Classifier, Network
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Progress

ERROR = "error_rate"
"""Name of the one term: 1 for an image whose most probable class is another than its own, else 0."""


@dataclass(frozen=True)
class CrossEntropyConfig(ObjectiveConfig):
    """
    Arguments:
        name: ``cross_entropy``.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}, expected 0 to below 1")


@final
class CrossEntropyObjective(Objective):
    """Cross entropy, nats per image (module docstring)."""

    name: ClassVar[str] = "cross_entropy"
    Config: ClassVar[type[ObjectiveConfig]] = CrossEntropyConfig
    wants: ClassVar[type] = Classifier
    unit: ClassVar[str] = "nats"
    config: CrossEntropyConfig

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        assert batch.y is not None
        return _of(network(batch.x), batch.y, self.config.label_smoothing)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        assert batch.y is not None
        return _of(model(batch.x), batch.y, 0.0)


def _of(logits: Tensor, y: Tensor, smoothing: float) -> Loss:
    with torch.autocast(logits.device.type, enabled=False):
        value = F.cross_entropy(at_least_float32(logits), y, label_smoothing=smoothing)
    wrong = (logits.detach().argmax(1) != y).float()
    return Loss(value, {ERROR: wrong}, None)
