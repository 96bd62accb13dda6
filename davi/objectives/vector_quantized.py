r"""Minus the evidence of a quantized autoencoder, plus what keeps features and the vectors of their codes together.

With :math:`f_l` the features of layer l and :math:`e_l` the vectors of their codes, the mean over images of

.. math:: -\log p(x \mid z) - \sum_l \log p(z_l) + \beta \sum_l \|f_l - \mathrm{sg}(e_l)\|^2
          \; \Bigl[ + \sum_l \|\mathrm{sg}(f_l) - e_l\|^2 \Bigr]

Squares are summed over channels and positions: the unit is that of nats, whatever the size of a map. The last term is
there for vectors that are learned by gradient. Others are moving averages (:mod:`davi.objectives.vector_averages`),
which move after the step of the optimizer by what was assigned before it.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.layers.quantizer import Codebook, Quantizer
from davi.model import Network
from davi.model.quantized import CodeAutoencoder, QuantizedEvidence
from davi.objectives.base import Loss, Objective, ObjectiveConfig, Outcome, Progress
from davi.objectives.bounds import negative_elbo
from davi.objectives.code_usage import CodeUsage
from davi.objectives.vector_averages import AverageOptions, Place, VectorAverages


@dataclass(frozen=True)
class VectorQuantizedConfig(ObjectiveConfig):
    """Commitment, and how vectors follow what they replace.

    Arguments:
        name: ``vector_quantized``.
        commitment: beta.
        decay: gamma of the moving averages; 0: vectors are the means of what they replace in one batch.
        debias: averages without bias, as in Sonnet: a vector that has replaced nothing becomes 0. Otherwise it stays
            what it is.
        smoothing: epsilon, added to the counts of the averages.
        revive_below: a vector whose count is below this share of the mean count is dead, and is replaced by one of the
            batch; 0: none is.
    """

    name: Literal["vector_quantized"] = "vector_quantized"
    commitment: float = 0.25
    decay: float = 0.99
    debias: bool = False
    smoothing: float = 0.0
    revive_below: float = 0.0

    def __post_init__(self) -> None:
        for name in ("commitment", "smoothing"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a number >= 0")
        for name in ("decay", "revive_below"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected from 0 to below 1")
        if self.debias and self.revive_below:
            raise ValueError(f"revive_below: got {self.revive_below} with debias, expected 0")

    def averages(self) -> AverageOptions:
        """How averages are kept."""
        return AverageOptions(self.decay, self.debias, self.smoothing, self.revive_below)


@final
class VectorQuantizedObjective(Objective):
    """See the module docstring. It reports the perplexity of the codes and the share in use of every layer, over a pass
    over the training images, as ``code_perplexity/00`` and ``code_usage/00`` and so on, the top layer first."""

    name: ClassVar[str] = "vector_quantized"
    Config: ClassVar[type[ObjectiveConfig]] = VectorQuantizedConfig
    wants: ClassVar[type] = CodeAutoencoder
    config: VectorQuantizedConfig

    def begin(self, model: Network, batch_size: int) -> None:
        assert isinstance(model, CodeAutoencoder)
        self.batch_size = batch_size
        self.usage = [CodeUsage(quantizer) for quantizer in _quantizers(model)]
        self.averages: list[VectorAverages | None] = []
        options = self.config.averages()
        for quantizer, (height, width) in zip(_quantizers(model), model.grids, strict=True):
            positions = batch_size * height * width
            own = VectorAverages(quantizer, options, positions) if isinstance(quantizer, Codebook) else None
            self.averages.append(own)

    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        evidence: QuantizedEvidence = network(batch.x)
        with torch.autocast(batch.x.device.type, enabled=False):
            value = negative_elbo(evidence)
            place = Place(batch.start, len(batch.x), self.batch_size)
            layers = zip(_quantizers(model), evidence.assigned, self.usage, self.averages, strict=True)
            for quantizer, assigned, usage, averages in layers:
                value = value + self.config.commitment * quantizer.commitment(assigned).mean()
                usage.add(assigned.codes)
                if isinstance(quantizer, Codebook):
                    if quantizer.has_gradient:
                        value = value + quantizer.distortion(assigned).mean()
                    assert averages is not None
                    averages.add(quantizer, assigned, place)
        return Loss(value, evidence.terms, evidence.kind, evidence.no_divergence)

    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        assert isinstance(model, CodeAutoencoder)
        evidence = model.evidence(batch.x, generator)
        return Loss(-evidence.log_px.mean(), evidence.terms, evidence.kind, evidence.no_divergence)

    def end_step(self, model: Network, at: Progress, outcome: Outcome) -> None:
        epoch = (at.step + 1) // outcome.batches_per_epoch
        for quantizer, usage, averages in zip(_quantizers(model), self.usage, self.averages, strict=True):
            usage.end_step(quantizer, epoch)
            if averages is not None:
                assert isinstance(quantizer, Codebook)
                averages.end_step(quantizer)

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        numbered = enumerate(self.usage)
        return {f"{name}/{layer:02d}": value for layer, own in numbered for name, value in own.reports().items()}

    def state(self) -> dict[str, Tensor]:
        return {f"{layer:02d}/{name}": x for layer, part in self._parts() for name, x in part.state().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for layer, part in self._parts():
            part.load_state({name: tensors[f"{layer:02d}/{name}"] for name in part.state()})

    def _parts(self) -> list[tuple[int, CodeUsage | VectorAverages]]:
        """Whatever has a state, with the number of its layer."""
        pairs = enumerate(zip(self.usage, self.averages, strict=True))
        return [(layer, part) for layer, both in pairs for part in both if part is not None]


def _quantizers(model: Network) -> list[Quantizer]:
    assert isinstance(model, CodeAutoencoder)
    return [model.quantizer(layer) for layer in range(len(model.quantizers))]
