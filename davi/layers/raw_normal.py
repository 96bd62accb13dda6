"""Network outputs that become a Normal distribution once they are bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from davi.distributions import Normal, bounded_normal

_LARGEST_LOG_SCALE = 50.0


@dataclass(frozen=True)
class GaussianOptions:
    """Bounds of a log standard deviation, within +-50, and noise added to it in training (standard deviation; 0: none).

    Wider bounds serve nothing, and e^89 is no number in float32 any more.
    """

    log_scale_low: float = -5.0
    log_scale_high: float = 5.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("log_scale_low", "log_scale_high"):
            if not abs(getattr(self, name)) <= _LARGEST_LOG_SCALE:
                raise ValueError(
                    f"{name}: got {getattr(self, name)}, expected -{_LARGEST_LOG_SCALE:g} to {_LARGEST_LOG_SCALE:g}"
                )
        if not self.log_scale_low < self.log_scale_high:
            raise ValueError(
                f"log_scale_low: got {self.log_scale_low}, expected less than log_scale_high, {self.log_scale_high}"
            )
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: got {self.noise}, expected a number >= 0")


class RawNormal(NamedTuple):
    """Mean and log standard deviation before bounding, ``[B, latent channels, h, w]`` each."""

    mean: Tensor
    log_scale: Tensor

    @classmethod
    def split(cls, outputs: Tensor, noise: float = 0.0) -> RawNormal:
        """From a head's outputs, [mean | log-scale] along the channels; ``noise`` is added to the log-scale."""
        mean, log_scale = outputs.chunk(2, 1)
        if noise:
            log_scale = log_scale + noise * torch.randn_like(log_scale)
        return cls(mean, log_scale)

    def shifted(self, delta: RawNormal) -> RawNormal:
        """Raw parameters of a residual posterior: these plus its own."""
        return RawNormal(self.mean + delta.mean, self.log_scale + delta.log_scale)

    def bounded(self, options: GaussianOptions) -> Normal:
        """The distribution (:func:`davi.distributions.bounded_normal`)."""
        return bounded_normal(self.mean, self.log_scale, options.log_scale_low, options.log_scale_high)
