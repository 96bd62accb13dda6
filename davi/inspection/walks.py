"""Latents and distributions of a top-down pass as maps, and the depths that are shown."""

from __future__ import annotations

from torch import Tensor

from davi.distributions import Distribution, WithMean


def pixels_of(likelihood: Distribution) -> Tensor:
    """The picture of p(x | z), ``[B, C, H, W]``: its mean in units of levels (floats) if known, else its mode.

    The mean of a binary pixel is its probability of being 1.
    """
    picture = likelihood.mean() if isinstance(likelihood, WithMean) else likelihood.mode()
    return picture.cpu()


def as_map(x: Tensor) -> Tensor:
    """A map ``[B, C, h, w]`` as it is; anything else ``[B, ...]`` as a map of one pixel, ``[B, C, 1, 1]``."""
    return x if x.ndim == 4 else x.flatten(1)[:, :, None, None]


def depths_of(layers: int, most: int = 12) -> tuple[int, ...]:
    """0 and ``layers`` and what fits between them at equal distances, at most ``most`` numbers altogether."""
    last = min(layers + 1, most) - 1
    return tuple(round(layers * i / last) for i in range(last + 1))
