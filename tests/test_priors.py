"""Priors of the top layer: every one is a density that its draws follow, whatever its weights.

Everything is in float64. Draws are compared with integrals over a grid of the plane within 5 standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from contract import seeded
from torch import Tensor, nn

from davi.distributions import AR1, Latent, Normal, NormalMixture
from davi.priors import PRIORS, CommittedRate, PriorConfig, TopPrior, make_prior
from davi.priors.autoregressive_1 import Autoregressive1Config
from davi.priors.autoregressive_flow import AutoregressiveFlowConfig
from davi.priors.gaussian_mixture import GaussianMixtureConfig
from davi.priors.standard_normal import StandardNormalConfig
from davi.priors.vamp import Vamp, VampConfig

IMAGES = (1, 2, 2)
VECTOR, ROW = (2, 1, 1), (1, 1, 2)


class Encoder(nn.Module):
    """The posterior of the top layer for a prior that is made of it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(math.prod(IMAGES), 2 * math.prod(shape), dtype=torch.float64)

    def forward(self, pixels: Tensor) -> Normal:
        mean, log_scale = self.linear(4.0 * pixels.flatten(1)).chunk(2, 1)
        return Normal(mean.reshape(-1, *self.shape), (0.3 * log_scale).exp().reshape(-1, *self.shape))


@dataclass(frozen=True)
class Case:
    config: PriorConfig
    shape: tuple[int, int, int] = VECTOR

    def build(self) -> tuple[TopPrior, Latent]:
        """The prior with weights that are neutral nowhere, and its distribution."""
        prior = make_prior(self.shape, IMAGES, self.config).double()
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return prior, prior(Encoder(self.shape))


CASES = [
    Case(StandardNormalConfig()),
    Case(GaussianMixtureConfig(components=3)),
    Case(GaussianMixtureConfig(components=3), ROW),
    Case(GaussianMixtureConfig(components=3, per_position=True), ROW),
    Case(VampConfig(components=3)),
    Case(AutoregressiveFlowConfig(width=8)),
    Case(AutoregressiveFlowConfig(width=8), ROW),
    Case(Autoregressive1Config(alpha=0.8)),
    Case(Autoregressive1Config(alpha=0.8), ROW),
]
every_prior = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.config.name} {case.shape}")


def plane(shape: tuple[int, ...], points: int = 200, edge: float = 12.0) -> tuple[Tensor, float]:
    """Midpoints of cells, ``[points ** 2, *shape]``, and the area of one."""
    step = 2.0 * edge / points
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) * step - edge
    return torch.cartesian_prod(axis, axis).reshape(-1, *shape), step**2


def test_no_prior_is_left_out() -> None:
    assert {case.config.name for case in CASES} == set(PRIORS)
    assert all(name == prior.name == prior.Config(name).name for name, prior in PRIORS.items())


@every_prior
@torch.no_grad()
def test_the_density_integrates_to_one(case: Case) -> None:
    points, area = plane(case.shape)
    log_p = case.build()[1].expand(len(points)).log_prob(points)
    # 1e-6: the midpoint rule of smooth functions of which nothing is left at the edges; gates have kinks.
    assert area * float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-6)


def _moments(z: Tensor) -> Tensor:
    """Means, squares, and what tells that the variables depend on each other, ``[n, 6]``."""
    a, b = z.flatten(1).unbind(1)
    return torch.stack([a, b, a * a, b * b, a * b, torch.cos(a - 2.0 * b)], 1)


@pytest.mark.parametrize("how", ["sample", "sample_with"])
@every_prior
@torch.no_grad()
def test_draws_follow_the_density(case: Case, how: str) -> None:
    points, area = plane(case.shape)
    latent = case.build()[1]
    weights = area * latent.expand(len(points)).log_prob(points).exp()
    many, generator = latent.expand(10_000), seeded()
    if how == "sample":
        z = many.sample(generator)
    else:
        z = many.sample_with(lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype))
    found, expected = _moments(z), weights @ _moments(points)
    assert bool(((found.mean(0) - expected).abs() < 5.0 * found.std(0) / len(found) ** 0.5).all())


@every_prior
@torch.no_grad()
def test_images_have_densities_of_their_own(case: Case) -> None:
    """Each variable has a share, and no image knows of the others; a batch of one is repeated."""
    latent, z = case.build()[1], torch.randn(3, *case.shape, dtype=torch.float64)
    assert latent.shape == (1, *case.shape)
    together = latent.expand(3)
    assert together.shape == z.shape == together.sample(seeded()).shape == together.mode().shape
    log_p = together.log_prob_map(z)
    assert log_p.shape == z.shape
    assert log_p.dtype == together.sample(seeded()).dtype == torch.float64
    for i in range(3):
        torch.testing.assert_close(latent.log_prob_map(z[i : i + 1])[0], log_p[i], rtol=1e-12, atol=1e-12)
    assert repr(together).startswith(type(latent).__name__)


