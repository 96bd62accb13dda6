"""Posteriors that are more than a Normal, and what a walk does with them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from davi.distributions import Drawn, Latent, Normal, TransformedNormal

ROUNDING = 1e-12


def normal(mean: float, scale: float, shape: tuple[int, ...] = (1, 3)) -> Normal:
    return Normal(torch.full(shape, mean, dtype=torch.float64), torch.full(shape, scale, dtype=torch.float64))


class Laplace(Latent):
    """Density only: the divergence needs no more."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size((1, 2))

    def center(self) -> Tensor:
        return torch.zeros(1, 2, dtype=torch.float64)

    def expand(self, n: int) -> Laplace:
        return self

    def log_prob_map(self, x: Tensor) -> Tensor:
        return -x.abs() - math.log(2.0)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        raise AssertionError("the draw was made already")

    mode = sample
    sample_with = sample  # type: ignore[assignment]  # nor is it made of noise


def test_divergence_without_a_closed_form_is_that_of_the_draw() -> None:
    z = torch.tensor([[0.5, -2.0]], dtype=torch.float64)
    expected = -z.abs() - math.log(2.0) + 0.5 * z.square() + 0.5 * math.log(2.0 * math.pi)
    prior = normal(0.0, 1.0, (1, 2))
    torch.testing.assert_close(Laplace().kl_map(prior, z)[0], expected, rtol=ROUNDING, atol=0.0)
    assert torch.equal(prior.kl_map(prior, z)[0], torch.zeros_like(z))


def test_affine_flow_of_a_normal_is_the_normal_it_should_be() -> None:
    """z = 3 z0 - 1 has log-determinant log 3 and, for z0 ~ N(2, 1/2), the law N(5, 3/2)."""
    flow = TransformedNormal(normal(2.0, 0.5), lambda z: (3.0 * z - 1.0, torch.full_like(z, math.log(3.0))))
    z = flow.sample(Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob_map(z), normal(5.0, 1.5).log_prob_map(z), rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(flow.center(), torch.full((1, 3), 5.0, dtype=torch.float64))


def test_flow_knows_its_own_draws_only() -> None:
    flow = TransformedNormal(normal(0.0, 1.0), lambda z: (z.exp(), z))
    first, second = flow.sample(), flow.sample()
    for z in (first, second):
        log_normal = -0.5 * z.log().square() - z.log() - 0.5 * math.log(2.0 * math.pi)  # the formula of its density
        torch.testing.assert_close(flow.log_prob_map(z), log_normal, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="did not draw"):
        flow.log_prob_map(first.clone())


def test_drawn_offers_its_draw_and_the_mean_it_was_drawn_around() -> None:
    q = normal(1.0, 2.0)
    z = q.sample(Generator().manual_seed(1))
    drawn, prior = Drawn(q, z), normal(0.0, 1.0)
    assert drawn.sample() is z
    assert torch.equal(drawn.center(), q.mean)
    expected = q.log_prob_map(z) - prior.log_prob_map(z)
    torch.testing.assert_close(drawn.kl_map(prior, z)[0], expected, rtol=0.0, atol=0.0)
