"""Attention of every position to those before it: by hand, in order, and in the fused form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from davi.layers.causal_attention import attend_from, attention_weights, causal_attention, weights_from


def some(n: int = 7, keys: int = 3, values: int = 5, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of two images, float64."""
    generator = torch.Generator().manual_seed(1)
    query, key = (spread * torch.randn(2, n, keys, generator=generator).double() for _ in range(2))
    return query, key, torch.randn(2, n, values, generator=generator).double()


def test_by_hand() -> None:
    query, key, value = some(spread=2.0)
    found = causal_attention(query, key, value)
    for image in range(2):
        for i in range(7):
            scores = [float(query[image, i] @ key[image, j]) / math.sqrt(3) for j in range(i)]
            shares = [math.exp(score - max(scores)) for score in scores]
            total = sum(shares) + 1e-6
            expected = sum(((share / total) * value[image, j] for j, share in enumerate(shares)), torch.zeros(5))
            torch.testing.assert_close(found[image, i], expected.double(), rtol=0.0, atol=1e-13)


def test_the_weights_of_a_row_sum_to_almost_one_and_the_first_reads_nothing() -> None:
    query, key, value = some()
    weights = attention_weights(query, key)
    assert bool((weights.triu() == 0.0).all())
    scores = (query @ key.mT / math.sqrt(3)).masked_fill(~torch.ones(7, 7).tril(-1).bool(), -torch.inf)
    total = (scores[:, 1:] - scores[:, 1:].amax(-1, keepdim=True)).exp().sum(-1)  # S
    torch.testing.assert_close(weights.sum(-1)[:, 1:], total / (total + 1e-6), rtol=0.0, atol=1e-14)
    assert weights.sum(-1)[:, 1].tolist() == pytest.approx([1 / (1 + 1e-6)] * 2, abs=1e-15)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        first = causal_attention(*(x.to(dtype) for x in (query, key, value)))[:, 0]
        assert bool((first == 0.0).all())


@pytest.mark.parametrize("n", [2, 40])
@pytest.mark.parametrize(("keys", "values"), [(3, 5), (16, 8), (8, 8)])
def test_the_fused_form_gives_the_same_numbers(n: int, keys: int, values: int) -> None:
    exact = [x.requires_grad_() for x in some(n, keys, values, 3.0)]
    single = [x.detach().float().requires_grad_() for x in exact]
    outputs = causal_attention(*exact), causal_attention(*single)
    torch.testing.assert_close(outputs[1].double(), outputs[0], rtol=0.0, atol=5e-6)
    for output in outputs:
        output.square().sum().backward()
    for ours, theirs in zip(single, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.0, atol=1e-4)
    half = causal_attention(*(x.detach().bfloat16() for x in exact))
    torch.testing.assert_close(half.double(), outputs[0], rtol=0.0, atol=0.15)


def test_what_comes_later_changes_nothing_at_all() -> None:
    for dtype in (torch.float64, torch.float32):
        query, key, value = (x.to(dtype) for x in some(40))
        before = causal_attention(query, key, value)
        later = 25 + torch.randperm(15)
        order = torch.cat([torch.arange(25), later])
        after = causal_attention(query[:, order], key[:, order], value[:, order])
        assert torch.equal(before[:, :25], after[:, :25])
        assert not torch.equal(before[:, 25:], after[:, 25:])


def test_a_single_position() -> None:
    query, key, value = some()
    weights, read = attention_weights(query, key), causal_attention(query, key, value)
    for i in range(7):
        torch.testing.assert_close(weights_from(query[:, i], key[:, :i]), weights[:, i, :i], rtol=0.0, atol=1e-14)
        found = attend_from(query[:, i], key[:, :i], value[:, :i])
        torch.testing.assert_close(found, read[:, i], rtol=0.0, atol=1e-14)


def test_an_image_of_one_pixel() -> None:
    query, key, value = some(1)
    for dtype in (torch.float64, torch.float32):
        assert causal_attention(query.to(dtype), key.to(dtype), value.to(dtype)).tolist() == [[[0.0] * 5]] * 2
    assert attention_weights(query, key).tolist() == [[[0.0]]] * 2


def test_equal_scores_of_any_size_do_not_overflow() -> None:
    query, key, value = some()
    large = causal_attention(1e4 * torch.ones_like(query), torch.ones_like(key), value)
    expected = value[:, :6].cumsum(1) / (torch.arange(1.0, 7.0).double()[:, None] + 1e-6)
    torch.testing.assert_close(large[:, 1:], expected, rtol=0.0, atol=1e-12)
