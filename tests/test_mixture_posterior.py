"""Mixtures of posteriors: the bound and its weights against integrals, whose turn it is, and the VAE within them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from quadrature import from_the_prior
from torch import Tensor

import davi
from davi import Kind
from davi.batch import Batch
from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evaluation.activity import ActiveUnits
from davi.flows.planar import PlanarConfig
from davi.model import Model
from davi.models import VAE, MixturePosteriorVAE
from davi.models.mixture_posterior import MixturePosteriorConfig, PosteriorMixture
from davi.models.vae import VAEConfig
from davi.repetition import repeat_images


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(components: int = 3, **options: Any) -> MixturePosteriorVAE:
    """One latent, three binary pixels, components that differ."""
    torch.manual_seed(2)
    config = MixturePosteriorConfig(latents=(1,), hidden=(5,), depth=1, components=components, **options)
    model = MixturePosteriorVAE((1, 1, 3), 2, config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def all_images() -> Tensor:
    return torch.cartesian_prod(*[torch.arange(2)] * 3).view(8, 1, 1, 3)


class Integrals:
    """Of one image, over a fine grid of the latent; the density of the mixture is the model's, those of its components
    are written out here."""

    def __init__(self, model: MixturePosteriorVAE, x: Tensor) -> None:
        z = torch.linspace(-40.0, 40.0, 8001, dtype=torch.float64)
        flat = z.view(-1, 1, 1, 1)
        posterior = model.encode(x[None])
        assert isinstance(posterior, PosteriorMixture)
        mean, scale = posterior.components.mean.view(-1, 1), posterior.components.scale.view(-1, 1)  # [S, 1]
        half_log_two_pi = 0.5 * math.log(2 * math.pi)
        of_each = -0.5 * ((z - mean) / scale).square() - scale.log() - half_log_two_pi  # [S, n]
        self.by_hand, self.mixture = of_each.exp().mean(0), posterior.log_prob(flat).exp()
        log_joint = model.decode([flat]).log_prob(x.expand(len(flat), -1, -1, -1)) - 0.5 * z**2 - half_log_two_pi
        ratio = log_joint - posterior.log_prob(flat)
        masses = of_each.exp() * float(z[1] - z[0])
        self.mass = masses.sum(1)
        self.elbos = (masses * (log_joint - of_each)).sum(1)  # of every component alone
        self.bound = float((masses * ratio).sum(1).mean())
        self.probability = float((of_each + ratio).exp().sum(1).mean()) * float(z[1] - z[0])


@torch.no_grad()
def test_the_bound_by_quadrature() -> None:
    """Below log p(x), above the mean of the components' own bounds by at most log S, and the weights average to p(x),
    which is one over all images."""
    model, total, gains = small(), 0.0, []
    n = 20_000
    for x in all_images():
        found, exact = Integrals(model, x), from_the_prior(model, x[None], variables=1, points=201)
        total += exact
        torch.testing.assert_close(found.mass, torch.ones(3).double(), rtol=0.0, atol=1e-8)
        torch.testing.assert_close(found.mixture, found.by_hand, rtol=1e-10, atol=1e-12)
        assert found.probability == pytest.approx(exact, abs=1e-8)
        assert found.bound < math.log(exact)
        gain = found.bound - float(found.elbos.mean())
        assert 0.0 < gain < math.log(3)
        gains.append(gain)
        evidence = model.evidence(x.expand(n, -1, -1, -1), seeded())
        error = float(evidence.log_px.std()) / n**0.5
        assert evidence.kind is Kind.LOWER_BOUND
        assert float(evidence.log_px.mean()) == pytest.approx(found.bound, abs=5 * error)
        assert evidence.log_weight is not None
        torch.testing.assert_close(evidence.log_px, evidence.log_weight, rtol=1e-12, atol=1e-12)
    assert total == pytest.approx(1.0, abs=1e-10)
    assert max(gains) > 0.05  # the components do differ


@torch.no_grad()
def test_every_single_draw_is_one_of_the_mixture() -> None:
    """Where the batch's first draw stands is even: each place of it has each component as often."""
    mean = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 4, 1, 1, 1)
    mixture = PosteriorMixture(mean, torch.full_like(mean, 1e-6))
    generator = seeded()
    drawn = torch.stack([mixture.sample(generator).flatten().round() for _ in range(3000)])  # [draws, 4]
    for place in range(4):
        assert torch.bincount(drawn[:, place].long()).tolist() == pytest.approx([1000] * 3, abs=130)  # 5 sigma
    noise = iter(torch.linspace(-2.0, 2.0, 5))
    firsts = []
    for _ in range(5):
        u = next(noise)
        firsts.append(int(mixture.sample_with(lambda like, u=u: torch.full_like(like, float(u)))[0].round()))  # type: ignore[misc]
    assert firsts == [0, 0, 1, 2, 2]  # thirds of the standard Normal: -0.43 and 0.43


def test_draws_of_an_image_are_stratified() -> None:
    model = small().train()
    x = all_images()
    posterior = repeat_images(model.encode(x), 6)
    mean = posterior.components.mean.detach()
    spread_out = PosteriorMixture(mean, torch.full_like(mean, 1e-9))
    drawn = spread_out.sample(seeded()).view(8, 6, 1)
    distance = (drawn - mean.view(3, 8, 6).permute(1, 2, 0)).abs()  # [8, 6, 3]
    chosen = distance.argmin(2)
    assert float(distance.min(2).values.max()) < 1e-6
    for image in chosen:
        assert torch.bincount(image, minlength=3).tolist() == [2, 2, 2]
    torch.manual_seed(0)
    many = x.repeat(2000, 1, 1, 1)
    several, one = model(many, 3).log_px.detach().view(-1, 8, 3), model(many).log_px.detach()
    assert float(several.mean(2).var(0).mean()) < 0.9 * float(one.view(-1, 8).var(0).mean()) / 3


