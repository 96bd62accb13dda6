"""What a claim consists of, and how it is converted."""

from __future__ import annotations

import math

import pytest
import torch

from davi.evidence import Evidence, Kind, bits_per_dim


def test_claim_is_the_sum_of_the_terms() -> None:
    terms = {"reconstruction": torch.tensor([-3.0, -5.0]), "kl/00": torch.tensor([-0.5, -0.25])}
    evidence = Evidence(terms, Kind.LOWER_BOUND, penalties={"commitment": torch.tensor(7.0)})
    assert evidence.log_px.tolist() == [-3.5, -5.25]  # the penalty is not part of it
    assert evidence.log_px is evidence.log_px


def test_claim_without_terms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Evidence has no terms"):
        _ = Evidence({}, Kind.EXACT).log_px


def test_gradients_reach_the_terms() -> None:
    term = torch.zeros(2, requires_grad=True)
    (grad,) = torch.autograd.grad(Evidence({"a": term, "b": 2 * term}, Kind.EXACT).log_px.sum(), term)
    assert grad.tolist() == [3.0, 3.0]


def test_composite_has_the_weakest_kind() -> None:
    assert Kind.weakest(Kind.EXACT) is Kind.EXACT
    assert Kind.weakest(Kind.EXACT, Kind.LOWER_BOUND) is Kind.LOWER_BOUND
    assert Kind.weakest(Kind.ESTIMATE, Kind.EXACT, Kind.LOWER_BOUND) is Kind.ESTIMATE
    assert Kind.EXACT < Kind.LOWER_BOUND < Kind.ESTIMATE


def test_weight_is_computed_once_and_only_when_asked_for() -> None:
    calls = 0

    def log_weight_fn() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.tensor([1.0])

    evidence = Evidence({"a": torch.zeros(1)}, Kind.LOWER_BOUND, log_weight_fn)
    assert evidence.log_px.tolist() == [0.0]
    assert calls == 0
    assert [evidence.log_weight, evidence.log_weight] == [torch.tensor([1.0])] * 2
    assert calls == 1
    assert Evidence({"a": torch.zeros(1)}, Kind.EXACT).log_weight is None


@pytest.mark.parametrize(
    ("log_density", "levels", "dims", "published"),
    # NICE: log-densities of images scaled to [-1, 1) and [0, 1), with the volume of a gray level in those units
    [(5371.78, 128, 3072, 4.477), (1980.50, 256, 784, 4.36)],
)
def test_published_bits_per_dim(log_density: float, levels: int, dims: int, published: float) -> None:
    nats = log_density - dims * math.log(levels)
    assert bits_per_dim(nats, dims) == pytest.approx(published, abs=10 ** -len(str(published).partition(".")[2]) / 2)


def test_a_fair_coin_costs_one_bit() -> None:
    assert bits_per_dim(10 * math.log(0.5), 10) == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize("kind", list(Kind))
def test_bits_per_dim_of_every_image(kind: Kind) -> None:
    evidence = Evidence({"a": torch.tensor([-8.0, 0.0]) * math.log(2.0)}, kind, dims=4)
    assert evidence.bits_per_dim.tolist() == pytest.approx([2.0, 0.0])
    with pytest.raises(ValueError, match=r"^dims: got None, expected the number of values in one image$"):
        _ = Evidence({"a": torch.zeros(1)}, kind).bits_per_dim


def test_repr_is_short_and_says_what_is_claimed() -> None:
    terms = {
        "reconstruction": torch.linspace(-9.0, -7.0, 5000),
        **{f"kl/{i:02d}": -torch.ones(5000) for i in range(40)},
    }
    lines = repr(Evidence(terms, Kind.LOWER_BOUND, dims=64)).splitlines()
    assert lines == [
        "Evidence for 5000 images: lower bound on log p(x)",
        "  log p(x): mean -48 nats, from -49 to -47",
        "  bits/dim: mean 1.082, from 1.059 to 1.105",
        "  terms, mean nats: reconstruction -8, kl of 40 layers -40",
    ]
    assert repr(Evidence({"p": torch.zeros(1)}, Kind.EXACT)).startswith("Evidence for 1 image: exact log p(x)\n")
    assert repr(Evidence({}, Kind.EXACT)) == "Evidence without terms"
