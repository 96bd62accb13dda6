"""An autoregressive prior over a grid of integers.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

import hashlib
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions import Latent
from davi.distributions.base import Noise
from davi.evidence import Kind
from davi.layers.autoregressive_pixels import AutoregressivePixels


@final
class AutoregressiveCodes(Latent):
    """Codes each of which is predicted from those before it, as the latents of a layer.

    Arguments:
        grid: the distribution of the grid; of one image, or of as many as there are.

    Example:
        >>> from davi.models.gated_pixelcnn import GatedPixelCNNConfig, GatedPixelCNNNetwork
        >>> network = GatedPixelCNNNetwork((1, 4, 4), 16, GatedPixelCNNConfig(width=8, layers=2))
        >>> prior = AutoregressiveCodes(AutoregressivePixels(network, 1)).expand(3)
        >>> prior.sample().shape
        torch.Size([3, 1, 4, 4])
    """

    def __init__(self, grid: AutoregressivePixels) -> None:
        self.grid = grid

    def __repr__(self) -> str:
        return f"AutoregressiveCodes({self.grid!r})"

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.grid.n, *self.grid.network.shape))

    @property
    def kind(self) -> Kind:
        return self.grid.kind

    def expand(self, n: int) -> AutoregressiveCodes:
        grid = self.grid
        if grid.n == n:
            return self
        features = None if grid.features is None else grid.features.expand(n, *grid.features.shape[1:])
        y = None if grid.y is None else grid.y.expand(n)
        return AutoregressiveCodes(AutoregressivePixels(grid.network, n, features, y))

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Of every code given those before it, nats."""
        return self.grid.log_prob_map(x)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return self.grid.sample(generator, temperature)

    def sample_with(self, noise: Noise) -> Tensor:
        """The draw whose generator has the noise as its seed."""
        weight = next(self.grid.network.parameters())
        made = noise(weight.new_zeros(self.shape)).double().cpu().numpy().tobytes()
        seed = int.from_bytes(hashlib.blake2b(made, digest_size=7).digest(), "little")
        generator = Generator(weight.device).manual_seed(seed)
        return self.sample(generator)

    def mode(self) -> Tensor:
        """Each code's most probable value given those chosen before it."""
        return self.grid.mode()

    def center(self) -> Tensor:
        """The same."""
        return self.mode()
