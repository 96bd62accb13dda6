"""Small models and image sets that the tests of training and of run folders share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Generator, Tensor, nn

from davi.data import DataSets, Images
from davi.evidence import Evidence, Kind
from davi.layers import LikelihoodConfig
from davi.layers.depth_attention import DepthWiseAttention
from davi.model import Model, Temperature
from davi.models import AttentiveVAE
from davi.models.attentive_vae import AttentiveVAEConfig

RECIPE: dict[str, Any] = {"model": {"name": "tiny"}, "training": {"steps": 12}}


def sets(n: int = 40, binarization: str = "dynamic", flip: str = "horizontal", size: int = 4) -> DataSets:
    """Random images [1, size, size]: ``n`` to train on, 12 in the other sets, which are binary if training is drawn."""
    generator = torch.Generator().manual_seed(7)

    def images(count: int, levels: int, name: str) -> Images:
        pixels = torch.randint(levels, (count, 1, size, size), generator=generator, dtype=torch.uint8)
        return Images(pixels, levels, name)

    levels = 2 if binarization == "dynamic" else 16
    protocol = {"set": "random", "binarization": binarization, "flip": flip}
    return DataSets(
        images(n, 16, "r/train"), images(12, levels, "r/validation"), images(12, levels, "r/test"), protocol
    )


def vae(levels: int = 2, size: int = 4, width: int = 4, reversible: bool = False) -> AttentiveVAE:
    """A Deep Attentive VAE of two layers, with batch norms, both attentions, and initial weights always the same."""
    config = AttentiveVAEConfig(
        layers=(2,),
        latent_channels=2,
        width=width,
        preprocess=(0,),
        postprocess=(0,),
        encoder_blocks=1,
        decoder_blocks=1,
        nodes=1,
        reversible=reversible,
        generative_attention=DepthWiseAttention(2),
        inference_attention=DepthWiseAttention(2),
        likelihood=LikelihoodConfig("bernoulli" if levels == 2 else "logistic_mixture", 2),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AttentiveVAE((1, size, size), levels, config)


@final
class Logistic(Model):
    """Independent pixels and a mock divergence: no draws, so losses can be predicted; one batch norm that only watches.

    ``faults`` makes chosen calls go wrong: number of the call -> factor on the images' log-probability.
    """

    name: ClassVar[str] = "logistic"

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, shape: tuple[int, int, int], levels: int) -> None:
        super().__init__(shape, levels, Logistic.Config())
        self.logits = nn.Parameter(torch.linspace(-0.3, 0.3, levels * self.dims).view(levels, *shape))
        self.gate = nn.Parameter(torch.tensor(0.5))
        self.norm = nn.BatchNorm2d(shape[0])
        self.calls = 0
        self.faults: dict[int, float] = {}

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        self.norm(x.to(self.logits.dtype) * self.faults.get(self.calls, 1.0))  # its running statistics move
        log_p = (self.logits * (1 + self.gate)).log_softmax(0)  # [levels, C, H, W]
        one_hot = nn.functional.one_hot(x.long(), self.levels).movedim(-1, 1)  # [B, levels, C, H, W]
        term = (one_hot * log_p).flatten(1).sum(1) * self.faults.get(self.calls, 1.0)
        self.calls += 1
        return Evidence({"reconstruction": term, "kl/00": -self.gate.square().expand(len(x))}, Kind.LOWER_BOUND)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        probabilities = self.logits.softmax(0).flatten(1).T
        drawn = torch.multinomial(probabilities, n, replacement=True, generator=generator)  # [dims, n]
        return drawn.T.reshape(n, *self.shape)


def same_files(first: Path, second: Path) -> bool:
    """Whether two folders hold the same bytes in safetensors files of the same names."""
    names = sorted(path.relative_to(first) for path in first.rglob("*.safetensors"))
    if names != sorted(path.relative_to(second) for path in second.rglob("*.safetensors")):
        return False
    return bool(names) and all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
