r"""Batch norm as a layer of a flow.

.. math:: y = \frac{x - m}{\sqrt{v + \epsilon}}, \qquad
          \log \frac{\partial y_i}{\partial x_i} = -\tfrac{1}{2} \log (v + \epsilon)

for each channel. In evaluation m and v are running statistics, and the layer is a bijection of each image alone. In
training they are the mean and the variance of the batch: gradients pass through them, and the log-determinant takes
them as given, so that it is that of the batch's images one by one.

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803, section 3.7
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.flows.base import Bijection, per_channel


class RunningMoments(nn.Module):
    """Running means and variances of channels: what both batch norms of a flow keep.

    Variances are those of the batch about its mean, not corrected for its size.

    Arguments:
        channels: of the input.
        momentum: share of a batch in the running statistics.
        eps: epsilon.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move towards the statistics of a batch, ``[C]`` each."""
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


@final
class FlowBatchNorm(Bijection):
    """Batch norm of ``[B, C, ...]`` without gain and offset (module docstring). The inverse takes running statistics.

    Arguments:
        channels: C.
        zeros: values of each channel of each image that are not in the input, but count as zeros in the statistics of
            a batch.
        momentum: share of a batch in the running statistics.
        eps: epsilon.

    Raises:
        ValueError: in training, if there is a single value for each channel.
    """

    def __init__(self, channels: int, zeros: int = 0, momentum: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__()
        self.moments = RunningMoments(channels, momentum, eps)
        self.zeros = zeros

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.training:
            mean, variance = self.moments.running_mean, self.moments.running_var
        else:
            mean, variance = self._of_batch(x)
            self.moments.follow(mean, variance)
        log_scale = per_channel(-0.5 * (variance + self.moments.eps).log(), x)
        return (x - per_channel(mean, x)) * log_scale.exp(), log_scale.expand_as(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = per_channel(0.5 * (self.moments.running_var + self.moments.eps).log(), y)
        return y * log_scale.exp() + per_channel(self.moments.running_mean, y), log_scale.expand_as(y)

    def _of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        zeros = len(x) * self.zeros
        count = x.numel() // x.shape[1] + zeros
        if count == 1:
            raise ValueError("Expected more than 1 value per channel in training, got 1")
        dims = [d for d in range(x.ndim) if d != 1]
        mean = x.sum(dims) / max(count, 1)  # of no values at all: 0, and nothing is normalized
        squares = (x - per_channel(mean, x)).square().sum(dims) + zeros * mean.square()
        return mean, squares / max(count, 1)


@final
class ShiftedBatchNorm(nn.Module):
    """Batch norm with an offset and without a gain, for the networks of a flow, ``[B, C, ...]``.

    Arguments:
        channels: C.
        momentum: share of a batch in the running statistics.
        eps: epsilon.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-4) -> None:
        super().__init__()
        self.moments = RunningMoments(channels, momentum, eps)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x
        moments, gain = self.moments, torch.ones_like(self.bias)
        if not self.training:
            mean, variance = moments.running_mean, moments.running_var
            return F.batch_norm(x, mean, variance, gain, self.bias, eps=moments.eps)
        mean, variance = torch.zeros_like(self.bias), torch.ones_like(self.bias)  # the batch's own, after the call
        y = F.batch_norm(x, mean, variance, gain, self.bias, training=True, momentum=1.0, eps=moments.eps)
        count = x.numel() // x.shape[1]
        moments.follow(mean, variance * ((count - 1) / count))
        return y


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Within it, all batch norms of a flow take their running statistics, and leave them alone."""
    norms = [m for m in module.modules() if isinstance(m, (FlowBatchNorm, ShiftedBatchNorm)) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True
