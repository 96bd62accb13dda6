"""Mutual information: numbers that are known by hand or by enumeration, what applies to which model, and the term of an
objective."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

import davi
from davi.batch import Batch
from davi.data import Images
from davi.distributions import Bernoulli, Distribution, Latent, Normal, Pairwise
from davi.errors import UserError
from davi.evaluation import evaluate
from davi.evaluation.measure import Measure
from davi.evaluation.mutual_information import (
    INFORMATION_IMAGES,
    INFORMATION_OF_MODEL,
    INFORMATION_OF_TOP,
    RATE_OF_TOP,
    AggregatedPosterior,
    information_bound,
)
from davi.evidence import Kind
from davi.model import Choose, Hierarchy
from davi.model.joint import ask, draw_joint, evaluating, posterior_log_prob
from davi.models.mixture_posterior import PosteriorMixture
from davi.objectives import EvidenceConfig, EvidenceObjective, Progress, objective
from davi.objectives.mutual_information import information_term
from davi.training.prepare import check_shares

NOW = Progress(0, 0, 0.0)


@final
class Discrete(Latent):
    """One bit, 1 with the given probability; its density is its probability."""

    def __init__(self, probability: Tensor) -> None:
        self.probability = probability  # [B, 1, 1, 1]

    @property
    def shape(self) -> torch.Size:
        return self.probability.shape

    def center(self) -> Tensor:
        return self.probability.round()

    mode = center

    def expand(self, n: int) -> Discrete:
        return self if len(self.probability) == n else Discrete(self.probability.expand(n, 1, 1, 1))

    def sample_with(self, noise: Callable[[Tensor], Tensor]) -> Tensor:
        raise AssertionError("nobody asks")

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return torch.bernoulli(self.probability, generator=generator)

    def log_prob_map(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.5, self.probability, 1.0 - self.probability).log()


@final
class Real(Distribution):
    """A "pixel" that is a real number: Normal with the given mean. Images are never scored here."""

    def __init__(self, mean: Tensor, scale: float) -> None:
        self.mean, self.scale = mean, scale

    def log_prob_map(self, x: Tensor) -> Tensor:
        return Normal(self.mean, torch.full_like(self.mean, self.scale)).log_prob_map(x)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return Normal(self.mean, torch.full_like(self.mean, self.scale)).sample(generator)

    def mode(self) -> Tensor:
        return self.mean


class Pair(Hierarchy):
    """A latent and a pixel, each a number, with distributions of somebody's choice."""

    num_layers = 1

    def __init__(
        self, prior: Latent, pixel: Callable[[Tensor], Distribution], posterior: Callable[[Tensor], Latent]
    ) -> None:
        super().__init__((1, 1, 1), 2, None)
        self.unused = nn.Parameter(torch.zeros(()))
        self.prior, self.pixel, self.posterior = prior, pixel, posterior

    def encode(self, x: Tensor) -> Tensor:
        return x.double()

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        return self.pixel(choose(0, self.prior, None if context is None else self.posterior(context)))


RHO = 0.8
STANDARD = Normal(torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double())


def gaussian(variance: float, rho: float = RHO, slope: float | None = None) -> Pair:
    """x and z standard Normal with correlation rho; q(z | x) = N(slope x, variance), with the slope rho."""
    slope = rho if slope is None else slope
    return Pair(
        STANDARD,
        lambda z: Real(rho * z, math.sqrt(1 - rho**2)),
        lambda x: Normal(slope * x, torch.full_like(x, math.sqrt(variance))),
    )


def mean_of(model: Hierarchy, n: int = 200_000) -> tuple[float, float]:
    """The bound and its standard error."""
    values = information_bound(model, n, Generator().manual_seed(0)).detach()
    return float(values.mean()), float(values.std()) / math.sqrt(n)


def test_two_correlated_normal_variables() -> None:
    """The exact posterior reaches I = -1/2 ln(1 - rho^2); one of variance 1 is below by its divergence."""
    information = -0.5 * math.log(1 - RHO**2)
    assert information == pytest.approx(0.5108256238, abs=1e-10)
    value, error = mean_of(gaussian(1 - RHO**2))
    assert abs(value - information) < 4 * error < 0.01
    wide, error = mean_of(gaussian(1.0))
    gap = 0.5 * (-math.log(1 - RHO**2) + (1 - RHO**2) - 1)
    assert abs(wide - (information - gap)) < 4 * error < 0.01
    assert gap > 0.15


