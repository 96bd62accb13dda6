"""The standard Normal prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from davi.distributions import Latent, Normal
from davi.priors.base import Infer, PriorConfig, TopPrior


@final
@dataclass(frozen=True)
class StandardNormalConfig(PriorConfig):
    """Options of the standard Normal prior: none."""

    name: Literal["standard_normal"] = "standard_normal"


@final
class StandardNormal(TopPrior):
    """Independent Normal variables with mean 0 and variance 1."""

    name: ClassVar[str] = "standard_normal"
    Config: ClassVar[type[PriorConfig]] = StandardNormalConfig
    zero: Tensor

    def __init__(self, shape: tuple[int, ...], images: tuple[int, int, int], config: Any) -> None:
        super().__init__(shape, images, config)
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    def forward(self, infer: Infer) -> Latent:
        return Normal(self.zero, torch.ones_like(self.zero))
