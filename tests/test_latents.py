"""Latents that are no Normal: codes, as quantized models have them, in an ordinary hierarchy; and models whose evidence
has log weights without being a hierarchy."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from toys.flow import TriangularFlow, TriangularFlowConfig

from davi.distributions import Categorical, Distribution, Latent, Normal
from davi.distributions.base import Noise
from davi.errors import UserError
from davi.evaluation import importance_bound
from davi.evidence import Evidence, Kind
from davi.model import Choose, Hierarchy, Model, Temperature
from davi.objectives import EvidenceConfig, EvidenceObjective

LEVELS, CODES = 3, 4


class Codes(Latent):
    """Independent codes; ``log_p`` is ``[B, n, K]``, normalized over the last dimension."""

    def __init__(self, log_p: Tensor, known: Kind = Kind.EXACT) -> None:
        self.log_p, self._known = log_p, known

    @property
    def shape(self) -> torch.Size:
        return self.log_p.shape[:2]

    @property
    def kind(self) -> Kind:
        return self._known

    def center(self) -> Tensor:
        return self.log_p.argmax(-1)

    mode = center

    def expand(self, n: int) -> Codes:
        return Codes(self.log_p.expand(n, -1, -1), self._known)

    def log_prob_map(self, x: Tensor) -> Tensor:
        return self.log_p.gather(-1, x.unsqueeze(-1)).squeeze(-1)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        flat = self.log_p.exp().flatten(0, 1)
        return torch.multinomial(flat, 1, generator=generator).view(self.shape)

    def sample_with(self, noise: Noise) -> Tensor:
        return self.center()

    def kl_map(self, prior: Latent, z: Tensor) -> tuple[Tensor, bool]:
        assert isinstance(prior, Codes)
        difference = torch.where(self.log_p > -math.inf, self.log_p - prior.log_p, 0.0)
        return (self.log_p.exp() * difference).sum(-1), True


class Quantized(Hierarchy):
    """Two pixels of three levels explained by two codes of four; tables for everything."""

    num_layers = 1

    def __init__(self, point: bool = False, known: Kind = Kind.EXACT) -> None:
        super().__init__((1, 1, 2), LEVELS, None)
        generator = Generator().manual_seed(3)
        self.q = nn.Parameter(torch.randn(LEVELS, CODES, generator=generator, dtype=torch.float64))
        self.p = nn.Parameter(torch.randn(CODES, LEVELS, generator=generator, dtype=torch.float64))
        self.point, self.known = point, known

    def encode(self, x: Tensor) -> Tensor:
        return self.q[x.flatten(1).long()]  # [B, 2, CODES]

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        prior = Codes(self.p.new_zeros(1, 2, CODES).log_softmax(-1), self.known)
        posterior = None
        if context is not None:
            best = nn.functional.one_hot(context.argmax(-1), CODES).double().log()
            posterior = Codes(best if self.point else context.log_softmax(-1))
        z = choose(0, prior, posterior)
        return Categorical(self.p[z].transpose(1, 2)[:, :, None, None, :])  # [B, LEVELS, 1, 1, 2]


def images() -> Tensor:
    """All nine of them."""
    return torch.tensor(list(itertools.product(range(LEVELS), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)


@torch.no_grad()
def log_p(model: Quantized, power: int = 1) -> Tensor:
    """log p(x) of all images, by summing over all sixteen pairs of codes; of the second power, log E_q[w^2]."""
    total, q = torch.zeros(len(images()), dtype=torch.float64), model.encode(images()).softmax(-1)
    for pair in itertools.product(range(CODES), repeat=2):
        z = torch.tensor([pair]).expand(len(images()), -1)
        density = q.gather(-1, z.unsqueeze(-1)).squeeze(-1).prod(1)
        joint = model.decode([z]).log_prob(images()).exp() / CODES**2
        total = total + density * (joint / density) ** power
    return total.log()


def error(model: Quantized, draws: int) -> Tensor:
    """Standard error of log of the mean of that many weights, to first order: sqrt(Var w / K) / E w."""
    return (((log_p(model, 2) - 2 * log_p(model)).exp() - 1) / draws).sqrt()


@torch.no_grad()
def test_the_bound_of_codes_by_enumeration() -> None:
    model, x = Quantized().eval(), images()
    assert float(log_p(model).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    evidence = model.evidence(x, Generator().manual_seed(0))
    assert evidence.kind is Kind.LOWER_BOUND
    q = model.encode(x).softmax(-1).detach()  # [9, 2, CODES]
    divergence = (q * (q * CODES).log()).sum((1, 2))  # from a uniform prior
    torch.testing.assert_close(evidence.terms["kl/00"], -divergence, rtol=0.0, atol=1e-12)
    expected = torch.zeros(len(x), dtype=torch.float64)
    for pair in itertools.product(range(CODES), repeat=2):
        z = torch.tensor([pair]).expand(len(x), -1)
        weight = q.gather(-1, z.unsqueeze(-1)).squeeze(-1).prod(1)
        expected = expected + weight * model.decode([z]).log_prob(x)
    assert bool((expected - divergence <= log_p(model) + 1e-12).all())
    many = [model.evidence(x, Generator().manual_seed(i)).terms["reconstruction"] for i in range(400)]
    deviation = torch.stack(many).std(0) / math.sqrt(400)
    assert bool(((torch.stack(many).mean(0) - expected).abs() < 5 * deviation).all())


def test_many_draws_of_codes_approach_log_p() -> None:
    model = Quantized().eval()
    bound = importance_bound(model, images(), 4000, Generator().manual_seed(0), chunk=900)
    assert bool(((bound - log_p(model)).abs() < 5 * error(model, 4000)).all())


def test_a_point_costs_the_log_of_the_number_of_codes() -> None:
    evidence = Quantized(point=True).eval().evidence(images())
    torch.testing.assert_close(
        evidence.terms["kl/00"], torch.full((9,), -2 * math.log(CODES), dtype=torch.float64), rtol=0.0, atol=1e-12
    )


def test_codes_are_drawn_decoded_and_found_again() -> None:
    model = Quantized().eval()
    assert model.sample(5, generator=Generator().manual_seed(0)).shape == (5, 1, 1, 2)
    (z,) = model.latents(images())
    assert torch.equal(z, model.q.argmax(-1)[images().flatten(1).long()])
    assert model.reconstruct(images()).shape == images().shape


def test_a_prior_that_is_an_estimate_makes_the_claim_one() -> None:
    """A prior whose normalization is only estimated leaves no bound, however exact the pixels are."""
    assert Quantized(known=Kind.ESTIMATE).eval().evidence(images()).kind is Kind.ESTIMATE
    exact = Normal(torch.zeros(1, 1), torch.ones(1, 1))
    assert exact.kind is Kind.EXACT


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Plain(Model):
    """The same numbers as the hierarchy's, in a model that is none."""

    name = "plain"
    Config = Nothing

    def __init__(self) -> None:
        super().__init__((1, 1, 2), LEVELS, Nothing())
        self.inner = Quantized()
        self.asked: list[int] = []

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        self.asked.append(len(x))
        found = self.inner.evidence(x, generator)
        return Evidence(found.terms, found.kind, found.log_weight_fn)

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return self.inner.sample(n, temperature, generator)


