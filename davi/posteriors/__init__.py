"""Posteriors other than a Normal, for the layers of any hierarchy.

Those of constant rate come with a prior, for the top layer; a recipe names one under ``model.constant_rate.name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from davi.config import Named
from davi.posteriors.base import Posterior
from davi.posteriors.constant_rate import ConstantRate, ConstantRateConfig
from davi.posteriors.fixed_normal import FixedNormal
from davi.posteriors.flow import FlowPosterior
from davi.posteriors.von_mises_fisher import VonMisesFisherPosterior

CONSTANT_RATES: dict[str, type[ConstantRate]] = {kind.name: kind for kind in (FixedNormal, VonMisesFisherPosterior)}
"""Name in recipes -> class."""


def constant_rate_configs() -> Mapping[str, type[ConstantRateConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {name: kind.Config for name, kind in CONSTANT_RATES.items()}


ConstantRateSection = Annotated[ConstantRateConfig, Named(constant_rate_configs)]
"""The options of any of the posteriors of constant rate; the key ``name`` says of which."""


def make_constant_rate(shape: tuple[int, ...], config: ConstantRateConfig) -> ConstantRate:
    """Prior and posterior of a section.

    Arguments:
        shape: of the top layer's latents for one image, ``[C, h, w]``.
        config: the section.
    """
    return CONSTANT_RATES[config.name](shape, config)


__all__ = [
    "CONSTANT_RATES",
    "ConstantRate",
    "ConstantRateConfig",
    "ConstantRateSection",
    "FlowPosterior",
    "Posterior",
    "constant_rate_configs",
    "make_constant_rate",
]
