"""Priors for the top layer of any hierarchy, one file each; a recipe names one under ``model.prior.name``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from davi.config import Named
from davi.priors.autoregressive_1 import Autoregressive1
from davi.priors.autoregressive_flow import AutoregressiveFlow
from davi.priors.base import CommittedRate, FromImages, FromPosteriors, Infer, PriorConfig, TopPrior
from davi.priors.gaussian_mixture import GaussianMixture
from davi.priors.standard_normal import StandardNormal
from davi.priors.vamp import Vamp

PRIORS: dict[str, type[TopPrior]] = {
    prior.name: prior for prior in (StandardNormal, GaussianMixture, Vamp, AutoregressiveFlow, Autoregressive1)
}
"""Name in recipes -> class."""


def prior_configs() -> Mapping[str, type[PriorConfig]]:
    """Name in recipes -> dataclass of the options."""
    return {name: prior.Config for name, prior in PRIORS.items()}


PriorSection = Annotated[PriorConfig, Named(prior_configs)]
"""The options of any of the priors; the key ``name`` says of which."""


def make_prior(shape: tuple[int, ...], images: tuple[int, int, int], config: PriorConfig) -> TopPrior:
    """The prior of a section.

    Arguments:
        shape: of the top layer's latents for one image, ``[C, h, w]``.
        images: (C, H, W) of the images.
        config: the section.
    """
    return PRIORS[config.name](shape, images, config)


__all__ = [
    "PRIORS",
    "CommittedRate",
    "FromImages",
    "FromPosteriors",
    "Infer",
    "PriorConfig",
    "PriorSection",
    "TopPrior",
    "make_prior",
    "prior_configs",
]