def test_any_model_with_log_weights_has_a_bound_of_many_draws() -> None:
    """Several draws of each image make one pass, as in a hierarchy."""
    model = Plain().eval()
    bound = importance_bound(model, images(), 4001, Generator().manual_seed(0), chunk=900)
    assert bool(((bound - log_p(model.inner)).abs() < 5 * error(model.inner, 4001)).all())
    assert model.asked == [9] + [900] * 40


def test_an_objective_is_refused_by_what_a_model_lacks() -> None:
    """Many draws need log weights, free bits and warm-ups need divergences; not a certain class."""
    with pytest.raises(
        UserError, match=r"^objective: got free_nats 1\.0 for plain, expected a model with layers of lat"
    ):
        EvidenceObjective(EvidenceConfig(free_nats=1.0)).check(Plain())
    EvidenceObjective(EvidenceConfig(draws=3, bound="importance_weighted")).check(Plain())
    EvidenceObjective(EvidenceConfig(kl_fraction=0.5)).check(Plain())
    flow = TriangularFlow((1, 2, 2), 4, TriangularFlowConfig())
    EvidenceObjective(EvidenceConfig(draws=3, bound="importance_weighted")).check(flow)
    with pytest.raises(UserError, match=r"^objective: got kl_fraction 0\.5 for toy_flow, expected a model with KL div"):
        EvidenceObjective(EvidenceConfig(kl_fraction=0.5)).check(flow)