def test_a_binary_symmetric_channel() -> None:
    """By enumeration of the four pairs, for the exact posterior and for one that trusts the channel too little."""
    flip = 0.1

    def channel(trust: float) -> Pair:
        bits = Discrete(torch.full((1, 1, 1, 1), 0.5).double())
        return Pair(
            bits,
            lambda z: Discrete(torch.where(z > 0.5, 1 - flip, flip)),
            lambda x: Discrete(torch.where(x > 0.5, trust, 1 - trust)),
        )

    for trust in (1 - flip, 0.7):
        exact = (1 - flip) * math.log(2 * trust) + flip * math.log(2 * (1 - trust))
        value, error = mean_of(channel(trust))
        assert abs(value - exact) < 4 * error < 0.01
        assert exact == pytest.approx(0.3680642072, abs=1e-10) if trust == 0.9 else exact < 0.3


def test_independent_latents_have_no_information() -> None:
    """Whatever the posterior is, the bound is at most 0; it is 0 for the prior."""
    for slope, variance in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.3), (-2.0, 4.0)):
        value, error = mean_of(gaussian(variance, rho=0.0, slope=slope), 20_000)
        assert value <= 4 * error
        assert (value == 0) == (slope == 0 and variance == 1)


class Small(Hierarchy):
    """Two latents of one number each, drawn from the top, and four binary pixels; both passes are small networks."""

    num_layers = 2

    def __init__(self, seed: int = 0) -> None:
        super().__init__((1, 2, 2), 2, None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.down = nn.Linear(1, 2)
            self.pixels = nn.Linear(2, 4)
            self.up = nn.Linear(4, 3)
            self.shared = nn.Linear(1, 1)
            self.norm = nn.BatchNorm1d(4)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.normal_()
                self.norm.running_mean.normal_()  # type: ignore[union-attr]  # there is one
        self.double()

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.up(self.norm(x.double().flatten(1) - 0.5)))

    def top_down(self, choose: Choose, context: Tensor | None = None) -> Distribution:
        zero = torch.zeros(1, 1, 1, 1).double()
        top = (
            None
            if context is None
            else Normal(context[:, :1, None, None], torch.full_like(context[:, :1, None, None], 0.8))
        )
        z = choose(0, Normal(zero, zero + 1), top)
        raw = self.down(z.flatten(1))
        prior = Normal(raw[:, :1, None, None], (0.3 * torch.tanh(raw[:, 1:, None, None])).exp())
        below = None
        if context is not None:
            mean = context[:, 1:2] + self.shared(z.flatten(1))
            below = Normal(mean[..., None, None], (0.5 * context[:, 2:, None, None]).exp())
        last = choose(1, prior, below)
        return Bernoulli(self.pixels(torch.cat([z, last], 1).flatten(1)).view(-1, 1, 2, 2))


def nodes(n: int = 24) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights for the expectation under a standard Normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(points), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def enumerated(model: Small) -> Tensor:
    """E log q(z | x) - log p(z), by sums over all images and quadrature over both latents; a scalar with its
    gradient, where latents and images are held fixed."""
    points, weights = nodes()
    everything = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 1, 2, 2)
    top, noise = (grid.reshape(-1, 1, 1, 1) for grid in torch.meshgrid(points, points, indexing="ij"))
    mass = (weights[:, None] * weights[None]).reshape(-1)
    found: list[Tensor] = []

    def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
        assert isinstance(prior, Normal)
        found.append(top if layer == 0 else (prior.mean + prior.scale * noise).detach())
        log_pz.append(prior.expand(len(top)).log_prob(found[-1]).detach())
        return found[-1]

    log_pz: list[Tensor] = []
    with torch.no_grad():
        pixels = model.top_down(choose)
        given = torch.stack([pixels.log_prob(x.expand(len(top), 1, 2, 2)) for x in everything]).exp()  # [16, M]
    total = torch.zeros(()).double()
    for x, probability in zip(everything, given, strict=True):
        log_qz = posterior_log_prob(model, x.expand(len(top), 1, 2, 2), tuple(found))
        total = total + (mass * probability * (log_qz - torch.stack(log_pz).sum(0))).sum()
    return total


