"""Integrals over all latents of a small hierarchy, by a regular grid of noise in place of random draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from davi.distributions import AutoregressiveNormal, Normal
from davi.model import Hierarchy

EDGE = 7.5
"""The standard normal has 6e-14 of its mass beyond this. On analytic integrands the rule's error falls faster than any
power of the spacing."""


def _nodes(variables: int, points: int, edge: float = EDGE) -> tuple[Tensor, Tensor]:
    """Points ``[points ** variables, variables]`` and their log weights under the standard normal."""
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    log_weight = -0.5 * axis.square() - 0.5 * math.log(2.0 * math.pi) + math.log(2.0 * edge / (points - 1))
    grid = torch.cartesian_prod(*[axis] * variables).view(-1, variables)
    return grid, torch.cartesian_prod(*[log_weight] * variables).view(-1, variables).sum(1)


def _instead_of_draws(patch: pytest.MonkeyPatch, grid: Tensor) -> list[int]:
    """Every draw of a Normal, or of Normals one after the other, takes the next columns of the grid as its noise.
    Returns how many each draw has taken."""
    taken: list[int] = []

    def sample(
        self: Normal | AutoregressiveNormal, generator: Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        count = self.shape[1:].numel()
        noise = grid[:, sum(taken) : sum(taken) + count].reshape(-1, *self.shape[1:])
        taken.append(count)
        return self.sample_with(lambda like: noise)

    patch.setattr(Normal, "sample", sample)
    patch.setattr(AutoregressiveNormal, "sample", sample)
    return taken


def from_the_prior(model: Hierarchy, x: Tensor, variables: int, points: int) -> float:
    """p(x) of one image ``[1, C, H, W]``: the integral of p(x | z) under p(z)."""
    grid, log_weights = _nodes(variables, points)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        taken = _instead_of_draws(patch, grid)
        pixels = model.top_down(lambda layer, prior, posterior: prior.sample())  # type: ignore[union-attr]
        log_px = pixels.log_prob(x.expand(len(grid), -1, -1, -1))
    assert sum(taken) == variables
    return float((log_weights + log_px).logsumexp(0).exp())


def from_the_posterior(model: Hierarchy, x: Tensor, variables: int, points: int, edge: float = EDGE) -> float:
    """E_q[p(x, z) / q(z | x)] of one image, with the model's own weights. Where q is narrower than p, weights grow with
    the distance, and the grid's ``edge`` must lie farther out."""
    grid, log_weights = _nodes(variables, points, edge)
    images = x.expand(len(grid), -1, -1, -1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        taken = _instead_of_draws(patch, grid)
        log_ratio = model.elbo(images, model.encode(images)).log_weight
    assert sum(taken) == variables
    assert log_ratio is not None
    return float((log_weights + log_ratio).logsumexp(0).exp())
