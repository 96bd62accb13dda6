"""The RBM of Gaussian visible units against the mixture of Normals that it is, and quadrature over cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from contract import all_images, seeded
from torch import Tensor

from davi.evidence import Kind
from davi.model import Normalized, Partition
from davi.models.rbm import RBM, RBMConfig

LEVELS, SHAPE, HIDDEN = 4, (1, 1, 2), 3


@pytest.fixture
def model() -> RBM:
    torch.manual_seed(1)
    found = RBM(SHAPE, LEVELS, RBMConfig(HIDDEN, weight_std=1.0, visible="gaussian", conditional_std=0.4)).double()
    with torch.no_grad():
        found.b.normal_()
        found.c.normal_()
    return found.eval()


def normalized(model: RBM) -> Normalized:
    return Normalized(model, Partition(float(model.log_partition()), Kind.EXACT))


@torch.no_grad()
def mixture(model: RBM) -> tuple[Tensor, Tensor, Tensor]:
    """log Z, the log-weights ``[2^H]`` and the means ``[2^H, 2]`` of the mixture over hidden states, by hand.

    The integral over v of e^(b v + c h + v W h - v^2/2) is 2 pi e^(c h + |b + W h|^2 / 2) for two units.
    """
    h = torch.tensor(list(itertools.product((0.0, 1.0), repeat=HIDDEN)), dtype=torch.float64)
    means = model.b.flatten() + h @ model.weight.T
    log_w = h @ model.c + 0.5 * means.square().sum(1) + math.log(2.0 * math.pi)
    return log_w.logsumexp(0), log_w.log_softmax(0), means


def normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x / math.sqrt(2.0))


@torch.no_grad()
def cell_masses(model: RBM) -> Tensor:
    """P(x) of all images: differences of the mixture's distribution functions at the ends of their cells."""
    _, log_w, means = mixture(model)
    mean, std = model.pixels.get_buffer("mean"), model.pixels.get_buffer("std")
    x = all_images(model)
    low, high = (((x + end - mean) / std).flatten(1)[:, None] for end in (0, 1))  # [N, 1, 2]
    return (normal_cdf(high - means) - normal_cdf(low - means)).prod(-1) @ log_w.exp()


def test_log_z_and_densities_are_those_of_the_mixture(model: RBM) -> None:
    log_z, log_w, means = mixture(model)
    assert float(model.log_partition()) == pytest.approx(float(log_z), abs=1e-12)
    v = 3.0 * torch.randn(50, *SHAPE, dtype=torch.float64, generator=seeded())
    squares = (v.flatten(1)[:, None] - means).square().sum(-1)
    log_p = (log_w - 0.5 * squares - math.log(2.0 * math.pi)).logsumexp(1)
    torch.testing.assert_close(-model.state_free_energy(v).detach() - log_z, log_p, rtol=0.0, atol=1e-12)


def test_integers_have_at_most_all_of_the_mass(model: RBM) -> None:
    masses = cell_masses(model)
    assert 0.3 < float(masses.sum()) < 1.0
    # Quadrature of the model's own density over the same cells.
    at, weight = np.polynomial.legendre.leggauss(24)
    u, mass = torch.tensor((at + 1.0) / 2.0), torch.tensor(weight / 2.0)
    places = torch.cartesian_prod(u, u).view(-1, *SHAPE)
    mean, std = model.pixels.get_buffer("mean"), model.pixels.get_buffer("std")
    v = (all_images(model)[:, None] + places - mean) / std  # [16, 24^2, 1, 1, 2]
    with torch.no_grad():
        log_p = -model.state_free_energy(v.flatten(0, 1)) - model.log_partition() + model.log_volume()
        integrals = log_p.exp().view(len(v), -1) @ torch.outer(mass, mass).flatten()
    torch.testing.assert_close(integrals, masses, rtol=0.0, atol=1e-12)


def test_evidence_is_the_mean_log_density_of_a_cell(model: RBM) -> None:
    n = 4000
    with torch.no_grad():
        evidence = normalized(model).evidence(all_images(model).repeat(n, 1, 1, 1), seeded())
    assert evidence.kind is Kind.LOWER_BOUND
    assert evidence.log_weight is not None
    values, masses = evidence.log_px.view(n, -1), cell_masses(model)
    weights = evidence.log_weight.exp().view(n, -1)
    assert bool(((weights.mean(0) - masses).abs() < 5.0 * weights.std(0) / n**0.5).all())
    assert bool((values.mean(0) < masses.log()).all())


@pytest.mark.parametrize(("levels", "bits"), [(256, 9.385860), (32, 6.385860)])
def test_the_constant_of_the_standardization(levels: int, bits: float) -> None:
    """y = (x + u) / n - 1/2 under N(0, 1), for every level once."""
    model = RBM((1, 1, 1), levels, RBMConfig(1, weight_std=0.0, visible="gaussian")).double()
    model.pixels.get_buffer("mean").fill_(levels / 2)
    model.pixels.get_buffer("std").fill_(levels)
    found = normalized(model).bits_per_dim(torch.arange(levels).view(-1, 1, 1, 1).repeat(1000, 1, 1, 1), seeded())
    assert float(found.mean()) == pytest.approx(bits, abs=2e-4)


def test_a_finer_standardization_has_a_larger_constant() -> None:
    """In units half as large the constant grows by log 2 for each pixel, beside the density of states twice as far."""
    x = torch.randint(256, (20, 1, 2, 2), generator=seeded())
    claims = []
    for scale in (1.0, 2.0):
        model = RBM((1, 2, 2), 256, RBMConfig(2, weight_std=0.0, visible="gaussian")).double()
        model.pixels.get_buffer("std").div_(scale)
        v = model.state(x, seeded())
        farther = 0.5 * v.square().flatten(1).sum(1) * (1.0 - scale**-2)
        claims.append(normalized(model).evidence(x, seeded()).log_px + farther - 4 * math.log(scale))
    torch.testing.assert_close(claims[0], claims[1], rtol=0.0, atol=1e-10)


def test_one_image_has_as_many_bits_as_its_noise_is_worth() -> None:
    """A pixel that never changes has a deviation of a 64th of the range: never less than 4 of 256 levels."""
    model = RBM((1, 1, 1), 256, RBMConfig(1, weight_std=0.0, visible="gaussian")).double()
    x = torch.full((100, 1, 1, 1), 93)
    model.initialize(x)
    exact = -0.5 * math.log(2.0 * math.pi) - math.log(4.0)  # the density at its mean
    found = normalized(model).evidence(x, seeded()).log_px.detach()
    assert bool((found <= exact).all())
    assert bool((found > exact - 0.5 * 0.125**2 - 1e-9).all())