def test_a_hierarchy_by_enumeration() -> None:
    model = Small().eval()
    exact = float(enumerated(model).detach())
    value, error = mean_of(model)
    assert abs(value - exact) < 4 * error < 0.1 < abs(exact)


def test_posteriors_asked_early_are_scored_once() -> None:
    """In a model whose latents are inferred on the way up: log q by the densities that its evidence is made of."""
    torch.manual_seed(0)
    for name in ("biva_digits_tiny", "vae_digits_tiny", "attentive_digits_tiny"):
        model = davi.build(name).double().eval()
        assert isinstance(model, Hierarchy)
        x = torch.randint(model.levels, (5, *model.shape), dtype=torch.uint8)
        evidence = model.evidence(x, Generator().manual_seed(1))
        assert evidence.log_weight_fn is not None
        log_qz = evidence.log_weight_fn(joint=True) - evidence.log_weight_fn()
        latents = model.latents(x, sample=True, generator=Generator().manual_seed(1))
        assert torch.allclose(posterior_log_prob(model, x, tuple(latents)), log_qz, atol=1e-10)


def test_draws_of_the_joint() -> None:
    """The images are those that the model samples, and log p(z) belongs to their latents."""
    model = Small().eval()
    drawn = draw_joint(model, 7, Generator().manual_seed(3))
    assert torch.equal(drawn.x, model.sample(7, generator=Generator().manual_seed(3)))
    top, below = drawn.latents
    raw = model.down(top.flatten(1))
    prior = Normal(raw[:, :1], (0.3 * torch.tanh(raw[:, 1:])).exp())
    expected = Normal(torch.zeros(7, 1), torch.ones(7, 1)).log_prob(top.flatten(1)) + prior.log_prob(below.flatten(1))
    assert torch.allclose(drawn.log_pz, expected, atol=1e-12)


def test_densities_of_all_pairs() -> None:
    generator = Generator().manual_seed(0)
    mean, scale, x = (torch.randn(n, 2, 3, 1, generator=generator).double() for n in (5, 5, 4))
    normal = Normal(mean, scale.exp())
    loop = torch.stack([normal.log_prob(one.expand_as(mean)) for one in x])  # [4, 5]
    assert torch.allclose(normal.log_prob_pairs(x), loop, atol=1e-12)
    assert torch.allclose(Normal(mean.float(), scale.exp().float()).log_prob_pairs(x), loop, atol=1e-4)
    assert isinstance(normal, Pairwise)
    mixture = PosteriorMixture(torch.stack([mean, -mean]), torch.stack([scale.exp(), 1 + scale.exp()]))
    loop = torch.stack([mixture.log_prob(one.expand_as(mean)) for one in x])
    assert torch.allclose(mixture.log_prob_pairs(x), loop, atol=1e-12)


def aggregated(means: Tensor, scale: float, sizes: list[int]) -> Tensor:
    posterior, generator = AggregatedPosterior(), Generator().manual_seed(0)
    for part in means.split(sizes):
        posterior.add(Normal(part, torch.full_like(part, scale)), generator)
    return posterior.information()


def test_the_aggregated_posterior_by_quadrature() -> None:
    """Three posteriors in one dimension: I = E KL(q || p) - KL(q(z) || p) = H(q(z)) - H(z | x), by a fine sum."""
    places, scale = torch.tensor([-1.0, 0.0, 1.5]).double(), 0.7
    z = torch.linspace(-12, 12, 20_001).double()
    densities = Normal(places[:, None].expand(3, len(z)), torch.full((3, len(z)), scale)).log_prob_map(z)
    whole = densities.logsumexp(0) - math.log(3)
    exact = float((densities.exp() * (densities - whole)).sum() / 3 * (z[1] - z[0]))
    # Every place 500 times: the data set has three images, shown again and again.
    values = aggregated(places.repeat(500).view(-1, 1, 1, 1), scale, [600, 900])
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(len(values))
    assert 0 < exact < math.log(3)


