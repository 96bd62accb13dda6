"""Hamiltonian variational inference: the leapfrog on targets whose motion is known, the bound, and its gradient."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from davi.distributions import Normal
from davi.evaluation import importance_bound
from davi.evaluation.bounds import measuring
from davi.layers import LikelihoodConfig
from davi.models import HVI, VAE
from davi.models.hvi import HamiltonianPosterior, HVIConfig, Iteration, State, leapfrog, slope_of
from davi.models.vae import VAEConfig

LOG_P = -6.7405706680
"""log p(x) of the linear Gaussian model z ~ N(0, I), x = W z + b + N(0, I / 4)."""
PRIOR_ELBO = -18.4373740579
"""Its bound where q is the prior."""
W = torch.tensor([[1.0, 0.0], [0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
REST = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64) - torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
"""x - b."""
PRECISION = torch.eye(2, dtype=torch.float64) + W.T @ W / 0.25
MEAN = torch.linalg.solve(PRECISION, W.T @ REST / 0.25)
MASS = torch.tensor([0.7, 2.0], dtype=torch.float64)


def linear_gaussian(z: Tensor) -> Tensor:
    """log p(x, z) for z ``[B, 2, 1, 1]``."""
    flat = z.flatten(1)
    misfit = (REST - flat @ W.T).square().sum(1) / 0.25
    return -0.5 * (misfit + flat.square().sum(1) + 5 * math.log(2 * math.pi) + 3 * math.log(0.25))


def curved(z: Tensor) -> Tensor:
    """Another log-density, not normalized, of z ``[B, 2]``: a banana."""
    return -torch.cosh(z).sum(1) - 0.5 * (z[:, 1] - z[:, 0].square()).square()


def started(z: Tensor, v: Tensor, log_joint: Any = curved) -> State:
    return State(z, v, slope_of(log_joint, False, z))


def some_state(n: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    z, v = 0.7 * torch.randn(2, n, 2, dtype=torch.float64)
    return z, v


def test_leapfrog_on_a_gaussian_is_a_matrix() -> None:
    """Each step is linear in (z - mean, v); five of them are the product of their matrices."""
    sizes = [0.1, 0.2, 0.05, 0.15, 0.1]
    z, v = some_state()
    expected, one = torch.cat([z - MEAN, v], 1), torch.eye(2, dtype=torch.float64)
    for e in sizes:
        kick = torch.cat([torch.cat([one, 0 * one], 1), torch.cat([-0.5 * e * PRECISION, one], 1)])
        drift = torch.cat([torch.cat([one, e * torch.diag(1 / MASS)], 1), torch.cat([0 * one, one], 1)])
        expected = expected @ (kick @ drift @ kick).T

    def log_joint(z: Tensor) -> Tensor:
        return linear_gaussian(z[..., None, None])

    end = leapfrog(started(z, v, log_joint), partial(slope_of, log_joint, False), sizes, MASS)
    torch.testing.assert_close(torch.cat([end.z - MEAN, end.v], 1), expected, rtol=1e-12, atol=1e-12)


def test_leapfrog_preserves_volume() -> None:
    def move(both: Tensor) -> Tensor:
        z, v = both[None, :2], both[None, 2:]
        slope = partial(slope_of, curved, True)
        end = leapfrog(State(z, v, slope(z)), slope, [0.3, 0.1, 0.2], MASS)
        return torch.cat([end.z, end.v], 1)[0]

    for both in torch.cat(some_state(), 1):
        jacobian = torch.autograd.functional.jacobian(move, both)
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(0.0, abs=1e-9)
        assert float((jacobian - torch.eye(4)).abs().max()) > 0.1  # it does move


def test_the_reversed_momentum_leads_back() -> None:
    z, v = some_state()
    slope, sizes = partial(slope_of, curved, False), [0.3, 0.1, 0.2]
    end = leapfrog(started(z, v), slope, sizes, MASS)
    back = leapfrog(end._replace(v=-end.v), slope, sizes[::-1], MASS)
    torch.testing.assert_close(back.z, z, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(back.v, -v, rtol=0.0, atol=1e-12)


def test_the_energy_is_kept_to_second_order() -> None:
    """After the same time of 0.8 the error falls by four with half the step; that of one step by eight."""
    z, v = some_state(20)

    def energy(at: State) -> Tensor:
        return 0.5 * (at.v.square() / MASS).sum(1) - curved(at.z)

    def error(size: float, steps: int) -> float:
        begin = started(z, v)
        end = leapfrog(begin, partial(slope_of, curved, False), [size] * steps, MASS)
        return float((energy(end) - energy(begin)).abs().mean())

    after_time = [error(0.8 / n, n) for n in (128, 256)]
    of_one = [error(size, 1) for size in (0.002, 0.001)]
    assert math.log2(after_time[0] / after_time[1]) == pytest.approx(2.0, abs=0.02)
    assert math.log2(of_one[0] / of_one[1]) == pytest.approx(3.0, abs=0.02)


def shaken_moves(count: int, steps: int) -> list[Iteration]:
    """Moves for two latents and no features, with a reverse model that is nothing special."""
    torch.manual_seed(4)
    config = HVIConfig(latents=(2,), leapfrog_steps=steps, step_size=0.1, reverse_width=6)
    moves = [Iteration(2, 0, config, 1).double() for _ in range(count)]
    for move in moves:
        with torch.no_grad():
            for parameter in move.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return moves


def hamiltonian(base: Normal, moves: list[Iteration]) -> HamiltonianPosterior:
    learns = torch.is_grad_enabled()
    features = torch.zeros(len(base.mean), 0, 1, 1, dtype=torch.float64)
    return HamiltonianPosterior(base, moves, partial(slope_of, linear_gaussian, learns), features)


def hermite(points: int, variables: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite points of standard Normal variables, ``[n, variables]``, and their log masses."""
    nodes, masses = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(points))
    grid = torch.cartesian_prod(*[nodes] * variables).view(-1, variables)
    return grid, torch.cartesian_prod(*[masses / masses.sum()] * variables).view(-1, variables).log().sum(1)


