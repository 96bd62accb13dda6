r"""A convolution whose outputs have mean 0 and a chosen standard deviation over the first images.

With y = W * x, and its mean and variance over the first images and all positions, for each output channel

.. math:: W \leftarrow k W, \qquad b \leftarrow -k\,\mathrm{mean}(y), \qquad k = s / \sqrt{\mathrm{Var}(y) + 10^{-8}}

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, J. Ho,
    X. Chen, A. Srinivas, Y. Duan, P. Abbeel, ICML 2019, https://arxiv.org/abs/1902.00275

    Weight Normalization, T. Salimans, D. P. Kingma, NeurIPS 2016, https://arxiv.org/abs/1602.07868
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.from_data import SetFromData

EPSILON = 1e-8
"""Beside the variance."""
CONSTANT = 1e-12
"""Outputs whose variance is less are constant but for rounding, and have no scale that could be normalized."""


def normalizing(mean: Tensor, variance: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """k and b with k x + b of mean 0 and standard deviation ``scale``; 1 and 0 where x is constant."""
    varies = variance > CONSTANT
    factor = torch.where(varies, scale * (variance + EPSILON).rsqrt(), 1.0)
    return factor, torch.where(varies, -mean * factor, 0.0)


@final
class DataConv2d(SetFromData):
    """A convolution with a bias that keeps the size of maps, set from data (module docstring).

    Before that, weights are Normal and give outputs of standard deviation s for inputs of variance 1.

    Arguments:
        inputs, outputs: channels.
        kernel: odd.
        scale: s.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = scale
        nn.init.normal_(self.weight, std=scale / self.weight[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding="same")

    @torch.no_grad()
    def set_from(self, x: Tensor) -> None:
        y = F.conv2d(x, self.weight, padding="same").to(self.bias.dtype)
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        factor, bias = normalizing(mean, variance, self.scale)
        self.weight.mul_(factor[:, None, None, None])
        self.bias.copy_(bias)
