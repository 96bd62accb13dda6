r"""Integer images as standardized numbers.

.. math:: \frac{x / (L - 1) - \mu_c}{\sigma_c}

with L levels, and mean and standard deviation of each channel c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from davi.errors import OptionError


@final
class Standardize(nn.Module):
    """Standardizes integer images (module docstring).

    Arguments:
        channels: C.
        levels: L.
        mean, std: of each channel, in units of the whole range (0 to 1); None: those of the training images, taken by
            :meth:`fit`, and 0 and 1 until then.

    Raises:
        OptionError: if their number is not that of the channels, or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int, levels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise OptionError(name, f"got {len(values)} numbers, expected {channels}: one for each channel")
        if std is not None and not min(std) > 0:
            raise OptionError("std", f"got {list(std)}, expected positive numbers")
        self.levels = levels
        self.given = (mean is not None, std is not None)
        self.register_buffer("mean", torch.tensor(mean or [0.0] * channels, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std or [1.0] * channels, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.mean.dtype
        return (x.to(dtype) / (self.levels - 1) - self.mean[:, None, None]) / self.std[:, None, None]

    def inverse(self, h: Tensor) -> Tensor:
        """Standardized numbers in units of levels: floats, as integer images only after rounding."""
        return (h * self.std[:, None, None] + self.mean[:, None, None]) * (self.levels - 1)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take what was not given from integer images ``[N, C, H, W]``. A channel that never changes is not divided."""
        values = images.double() / (self.levels - 1)
        spread = values.std((0, 2, 3), correction=0)
        if not self.given[0]:
            self.mean.copy_(values.mean((0, 2, 3)))
        if not self.given[1]:
            self.std.copy_(torch.where(spread > 0, spread, 1.0))