def normal(n: int, scale: tuple[float, float]) -> Normal:
    """Around the mean of the true posterior, whose standard deviations are 0.21 and 0.43."""
    scales = torch.tensor(scale, dtype=torch.float64)
    return Normal(MEAN[:, None, None].expand(n, 2, 1, 1), scales[:, None, None].expand(n, 2, 1, 1))


def weights_on(grid: Tensor, scale: tuple[float, float], moves: list[Iteration]) -> Tensor:
    """log p(x, z) - log q of the draws that this noise of z_0 and of the momenta makes, ``[n]``."""
    columns = list(grid[..., None, None].split(2, 1))
    posterior = hamiltonian(normal(len(grid), scale), moves)
    z = posterior.sample_with(lambda like: columns.pop(0))
    assert not columns
    return linear_gaussian(z) - posterior.log_prob(z)


@torch.no_grad()
def test_weights_average_to_the_probability() -> None:
    """Whatever the reverse model is: by quadrature over z_0 and one momentum, all of four variables."""
    grid, log_masses = hermite(24, 4)
    log_weights = weights_on(grid, (0.25, 0.5), shaken_moves(1, 2))
    assert float((log_masses + log_weights).logsumexp(0)) == pytest.approx(LOG_P, abs=1e-4)
    elbo = float((log_masses.exp() * log_weights).sum())
    assert elbo < LOG_P - 0.1
    assert float((log_masses + 0.5 * log_weights).logsumexp(0)) > 0.5 * elbo + 0.01  # the weights are not all equal


