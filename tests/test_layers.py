"""Layers against torch's own, direct loops, and numbers worked out by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from davi.layers import (
    ChannelLayerNorm,
    NonLocalBlock,
    ResidualBlock,
    ResidualCell,
    SqueezeExcite,
    WeightNormConv2d,
)
from davi.layers.residual import FactorizedReduce, NodeOptions, Upsample
from davi.training.plan import saved_bytes

IDENTITY = 1e-12  # float64 on both sides, a few roundings of numbers of order one


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shake(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Move every parameter away from its start, where gates are 0 and gains are 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def close(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=IDENTITY)


# --- weight-normalized convolution


@pytest.mark.parametrize("bias", [True, False])
def test_weight_norm_is_that_of_torch(bias: bool) -> None:
    ours = shake(WeightNormConv2d(3, 5, 3, bias=bias))
    theirs = weight_norm(nn.Conv2d(3, 5, 3, padding=1, bias=bias))
    weight = theirs.parametrizations.weight
    with torch.no_grad():
        weight.original0.copy_(ours.log_g.exp().view(-1, 1, 1, 1))
        weight.original1.copy_(ours.v)
        if bias:
            theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    close(ours(x), theirs(x))
    target = torch.randn(2, 5, 6, 7)
    x_ours, v, log_g = torch.autograd.grad((ours(x) * target).sum(), [x, ours.v, ours.log_g])
    x_theirs, v_theirs, g = torch.autograd.grad((theirs(x) * target).sum(), [x, weight.original1, weight.original0])
    close([x_ours, v], [x_theirs, v_theirs])
    close(log_g, (g * weight.original0).flatten().detach())  # d/d log g = g d/dg


def test_length_of_a_kernel_is_its_gain() -> None:
    conv = shake(WeightNormConv2d(4, 6, 3))
    close(conv.kernels().flatten(1).norm(dim=1), conv.log_g.exp())


def test_stride_two_pads_behind_the_image() -> None:
    """A kernel of ones on 1 .. 16: windows start at rows and columns 0 and 2, only behind the end lie zeros."""
    conv = WeightNormConv2d(1, 1, 3, stride=2)
    with torch.no_grad():
        conv.v.fill_(1.0)
        conv.log_g.fill_(math.log(3.0))  # the norm of nine ones
        conv.bias.zero_()
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    # 1+2+3+5+6+7+9+10+11, 3+4+7+8+11+12, 9+10+11+13+14+15, 11+12+15+16
    close(conv(x), torch.tensor([[[[54.0, 45.0], [72.0, 54.0]]]]))


def test_stride_two_with_one_by_one_kernels_takes_every_other_pixel() -> None:
    conv = WeightNormConv2d(2, 3, 1, stride=2)
    x = torch.randn(1, 2, 4, 6)
    close(conv(x), F.conv2d(x[:, :, ::2, ::2], conv.kernels(), conv.bias))


def test_initial_weights_are_uniform_and_of_their_own_length() -> None:
    conv = WeightNormConv2d(16, 40, 3)
    bound = 1 / math.sqrt(16 * 9)
    assert conv.v.abs().max() <= bound
    assert conv.v.abs().max() > 0.99 * bound
    # variance of a uniform variable: bound^2 / 3; 5760 draws, four standard errors (kurtosis 1.8)
    assert conv.v.var().item() == pytest.approx(bound**2 / 3, rel=4 * math.sqrt(0.8 / conv.v.numel()))
    assert conv.bias.abs().max() <= 1 / math.sqrt(40)
    assert conv.bias.abs().max() > 0.8 / math.sqrt(40)
    close(conv.kernels(), conv.v)
    assert "16, 40, kernel_size=3, stride=1" in repr(conv)


# --- normalization and gates


def test_layer_norm_normalizes_the_channels_of_every_pixel() -> None:
    norm = shake(ChannelLayerNorm(5))
    x = 3 + 2 * torch.randn(2, 5, 3, 4)
    y = norm(x)
    for b, row, column in [(0, 0, 0), (1, 2, 3)]:
        pixel = x[b, :, row, column]
        standard = (pixel - pixel.mean()) / (pixel.var(correction=0) + 1e-5).sqrt()
        close(y[b, :, row, column], standard * norm.gamma + norm.beta)
    close(y, F.layer_norm(x.movedim(1, -1), (5,), norm.gamma, norm.beta, 1e-5).movedim(-1, 1))
    close(norm(x.to(memory_format=torch.channels_last)), y)


@pytest.mark.parametrize(("channels", "hidden"), [(8, 4), (96, 6)])
def test_squeeze_excite_by_hand(channels: int, hidden: int) -> None:
    gate = SqueezeExcite(channels)
    assert gate.squeeze.weight.shape == (hidden, channels)
    x = torch.randn(2, channels, 3, 5)
    y = gate(x)
    for b in range(2):
        means = torch.stack([x[b, c].mean() for c in range(channels)])
        factors = 1 / (1 + torch.exp(-(gate.excite.weight @ (gate.squeeze.weight @ means).clamp_min(0))))
        close(y[b], x[b] * factors.view(-1, 1, 1))


# --- non-local block


def spatial_softmax(block: NonLocalBlock, source: Tensor) -> Tensor:
    """The attended values [B, C, H, W], pixel by pixel."""
    b, c, h, w = source.shape
    q, k, v = block.query(source), block.key(source), block.value(source)
    if block.subsample:
        k, v = (
            torch.stack([m[:, :, i::2, j::2] for i in range(2) for j in range(2)]).amax(0)
            for m in (k[:, :, : h // 2 * 2, : w // 2 * 2], v[:, :, : h // 2 * 2, : w // 2 * 2])
        )
    k, v = k.flatten(2), v.flatten(2)
    out = torch.empty(b, c, h, w)
    for n in range(b):
        for row in range(h):
            for column in range(w):
                scores = torch.exp(block.scale * (q[n, :, row, column] @ k[n]))
                out[n, :, row, column] = v[n] @ (scores / scores.sum())
    return out


@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_nonlocal_block_by_direct_sums(subsample: bool, bias: bool) -> None:
    block = shake(NonLocalBlock(6, 3, bias=bias, subsample=subsample))
    x = torch.randn(2, 6, 4, 6)
    with torch.no_grad():
        close(block(x), x + block.gamma * spatial_softmax(block, x))


def test_nonlocal_block_with_layer_norms_by_direct_sums() -> None:
    block = shake(NonLocalBlock(6, 3, layer_norm=True))
    x = torch.randn(2, 6, 3, 4)
    with torch.no_grad():
        attended = spatial_softmax(block, block.norm_in(x))
        close(block(x), x + block.project(block.norm_out(block.gamma * attended + x)))


@pytest.mark.parametrize("subsample", [False, True])
def test_nonlocal_block_starts_as_the_identity(subsample: bool) -> None:
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(NonLocalBlock(6, 3, subsample=subsample)(x), x)


def test_bias_of_the_keys_has_no_effect() -> None:
    """It adds the same score q . b to all pixels, which the softmax divides out."""
    block = shake(NonLocalBlock(6, 3))
    x = torch.randn(2, 6, 3, 4)
    before = block(x)
    (grad,) = torch.autograd.grad(before.square().sum(), block.key.bias)
    assert grad.abs().max() < 1e-12
    with torch.no_grad():
        block.key.bias.add_(torch.randn(3))
    close(block(x), before)


# --- residual blocks


def test_nodes_and_shortcut_by_hand() -> None:
    block = shake(ResidualBlock(4, 4, nodes=2))
    x = torch.randn(3, 4, 5, 6)
    expected = x
    for node in block.nodes:
        mean, variance = expected.mean((0, 2, 3)), expected.var((0, 2, 3), correction=0)
        scaled = (expected - mean.view(1, 4, 1, 1)) / (variance + 1e-5).sqrt().view(1, 4, 1, 1)
        scaled = scaled * node.bn.weight.view(1, 4, 1, 1) + node.bn.bias.view(1, 4, 1, 1)
        expected = F.conv2d(scaled * torch.sigmoid(scaled), node.conv.kernels(), node.conv.bias, padding=1)
    close(block(x), x + 0.1 * expected)


@pytest.mark.parametrize(
    ("widths", "rescale", "size"),
    [((4, 4), 0, (4, 6)), ((4, 8), -2, (2, 3)), ((4, 2), 2, (8, 12)), ((4, 4), 2, (8, 12))],
)
@pytest.mark.parametrize("options", [NodeOptions(), NodeOptions(3, subsample=True, squeeze_excite=True)])
def test_shapes_of_blocks(widths: tuple[int, int], rescale: int, size: tuple[int, int], options: NodeOptions) -> None:
    block = shake(ResidualBlock(*widths, rescale, 2, options), 0.1)
    x = torch.randn(2, 4, 4, 6, requires_grad=True)
    y = block(x)
    assert y.shape == (2, widths[1], *size)
    grads = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
    assert all(g.isfinite().all() for g in grads)


def test_factorized_reduce_reads_the_four_pixels_in_order() -> None:
    reduce = FactorizedReduce(1, 6)
    assert [conv.v.shape[0] for conv in reduce.convs] == [1, 1, 1, 3]  # the last takes the remainder
    with torch.no_grad():
        for conv in reduce.convs:
            conv.v.fill_(1.0)
            conv.log_g.zero_()
            conv.bias.zero_()
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    picked = torch.tensor([1.0, 4.0, 2.0, 3.0, 3.0, 3.0])  # (0, 0), (1, 1), (0, 1), (1, 0), (1, 0), (1, 0)
    close(reduce(x).flatten(), picked * torch.sigmoid(picked))


def test_upsample_is_bilinear_with_aligned_corners() -> None:
    upsample = Upsample(1, 1, NodeOptions())
    with torch.no_grad():
        upsample.conv.v.fill_(1.0)
        upsample.conv.log_g.zero_()
    x = torch.tensor([[0.0, 3.0], [6.0, 9.0]]).view(1, 1, 2, 2)
    # corners stay; the two new pixels between them lie at thirds
    expected = torch.tensor([[0.0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]])
    close(upsample(x)[0, 0], expected)


def test_doubling_block_repeats_pixels_before_its_nodes() -> None:
    block = shake(ResidualBlock(4, 2, 2, 1))
    x = torch.randn(2, 4, 3, 2)
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    close(block(x), block.shortcut(x) + 0.1 * block.nodes(repeated))


def test_keeping_the_resolution_keeps_the_width() -> None:
    with pytest.raises(ValueError, match=r"^out_channels: got 8, expected 4: the shortcut is the identity$"):
        ResidualBlock(4, 8)


def test_cell_is_a_stem_and_its_blocks_in_order() -> None:
    cell = ResidualCell([4, 4, 8], [0, -2], nodes=1, stem_channels=3)
    x = torch.randn(2, 3, 4, 4)
    close(cell(x), cell.blocks[1](cell.blocks[0](cell.stem(x))))
    assert cell(x).shape == (2, 8, 2, 2)
    with pytest.raises(ValueError, match="zip"):
        ResidualCell([4, 4], [0, -2])


@pytest.mark.parametrize(("widths", "rescale"), [((4, 4), 0), ((4, 8), -2), ((4, 2), 2)])
def test_recomputation_changes_no_bit(widths: tuple[int, int], rescale: int) -> None:
    torch.set_default_dtype(torch.float32)
    kept = shake(ResidualBlock(*widths, rescale, 2, NodeOptions(3, squeeze_excite=True)))
    recomputed = copy.deepcopy(kept)
    recomputed.recompute = True
    for step in range(2):
        x = torch.randn(2, 4, 4, 4)
        results = []
        for block in (kept, recomputed):
            leaf = x.clone().requires_grad_()
            y = block(leaf)
            results.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *block.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), step
        # running means, running variances and the count of batches: what a checkpoint would hold
        state, other = kept.state_dict(), recomputed.state_dict()
        assert [name for name in state if not torch.equal(state[name], other[name])] == []
    assert kept.nodes[0].bn.num_batches_tracked == 2
    assert recomputed.nodes[0].bn.momentum == 0.1


def test_recomputation_keeps_less_for_the_backward_pass() -> None:
    def bytes_kept(recompute: bool) -> int:
        block = ResidualBlock(8, 8, 0, 2)
        block.recompute = recompute
        return saved_bytes(lambda: block(torch.randn(4, 8, 8, 8, requires_grad=True)), ())

    image = 4 * 8 * 8 * 8 * torch.get_default_dtype().itemsize
    assert bytes_kept(True) == image  # the input alone
    assert bytes_kept(False) > 6 * image  # two nodes with batch norm, activation and convolution
