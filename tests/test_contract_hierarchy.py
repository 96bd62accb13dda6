"""What every hierarchy promises: one top-down pass, whose answers agree however it is asked."""

from __future__ import annotations

import itertools

import pytest
import torch
from contract import names, seeded, shaken, some_images
from quadrature import from_the_prior
from torch import Tensor

from davi import Hierarchy, Kind
from davi.distributions import Distribution, Latent, Normal
from davi.evaluation import importance_bound
from davi.layers import LikelihoodConfig
from davi.models import LadderVAE
from davi.models.ladder_vae import LadderVAEConfig


@pytest.fixture(params=names(Hierarchy))
def hierarchy(request: pytest.FixtureRequest) -> Hierarchy:
    found = shaken(request.param)
    assert isinstance(found, Hierarchy)
    return found


def test_bounds_lie_below_the_probability_and_rise_to_it() -> None:
    """A hierarchy of two scalars on all images of three pixels, by quadrature over both of them."""
    config = LadderVAEConfig(latents=(1, 1), hidden=(4, 4), depth=1, likelihood=LikelihoodConfig("bernoulli"))
    model = LadderVAE((1, 1, 3), 2, config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    binary = torch.tensor(list(itertools.product((0, 1), repeat=3))).view(8, 1, 1, 3)
    exact = torch.tensor([from_the_prior(model, x[None], variables=2, points=101) for x in binary]).double()
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-6)  # its rectifiers have kinks
    n = 2000
    x = binary.repeat(n, 1, 1, 1)
    evidence = model.evidence(x, seeded())
    assert evidence.kind is Kind.LOWER_BOUND
    assert evidence.log_weight is not None
    elbo, bound = evidence.log_px.detach().view(n, 8), importance_bound(model, x, 20, seeded()).view(n, 8)
    for values in (elbo, bound):
        assert bool((values.mean(0) < exact.log() + 5 * values.std(0) / n**0.5).all())  # 5: eight comparisons
    assert float((bound - elbo).mean()) > 5 * float((bound - elbo).std()) / (8 * n) ** 0.5
    weights = evidence.log_weight.detach().exp().view(n, 8)
    assert bool(((weights.mean(0) - exact).abs() < 5 * weights.std(0) / n**0.5).all())


def test_shapes_of_latents_are_those_of_the_posterior_means(hierarchy: Hierarchy) -> None:
    before = [x.clone() for x in hierarchy.state_dict().values()]
    shapes = hierarchy.latent_shapes()
    assert shapes == [tuple(z.shape[1:]) for z in hierarchy.latents(some_images(hierarchy, 2))]
    assert all(str(list(shape)) in repr(hierarchy) for shape in shapes)
    assert all(torch.equal(a, b) for a, b in zip(before, hierarchy.state_dict().values(), strict=True))


def test_divergences_in_closed_form_are_never_negative(hierarchy: Hierarchy) -> None:
    closed: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        z = posterior.sample()
        if prior is not None and isinstance(posterior, Normal) and isinstance(prior.conditionals(z), Normal):
            closed.append(posterior.kl_map(prior, z)[0])
        return z

    hierarchy.top_down(choose, hierarchy.encode(some_images(hierarchy, 3)))
    # 1e-5: cancellation where posterior and prior nearly agree.
    assert all(bool((kl >= -1e-5).all()) for kl in closed)


