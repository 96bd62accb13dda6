"""Bounds against models whose probabilities are known: by enumeration, in closed form, by quadrature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from toys.linear_gaussian import (
    BEST_MEAN_FIELD,
    ELBO_AT_PRIOR,
    LOG_PX,
    POSTERIOR_MEAN,
    B,
    LinearGaussian,
    W,
    X,
    observed,
)

from davi.distributions import Normal
from davi.evaluation import LogMeanExp, importance_bound
from davi.layers import LikelihoodConfig
from davi.layers.depth_attention import DepthWiseAttention
from davi.model import Hierarchy
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig

# Four latent states, joint p(z, x) of one x, q uniform; L_K computed by enumeration in independent code.
JOINT = (0.10, 0.02, 0.03, 0.05)
FOUR_STATE = {1: -1.7929302062, 2: -1.7081628292, 3: -1.6757239087, 4: -1.6590002741, 6: -1.6421943213}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Thousands of operations on a handful of numbers each: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("k", FOUR_STATE)
def test_four_states_by_enumeration(k: int, chunk: int) -> None:
    log_w = [math.log(4.0 * p) for p in JOINT]
    tuples = torch.tensor(list(itertools.product(log_w, repeat=k)), dtype=torch.float64).T  # [K, 4 ** K]
    stream = LogMeanExp()
    for part in tuples.split(chunk):
        stream.add(part)
    # The reference has ten decimals.
    assert float(stream.result().mean()) == pytest.approx(FOUR_STATE[k], abs=1e-10)


def test_four_states_tend_to_log_p() -> None:
    log_w = torch.tensor([math.log(4.0 * p) for p in JOINT], dtype=torch.float64)
    stream = LogMeanExp()
    stream.add(log_w[:, None])  # each state once: q is uniform, so the mean weight is p(x)
    assert float(stream.result()) == pytest.approx(math.log(0.2), abs=1e-14)


def test_reference_of_the_linear_gaussian_model() -> None:
    """The constants above, from the marginal N(b, W W' + 0.25 I): what the tests below compare with is right."""
    marginal = torch.distributions.MultivariateNormal(B, W @ W.T + 0.25 * torch.eye(3, dtype=torch.float64))
    assert float(marginal.log_prob(X)) == pytest.approx(LOG_PX, abs=1e-9)
    assert POSTERIOR_MEAN.tolist() == pytest.approx([-0.28328804, -0.41915761], abs=1e-8)


def elbo_at(model: Hierarchy, shift: tuple[float, float]) -> float:
    """The ELBO's integrand with every latent at its posterior mean plus so many standard deviations."""
    kl = torch.zeros(1, dtype=torch.float64)

    def choose(layer: int, prior: Normal, posterior: Normal | None) -> Tensor:
        assert posterior is not None
        kl.add_(posterior.kl(prior))
        return posterior.mean + shift[layer] * posterior.scale

    return float(model.top_down(choose, observed(1)).log_prob(observed(1)) - kl)


@pytest.mark.parametrize(("posterior", "expected"), [("best", BEST_MEAN_FIELD), ("prior", ELBO_AT_PRIOR)])
def test_linear_gaussian_elbo(posterior: str, expected: float) -> None:
    """The mean over q of a quadratic function of z is its mean over the four points mean +- sqrt(2) scale e_i."""
    r = math.sqrt(2.0)
    points = [(r, 0.0), (-r, 0.0), (0.0, r), (0.0, -r)]
    values = [elbo_at(LinearGaussian(posterior), point) for point in points]
    assert np.mean(values) == pytest.approx(expected, abs=1e-9)  # the reference has ten decimals


@pytest.mark.parametrize(("posterior", "expected"), [("best", BEST_MEAN_FIELD), ("prior", ELBO_AT_PRIOR)])
def test_linear_gaussian_elbo_by_sampling(posterior: str, expected: float) -> None:
    model, x = LinearGaussian(posterior), observed(20_000)
    for values in (
        model.evidence(x, Generator().manual_seed(1)).log_px,
        importance_bound(model, x, 1, Generator().manual_seed(1)),
    ):
        mean, error = mean_and_error(values)
        assert abs(mean - expected) < 4 * error
        assert error < 0.2  # or else the line above shows nothing


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_exact_posterior_has_constant_weights(k: int) -> None:
    bounds = importance_bound(LinearGaussian("exact"), observed(50), k, Generator().manual_seed(0))
    assert bounds.dtype == torch.float64
    assert bounds.tolist() == pytest.approx([LOG_PX] * 50, abs=1e-9)  # the reference has ten decimals


def test_linear_gaussian_bounds_rise_to_log_p() -> None:
    model = LinearGaussian("prior")
    means, errors = [], []
    for k, n in ((1, 4000), (4, 4000), (16, 2000), (256, 500)):
        mean, error = mean_and_error(importance_bound(model, observed(n), k, Generator().manual_seed(k)))
        means.append(mean)
        errors.append(error)
        assert mean < LOG_PX + 4 * error
    for i in range(3):
        assert means[i + 1] - means[i] > 4 * math.hypot(errors[i], errors[i + 1])
    # log p - L_K = Var(w) / (2 K p^2) + O(1 / K^2), and N(x; m, s^2)^2 = N(x; m, s^2 / 2) (4 pi s^2)^(-D / 2).
    half = torch.distributions.MultivariateNormal(B, W @ W.T + 0.125 * torch.eye(3, dtype=torch.float64))
    second_moment = math.exp(float(half.log_prob(X)) - 1.5 * math.log(4 * math.pi * 0.25) - 2 * LOG_PX)
    assert abs(means[-1] - (LOG_PX - (second_moment - 1) / (2 * 256))) < 4 * errors[-1]
    assert errors[-1] < 0.01


@pytest.fixture(scope="module")
def tiny() -> AttentiveVAE:
    """An attentive VAE of 2x2 binary images with two scalar latents, and random weights that make it use both."""
    torch.manual_seed(1)
    config = AttentiveVAEConfig(
        layers=(2,),
        width=4,
        latent_channels=1,
        preprocess=(-2,),
        postprocess=(2,),
        encoder_blocks=1,
        decoder_blocks=1,
        nodes=1,
        likelihood=LikelihoodConfig("bernoulli"),
        generative_attention=DepthWiseAttention(2),
        inference_attention=DepthWiseAttention(2),
    )
    model = AttentiveVAE((1, 2, 2), 2, config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def binary() -> Tensor:
    """All sixteen images."""
    return torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 1, 2, 2)


@pytest.fixture(scope="module")
def log_px(tiny: AttentiveVAE, binary: Tensor) -> Tensor:
    """log p(x) of all sixteen images by Gauss-Hermite quadrature over both latents, ``[16]``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    grid = torch.tensor(list(itertools.product(nodes, nodes)))  # [6400, 2]
    log_weight = torch.tensor(np.log(np.outer(weights, weights).ravel() / (2 * math.pi)))

    def choose(layer: int, prior: Normal, posterior: Normal | None) -> Tensor:
        return prior.mean + prior.scale * grid[:, layer].view(-1, 1, 1, 1)

    with torch.no_grad():
        pixels = tiny.top_down(choose)
        return torch.stack([(log_weight + pixels.log_prob(x.expand(6400, -1, -1, -1))).logsumexp(0) for x in binary])


def test_quadrature_gives_a_distribution(log_px: Tensor) -> None:
    assert float(log_px.exp().sum()) == pytest.approx(1.0, abs=1e-12)  # float64 rounding over 6400 nodes
    assert float(log_px.std()) > 0.1  # not simply uniform


def test_bounds_sum_to_at_most_one_and_tend_to_it(tiny: AttentiveVAE, binary: Tensor, log_px: Tensor) -> None:
    totals, errors = [], []
    for k, n in ((1, 400), (8, 200), (200, 20)):
        x = binary.repeat(n, 1, 1, 1)
        values = importance_bound(tiny, x, k, Generator().manual_seed(k)).view(n, 16)
        bound, error = values.mean(0), values.std(0) / math.sqrt(n)
        assert bool((bound < log_px + 5 * error).all())  # 5: sixteen comparisons at each K
        totals.append(float(bound.exp().sum()))
        errors.append(float((bound.exp() * error).square().sum().sqrt()))
        assert totals[-1] <= 1.0 + 4 * errors[-1]
        # The mean weight itself is unbiased at every K.
        estimate = values.exp().mean(0).sum()
        assert abs(float(estimate) - 1.0) < 4 * float(values.exp().var(0).sum().div(n).sqrt())
    assert totals[1] - totals[0] > 4 * math.hypot(errors[0], errors[1])
    assert totals[0] < 0.9  # the ELBO alone is far from tight here
    assert abs(totals[-1] - 1.0) < 4 * errors[-1] < 0.04
