"""Batch norm as TensorFlow's programs keep it."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class BiasedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running variance follows the variance of a batch about its mean, which it is normalized with as
    well; PyTorch's follows the one that is corrected for the size of the batch.

    Arguments:
        channels: of the input.
        momentum: share of a batch in the running statistics.
        eps: added to the variance.

    References:
        Batch Normalization, S. Ioffe, C. Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # The batch's own, after the call.
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        count = x.numel() // x.shape[1]
        self._follow(mean, variance * ((count - 1) / count))
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # every batch counts alike
                share = 1.0 / float(self.num_batches_tracked)
        assert share is not None
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def set_momentum(module: nn.Module, momentum: float) -> None:
    """Set the share of a batch in the running statistics of all such batch norms of a module."""
    for part in module.modules():
        if isinstance(part, BiasedBatchNorm2d):
            part.momentum = momentum
