"""The options of causal networks as a section of a recipe, in which the name of the network is one of them.

A model's likelihood may name a network (:class:`davi.layers.LikelihoodConfig`), though models come after layers: those
that are made of a causal network enter it here (:func:`davi.layers.causal.register`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from typing import TypeVar

T = TypeVar("T")

CONFIGS: dict[str, type] = {}
"""The dataclass of the options of every causal network, by the name that recipes use."""


def named_configs() -> Mapping[str, type]:
    """The dataclasses with a further field, ``name``."""
    return {name: _named(name, config) for name, config in CONFIGS.items()}


@functools.cache
def _named(name: str, config: type) -> type:
    return make_dataclass(f"Named{config.__name__}", [("name", str, field(default=name))], bases=(config,), frozen=True)


def with_name(config: T) -> T:
    """The same options with the name of the network that they are of.

    Raises:
        ValueError: if they are of no network.
    """
    for name, named in named_configs().items():
        if isinstance(config, named):
            return config
        if type(config) is CONFIGS[name]:
            made: T = named(**{option.name: getattr(config, option.name) for option in fields(CONFIGS[name])})
            return made
    expected = ", ".join(CONFIGS) or "none is known"
    raise ValueError(f"network: got {type(config).__name__}, expected the options of a causal network: {expected}")