@torch.no_grad()
def test_bounds_rise_with_the_draws() -> None:
    model = small()
    x = all_images().repeat(500, 1, 1, 1)
    exact = torch.tensor([from_the_prior(model, y[None], variables=1, points=201) for y in all_images()]).log()
    bounds = [importance_bound(model, x, k, seeded()).view(-1, 8).mean(0) for k in (1, 3, 8, 60)]
    means = [float(bound.mean()) for bound in bounds]
    assert means == sorted(means)
    assert means[-1] < float(exact.mean()) + 0.005
    assert means[-1] == pytest.approx(float(exact.mean()), abs=0.05)


@pytest.mark.parametrize("encoders", ["own", "shared"])
@pytest.mark.parametrize("network", ["dense", "convolutional", "gated"])
def test_one_component_is_the_vae(network: Any, encoders: Any) -> None:
    """The same weights from the same seed, and the same numbers, divergences in closed form among them."""
    options: dict[str, Any] = {"network": network, "latents": (2,), "hidden": (4,), "depth": 1}
    torch.manual_seed(0)
    ours = MixturePosteriorVAE((1, 8, 8), 2, MixturePosteriorConfig(**options, components=1, encoders=encoders))
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), 2, VAEConfig(**options))
    x = torch.randint(2, (4, 1, 8, 8))
    assert ours.state_dict().keys() == vae.state_dict().keys()
    first, second = (model.evidence(x, seeded()) for model in (ours, vae))
    assert torch.equal(first.log_px, second.log_px)
    assert torch.equal(first.terms["kl/00"], second.terms["kl/00"])
    assert first.log_weight is not None
    assert second.log_weight is not None
    assert torch.equal(first.log_weight, second.log_weight)
    several = MixturePosteriorVAE((1, 8, 8), 2, MixturePosteriorConfig(**options, components=3, encoders=encoders))
    components = several.encode_components(x / 1.0)
    assert len({float(part.mean.detach().sum()) for part in components}) == 3
    assert all(part.shape == components[0].shape for part in components)


@torch.no_grad()
def test_equal_components_give_the_bound_of_the_vae() -> None:
    """The density of the mixture is that of each of them, so that every draw's weight is the VAE's."""
    model = small()
    for encoder in model.encoders:
        encoder.load_state_dict(model.inference[0].state_dict())
    vae = VAE(model.shape, 2, VAEConfig(latents=(1,), hidden=(5,), depth=1)).double().eval()
    vae.load_state_dict({key: x for key, x in model.state_dict().items() if not key.startswith("encoders")})
    posterior, normal = model.encode(all_images()), vae.encode(all_images()).normal
    z = posterior.sample(seeded())
    torch.testing.assert_close(posterior.log_prob(z), normal.log_prob(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(posterior.center(), normal.mean, rtol=1e-12, atol=1e-12)
    for x in all_images():
        elbos = Integrals(model, x)
        assert elbos.bound == pytest.approx(float(elbos.elbos[0]), abs=1e-10)


@torch.no_grad()
def test_latents_are_the_means_of_the_mixture() -> None:
    model = small()
    x = all_images()
    components = model.encode_components(x.double())
    torch.testing.assert_close(model.latents(x)[0], sum(part.mean for part in components) / 3, rtol=1e-12, atol=0.0)
    mean = torch.tensor([0.0, 0.3, 8.0]).view(3, 1, 1, 1, 1)
    two_near = PosteriorMixture(mean, torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1, 1, 1))
    assert float(two_near.mode()) == pytest.approx(0.3)
    assert float(two_near.center()) == pytest.approx(8.3 / 3)
    assert repr(two_near) == "PosteriorMixture(components=3, shape=(1, 1, 1, 1))"
    assert two_near.expand(5).sample().shape == (5, 1, 1, 1)


@torch.no_grad()
def test_units_are_active_where_the_mean_of_the_mixture_varies() -> None:
    model = small()
    x = all_images().repeat(40, 1, 1, 1)
    mean: Tensor = model.latents(x)[0]
    found: list[float] = []
    for seed in range(30):
        assert isinstance(model, Model)
        meter = ActiveUnits(model, len(x), seed, batch_size=1000)
        meter.add(Batch(x))
        found.append(float(meter.variances()[0]))
    error = float(torch.tensor(found).std()) / len(found) ** 0.5
    assert float(torch.tensor(found).mean()) == pytest.approx(float(mean.var(0)), abs=5 * error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latents": (2, 2), "hidden": (4, 4)}, "latents: got 2 stochastic layers, expected 1"),
        ({"components": 0}, "components: got 0, expected at least 1"),
        (
            {"posterior_flow": PlanarConfig()},
            "posterior_flow: got planar, expected null for a mixture",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        MixturePosteriorConfig(**options)


def test_a_prior_made_of_mixtures_is_refused_before_it_is_built() -> None:
    words = "prior.name: got vamp, expected another prior: the posterior is a mixture of 3 Normal distributions"
    with pytest.raises(UserError, match=words):
        davi.build("mixture_posterior_digits_tiny", "model.components=3", "model.prior.name=vamp")
