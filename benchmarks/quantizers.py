"""Our quantizers and those of vector-quantize-pytorch, each in the middle of the same autoencoder.

    pip install vector-quantize-pytorch
    DAVI_DATA=FOLDER python benchmarks/quantizers.py [--set fashion_mnist] [--steps 2000]

All arms begin with the same encoder and decoder and see the same batches, a step of each in turn, so that whatever else
the machine does falls on all alike. What is minimized is the same, too: minus log p(x | z) plus 0.25 times the squared
distance of features from vectors, summed over an image. Of each arm: the reconstruction of test images in bits per
dimension, the perplexity and the share in use of the codes of these images, and steps per second of CPU time (the
median step). ``plain`` starts with vectors drawn from a Normal distribution and revives none; otherwise both start with
k-means and revive vectors that are used a hundred times less than the average. Their default passes gradients by a
rotation in place of straight through; it is an arm of its own.

In seconds, to try it: --steps 3 --test-images 64 --batch-size 8 --width 16 --no-file
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, final

import torch
from common import write
from torch import Tensor, nn

from davi.batch import Batch
from davi.data import DataConfig, Sampler, load
from davi.layers.from_data import set_from_data
from davi.layers.quantizer import (
    Assigned,
    FiniteScalarConfig,
    Quantizer,
    QuantizerConfig,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
    perplexity,
    usage,
)
from davi.models.vq_vae import VQVAEAutoencoder, VQVAEConfig
from davi.objectives import Outcome, Progress, VectorQuantizedConfig, VectorQuantizedObjective
from davi.objectives.bounds import negative_elbo

CODES, DIMS, DEPTH, LEVELS = 512, 64, 2, (8, 8, 8)
COMMITMENT, DECAY, DEAD = 0.25, 0.99, 0.01
FIRST_IMAGES = 256
"""That our k-means sees; theirs sees the first batch."""


@final
class Peer(Quantizer):
    """One of their quantizers, as ours are called.

    Arguments:
        quantizer: theirs.
        dims, books, size: as of every quantizer.
    """

    def __init__(self, quantizer: nn.Module, dims: int, books: int, size: int) -> None:
        super().__init__(dims, books, size)
        self.quantizer = quantizer
        self.loss: Tensor | None = None
        """Theirs of the latest call: a mean over all numbers."""

    def forward(self, features: Tensor) -> Assigned:
        batch, _, height, width = features.shape
        quantized, codes, *loss = self.quantizer(features.flatten(2).transpose(1, 2))
        self.loss = loss[0].sum() if loss else None
        quantized = quantized.transpose(1, 2).view_as(features)
        # Gradients go to the features on the way that they have chosen.
        return Assigned(codes.long().view(batch, height, width, -1).movedim(3, 1), quantized, quantized.detach())

    def embed(self, codes: Tensor) -> Tensor:
        raise TypeError("codes: they are only assigned here")

    def commitment(self, assigned: Assigned) -> Tensor:
        loss = assigned.features.new_zeros(()) if self.loss is None else self.loss
        return (loss * assigned.features[0].numel()).expand(len(assigned.features))


@dataclass(frozen=True)
class Arm:
    """What stands in the middle.

    Arguments:
        ours: options of our quantizer.
        theirs: makes theirs, given the hits per step below which a vector is dead; None: ours.
        revives: dead vectors.
    """

    ours: QuantizerConfig
    theirs: Callable[[float], nn.Module] | None = None
    revives: bool = False


def _theirs(name: str, **options: Any) -> nn.Module:
    """One of their quantizers."""
    # A package that only this comparison needs: who runs it installs it.
    import vector_quantize_pytorch

    made: nn.Module = getattr(vector_quantize_pytorch, name)(**options)
    return made


def _vector(k_means: bool, dead: float, rotation: bool = False) -> nn.Module:
    return _theirs(
        "VectorQuantize",
        dim=DIMS,
        codebook_size=CODES,
        decay=DECAY,
        kmeans_init=k_means,
        threshold_ema_dead_code=dead,
        rotation_trick=rotation,
    )


def _residual(dead: float) -> nn.Module:
    return _theirs(
        "ResidualVQ",
        dim=DIMS,
        num_quantizers=DEPTH,
        codebook_size=CODES,
        decay=DECAY,
        kmeans_init=True,
        threshold_ema_dead_code=dead,
        rotation_trick=False,
    )


PLAIN = VectorQuantizerConfig(codes=CODES, dims=DIMS, initialize="normal")
VECTOR = VectorQuantizerConfig(codes=CODES, dims=DIMS)
RESIDUAL = ResidualQuantizerConfig(codes=CODES, dims=DIMS, depth=DEPTH)
FINITE = FiniteScalarConfig(levels=LEVELS)
ARMS = {
    "vector, plain": Arm(PLAIN),
    "vector, plain: theirs": Arm(PLAIN, lambda dead: _vector(False, 0.0)),
    "vector": Arm(VECTOR, revives=True),
    "vector: theirs": Arm(VECTOR, lambda dead: _vector(True, dead), revives=True),
    "vector, rotation: theirs": Arm(VECTOR, lambda dead: _vector(True, dead, rotation=True), revives=True),
    "residual": Arm(RESIDUAL, revives=True),
    "residual: theirs": Arm(RESIDUAL, _residual, revives=True),
    "finite scalar": Arm(FINITE),
    "finite scalar: theirs": Arm(FINITE, lambda dead: _theirs("FSQ", levels=list(LEVELS))),
}


@dataclass
class Trained:
    """An arm in training.

    Arguments:
        model: with the quantizer of the arm in it.
        arm: the arm.
        options: of the command line.
    """

    model: VQVAEAutoencoder
    arm: Arm
    options: argparse.Namespace
    seconds: list[float] = field(default_factory=list)
    """CPU time of each step."""

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), self.options.learning_rate, fused=True)
        revive_below = DEAD if self.arm.revives else 0.0
        config = VectorQuantizedConfig(commitment=COMMITMENT, decay=DECAY, revive_below=revive_below)
        self.objective = VectorQuantizedObjective(config)
        if self.arm.theirs is None:
            self.objective.begin(self.model, self.options.batch_size)

    def step(self, number: int, x: Tensor) -> None:
        """One step, and its time."""
        began = time.process_time()
        at = Progress(number, 0, number / self.options.steps)
        if self.arm.theirs is None:
            loss = self.objective.loss(self.model, self.model, Batch(x), at).value
        else:
            evidence = self.model(x)
            commitment = self.model.quantizer(0).commitment(evidence.assigned[0]).mean()
            loss = negative_elbo(evidence) + COMMITMENT * commitment
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.arm.theirs is None:
            self.objective.end_step(self.model, at, Outcome(0.0, self.options.steps, lambda: iter(())))
        self.seconds.append(time.process_time() - began)

    @torch.no_grad()
    def measured(self, images: Tensor) -> dict[str, float]:
        """Of test images."""
        self.model.eval()
        quantizer = self.model.quantizer(0)
        counts = torch.zeros(quantizer.books, quantizer.size, dtype=torch.int64)
        nats = 0.0
        for x in images.split(self.options.batch_size):
            evidence = self.model(x)
            nats -= float(evidence.terms["reconstruction"].double().sum())
            codes = evidence.assigned[0].codes.transpose(0, 1).flatten(1)
            counts.scatter_add_(1, codes, torch.ones_like(codes))
        median = statistics.median(self.seconds)
        return {
            "reconstruction_bits_per_dim": nats / (len(images) * self.model.dims * math.log(2.0)),
            "code_bits_per_dim": self.model.uniform_nats() / (self.model.dims * math.log(2.0)),
            "perplexity": float(perplexity(counts).log().mean().exp()),
            "usage": float(usage(counts).mean()),
            "step_cpu_seconds": median,
            "steps_per_cpu_second": 1.0 / median,
        }


def autoencoder(
    config: QuantizerConfig, shape: tuple[int, int, int], levels: int, options: argparse.Namespace
) -> VQVAEAutoencoder:
    """With initial weights that are always the same for a quantizer."""
    torch.manual_seed(options.seed)
    return VQVAEAutoencoder(shape, levels, VQVAEConfig(width=options.width, quantizer=config))


def build(arm: Arm, shape: tuple[int, int, int], levels: int, first: Tensor, options: argparse.Namespace) -> Trained:
    """An arm before its first step.

    Arguments:
        arm: which.
        shape, levels: of the images.
        first: images for k-means.
        options: of the command line.
    """
    model, common = (autoencoder(config, shape, levels, options) for config in (arm.ours, PLAIN))
    own = model.state_dict()
    # Vectors are drawn before encoder and decoder: these would be others with other quantizers.
    alike = {name: x for name, x in common.state_dict().items() if name in own and x.shape == own[name].shape}
    model.load_state_dict({name: x for name, x in alike.items() if "quantizers" not in name}, strict=False)
    if arm.theirs is not None:
        rows, columns = model.grids[0]
        dead = DEAD * options.batch_size * rows * columns / CODES
        quantizer = model.quantizer(0)
        model.quantizers[0] = Peer(arm.theirs(dead), quantizer.dims, quantizer.books, quantizer.size)
    model.train()
    set_from_data(model, lambda: model.codes(first))
    return Trained(model, arm, options)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="fashion_mnist")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sets = load(DataConfig(set=options.set))
    pixels, test = sets.train.pixels, sets.test.pixels[: options.test_images]
    shape: tuple[int, int, int] = tuple(pixels.shape[1:])  # type: ignore[assignment]  # images have three dimensions
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(options.seed))[:FIRST_IMAGES]
    trained = {name: build(ARMS[name], shape, sets.train.levels, pixels[chosen], options) for name in options.arms}
    sampler = Sampler(len(pixels), options.batch_size, options.seed)
    for number in range(options.steps):
        x = pixels[next(sampler)]
        for arm in trained.values():
            arm.step(number, x)
    rows: dict[str, dict[str, Any]] = {name: arm.measured(test) for name, arm in trained.items()}
    for name, row in rows.items():
        print(f"{name:26}", *(f"{key} {value:.4g}" for key, value in row.items()))
    if not options.no_file:
        settings = {name: value for name, value in vars(options).items() if name not in ("arms", "no_file")}
        theirs = {"vector-quantize-pytorch": version("vector-quantize-pytorch")}
        print(write(f"quantizers_{options.set}", {**settings, "peer": theirs, "arms": rows}))


if __name__ == "__main__":
    main()
