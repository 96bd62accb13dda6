"""What every autoregressive model promises: conditionals in order, and draws that have the probabilities it states.

On images so small that all of them can be listed, so that every conditional follows from sums of probabilities.
"""

from __future__ import annotations

import math

import pytest
import torch
import toys
from contract import all_images, assert_frequencies, names, place, seeded, small
from torch import Tensor
from toys.belief_net import BeliefNet

from davi.evidence import About, Kind
from davi.model import Autoregressive, Conditional

PIXELS, GIVEN = 6, 3
SHAPE = (1, 2, 3)


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.register(monkeypatch)


def of(name: str, classes: int = 0) -> Autoregressive:
    found = small(name, SHAPE, 2, classes).double()
    assert isinstance(found, Autoregressive)
    return found


@pytest.fixture(params=names(Autoregressive))
def model(request: pytest.FixtureRequest) -> Autoregressive:
    return of(request.param)


@pytest.fixture(params=sorted(set(names(Autoregressive)) & set(names(Conditional))))
def conditional(request: pytest.FixtureRequest) -> Autoregressive:
    return of(request.param, classes=3)


def log_probabilities(model: Autoregressive, y: int | None = None) -> Tensor:
    """Of all images, ``[64]``."""
    x = all_images(model)
    return model.evidence(x, y=None if y is None else torch.full((len(x),), y)).log_px.detach()


def given_the_first(log_p: Tensor, known: int, pixels: int) -> Tensor:
    """Log-probabilities of all rests of the images whose first pixels are the binary digits of ``known``."""
    kept = log_p.view(2**pixels, -1)[known]
    return kept - kept.logsumexp(0)


def test_probabilities_sum_to_one(model: Autoregressive) -> None:
    log_p = log_probabilities(model)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)  # float64
    assert float(log_p.std()) > 0.02  # not simply even
    evidence = model.evidence(all_images(model))
    assert (evidence.kind, evidence.about, evidence.log_weight) == (Kind.EXACT, About.X, None)


def test_every_conditional_is_a_ratio_of_sums(model: Autoregressive) -> None:
    """log p(x_i | x_<i) is the log of what images have that begin with x_<=i, over what those have with x_<i."""
    x, log_p = all_images(model), log_probabilities(model)
    stated = model.conditionals(x).log_prob_map(x).detach().flatten(1)  # [64, 6]
    for i in range(PIXELS):
        longer, shorter = (log_p.view(2**n, -1).logsumexp(1).repeat_interleave(2 ** (PIXELS - n)) for n in (i + 1, i))
        torch.testing.assert_close(stated[:, i], longer - shorter, rtol=0.0, atol=1e-10)


def test_a_pixel_is_predicted_from_those_before_it(model: Autoregressive) -> None:
    x = all_images(model)
    for i in range(PIXELS):
        before, other = x.flatten(1).clone(), x.flatten(1).clone()
        other[:, i:] = 1 - other[:, i:]
        asked = x.clone()  # the same question to both
        found, again = (
            model.conditionals(images.view_as(x)).log_prob_map(asked).detach().flatten(1) for images in (before, other)
        )
        assert torch.equal(found[:, : i + 1], again[:, : i + 1])
        assert i == PIXELS - 1 or bool((found[:, i + 1 :] != again[:, i + 1 :]).any())


def test_samples_have_the_stated_probabilities(model: Autoregressive) -> None:
    drawn = model.sample(4000, generator=seeded())
    assert_frequencies(place(drawn, 2), log_probabilities(model))


def test_completions_keep_what_is_given_and_follow_the_conditionals(model: Autoregressive) -> None:
    log_p, n = log_probabilities(model), 500
    x = torch.zeros(8, *SHAPE, dtype=torch.int64)
    x.flatten(1)[:, :GIVEN] = all_images(model).flatten(1)[::8, :GIVEN]
    x.flatten(1)[:, GIVEN:] = torch.randint(2, (8, PIXELS - GIVEN))  # which is not looked at
    drawn = model.complete(x.repeat_interleave(n, 0), GIVEN, generator=seeded())
    model.check_images(drawn)
    assert torch.equal(drawn.flatten(1)[:, :GIVEN], x.flatten(1)[:, :GIVEN].repeat_interleave(n, 0))
    places = place(drawn, 2).view(8, n)
    for known in range(8):
        assert_frequencies(places[known] - 8 * known, given_the_first(log_p, known, GIVEN))


def test_what_is_whole_is_left_alone_and_from_nothing_it_is_a_sample(model: Autoregressive) -> None:
    x = all_images(model)
    assert torch.equal(model.complete(x, PIXELS), x)
    assert torch.equal(model.complete(x, 0, generator=seeded()), model.sample(64, generator=seeded()))
    for given in (-1, PIXELS + 1):
        with pytest.raises(ValueError, match=f"^given: got {given} pixels, expected 0 to {PIXELS}$"):
            model.complete(x, given)


def test_at_temperature_zero_every_pixel_is_the_more_probable_one(model: Autoregressive) -> None:
    log_p, known = log_probabilities(model), 0
    for i in range(PIXELS):
        zero, one = given_the_first(log_p, known, i).view(2, -1).logsumexp(1)
        known = 2 * known + int(one > zero)
    assert place(model.sample(3, temperature=0.0), 2).tolist() == [known] * 3


def test_probabilities_of_every_class_sum_to_one(conditional: Autoregressive) -> None:
    found = torch.stack([log_probabilities(conditional, y) for y in range(3)])
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3).double(), rtol=0.0, atol=1e-10)
    assert bool((found[0] - found[1]).abs().max() > 0.001)
    evidence = conditional.evidence(all_images(conditional)[:3], y=torch.tensor([0, 1, 2]))
    assert (evidence.kind, evidence.about) == (Kind.EXACT, About.X_GIVEN_Y)
    assert evidence.log_px.tolist() == found[[0, 1, 2], [0, 1, 2]].tolist()


def test_draws_are_of_their_classes(conditional: Autoregressive) -> None:
    n = 4000
    classes = torch.arange(2).repeat_interleave(n)
    drawn = conditional.sample(2 * n, generator=seeded(), y=classes)
    completed = conditional.complete(drawn, 2, generator=seeded(6), y=classes)
    for images in (drawn, completed):
        for y, places in enumerate(place(images, 2).view(2, n)):
            assert_frequencies(places, log_probabilities(conditional, y))


def test_a_belief_net_by_hand() -> None:
    """Every logistic regression written out."""
    model = of(BeliefNet.name)
    assert isinstance(model, BeliefNet)
    weight, bias = model.weight.tolist(), model.bias[0].tolist()
    for x, log_p in zip(all_images(model).flatten(1).tolist(), log_probabilities(model).tolist(), strict=True):
        expected = 0.0
        for i in range(PIXELS):
            logit = bias[i] + sum(weight[i][j] * x[j] for j in range(i))
            expected -= math.log1p(math.exp(-logit if x[i] else logit))
        assert log_p == pytest.approx(expected, abs=1e-12)
