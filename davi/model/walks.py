"""A hierarchy's own top-down walk, with the first layers answered by the posterior and the others by the prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from davi.distributions import Distribution, Latent
from davi.model.hierarchy import Hierarchy, Step

Take = Callable[[Latent], Tensor]
"""How a latent is made from its distribution: a draw, or the mean."""


def walk(
    model: Hierarchy,
    context: Any,
    images: int,
    depth: int,
    take: Take,
    below: Take | None = None,
    y: Tensor | None = None,
) -> tuple[list[Step], Distribution]:
    """One walk for encoded images.

    Arguments:
        model: the model.
        context: the result of ``model.encode``.
        images: how many were encoded.
        depth: the first so many latents come from the posterior, the others from the prior.
        take: makes a latent.
        below: makes those that come from the prior; ``take`` if None.
        y: classes of the images, ``[images]``, of a model with classes.

    Returns:
        What happened at each layer, and p(x | z).
    """
    steps: list[Step] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is None:
            return take(posterior)
        z = take(posterior) if layer < depth else (below or take)(prior.expand(images))
        steps.append(Step.of(prior, posterior, z))
        return z

    return steps, model.top_down_given(y, choose, context)
