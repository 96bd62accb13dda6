"""Models of two parts in which everything is in play that a run of stages must keep, and the stages that train them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

import torch
from tiny import Logistic
from torch import Generator, Tensor
from toys.boltzmann import Boltzmann, BoltzmannConfig
from toys.halves import HalvesConfig
from toys.persistent import PersistentConfig

from davi.batch import Batch
from davi.evidence import Evidence
from davi.layers.quantizer import VectorQuantizerConfig
from davi.model import CodePriorConfig, Model, Network, Staged, Temperature
from davi.models import VQVAE2
from davi.models.gated_pixelcnn import GatedPixelCNNConfig
from davi.models.pixelsnail import PixelSNAILConfig
from davi.models.vq_vae2 import VQVAE2Config
from davi.objectives import EvidenceConfig
from davi.objectives.vector_quantized import VectorQuantizedConfig
from davi.training import CheckpointConfig, MonitorConfig, TrainingConfig
from davi.training.sections import OptimizerConfig, ScheduleConfig, StepFilterConfig
from davi.training.stages import Stage


@final
class Explained(Model, Staged):
    """Independent pixels with a batch norm, and a Boltzmann machine for where images differ from a draw of them."""

    name = "explained"
    Config = HalvesConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: HalvesConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.pixels = Logistic(shape, levels)
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.errors = Boltzmann(shape, levels, BoltzmannConfig(4))

    def part(self, name: str) -> Network:
        if name not in ("pixels", "errors"):
            raise KeyError(f"got {name}, expected pixels or errors")
        return self.pixels if name == "pixels" else self.errors

    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        if name == "pixels":
            return batch
        assert not self.pixels.training  # what it shows does not depend on the batch
        probability = self.pixels.logits.softmax(0)[1].expand(len(batch.x), *self.shape)
        return batch._replace(x=batch.x.long() ^ torch.bernoulli(probability, generator=generator).long())

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        return self.pixels.evidence(x)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return self.pixels.sample(n, temperature, generator)


def explained() -> Explained:
    """For the images of :func:`tiny.sets`; the initial weights are always the same."""
    return Explained((1, 4, 4), 2, HalvesConfig())


FIRST = TrainingConfig(
    steps=10,  # its last checkpoint makes way for the first one of the second stage
    batch_size=8,
    accumulate=2,
    schedule=ScheduleConfig(warmup_steps=3),
    step_filter=StepFilterConfig(skip_factor=0.9, skip_quantile=0.0, skip_window=4, skip_limit=2),
    ema_decay=0.9,
    validate_every=4,
    checkpoints=CheckpointConfig(minutes=0.0, steps=5, keep=2),
    log_every=4,
    monitor=MonitorConfig(collapse_nats=0.5, plateau_validations=1),
    threads=1,
)
SECOND = replace(
    FIRST,
    steps=8,
    batch_size=14,
    accumulate=7,  # the seventh of a running statistic, seven times, is not quite the whole
    learning_rate=0.1,
    optimizer=OptimizerConfig("sgd", momentum=0.5),
    objective=PersistentConfig(),
)
STAGES = (Stage(FIRST, "first", "pixels"), Stage(SECOND, "second", "errors"))

RECIPE: dict[str, Any] = {
    "model": {"name": "explained"},
    "training": {"steps": 10},
    "stages": [{"name": stage.name, "part": stage.part} for stage in STAGES],
}


def quantized() -> VQVAE2:
    """The same with two layers of codes and their priors."""
    gated = GatedPixelCNNConfig(width=4, layers=1, first_kernel=3, head_width=4)
    snail = PixelSNAILConfig(blocks=1, resnets=0, width=4, key_width=2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return VQVAE2(
            (1, 4, 4),
            2,
            VQVAE2Config(
                width=4,
                residual_width=2,
                blocks=1,
                halvings=1,
                quantizer=VectorQuantizerConfig(codes=4, dims=2),
                prior=CodePriorConfig(snail, gated, embedding=2, width=4, blocks=1),  # type: ignore[arg-type]  # it adds the names
            ),
        )


_AVERAGES = VectorQuantizedConfig(decay=0.5, revive_below=0.2)
CODE_STAGES = (
    Stage(replace(FIRST, objective=_AVERAGES), "codes", "autoencoder"),
    Stage(replace(SECOND, objective=EvidenceConfig("evidence")), "of_them", "prior"),
)
CODES: dict[str, Any] = {
    "model": {"name": "vq_vae2"},
    "training": {"steps": 10},
    "stages": [{"name": stage.name, "part": stage.part} for stage in CODE_STAGES],
}
"""The recipe of these."""
