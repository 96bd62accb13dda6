"""The noise of dequantization, by the names that recipes use: the section ``dequantization`` of a flow's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

from torch import Tensor

from davi.config import Named
from davi.distributions import Distribution
from davi.flows.variational import VariationalNoise, VariationalOptions

Noise = Callable[[Tensor], Distribution]
"""Integer images ``[B, C, H, W]`` -> q(u | x) over ``[B, C, H, W]`` numbers in [0, 1), or more rows and columns."""


@dataclass(frozen=True)
class DequantizationConfig:
    """The section ``dequantization``; each kind of noise has its own options beside ``name``."""

    name: str


@final
@dataclass(frozen=True)
class UniformConfig(DequantizationConfig):
    """Uniform noise: no options."""

    name: Literal["uniform"] = "uniform"


@final
@dataclass(frozen=True)
class VariationalConfig(VariationalOptions, DequantizationConfig):
    __doc__ = VariationalOptions.__doc__

    name: Literal["variational"] = "variational"


def uniform(shape: tuple[int, int, int], levels: int, config: Any) -> Noise | None:
    """Uniform noise, which needs no distribution of its own."""
    return None


_KINDS: dict[str, tuple[type[DequantizationConfig], Callable[[tuple[int, int, int], int, Any], Noise | None]]] = {
    "uniform": (UniformConfig, uniform),
    "variational": (VariationalConfig, VariationalNoise),
}
"""Name in recipes -> dataclass of the options, and what makes the noise for images of a shape and levels."""


def dequantization_configs() -> Mapping[str, type[DequantizationConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {name: config for name, (config, _) in _KINDS.items()}


DequantizationSection = Annotated[DequantizationConfig, Named(dequantization_configs)]
"""The options of any kind of noise; the key ``name`` says of which."""


def make_noise(shape: tuple[int, int, int], levels: int, config: DequantizationConfig) -> Noise | None:
    """The noise of a section; None: uniform.

    Arguments:
        shape: (C, H, W) of the images, padding included.
        levels: values per channel.
        config: the section.
    """
    return _KINDS[config.name][1](shape, levels, config)
