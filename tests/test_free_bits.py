"""Free bits of every image by itself; those of the batch are in the tests of the objectives."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from tiny import vae
from torch import Tensor

from davi.evidence import Evidence, Kind
from davi.objectives import EvidenceConfig, objective
from davi.repetition import repeat_images

Group = Literal["channel", "layer"]


def of(kl: Tensor) -> Evidence:
    terms = {"reconstruction": torch.zeros(len(kl)), "kl/00": -kl.flatten(1).sum(1)}
    return Evidence(terms, Kind.LOWER_BOUND, kl_maps={"kl/00": kl})


@pytest.mark.parametrize(("group", "expected"), [("channel", (1.0 + 3.5 + 1.0 + 1.0) / 2), ("layer", (3.7 + 1.1) / 2)])
def test_by_hand(group: Group, expected: float) -> None:
    """Two images whose channels cost 0.2 and 3.5, and 0.4 and 0.7 nats: of the second one all is free by channel."""
    kl = torch.tensor([[[0.1, 0.1], [2.0, 1.5]], [[0.2, 0.2], [0.5, 0.2]]])[..., None]  # [B, C, h, 1]
    config = EvidenceConfig(free_nats=1.0, free_group=group, free_average="example")
    assert float(objective(of(kl), config)) == pytest.approx(expected, rel=1e-6)
    assert float(objective(of(kl), EvidenceConfig(free_nats=1.0, free_group=group))) < expected or group == "layer"


@pytest.mark.parametrize("group", ["channel", "layer"])
def test_gradients_are_zero_below_and_plain_above(group: Group) -> None:
    kl = torch.cat([torch.full((2, 3, 2, 2), 1e-3), torch.full((3, 3, 2, 2), 5.0)]).requires_grad_()
    config = EvidenceConfig(free_nats=0.5, free_group=group, free_average="example")
    (found,) = torch.autograd.grad(objective(of(kl), config), kl)
    (plain,) = torch.autograd.grad(objective(of(kl), EvidenceConfig()), kl)
    assert torch.equal(found[:2], torch.zeros_like(found[:2]))
    assert torch.equal(found[2:], plain[2:])
    # The mean over the batch is above the threshold, so there nothing is free.
    (batch,) = torch.autograd.grad(objective(of(kl), EvidenceConfig(free_nats=0.5, free_group=group)), kl)
    assert torch.equal(batch, plain)


@pytest.mark.parametrize("group", ["channel", "layer"])
def test_of_one_image_both_are_the_same(group: Group) -> None:
    kl = torch.rand(1, 3, 2, 2)
    found = [
        objective(of(kl), EvidenceConfig(free_nats=1.5, free_group=group, free_average=average))
        for average in ("batch", "example")
    ]
    assert torch.equal(*found)


def test_they_never_cost_less_than_those_of_the_batch() -> None:
    kl = torch.rand(8, 3, 2, 2)
    batch, example = (
        float(objective(of(kl), EvidenceConfig(free_nats=2.0, free_average=average)))
        for average in ("batch", "example")
    )
    assert example > batch
    twice = objective(of(repeat_images(kl, 2)), EvidenceConfig(free_nats=2.0, free_average="example", draws=2))
    assert float(twice) == pytest.approx(example, rel=1e-6)


def test_the_reported_evidence_stays() -> None:
    model, x = vae(), torch.randint(2, (6, 1, 4, 4))
    evidence = model.evidence(x, torch.Generator().manual_seed(3))
    before = evidence.log_px.clone()
    loss = objective(evidence, EvidenceConfig(free_nats=5.0, free_average="example"))
    assert bool(loss > -before.mean())
    assert torch.equal(evidence.log_px, before)
