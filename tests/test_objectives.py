"""What is minimised is the evidence, reweighted as said, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import vae

from davi.evidence import Evidence, Kind
from davi.objectives import ObjectiveConfig, negative_elbo


def evidence(**penalties: float) -> Evidence:
    terms = {
        "reconstruction": torch.tensor([-10.0, -20.0]),
        "kl/00": torch.tensor([-1.0, -3.0]),
        "kl/01": torch.tensor([-0.5, -0.25]),
        "klein": torch.tensor([-2.0, -4.0]),  # not a divergence: the name has no "kl/"
    }
    return Evidence(terms, Kind.LOWER_BOUND, penalties={name: torch.tensor(x) for name, x in penalties.items()})


@pytest.mark.parametrize(
    ("weight", "expected"),
    # by hand: means are 15 (reconstruction), 2 and 0.375 (divergences), 3 (the other term)
    [(1.0, 20.375), (0.0, 18.0), (0.1, 18.2375), (2.0, 22.75)],
)
def test_value_by_hand(weight: float, expected: float) -> None:
    assert float(negative_elbo(evidence(), weight)) == pytest.approx(expected, rel=1e-6)


def test_penalties_are_added_once() -> None:
    assert float(negative_elbo(evidence(first=3.0, second=0.5))) == pytest.approx(23.875, rel=1e-6)


def test_weight_one_is_the_bound_bit_for_bit() -> None:
    model, x = vae(), torch.randint(2, (6, 1, 4, 4))
    gradients = []
    for objective in (lambda e: negative_elbo(e, 1.0), lambda e: -e.log_px.mean()):
        loss = objective(model.evidence(x, torch.Generator().manual_seed(3)))
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert any(bool(a.any()) for a in gradients[0][1:])


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_weight_must_be_a_weight(weight: float) -> None:
    with pytest.raises(ValueError, match="kl_weight: got"):
        negative_elbo(evidence(), weight)


def test_no_terms() -> None:
    with pytest.raises(ValueError, match="no terms"):
        negative_elbo(Evidence({}, Kind.EXACT))


def test_annealing_by_epochs_is_the_papers() -> None:
    config = ObjectiveConfig(kl_start=0.1, kl_epochs=16)
    # 0.1 + 0.9 epoch / 16, whatever the step within the epoch
    values = {0: 0.1, 1: 0.15625, 4: 0.325, 8: 0.55, 15: 0.94375, 16: 1.0, 17: 1.0}
    for epoch, weight in values.items():
        for step in (0, 1000):
            assert config.kl_weight(step, epoch, 0.5) == pytest.approx(weight, rel=1e-12)


def test_annealing_by_steps_and_by_fraction() -> None:
    steps, fraction = ObjectiveConfig(kl_start=0.2, kl_steps=10), ObjectiveConfig(kl_start=0.0, kl_fraction=0.25)
    assert [steps.kl_weight(s, 9, 0.9) for s in (0, 5, 10, 11)] == pytest.approx([0.2, 0.6, 1.0, 1.0], rel=1e-12)
    values = [fraction.kl_weight(99, 9, f) for f in (0.0, 0.05, 0.25, 1.0)]
    assert values == pytest.approx([0.0, 0.2, 1.0, 1.0], rel=1e-12)


def test_no_annealing_by_default() -> None:
    assert ObjectiveConfig().kl_weight(0, 0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_start": 1.5}, "kl_start: got 1.5"),
        ({"kl_steps": -1}, "kl_steps: got -1"),
        ({"kl_fraction": 2.0}, "kl_fraction: got 2.0"),
        ({"kl_steps": 3, "kl_epochs": 2}, "more than one warm-up"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)