def test_what_can_be_told_apart_is_at_the_cap() -> None:
    far, same = 100.0 * torch.arange(50).double(), torch.zeros(50).double()
    for sizes in ([50], [10] * 5, [1] * 50):
        assert aggregated(far.view(-1, 1, 1, 1), 1.0, sizes).tolist() == pytest.approx([math.log(50)] * 50, abs=1e-12)
        assert aggregated(same.view(-1, 1, 1, 1), 1.0, sizes).tolist() == pytest.approx([0.0] * 50, abs=1e-12)
    measure = Measure("", "nats", 3.85, 0.02, None, "", images=50, cap=math.log(50))
    assert measure.at_cap
    assert not replace(measure, value=3.7).at_cap
    assert replace(measure, value=3.7, standard_error=0.3).at_cap
    assert not replace(measure, cap=None).at_cap


def images(model: Hierarchy, n: int) -> Images:
    pixels = torch.randint(model.levels, (n, *model.shape), dtype=torch.uint8, generator=Generator().manual_seed(0))
    return Images(pixels, model.levels, "toy/test")


def test_what_an_evaluation_says() -> None:
    model = Small().eval()
    some = images(model, 150)
    found = evaluate(model, some, batch_size=40, seed=3)
    bound, information, rate = (found.measure(name) for name in (INFORMATION_OF_MODEL, INFORMATION_OF_TOP, RATE_OF_TOP))
    assert bound is not None
    assert information is not None
    assert rate is not None
    assert (bound.kind, bound.draws, bound.images, bound.cap) == (Kind.LOWER_BOUND, 150, None, None)
    assert (information.kind, information.images, information.cap) == (Kind.ESTIMATE, 150, math.log(150))
    assert (rate.kind, rate.images) == (Kind.EXACT, 150)
    assert rate.value == pytest.approx(float(-found.terms["kl/00"].mean()))
    assert information.value < rate.value + 4 * (information.standard_error or 0.0)
    generator = Generator().manual_seed(3)
    values = torch.cat([information_bound(model, n, generator) for n in (40, 40, 40, 30)]).detach()
    assert bound.value == pytest.approx(float(values.mean()), abs=1e-12)
    assert bound.standard_error == pytest.approx(float(values.std()) / math.sqrt(150))
    assert found.left_out == ()
    again = evaluate(model, some, batch_size=40, seed=3)
    assert again.measures == found.measures


def test_of_many_images_some_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert INFORMATION_IMAGES == 1000
    monkeypatch.setattr("davi.evaluation.mutual_information.INFORMATION_IMAGES", 20)
    model = Small().eval()
    found = evaluate(model, images(model, 90), batch_size=30)
    numbers = [found.measure(name) for name in (INFORMATION_OF_MODEL, INFORMATION_OF_TOP, RATE_OF_TOP)]
    assert [(m.draws, m.images) for m in numbers if m] == [(20, None), (None, 20), (None, 20)]
    one = evaluate(model, images(model, 1))
    assert all(one.measure(name) is None for name in (INFORMATION_OF_MODEL, INFORMATION_OF_TOP, RATE_OF_TOP))


@pytest.mark.parametrize(
    ("recipe", "left_out"),
    [
        ("attentive_digits_tiny", {}),
        ("attentive_autoregressive_digits_tiny", {INFORMATION_OF_MODEL: "pixel by pixel"}),
        ("biva_digits_tiny", {INFORMATION_OF_TOP: "draws of the layers below", RATE_OF_TOP: "draws of the layers"}),
        ("hvi_digits_tiny", {INFORMATION_OF_MODEL: "its own draws only", INFORMATION_OF_TOP: "a pass for each"}),
        ("sylvester_digits_tiny", {INFORMATION_OF_TOP: "a pass for each"}),
        ("mixture_posterior_digits_tiny", {}),
        ("pixelcnn_digits_tiny", {}),
    ],
)
def test_what_a_model_does_not_have(recipe: str, left_out: dict[str, str]) -> None:
    model = davi.build(recipe)
    assert isinstance(model, davi.model.Model)
    pixels = torch.randint(model.levels, (4, *model.shape), dtype=torch.uint8)
    found = evaluate(model, Images(pixels, model.levels, "toy/test"))
    assert {one.name for one in found.left_out} == set(left_out)
    for one in found.left_out:
        assert left_out[one.name] in one.reason
        assert found.measure(one.name) is None
    wanted = {INFORMATION_OF_MODEL, INFORMATION_OF_TOP, RATE_OF_TOP} - set(left_out)
    has = {measure.name for measure in found.measures}
    assert has & wanted == (wanted if isinstance(model, Hierarchy) else set())