@every_prior
@torch.no_grad()
def test_temperature_zero_and_no_noise(case: Case) -> None:
    """The draw without noise is the center; at temperature zero a mixture still chooses among its components."""
    latent = case.build()[1].expand(200)
    center = latent.center()
    assert torch.equal(latent.sample_with(torch.zeros_like), center)
    cold = latent.sample(seeded(), 0.0)
    if not isinstance(latent, NormalMixture):
        assert torch.equal(cold, center)
        return
    found = {tuple(z.flatten().tolist()) for z in cold}
    groups = latent.log_weights.shape[2:].numel()
    assert len(found) == 3**groups  # all components, in each group
    assert tuple(center[0].flatten().tolist()) in found
    assert tuple(latent.mode()[0].flatten().tolist()) in found


@every_prior
def test_gradients_reach_every_weight(case: Case) -> None:
    prior, latent = case.build()
    log_p = latent.log_prob(torch.randn(1, *case.shape, dtype=torch.float64)).sum()
    if list(prior.parameters()):
        log_p.backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("per_position", [False, True])
@torch.no_grad()
def test_a_mixture_is_that_of_torch(per_position: bool) -> None:
    shape = (2, 2, 1)
    case = Case(GaussianMixtureConfig(components=4, per_position=per_position), shape)
    prior, latent = case.build()
    z = torch.randn(5, *shape, dtype=torch.float64)
    weights = dict(prior.named_parameters())
    logits, mean, scale = weights["logits"], weights["mean"], weights["log_scale"].exp()
    total = torch.zeros(5, dtype=torch.float64)
    for row in [slice(i, i + 1) for i in range(2)] if per_position else [slice(None)]:
        components = torch.distributions.Independent(
            torch.distributions.Normal(mean[:, :, row].flatten(1), scale[:, :, row].flatten(1)), 1
        )
        own = logits[:, 0, row if per_position else slice(None)].flatten()
        choice = torch.distributions.Categorical(logits=own)
        total += torch.distributions.MixtureSameFamily(choice, components).log_prob(z[:, :, row].flatten(1))
    shares = latent.expand(5).log_prob_map(z)
    torch.testing.assert_close(shares.flatten(1).sum(1), total, rtol=1e-12, atol=1e-12)
    same = shares[:, :1] if per_position else shares[:, :1, :1]
    assert torch.equal(shares, same.expand_as(shares))  # equal ones


@torch.no_grad()
def test_a_mixture_begins_near_the_standard_normal() -> None:
    torch.manual_seed(1)
    prior = make_prior((50, 1, 1), IMAGES, GaussianMixtureConfig(components=500))
    z = prior(Encoder((50, 1, 1))).expand(4000).sample(seeded()).flatten(1)
    # Over 50 variables, of 500 components: the error of a variance is 0.03, that of their mean 0.006.
    assert float(z.var(0).mean()) == pytest.approx(1.0, abs=0.03)
    assert float(z.mean(0).abs().max()) < 0.2


@torch.no_grad()
def test_a_vamp_prior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs() -> None:
    shape = (3, 1, 2)
    prior = make_prior(shape, IMAGES, VampConfig(components=4)).double()
    assert isinstance(prior, Vamp)
    encoder, z = Encoder(shape), torch.randn(5, *shape, dtype=torch.float64)
    images = prior.pseudo_inputs()
    assert images.shape == (4, *IMAGES)
    assert 0.0 < float(images.min()) <= float(images.max()) < 1.0
    densities = [encoder(images[k : k + 1]).expand(5).log_prob(z).exp() for k in range(4)]
    found = prior(encoder).expand(5).log_prob(z)
    torch.testing.assert_close(found, torch.stack(densities).mean(0).log(), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_pseudo_inputs_begin_as_images_in_turn() -> None:
    prior = make_prior(VECTOR, IMAGES, VampConfig(components=5))
    assert isinstance(prior, Vamp)
    assert prior.images_wanted == 5
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(-1, *IMAGES)
    prior.initialize(pixels)
    expected = torch.tensor([0.02, 0.5, 0.98, 0.02, 0.5]).view(5, 1, 1, 1).expand(-1, *IMAGES)
    found = prior.pseudo_inputs()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.05)  # noise of 0.01
    assert 0.0199 < float(found.min()) < float(found.max()) < 0.9801
    assert not torch.equal(found[1], found[4])  # the same image need not remain the same pseudo-input


