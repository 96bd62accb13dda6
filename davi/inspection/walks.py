"""Latents and distributions of a top-down pass as maps, and the depths that are shown."""

from __future__ import annotations

from torch import Generator, Tensor

from davi.distributions import Distribution, WithMean
from davi.inspection.views import Shown
from davi.layers.autoregressive_pixels import AutoregressivePixels


def pixels_of(likelihood: Distribution) -> Tensor:
    """The picture of p(x | z), ``[B, C, H, W]``: its mean in units of levels (floats) if known, else
    :func:`reconstruction`.

    The mean of a binary pixel is its probability of being 1.
    """
    picture = likelihood.mean() if isinstance(likelihood, WithMean) else reconstruction(likelihood)
    return picture.cpu()


def shown_of(likelihood: Distribution) -> Shown:
    """What :func:`pixels_of` shows."""
    if isinstance(likelihood, WithMean):
        return "means"
    return "draws" if isinstance(likelihood, AutoregressivePixels) else "modes"


def reconstruction(likelihood: Distribution) -> Tensor:
    """Integers that stand for p(x | z), ``[B, C, H, W]``: its mode, or one draw where pixels depend on earlier ones.

    The most probable value of each pixel given those chosen before it is a poor picture then: a stroke begins nowhere,
    since at each single pixel it is less probable than the background.
    """
    if isinstance(likelihood, AutoregressivePixels):
        return likelihood.sample(Generator(likelihood.device).manual_seed(0))
    return likelihood.mode()


def as_map(x: Tensor) -> Tensor:
    """A map ``[B, C, h, w]`` as it is; anything else ``[B, ...]`` as a map of one pixel, ``[B, C, 1, 1]``."""
    return x if x.ndim == 4 else x.flatten(1)[:, :, None, None]
