r"""Draws of a hierarchy's own joint distribution, and what its posteriors say about their latents.

.. math:: z \sim p(z), \quad x \sim p(x \mid z), \qquad
          \log q(z \mid x) = \sum_i \log q(z_i \mid z_{\mathrm{before}\, i}, x)

The posteriors are asked about latents that somebody else has drawn: they must know their density anywhere
(:attr:`davi.distributions.Latent.scores_anywhere`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from davi.distributions import Distribution, Drawn, Latent
from davi.model.hierarchy import Hierarchy


class Joint(NamedTuple):
    r"""Draws of :math:`p(z) p(x \mid z)`.

    Arguments:
        latents: of each layer, the top first, ``[n, ...]``.
        log_pz: :math:`\log p(z)`, ``[n]``, nats.
        x: integer images, ``[n, C, H, W]``.
    """

    latents: tuple[Tensor, ...]
    log_pz: Tensor
    x: Tensor


class Asked(NamedTuple):
    """What a hierarchy's walk for one image offers.

    Arguments:
        priors: of each layer, the top first.
        posteriors: likewise; of latents that are drawn on the way up what they are drawn from.
        early: whether latents are drawn on the way up, before the top layer is inferred.
        pixels: p(x | z).
    """

    priors: list[Latent]
    posteriors: list[Latent]
    early: bool
    pixels: Distribution


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; every module's own mode is restored afterwards. Gradients are computed as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def draw_joint(model: Hierarchy, n: int, generator: Generator | None = None) -> Joint:
    r"""Draw latents from the priors and images from :math:`p(x \mid z)`, without gradients.

    Arguments:
        model: in the mode in which it is to draw.
        n: how many; of a model with classes, one class after the other.
        generator: source of the draws; torch's default when None.
    """
    latents: list[Tensor] = []
    log_pz: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert prior is not None
        own = prior.expand(n)
        z = own.sample(generator)
        latents.append(z)
        log_pz.append(own.log_prob(z))
        return z

    x = model.top_down_given(model.classes_in_turn(n), choose).sample(generator)
    return Joint(tuple(latents), torch.stack(log_pz).sum(0), x)


def posterior_log_prob(model: Hierarchy, x: Tensor, latents: tuple[Tensor, ...]) -> Tensor:
    r""":math:`\log q(z \mid x)` of given latents, ``[n]``, nats; its gradient is that of the posteriors, with latents
    and images held fixed.

    Arguments:
        model: all of whose posteriors know their density anywhere.
        x: integer images, ``[n, C, H, W]``.
        latents: of each layer, the top first, ``[n, ...]``.
    """
    log_qz: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is not None:  # else it is asked for once more, when its turn comes
            log_qz.append(posterior.log_prob(latents[layer]))
        return latents[layer]

    model.top_down(choose, model.encode(x))
    return torch.stack(log_qz).sum(0)


@torch.no_grad()
def ask(model: Hierarchy, x: Tensor | None = None) -> Asked:
    """The distributions of a walk at the centers of the posteriors, in eval mode. Nothing is drawn or moved.

    Arguments:
        model: the model.
        x: integer images, ``[B, C, H, W]``; by default one of zeros.
    """
    priors: list[Latent] = []
    posteriors: list[Latent] = []
    early = False

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal early
        assert posterior is not None
        if prior is None:
            early = True
        else:
            priors.append(prior)
            posteriors.append(posterior.posterior if isinstance(posterior, Drawn) else posterior)
        return posterior.center()

    if x is None:
        device = next(model.parameters()).device
        x = torch.zeros(1, *model.shape, dtype=torch.uint8, device=device)
    with evaluating(model):
        pixels = model.top_down_given(model.classes_in_turn(len(x)), choose, model.encode(x))
    return Asked(priors, posteriors, early, pixels)
