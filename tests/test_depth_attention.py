"""Depth-wise attention against a version that stacks everything and leaves the derivatives to autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from davi.layers import DepthAttention, LayerMemory, LikelihoodConfig, resize_to
from davi.layers.depth_attention import DepthWiseAttention
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig
from davi.training.plan import saved_bytes

IDENTITY = 1e-12  # float64 on both sides, a few roundings of numbers of order one


class Stacked(nn.Module):
    """The same reading in the obvious way: all earlier entries stacked anew at each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def span(self, layers: int) -> slice:
        return slice(0, layers)

    def forward(self, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
        b = query.shape[0]
        k = torch.stack([key.expand(b, *key.shape[1:]) for key in keys], 1)  # [B, n, d, H, W]
        v = torch.stack([value.expand(b, *value.shape[1:]) for value in values], 1)
        weights = torch.einsum("bdhw,bndhw->bnhw", query, k).mul(self.scale).softmax(1)
        return torch.einsum("bnhw,bnmhw->bmhw", weights, v), weights


def entries(n: int, batches: list[int] | None = None, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A query, ``n`` keys and ``n`` values as leaves; ``batches``: the batch size of each layer."""
    batches = batches or [2] * n
    query = torch.randn(2, 3, 4, 5, dtype=dtype)
    keys = [torch.randn(b, 3, 4, 5, dtype=dtype) for b in batches]
    values = [torch.randn(b, 6, 4, 5, dtype=dtype) for b in batches]
    return [leaf.requires_grad_() for leaf in (query, *keys, *values)]


def attentions(scale: float) -> tuple[DepthAttention, Stacked]:
    ours, naive = DepthAttention().double(), Stacked().double()
    for module in (ours, naive):
        nn.init.constant_(module.scale, scale)
    return ours, naive


@pytest.mark.parametrize("batches", [[2], [1], [2, 2, 2], [1, 2, 2, 1]])
def test_outputs_and_gradients_are_those_of_stacking(batches: list[int]) -> None:
    n = len(batches)
    ours, naive = attentions(0.7)
    query, *rest = leaves = entries(n, batches)
    result, weights = ours(query, rest[:n], rest[n:])
    expected, expected_weights = naive(query, rest[:n], rest[n:])
    torch.testing.assert_close(result, expected, rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(weights, expected_weights.detach(), rtol=IDENTITY, atol=IDENTITY)
    target = torch.randn_like(result)
    found = torch.autograd.grad((result * target).sum(), [*leaves, ours.scale])
    right = torch.autograd.grad((expected * target).sum(), [*leaves, naive.scale])
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=IDENTITY, atol=IDENTITY)


def test_gradients_are_those_of_finite_differences() -> None:
    ours, _ = attentions(1.3)
    leaves = [leaf[:, :, :2, :2].detach().requires_grad_() for leaf in entries(3)]

    def read(query: Tensor, *rest: Tensor) -> Tensor:
        return ours(query, rest[:3], rest[3:]).result

    assert torch.autograd.gradcheck(read, leaves, eps=1e-6, atol=1e-8)


def test_weights_are_a_distribution_over_the_layers() -> None:
    query, *rest = entries(5)
    _, weights = attentions(3.0)[0](query, rest[:5], rest[5:])
    assert weights.shape == (2, 5, 4, 5)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, 5).double(), rtol=IDENTITY, atol=IDENTITY)
    assert not weights.requires_grad


def test_a_single_layer_has_weight_one_exactly() -> None:
    query, key, value = entries(1)
    result, weights = attentions(2.0)[0](query, [key], [value])
    assert torch.equal(weights, torch.ones_like(weights))
    assert torch.equal(result, value)
    grad_query, grad_key = torch.autograd.grad(result.sum(), [query, key])
    assert not grad_query.any()
    assert not grad_key.any()


def test_large_scores_do_not_overflow() -> None:
    query, *rest = entries(2)
    result, weights = attentions(1e6)[0](query, rest[:2], rest[2:])
    assert result.isfinite().all()
    chosen = weights.argmax(1, keepdim=True)
    expected = torch.where(chosen == 0, rest[2], rest[3])
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)  # all but always one layer alone


def test_entries_are_left_as_they_were() -> None:
    leaves = entries(3)
    before = [leaf.detach().clone() for leaf in leaves]
    query, *rest = leaves
    attentions(1.0)[0](query, rest[:3], rest[3:]).result.sum().backward()
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves, before, strict=True))


def test_bf16_autocast() -> None:
    """Queries may come out of a convolution in bf16 while the contexts are float32."""
    attention = DepthAttention()
    query, *rest = entries(3, [1, 2, 2], torch.float32)
    expected = attention(query, rest[:3], rest[3:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, weights = attention((query * 1).bfloat16(), rest[:3], rest[3:])
        grads = torch.autograd.grad(result.float().sum(), [query, *rest])
    assert all(g.isfinite().all() for g in grads)
    # bf16 has 8 bits: scores of size 5 are off by 0.02, weights by as much
    torch.testing.assert_close(result.float(), expected.result, rtol=0.1, atol=0.1)
    torch.testing.assert_close(weights.float(), expected.weights, rtol=0.1, atol=0.1)


def test_memory_resizes_a_map_once_per_grid() -> None:
    memory = LayerMemory()
    key, value = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)
    memory.offer(key, value)
    memory.offer(torch.randn(1, 2, 8, 8), torch.randn(1, 3, 8, 8))
    keys, values = memory.read((4, 4))
    assert keys[0] is key
    assert values[0] is value
    assert torch.equal(memory.read((8, 8))[1][0], resize_to(value, (8, 8)))
    for size in [(4, 4), (8, 8), (2, 2)]:
        first, second = memory.read(size), memory.read(size)
        assert [tuple(x.shape[2:]) for x in first[0] + first[1]] == [size] * 4
        assert all(a is b for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True))


def test_memory_can_be_read_from_a_layer_on() -> None:
    memory = LayerMemory()
    for i in range(3):
        memory.offer(torch.full((1, 1, 2, 2), i), torch.full((1, 1, 2, 2), 10 + i))
    keys, values = memory.read((2, 2), 1)
    assert len(memory) == 3
    assert [int(key[0, 0, 0, 0]) for key in keys] == [1, 2]
    assert [int(value[0, 0, 0, 0]) for value in values] == [11, 12]
    assert memory.read((2, 2), 3) == ([], [])


def test_resizing() -> None:
    x = torch.arange(1.0, 9.0).view(1, 1, 2, 4)
    assert resize_to(x, (2, 4)) is x
    assert torch.equal(resize_to(x, (4, 8)), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    # (1 + 2 + 5 + 6) / 4, (3 + 4 + 7 + 8) / 4
    assert resize_to(x, (1, 2)).flatten().tolist() == [3.5, 5.5]


# --- memory of a whole model


def model(layers: int, keys: int) -> AttentiveVAE:
    attention = DepthWiseAttention(keys)
    return AttentiveVAE(
        (1, 8, 8),
        2,
        AttentiveVAEConfig(
            layers=(layers,),
            latent_channels=2,
            width=8,
            preprocess=(0,),
            postprocess=(0,),
            encoder_blocks=1,
            decoder_blocks=1,
            nodes=1,
            generative_attention=attention,
            inference_attention=attention,
            likelihood=LikelihoodConfig("bernoulli"),
        ),
    )


def bytes_kept(vae: AttentiveVAE) -> int:
    """By one evidence, for its backward pass."""
    return saved_bytes(lambda: vae.evidence(torch.ones(2, 1, 8, 8, dtype=torch.long)).log_px, vae.parameters())


def stack_instead(vae: AttentiveVAE) -> AttentiveVAE:
    """The same model with the naive reading."""
    for module in vae.modules():
        if isinstance(getattr(module, "attention", None), DepthAttention):
            module.attention = Stacked()
    return vae


def test_memory_for_the_backward_pass_grows_linearly_with_depth() -> None:
    ours = {n: bytes_kept(model(n, 2)) for n in (8, 16, 32)}
    naive = {n: bytes_kept(stack_instead(model(n, 2))) for n in (8, 16, 32)}
    first, second = ours[16] - ours[8], ours[32] - ours[16]
    assert first > 0
    # The same tensors in every layer: nothing but alignment or a scalar could differ.
    assert second == pytest.approx(2 * first, rel=1e-3)
    # The count does see what it should: 2 for linear growth, 4 for the stacks alone.
    assert naive[32] - naive[16] > 2.8 * (naive[16] - naive[8])


def test_stacking_changes_memory_only() -> None:
    ours = model(5, 2).double().eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    naive = stack_instead(copy.deepcopy(ours))
    x = torch.randint(2, (2, 1, 8, 8))
    a, b = (vae.evidence(x, torch.Generator().manual_seed(1)).log_px for vae in (ours, naive))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
