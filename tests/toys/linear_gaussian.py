"""A linear-Gaussian model of one observation: log p(x), the posterior and the best mean-field bound are known."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from davi.distributions import Distribution, Normal
from davi.model import Choose, Hierarchy

# z ~ N(0, I), x = W z + b + N(0, 0.25 I).
W = torch.tensor([[1.0, 0.0], [0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
B = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
X = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
PRECISION = W.T @ W / 0.25 + torch.eye(2, dtype=torch.float64)
POSTERIOR_MEAN = torch.linalg.solve(PRECISION, W.T @ (X - B) / 0.25)
LOG_PX, BEST_MEAN_FIELD, ELBO_AT_PRIOR = -6.7405706680, -6.7412495548, -18.4373740579


@final
class LinearGaussian(Hierarchy):
    """The linear-Gaussian model with two layers of one latent each; the answers of ``posterior`` are plugged in."""

    num_layers = 2

    def __init__(self, posterior: str) -> None:
        super().__init__((3, 1, 1), 2, None)
        self.posterior = posterior

    def encode(self, x: Tensor) -> Tensor:
        return x

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        n = len(context)
        standard = Normal(torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64))
        first = choose(0, standard, self._posterior(0, n, None))
        second = choose(1, standard, self._posterior(1, n, first))
        z = torch.cat([first, second], 1).flatten(1)  # [B, 2]
        return Normal((z @ W.T + B).view(-1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64))

    def _posterior(self, layer: int, n: int, first: Tensor | None) -> Normal:
        mean, scale = torch.zeros(n, 1, 1, 1, dtype=torch.float64), 1.0
        if self.posterior != "prior":
            mean = mean + POSTERIOR_MEAN[layer]
            scale = float(PRECISION[layer, layer]) ** -0.5
        if self.posterior == "exact" and layer == 0:
            scale = float(torch.linalg.inv(PRECISION)[0, 0]) ** 0.5
        if self.posterior == "exact" and first is not None:  # p(z_1 | z_0, x) from the joint precision
            mean = mean - PRECISION[1, 0] / PRECISION[1, 1] * (first - POSTERIOR_MEAN[0])
        return Normal(mean, torch.full_like(mean, scale))


def observed(n: int) -> Tensor:
    return X.view(1, 3, 1, 1).repeat(n, 1, 1, 1)