def test_densities_that_are_not_finite_are_no_number() -> None:
    """A posterior so narrow, in float32, that no other latents have a density that can be told."""
    model = gaussian(1e-300, rho=0.0)
    model.posterior = lambda x: Normal(x, torch.full_like(x, 1e-200))
    found = evaluate(model, Images(torch.ones(4, 1, 1, 1, dtype=torch.uint8), 2, "toy/test"))
    assert found.measure(INFORMATION_OF_MODEL) is None
    assert {one.name: one.reason for one in found.left_out}[INFORMATION_OF_MODEL].startswith(
        "the posterior has no finite"
    )


# The term of an objective.


def test_the_gradient_of_the_term_by_enumeration() -> None:
    """That of the bound, with respect to all that the posteriors are made of; the generative model has none. And its
    parts by finite differences."""
    model = Small(1).eval()
    generative = {"down.weight", "down.bias", "pixels.weight", "pixels.bias"}
    names = [name for name, _ in model.named_parameters() if name not in generative]
    parameters = [dict(model.named_parameters())[name] for name in names]
    exact = torch.autograd.grad(enumerated(model), parameters)
    draws = []
    torch.manual_seed(0)
    for _ in range(60):
        term = information_term(model, 500)
        gradients = torch.autograd.grad(term, list(model.parameters()), allow_unused=True)
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            assert (gradient is None) == (name in generative)
        draws.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))
    values = torch.stack(draws)
    error = values.std(0) / math.sqrt(len(values))
    assert bool(((values.mean(0) - torch.cat([g.flatten() for g in exact])).abs() < 4.5 * error + 1e-12).all())
    weight, step = model.up.weight, 1e-5
    moved = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 2] += sign * step
            moved.append(float(enumerated(model).detach()))
            weight[1, 2] -= sign * step
    assert float(exact[names.index("up.weight")][1, 2]) == pytest.approx((moved[0] - moved[1]) / 2 / step, rel=1e-6)


def test_the_loss_with_the_term() -> None:
    """Its weight times the bound is taken off; the model's modes and running statistics stay as they are."""
    model = Small().train()
    batch = Batch(torch.randint(2, (6, 1, 2, 2), generator=Generator().manual_seed(0)))
    config = EvidenceConfig(mutual_information_weight=0.3)
    torch.manual_seed(4)
    loss = EvidenceObjective(config).loss(model, model, batch, NOW)
    statistics = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert model.training
    assert model.norm.training
    model = Small().train()
    torch.manual_seed(4)
    evidence = model(batch.x)
    term = information_term(model, 6)
    assert torch.equal(loss.value, objective(evidence, config) - 0.3 * term)
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in model.named_buffers())
    assert set(loss.terms) == set(evidence.terms)
    torch.manual_seed(4)
    plain = EvidenceObjective(EvidenceConfig()).loss(Small().train(), model, batch, NOW)
    assert torch.equal(plain.value, objective(evidence, EvidenceConfig()))


def test_models_without_the_term_are_refused() -> None:
    objective = EvidenceObjective(EvidenceConfig(mutual_information_weight=0.1))
    objective.check(davi.build("attentive_digits_tiny"))
    told = r"^objective: got mutual_information_weight 0.1 for hvi, expected another posterior: the posterior of layer"
    with pytest.raises(UserError, match=told):
        objective.check(davi.build("hvi_digits_tiny"))
    told = r"^objective: got mutual_information_weight 0.1 for pixelcnn, expected a model with layers of latents$"
    with pytest.raises(UserError, match=told):
        objective.check(davi.build("pixelcnn_digits_tiny"))
    with pytest.raises(UserError, match=r"^training.compute.shard: got true with mutual_information_weight"):
        check_shares(davi.build("vae_digits_tiny"), objective.config)
    with pytest.raises(ValueError, match=r"^mutual_information_weight: got -1, expected a number >= 0$"):
        EvidenceConfig(mutual_information_weight=-1)


def test_asking_moves_nothing() -> None:
    model = davi.build("nvae_digits_tiny").train()
    assert isinstance(model, Hierarchy)
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    asked = ask(model)
    assert len(asked.posteriors) == len(asked.priors) == model.num_layers
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training
