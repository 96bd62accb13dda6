"""What every flow promises: a bijection with its determinant, and bounds on integrals of a density over cells.

On images of two values with three levels, whose density can be integrated over the nine cells by quadrature. The
density is made here, of the base and the Jacobian that autograd finds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import toys
from contract import all_images, assert_frequencies, names, place, seeded, small
from torch import Tensor

from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evidence import About, Kind
from davi.model import Invertible

LEVELS, SHAPE = 3, (1, 1, 2)
CUTS = (0.0, 1 / 3, 2 / 3, 1.0)
"""The ends of the cells of three levels: the image (i, j) has the cell [i / 3, (i + 1) / 3) x [j / 3, (j + 1) / 3)."""
FAR = 4.0
"""How far outside of the unit square a density is followed: standard deviations of the toy's are below 0.5."""


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


def of(name: str, shape: tuple[int, int, int]) -> Invertible:
    found = small(name, shape, LEVELS).double()
    assert isinstance(found, Invertible)
    return found


@pytest.fixture(params=names(Invertible))
def model(request: pytest.FixtureRequest) -> Invertible:
    return of(request.param, SHAPE)


def log_determinants(f: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Of the Jacobians of a function of single images, by autograd, ``[B]``."""
    dims = x[0].numel()
    jacobians = torch.func.vmap(torch.func.jacrev(lambda one: f(one[None])[0][0]))(x)
    return torch.linalg.slogdet(jacobians.reshape(len(x), dims, dims)).logabsdet


@torch.no_grad()
def log_density(model: Invertible, y: Tensor) -> Tensor:
    """log p(y), ``[B]``."""
    z, _ = model.bijection(y)
    return model.base(len(y)).log_prob(z) + log_determinants(model.bijection, y)


def nodes(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre quadrature on pieces no longer than one: places and masses."""
    pieces = math.ceil(high - low)
    ends = np.linspace(low, high, pieces + 1)
    at, mass = np.polynomial.legendre.leggauss(20)
    half = (high - low) / pieces / 2
    return torch.tensor(((ends[:-1, None] + half) + half * at).ravel()), torch.tensor(np.tile(half * mass, pieces))


def over_cells(model: Invertible, cuts: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Integrals over all cells of p(y), and means of log p(y), ``[cells]`` both, the second coordinate changing
    first."""
    masses, means = [], []
    for first, second in itertools.product(itertools.pairwise(cuts), repeat=2):
        (a, p), (b, q) = nodes(*first), nodes(*second)
        log_p = log_density(model, torch.cartesian_prod(a, b).view(-1, *SHAPE))
        weight = torch.outer(p, q).flatten()
        masses.append(weight @ log_p.exp())
        means.append(weight @ log_p / weight.sum())
    return torch.stack(masses), torch.stack(means)


@pytest.mark.parametrize("name", names(Invertible))
def test_the_bijection_has_the_determinants_of_its_jacobians(name: str) -> None:
    model = of(name, (1, 2, 2))
    y, *_ = model.dequantization(torch.randint(LEVELS, (5, *model.shape)), seeded(), torch.float64)
    z, there = model.bijection(y)
    again, back = model.bijection.inverse(z)
    assert there.shape == back.shape == y.shape
    # 1e-10: float64, and a few hundred operations
    torch.testing.assert_close(again, y, rtol=0.0, atol=1e-10)
    for log_det, expected in (
        (there, log_determinants(model.bijection, y)),
        (back, log_determinants(model.bijection.inverse, z)),
    ):
        torch.testing.assert_close(log_det.flatten(1).sum(1), expected, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(there, -back, rtol=0.0, atol=1e-10)


def test_probabilities_and_what_lies_outside_sum_to_one(model: Invertible) -> None:
    inside, _ = over_cells(model, CUTS)
    around, _ = over_cells(model, (-FAR, 0.0, 1.0, 1.0 + FAR))
    outside = around.sum() - around[4]  # the fourth of three times three is the unit square
    assert float(inside.sum() + outside) == pytest.approx(1.0, abs=1e-9)
    assert float(inside.sum()) == pytest.approx(float(around[4]), abs=1e-9)
    assert 0.1 < float(outside) < 0.9


def test_evidence_is_a_bound_whose_mean_is_known(model: Invertible) -> None:
    """Its mean over the noise is the mean of log p(y) over the cell, minus log q, which is that of the cell's area."""
    masses, means = over_cells(model, CUTS)
    n = 4000
    x = all_images(model).repeat(n, 1, 1, 1)
    first, other = (model.evidence(x, seeded(seed)) for seed in (5, 6))
    assert (first.kind, first.about) == (Kind.LOWER_BOUND, About.X)
    assert bool((first.log_px != other.log_px).any())
    values = first.log_px.detach().view(n, 9)
    mean, error = values.mean(0), values.std(0) / n**0.5
    assert bool((error < 0.05).all())
    exact = means - 2 * math.log(LEVELS)
    assert bool(((mean - exact).abs() < 5 * error).all())  # 5: nine comparisons
    assert bool((exact < masses.log()).all())


def test_mean_weights_are_the_probabilities(model: Invertible) -> None:
    masses, _ = over_cells(model, CUTS)
    n = 4000
    evidence = model.evidence(all_images(model).repeat(n, 1, 1, 1), seeded())
    assert evidence.log_weight is not None
    assert torch.equal(evidence.log_weight, evidence.log_px)
    weights = evidence.log_weight.detach().exp().view(n, 9)
    assert bool(((weights.mean(0) - masses).abs() < 5 * weights.std(0) / n**0.5).all())
    assert evidence.log_weight_fn is not None
    joint = evidence.log_weight_fn(joint=True)
    torch.testing.assert_close(joint - evidence.log_weight, torch.full_like(joint, 2 * math.log(LEVELS)))


def test_bounds_of_several_draws_lie_between(model: Invertible) -> None:
    masses, means = over_cells(model, CUTS)
    n = 400
    bounds = importance_bound(model, all_images(model).repeat(n, 1, 1, 1), 20, seeded()).view(n, 9)
    mean, error = bounds.mean(0), bounds.std(0) / n**0.5
    assert bool((mean < masses.log() + 5 * error).all())
    assert bool((mean > means - 2 * math.log(LEVELS) - 5 * error).all())
    gap = (masses.log() - means + 2 * math.log(LEVELS)).sum()
    assert float((masses.log() - mean).sum()) < 0.5 * float(gap)  # most of it is closed


def test_draws_fall_into_their_cells(model: Invertible) -> None:
    """What lies outside of the range goes to the cells at its ends."""
    masses, _ = over_cells(model, (-FAR, 1 / 3, 2 / 3, 1.0 + FAR))
    drawn = model.sample(4000, generator=seeded())
    assert_frequencies(place(drawn, LEVELS), masses.log())


def test_at_temperature_zero_the_noise_is_at_its_center(model: Invertible) -> None:
    z = model.base(2).center()
    expected = model.dequantization.quantize(model.bijection.inverse(z)[0])
    assert torch.equal(model.sample(2, temperature=0.0), expected)


def test_encoded_images_come_back(model: Invertible) -> None:
    """The very integers, the first and the last level among them."""
    x = all_images(model)
    latents = model.encode(x)
    assert [tuple(part.shape[1:]) for part in latents] == list(model.latent_shapes)
    assert all(torch.equal(a, b) for a, b in zip(latents, model.encode(x), strict=True))  # nothing is drawn
    assert torch.equal(model.decode(latents), x)
    with pytest.raises(ValueError, match=r"latents: got shapes \[\], expected"):
        model.decode([])
    with pytest.raises(UserError, match="inverse of the flow: got infinite pixels in 9 of 9 images"):
        model.decode([torch.full_like(part, math.nan) for part in latents])