def test_several_draws_need_one_way_up(hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = hierarchy.encode
    monkeypatch.setattr(hierarchy, "encode", lambda x: seen.append(len(x)) or encode(x))
    assert hierarchy(some_images(hierarchy, 2), 3).log_px.shape == (6,)
    assert seen == [2]


def test_log_weight_is_the_ratio_of_the_drawn_densities(hierarchy: Hierarchy) -> None:
    """log p(x, z) - log q(z | x), summed up by a walk of our own over the same draws."""
    x, generator = some_images(hierarchy, 3), seeded()
    ratio = torch.zeros(3, dtype=torch.float64)

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        nonlocal ratio
        assert posterior is not None
        z = posterior.sample(generator)
        if prior is None:  # drawn on the way up; its turn comes later
            return z
        ratio = ratio + prior.log_prob(z).double() - posterior.log_prob(z).double()
        return z

    reconstruction = hierarchy.top_down(choose, hierarchy.encode(x)).log_prob(x).double()
    weight = hierarchy.evidence(x, seeded()).log_weight
    assert weight is not None
    # 1e-5: the model adds the same numbers up in float32.
    torch.testing.assert_close(weight.double(), reconstruction + ratio, rtol=1e-5, atol=1e-4)


def test_terms_that_are_no_divergences_are_those_of_latents_drawn_on_the_way_up(hierarchy: Hierarchy) -> None:
    early = set()

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert posterior is not None
        if prior is None:
            early.add(f"kl/{layer:02d}")
        return posterior.sample()

    x = some_images(hierarchy, 2)
    hierarchy.top_down(choose, hierarchy.encode(x))
    assert hierarchy.evidence(x).no_divergence == early
    assert bool(early) == (hierarchy.name == "biva" or (hierarchy.name == "vae" and hierarchy.num_layers > 1))


def test_the_walk_is_the_same_with_and_without_the_image(hierarchy: Hierarchy) -> None:
    """Priors and p(x | z) depend on the latents alone, whether inference chose them or somebody else."""
    hierarchy.double()
    x = some_images(hierarchy, 3)
    latents = hierarchy.latents(x, sample=True, generator=seeded())
    walks: list[tuple[list[Latent], Distribution]] = []
    for context in (hierarchy.encode(x), None):
        priors: list[Latent] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None, seen: list[Latent] = priors) -> Tensor:
            if prior is not None:
                seen.append(prior)
            return latents[layer]

        walks.append((priors, hierarchy.top_down(choose, context)))
    for with_image, without, z in zip(walks[0][0], walks[1][0], latents, strict=True):
        assert torch.equal(with_image.center(), without.center())
        assert torch.equal(with_image.log_prob_map(z), without.log_prob_map(z))
    decoded = hierarchy.decode(latents).log_prob(x)
    assert torch.equal(walks[0][1].log_prob(x), decoded)
    assert torch.equal(walks[1][1].log_prob(x), decoded)


def test_at_temperature_zero_latents_are_the_prior_means(hierarchy: Hierarchy) -> None:
    generator = seeded()
    asked: list[int] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        asked.append(layer)
        assert prior is not None
        assert posterior is None
        prior.expand(2).sample(generator, 0.0)  # takes as many random numbers as the model's own walk
        return prior.center().expand(2, -1, -1, -1)

    pixels = hierarchy.top_down(choose).sample(generator)
    assert asked == list(range(hierarchy.num_layers))
    assert torch.equal(pixels, hierarchy.sample(2, temperature=0.0, generator=seeded()))


def test_decode_wants_one_latent_for_each_layer(hierarchy: Hierarchy) -> None:
    latents = hierarchy.latents(some_images(hierarchy, 2))
    assert len(latents) == hierarchy.num_layers
    with pytest.raises(ValueError, match=f"got {len(latents) - 1} tensors, expected one for each of {len(latents)}"):
        hierarchy.decode(latents[:-1])


def test_rows_of_a_batch_do_not_mix_in_eval_mode(hierarchy: Hierarchy) -> None:
    """With latents at the posterior mean, what is found for an image does not depend on its neighbors."""
    hierarchy.double()
    first, second = some_images(hierarchy, 4), some_images(hierarchy, 4)
    second[1] = first[1]

    def measure(x: Tensor) -> Tensor:
        divergences: list[Tensor] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert posterior is not None
            z = posterior.center()
            if prior is not None:
                divergences.append(posterior.kl_map(prior, z)[0].flatten(1).sum(1))
            return z

        pixels = hierarchy.top_down(choose, hierarchy.encode(x))
        return torch.stack([pixels.log_prob(x), *divergences])  # [1 + layers, B]

    one, other = measure(first), measure(second)
    # 1e-10: float64, and kernels may add up in another order.
    torch.testing.assert_close(one[:, 1], other[:, 1], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(one[:, 0], other[:, 0])
