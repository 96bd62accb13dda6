"""Small quantized models and images for tests of what users see of codes."""

from __future__ import annotations

from dataclasses import replace

import torch

from davi.data import Images
from davi.layers import LikelihoodConfig
from davi.layers.quantizer import VectorQuantizerConfig
from davi.model import CodePriorConfig, Quantized
from davi.models.gated_pixelcnn import GatedPixelCNNConfig
from davi.models.vq_vae import VQVAE, VQVAEConfig
from davi.models.vq_vae2 import VQVAE2, VQVAE2Config

LEVELS, SHAPE = 17, (1, 8, 8)

_NETWORK = replace(GatedPixelCNNConfig(), width=4, layers=2, first_kernel=3, head_width=8)
_PRIOR = CodePriorConfig(top=_NETWORK, below=None, embedding=3, width=4, blocks=1)  # type: ignore[arg-type]
_PRIORS = replace(_PRIOR, below=_NETWORK)  # type: ignore[arg-type]


def images(n: int, name: str = "digits/test", seed: int = 0) -> Images:
    """Random ones."""
    generator = torch.Generator().manual_seed(seed)
    return Images(torch.randint(LEVELS, (n, *SHAPE), generator=generator, dtype=torch.uint8), LEVELS, name)


def coded(layers: int = 1, trained: bool = False, codes: int = 6, books: int = 1) -> Quantized:
    """A model with random weights and frequencies, and vectors that fit random images."""
    quantizer = VectorQuantizerConfig(codes=codes, dims=4, books=books)
    likelihood = LikelihoodConfig("categorical")
    model: Quantized
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if layers == 1:
            one = VQVAEConfig(
                width=8, residual_width=4, blocks=1, quantizer=quantizer, likelihood=likelihood, prior=_PRIOR
            )
            model = VQVAE(SHAPE, LEVELS, one)
        else:
            several = VQVAE2Config(
                layers=layers,
                width=8,
                residual_width=4,
                blocks=1,
                halvings=1,
                quantizer=quantizer,
                likelihood=likelihood,
                prior=_PRIORS,
            )
            model = VQVAE2(SHAPE, LEVELS, several)
        model.autoencoder.initialize(images(64, seed=1).pixels)
        for layer in range(layers):
            model.autoencoder.quantizer(layer).frequencies.uniform_(0.1, 1.0)
    if trained:
        model.begin_part("prior")
    return model.eval()