@torch.no_grad()
def test_bounds_rise_to_the_probability() -> None:
    n, moves = 2000, shaken_moves(2, 2)
    bounds = []
    for k in (1, 10, 100):
        posterior = hamiltonian(normal(n * k, (0.5, 0.5)), moves)
        z = posterior.sample(torch.Generator().manual_seed(k))
        log_weights = (linear_gaussian(z) - posterior.log_prob(z)).view(n, k)
        bounds.append(log_weights.logsumexp(1) - math.log(k))
    for bound in bounds:
        assert float(bound.mean()) < LOG_P + 5 * float(bound.std()) / n**0.5
    assert float(bounds[0].mean()) + 0.1 < float(bounds[1].mean()) < float(bounds[2].mean())
    assert float(bounds[2].mean()) == pytest.approx(LOG_P, abs=0.05)


def test_what_it_learns_mends_a_poor_posterior() -> None:
    """From the prior for a posterior, ELBO -18.4, steps, mass and reverse model alone come most of the way."""
    torch.manual_seed(0)
    base = Normal(torch.zeros(200, 2, 1, 1).double(), torch.ones(200, 2, 1, 1).double())
    z = Normal(torch.zeros(100_000, 2, 1, 1).double(), torch.ones(100_000, 2, 1, 1).double()).sample()
    at_first = linear_gaussian(z) - Normal(torch.zeros_like(z), torch.ones_like(z)).log_prob(z)
    assert float(at_first.mean()) == pytest.approx(PRIOR_ELBO, abs=5 * float(at_first.std()) / 100_000**0.5)
    config = HVIConfig(latents=(2,), leapfrog_steps=2, step_size=0.1, reverse_width=16)
    moves = [Iteration(2, 0, config, 1).double()]
    optimizer = torch.optim.Adam(moves[0].parameters(), 0.04)
    for _ in range(150):
        posterior = hamiltonian(base, moves)
        z = posterior.sample()
        bound = (linear_gaussian(z) - posterior.log_prob(z)).mean()
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
    assert LOG_P > float(bound.detach()) > -10.0


def small(likelihood: LikelihoodConfig, levels: int, **options: Any) -> HVI:
    torch.manual_seed(3)
    config = HVIConfig(latents=(2,), hidden=(5,), depth=1, likelihood=likelihood, reverse_width=4, **options)
    model = HVI((1, 2, 2), levels, config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


FAMILIES = [(LikelihoodConfig("bernoulli"), 2), (LikelihoodConfig("logistic_mixture", 2), 17)]


@pytest.mark.parametrize(("likelihood", "levels"), FAMILIES)
def test_gradients_are_those_of_finite_differences(likelihood: LikelihoodConfig, levels: int) -> None:
    """Of every parameter, along one random direction each: the decoder is learned through the leapfrog as well."""
    model = small(likelihood, levels, iterations=2, leapfrog_steps=2)
    x = torch.randint(levels, (3, 1, 2, 2))

    def claim() -> Tensor:
        return model.evidence(x, torch.Generator().manual_seed(1)).log_px.sum()

    claim().backward()
    for name, parameter in model.named_parameters():
        direction, values = torch.randn_like(parameter), parameter.detach().clone()
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.copy_(values + step * direction)
                ends.append(float(claim()))
        with torch.no_grad():
            parameter.copy_(values)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6), name


