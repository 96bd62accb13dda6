"""Latents that are integers, and the theorem that they prove: a deep hierarchy can be any autoregressive model."""

from __future__ import annotations

import math

import pytest
import torch
from contract import all_images, assert_frequencies, place, seeded, shake
from torch import Tensor
from toys.copies import Copies

from davi.distributions import Codes, Normal, Point
from davi.evaluation import importance_bound
from davi.evidence import Kind
from davi.layers import AutoregressiveCodes, AutoregressivePixels
from davi.models import GatedPixelCNN
from davi.models.gated_pixelcnn import GatedPixelCNNConfig, GatedPixelCNNNetwork

TINY = GatedPixelCNNConfig(width=6, layers=2, first_kernel=3, head_width=8)


def causal(shape: tuple[int, int, int], levels: int, classes: int = 0, features: int = 0) -> GatedPixelCNNNetwork:
    torch.manual_seed(4)
    return shake(GatedPixelCNNNetwork(shape, levels, TINY, classes, features).double())  # type: ignore[type-var]


@pytest.mark.parametrize(("shape", "levels"), [((1, 3, 3), 2), ((1, 2, 2), 4), ((2, 1, 2), 3), ((3, 1, 2), 2)])
def test_a_hierarchy_of_copies_has_the_evidence_of_the_autoregressive_model(
    shape: tuple[int, int, int], levels: int
) -> None:
    """Proposition 1 of the Very Deep VAE paper, for all images there are."""
    torch.manual_seed(2)
    model = shake(GatedPixelCNN(shape, levels, TINY).double())
    hierarchy = Copies(model).eval()
    x = all_images(model)
    expected = model.evidence(x).log_px.detach()
    with torch.no_grad():
        evidence = hierarchy.evidence(x)
    assert len(evidence.kl_maps) == math.prod(shape)
    assert float((evidence.log_px - expected).abs().max()) < 1e-10
    assert float(evidence.log_px.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    assert evidence.log_weight is not None
    assert float((evidence.log_weight - expected).abs().max()) < 1e-10  # no draw is better than another
    assert float((importance_bound(hierarchy, x[:3], 2) - expected[:3]).abs().max()) < 1e-10
    assert bool((evidence.terms["reconstruction"] == 0).all())


def test_a_hierarchy_of_copies_reconstructs_and_draws() -> None:
    torch.manual_seed(2)
    model = shake(GatedPixelCNN((1, 2, 2), 2, TINY).double())
    hierarchy = Copies(model).eval()
    x = all_images(model)
    assert torch.equal(hierarchy.reconstruct(x), x)
    assert_frequencies(place(hierarchy.sample(4000, seed=3), 2), model.evidence(x).log_px.detach())


def test_codes_are_categorical_at_every_place() -> None:
    logits = torch.randn(2, 3, 1, 2, 2, generator=seeded(), dtype=torch.float64)
    q, p = Codes(logits), Codes(torch.randn(1, 3, 1, 2, 2, generator=seeded(6), dtype=torch.float64)).expand(2)
    assert q.shape == p.shape == (2, 1, 2, 2)
    assert q.kind is Kind.EXACT
    every = torch.arange(3).view(3, 1, 1, 1, 1).expand(3, 2, 1, 2, 2)
    log_q, log_p = (torch.stack([law.log_prob_map(z) for z in every]) for law in (q, p))
    torch.testing.assert_close(log_q.exp().sum(0), torch.ones(2, 1, 2, 2).double())
    found, closed = q.kl_map(p, every[0])
    assert closed
    torch.testing.assert_close(found, (log_q.exp() * (log_q - log_p)).sum(0))
    assert torch.equal(q.center(), logits.argmax(1))
    assert torch.equal(q.sample(temperature=0.0), q.center())


def test_codes_that_are_impossible_cost_nothing() -> None:
    """A posterior without some of the values has a divergence of finite size."""
    q = Codes(torch.tensor([0.0, -math.inf]).view(1, 2, 1, 1, 1))
    p = Codes(torch.zeros(1, 2, 1, 1, 1))
    assert float(q.kl_map(p, q.center())[0]) == pytest.approx(math.log(2.0), rel=1e-6)


@pytest.mark.parametrize("how", ["generator", "noise"])
def test_draws_of_codes_have_their_probabilities(how: str) -> None:
    q = Codes(torch.tensor([0.5, -0.3, 0.1]).view(1, 3, 1, 1, 1)).expand(6000)
    generator = seeded(8)
    z = (
        q.sample(generator)
        if how == "generator"
        else q.sample_with(lambda like: torch.randn(like.shape, generator=generator))
    )
    assert z.shape == q.shape
    assert_frequencies(z.flatten(), q.log_probs[0].flatten())


def test_a_point_costs_what_its_prior_says() -> None:
    z = torch.tensor([[1, 0], [2, 2]]).view(2, 1, 1, 2)
    point, prior = Point(z), Codes(torch.randn(2, 3, 1, 1, 2, generator=seeded()))
    assert torch.equal(point.log_prob(z), torch.zeros(2))
    assert torch.equal(point.log_prob(z.flip(0)), torch.full((2,), -math.inf))
    found, closed = point.kl_map(prior, point.sample())
    assert closed
    assert torch.equal(found, -prior.log_prob_map(z))
    assert torch.equal(point.expand(2).center(), z)
    with pytest.raises(TypeError, match=r"^value: got torch.float32, expected integers"):
        Point(torch.zeros(1, 2))


@pytest.mark.parametrize("features", [0, 2])
def test_an_autoregressive_prior_is_a_distribution_of_grids(features: int) -> None:
    network = causal((1, 1, 3), 2, features=features)
    given = torch.randn(1, features, 1, 3, generator=seeded(), dtype=torch.float64) if features else None
    prior = AutoregressiveCodes(AutoregressivePixels(network, 1, given))
    assert prior.shape == (1, 1, 1, 3)
    values = torch.cartesian_prod(*[torch.arange(2)] * 3).view(8, 1, 1, 3)
    every = prior.expand(8)
    assert every.kind is Kind.EXACT
    log_p = every.log_prob(values).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    several = prior.expand(3000)
    assert several.shape == (3000, 1, 1, 3)
    assert_frequencies(place(several.sample(seeded(9)), 2), log_p)


def test_an_autoregressive_prior_costs_a_point_its_log_probability() -> None:
    """What a quantized model pays for its codes."""
    network = causal((1, 2, 2), 3)
    prior = AutoregressiveCodes(AutoregressivePixels(network, 1)).expand(2)
    z = torch.randint(3, (2, 1, 2, 2), generator=seeded())
    found, closed = Point(z).kl_map(prior, z)
    assert closed
    assert torch.equal(found.flatten(1).sum(1), -prior.log_prob(z))
    estimate, exact = Codes(torch.zeros(2, 3, 1, 2, 2)).kl_map(prior, z)
    assert not exact
    torch.testing.assert_close(estimate.double(), -math.log(3.0) - prior.log_prob_map(z), rtol=1e-6, atol=1e-6)


def test_an_autoregressive_prior_draws_from_noise() -> None:
    """The same noise, the same grid; another noise, another."""
    prior = AutoregressiveCodes(AutoregressivePixels(causal((1, 3, 3), 4), 5))

    def noise(seed: int) -> Tensor:
        return prior.sample_with(lambda like: torch.randn(like.shape, generator=seeded(seed), dtype=like.dtype))

    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(2))
    assert torch.equal(prior.center(), prior.sample(temperature=0.0))


def test_codes_and_normals_do_not_mix() -> None:
    """A divergence has a closed form only between two of a kind."""
    prior = Normal(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    z = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    found, closed = Codes(torch.zeros(1, 2, 1, 1, 1)).kl_map(prior, z)
    assert not closed
    assert float(found) == pytest.approx(-math.log(2.0) + 0.5 * math.log(2.0 * math.pi), rel=1e-6)
