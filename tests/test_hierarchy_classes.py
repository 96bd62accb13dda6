"""Hierarchies that are told the classes of images: a toy whose probabilities are tables."""

from __future__ import annotations

import math
from typing import Any, final

import pytest
import torch
from contract import all_images, assert_frequencies, place, seeded
from torch import Tensor, nn

from davi.data import Images
from davi.distributions import Bernoulli, Codes, Distribution
from davi.evaluation import evaluate, importance_bound
from davi.evaluation.scores import LLR, RAW, bound_above, measure
from davi.evidence import About
from davi.inspection import inspect
from davi.model import Choose, Conditional, Hierarchy
from davi.model.joint import ask, draw_joint
from davi.training.roles import generative_parameters

CLASSES, TOP, LOW = 3, 3, 2


@final
class Tables(Hierarchy, Conditional):
    """Two codes and two binary pixels. The posterior is that of all classes together."""

    name = "toy_tables"
    num_layers = 2

    def __init__(self) -> None:
        super().__init__((1, 1, 2), 2, None, CLASSES)
        self.top = nn.Parameter(torch.randn(CLASSES, TOP))
        self.low = nn.Parameter(torch.randn(CLASSES, TOP, LOW))
        self.pixels = nn.Parameter(torch.randn(TOP, LOW, 2))

    def joint(self) -> Tensor:
        """log p(z_0, z_1, x | y), ``[y, z_0, z_1, x]``."""
        log_z = self.top.log_softmax(1)[:, :, None] + self.low.log_softmax(2)
        logits = self.pixels[:, :, None, None, None].expand(-1, -1, 4, 1, 1, 2)
        x = all_images(self).expand(TOP, LOW, -1, -1, -1, -1)
        log_x = Bernoulli(logits.flatten(0, 2)).log_prob(x.flatten(0, 2)).view(TOP, LOW, 4)
        return log_z[..., None] + log_x

    def log_px(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y), ``[B]``."""
        return self.joint().logsumexp((1, 2))[y, place(x, 2)].detach()

    def encode(self, x: Tensor) -> Tensor:
        """log q(z_0, z_1 | x) but for a constant, ``[B, z_0, z_1]``."""
        return self.joint().logsumexp(0)[:, :, place(x, 2)].movedim(2, 0)

    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        return self.top_down_given(None, choose, context)

    def top_down_given(self, y: Tensor | None, choose: Choose, context: Tensor | None = None) -> Distribution:
        """Without classes the priors have shapes, but no probabilities."""
        posterior = None if context is None else law(context.logsumexp(2))
        top = number(choose(0, law(torch.full((1, TOP), math.nan) if y is None else self.top[y]), posterior))
        posterior = None if context is None else law(context[torch.arange(len(top)), top])
        prior = law(torch.full((len(top), LOW), math.nan) if y is None else self.low[y, top])
        return Bernoulli(self.pixels[top, number(choose(1, prior, posterior))][:, None, None])


def law(logits: Tensor) -> Codes:
    return Codes(logits[:, :, None, None, None])


def number(z: Tensor) -> Tensor:
    """A layer's code, ``[B]``."""
    return z[:, 0, 0, 0].long()


def numbers(latents: tuple[Tensor, ...]) -> list[Tensor]:
    """The codes, ``[B]`` each."""
    return [number(z) for z in latents]


@pytest.fixture
def model() -> Tables:
    return Tables().double().eval()


X = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]]).view(6, 1, 1, 2)
Y = torch.tensor([0, 1, 2, 2, 1, 0])
LABELED = Images(X.to(torch.uint8), 2, "toy", labels=Y, classes=("a", "b", "c"))


@pytest.mark.parametrize("draws", [1, 3])
def test_evidence_is_of_images_given_their_classes(model: Tables, draws: int) -> None:
    x, y = X.repeat_interleave(draws, 0), Y.repeat_interleave(draws, 0)
    evidence = model.evidence(X, seeded(), Y) if draws == 1 else model(X, draws, Y)
    assert evidence.about is About.X_GIVEN_Y
    assert evidence.log_weight is not None
    top, low = numbers(evidence.draws)
    log_q = model.encode(x).flatten(1).log_softmax(1).view(-1, TOP, LOW)[torch.arange(len(x)), top, low]
    torch.testing.assert_close(evidence.log_weight, model.joint()[y, top, low, place(x, 2)] - log_q)
    with pytest.raises(ValueError, match=r"^labels: got None, expected 6 class numbers from 0 to 2$"):
        model.evidence(X)


def test_draws_are_of_their_class(model: Tables) -> None:
    every = all_images(model)
    for y in range(CLASSES):
        drawn = model.sample(3000, seed=y, y=torch.full((3000,), y))
        assert_frequencies(place(drawn, 2), model.log_px(every, torch.full((4,), y)))


def test_bounds_and_scores_are_of_the_class(model: Tables) -> None:
    """With 20,000 draws they are log p(x | y) but for 0.02: whatever is left out comes from the priors of the class."""
    expected = model.log_px(X, Y)
    found = [importance_bound(model, X, 20000, seeded(), 3000, Y)]
    found += [bound_above(model, X, dropped, 20000, seeded(), 3000, Y) for dropped in (1, 2)]
    for bound in found:
        torch.testing.assert_close(bound, expected, rtol=0.0, atol=0.02)
    scores = measure(model, LABELED, dropped=(1,), samples=20000, batch_size=3000)
    for score, value in ((RAW, expected / (-2.0 * math.log(2.0))), (f"{LLR}1", torch.zeros(6))):
        torch.testing.assert_close(torch.from_numpy(scores[score]), value.double(), rtol=0.0, atol=0.03)


def test_an_inspection_walks_with_the_classes(model: Tables) -> None:
    found, evaluation = inspect(model, LABELED, samples=4, batch_size=4), evaluate(model, LABELED, batch_size=4)
    assert found.progressive is not None
    assert found.progressive.nats[-1] == pytest.approx(-float(evaluation.elbo.mean()), rel=1e-9)
    assert {len(drawn) for drawn in found.samples.values()} == {4}


def test_what_is_drawn_to_learn_about_a_model_has_classes_in_turn(model: Tables) -> None:
    joint, y = draw_joint(model, 6, seeded()), torch.arange(6) % CLASSES
    top, low = numbers(joint.latents)
    log_pz = model.top.log_softmax(1)[y, top] + model.low.log_softmax(2)[y, top, low]
    torch.testing.assert_close(joint.log_pz, log_pz.detach(), rtol=1e-12, atol=0.0)
    assert generative_parameters(model) == {"top", "low", "pixels"}
    asked = ask(model, X)
    assert torch.equal(asked.priors[0].log_prob_map(torch.zeros(6, 1, 1, 1)).flatten(), model.top.log_softmax(1)[y, 0])


def test_latents_shapes_and_pixels_need_no_classes(model: Tables) -> None:
    assert model.latent_shapes() == [(1, 1, 1), (1, 1, 1)]
    latents = model.latents(X)
    assert bool(model.decode(latents).log_prob(X).isfinite().all())
    assert torch.equal(number(latents[0]), model.encode(X).logsumexp(2).argmax(1))