def test_probabilities_by_quadrature() -> None:
    """The weights of all images of four pixels sum to one, the noise of z_0 and of the momentum being a grid."""
    torch.manual_seed(3)
    config = HVIConfig(latents=(1,), hidden=(5,), depth=1, leapfrog_steps=2, step_size=0.2, reverse_width=4)
    model = HVI((1, 2, 2), 2, config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.inference[0].log_scale.weight.zero_()  # type: ignore[operator, union-attr]  # of the dense network
        model.inference[0].log_scale.bias.fill_(0.2)  # type: ignore[operator, union-attr]  # wider than the prior
    grid, log_masses = hermite(60, 2)
    total = 0.0
    for x in torch.cartesian_prod(*[torch.arange(2)] * 4).view(16, 1, 1, 2, 2):
        columns, images = list(grid[..., None, None].split(1, 1)), x.expand(len(grid), -1, -1, -1)
        ratios: list[Tensor] = []

        def choose(layer: int, prior: Any, posterior: Any, columns: Any = columns, ratios: Any = ratios) -> Any:
            z = posterior.sample_with(lambda like: columns.pop(0))
            ratios.append(prior.log_prob(z) - posterior.log_prob(z))
            return z

        with measuring(model):
            log_px = model.top_down(choose, model.encode(images)).log_prob(images)
            total += float((log_masses + ratios[0] + log_px).logsumexp(0).exp())
    assert total == pytest.approx(1.0, abs=1e-3)  # what the nodes leave of functions that are no polynomials


def test_without_iterations_it_is_the_vae() -> None:
    options = {"latents": (3,), "hidden": (6,)}
    models = []
    for build in (
        lambda: HVI((1, 4, 4), 2, HVIConfig(**options, iterations=0)),  # type: ignore[arg-type]
        lambda: VAE((1, 4, 4), 2, VAEConfig(**options)),  # type: ignore[arg-type]
    ):
        torch.manual_seed(0)
        models.append(build())
    ours, vae = models
    assert ours.state_dict().keys() == vae.state_dict().keys()
    x = torch.randint(2, (4, 1, 4, 4))
    first, second = (model.evidence(x, torch.Generator().manual_seed(1)) for model in models)
    assert torch.equal(first.log_px, second.log_px)
    assert torch.equal(first.terms["kl/00"], second.terms["kl/00"])


@pytest.mark.parametrize("network", ["dense", "convolutional", "gated"])
def test_numbers_do_not_depend_on_the_mode(network: Any) -> None:
    """With gradients, without, in inference mode and with frozen weights; for every network of the VAE."""
    torch.manual_seed(0)
    config = HVIConfig(network=network, latents=(2,), hidden=(4,), depth=1, iterations=2, leapfrog_steps=2)
    model, x = HVI((1, 8, 8), 2, config).double().eval(), torch.randint(2, (3, 1, 8, 8))

    def claim() -> Tensor:
        return model.evidence(x, torch.Generator().manual_seed(1)).log_px

    expected = claim()
    assert expected.requires_grad
    with torch.no_grad():
        found = [claim()]
    with torch.inference_mode():
        found.append(claim().clone())
    model.requires_grad_(False)
    found.append(claim())
    for value in found:
        assert not value.requires_grad
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0.0)
    bounds = [importance_bound(model, x, k, torch.Generator().manual_seed(0)).mean().item() for k in (1, 50)]
    assert bounds[0] < bounds[1]


def test_a_frozen_encoder_changes_no_gradient_of_the_decoder() -> None:
    model, x = small(FAMILIES[0][0], 2), torch.randint(2, (3, 1, 2, 2))
    gradients = []
    for trained in (True, False):
        model.zero_grad()
        model.inference.requires_grad_(trained)
        model.evidence(x, torch.Generator().manual_seed(1)).log_px.sum().backward()
        gradients.append([parameter.grad for parameter in model.output.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_the_decoder_is_not_compiled() -> None:
    """What is compiled can be differentiated once only."""
    config = HVIConfig(network="convolutional", latents=(2,), hidden=(4,), depth=1)
    model = HVI((1, 8, 8), 2, config)
    blocks = set(model.blocks())
    assert blocks
    assert blocks <= set(model.inference.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latents": (2, 2), "hidden": (4, 4)}, "latents: got 2 stochastic layers, expected 1"),
        ({"iterations": -1}, r"iterations: got -1, expected 0 \(a VAE\) or more"),
        ({"leapfrog_steps": 0}, "leapfrog_steps: got 0, expected at least 1"),
        ({"reverse_width": 0}, "reverse_width: got 0, expected at least 1"),
        ({"step_size": 0.0}, "step_size: got 0.0, expected a number above 0, at most 100"),
        ({"step_size": 1e300}, "step_size: got 1e[+]300, expected a number above 0, at most 100"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        HVIConfig(**options)