@pytest.mark.parametrize(
    ("n", "alpha", "nats"), [(2, 0.5, 0.1438410362), (4, 0.9, 1.4236924487), (64, 0.95, 21.1021845839)]
)
def test_committed_rates(n: int, alpha: float, nats: float) -> None:
    """Numbers worked out beforehand; of a map each channel has as much."""
    config = Autoregressive1Config(alpha=alpha)
    for shape, series in (((n, 1, 1), 1), ((3, 2, n // 2), 3)):
        prior = make_prior(shape, IMAGES, config)
        assert isinstance(prior, CommittedRate)
        assert prior.least_rate == pytest.approx(series * nats, abs=series * 1e-10)


def covariance(n: int, alpha: float) -> Tensor:
    times = torch.arange(n, dtype=torch.float64)
    return torch.full((n, n), alpha, dtype=torch.float64).pow((times[:, None] - times).abs())


def ar1(shape: tuple[int, ...], alpha: float) -> AR1:
    return AR1(torch.zeros(1, *shape, dtype=torch.float64), alpha)


def test_the_process_runs_along_the_positions_row_by_row() -> None:
    """Against a Normal with the covariance alpha to the distance; channels are independent."""
    z = torch.randn(4, 3, 2, 3, dtype=torch.float64)
    oracle = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance(6, 0.7))
    expected = oracle.log_prob(z.flatten(2)).sum(1)
    torch.testing.assert_close(ar1((3, 2, 3), 0.7).expand(4).log_prob(z), expected, rtol=1e-12, atol=0.0)
    vector = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance(3, 0.7))
    expected = vector.log_prob(z[:, :, 0, 0])
    found = ar1((3, 1, 1), 0.7).expand(4).log_prob(z[:, :, :1, :1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def random_posterior(n: int, shape: tuple[int, ...]) -> Normal:
    return Normal(torch.randn(n, *shape, dtype=torch.float64), torch.rand(n, *shape, dtype=torch.float64) + 0.2)


def test_the_divergence_from_the_process_is_that_of_two_normals() -> None:
    """In closed form against that of full covariances, and against Monte Carlo."""
    prior, q = ar1((2, 2, 2), 0.8), random_posterior(3, (2, 2, 2))
    found, closed = q.kl_map(prior.expand(3), q.sample(seeded()))
    assert closed
    assert bool((found >= 0.0).all())
    p = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance(4, 0.8))
    means, covariances = q.mean.flatten(2), torch.diag_embed(q.scale.square().flatten(2))
    full = torch.distributions.MultivariateNormal(means, covariances)
    torch.testing.assert_close(
        found.flatten(2).sum(2), torch.distributions.kl_divergence(full, p), rtol=1e-12, atol=0.0
    )
    many = Normal(q.mean[:1], q.scale[:1]).expand(50_000)
    z = many.sample(seeded())
    drawn = many.log_prob(z) - prior.expand(len(z)).log_prob(z)
    assert float(drawn.mean() - found[0].sum()) == pytest.approx(0.0, abs=5.0 * float(drawn.std()) / len(z) ** 0.5)


def test_adam_reaches_the_committed_rate_and_stays_above_it() -> None:
    shape, alpha = (2, 2, 3), 0.8
    prior = make_prior(shape, IMAGES, Autoregressive1Config(alpha=alpha)).double()
    assert isinstance(prior, CommittedRate)
    mean = torch.randn(1, *shape, dtype=torch.float64, requires_grad=True)
    log_scale = torch.randn(1, *shape, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([mean, log_scale], betas=(0.9, 0.9))
    for step in range(300):
        adam.param_groups[0]["lr"] = 0.1 * (1.0 - step / 300)
        q = Normal(mean, log_scale.exp())
        rate = q.kl_map(prior(Encoder(shape)), q.mean)[0].sum()
        assert float(rate.detach()) > prior.least_rate - 1e-10
        adam.zero_grad()
        rate.backward()
        adam.step()
    assert float(rate.detach()) == pytest.approx(prior.least_rate, abs=1e-6)
    inside = ((1 - alpha**2) / (1 + alpha**2)) ** 0.5
    assert log_scale.exp()[0, 0, 0, 1].item() == pytest.approx(inside, abs=1e-3)
    assert log_scale.exp()[0, 0, 0, 0].item() == pytest.approx((1 - alpha**2) ** 0.5, abs=1e-3)


@pytest.mark.parametrize("kernel", [1, 3])
@torch.no_grad()
def test_positions_are_independent_with_small_kernels_only(kernel: int) -> None:
    latent = Case(AutoregressiveFlowConfig(width=8, kernel_size=kernel), (2, 2, 2)).build()[1]
    z = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    moved = z.clone()
    moved[:, :, 0, 0] += 1.0
    change = latent.log_prob_map(moved) - latent.log_prob_map(z)
    assert bool(change[:, :, 0, 0].ne(0.0).any())
    assert bool(change[:, :, 1, 1].ne(0.0).any()) == (kernel == 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixtureConfig(components=0), "components: got 0, expected at least 1"),
        (lambda: GaussianMixtureConfig(spread=1.0), "spread: got 1.0, expected a number from 0 to below 1"),
        (lambda: VampConfig(components=0), "components: got 0, expected at least 1"),
        (lambda: AutoregressiveFlowConfig(steps=0), "steps: got 0, expected at least 1"),
        (lambda: AutoregressiveFlowConfig(kernel_size=2), "kernel_size: got 2, expected an odd number"),
        (lambda: Autoregressive1Config(alpha=1.0), "alpha: got 1.0, expected a number between 0 and 1"),
        (
            lambda: make_prior((1, 1, 1), IMAGES, Autoregressive1Config()),
            "prior.name: got autoregressive_1 for a single latent variable, expected at least two",
        ),
    ],
)
def test_options_are_checked(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
