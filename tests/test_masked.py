"""Masked convolutions: taps are counted, and Jacobians by autograd are triangular in the order of the variables."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers import MaskedConv2d, causal_mask, degrees
from davi.layers.masked import MaskType

ONE = degrees(1, 1)


def raster(jacobian: Tensor, channels_out: int, channels_in: int, reverse: bool = False) -> Tensor:
    """A Jacobian ``[1, out, h, w, 1, in, h, w]`` as a matrix in the order of the variables: pixel by pixel."""
    pixels = math.prod(jacobian.shape[2:4])
    found = jacobian.reshape(channels_out, pixels, channels_in, pixels)
    found = found.flip(1, 3) if reverse else found
    return found.permute(1, 0, 3, 2).reshape(pixels * channels_out, pixels * channels_in)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
def test_taps_of_a_square_kernel(size: int) -> None:
    """k x k: type A keeps (k^2 - 1) / 2, the pixels before; type B one more, the pixel itself."""
    for mask_type, extra in (("A", 0), ("B", 1)):
        mask = causal_mask(ONE, ONE, size, mask_type=mask_type)
        assert mask.shape == (1, 1, size, size)
        assert int(mask.sum()) == (size**2 - 1) // 2 + extra
        taps = mask.flatten().tolist()
        assert taps == sorted(taps, reverse=True)  # in the raster order: first those that are kept


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (3, 5)])
def test_taps_of_a_rectangle(shape: tuple[int, int]) -> None:
    assert int(causal_mask(ONE, ONE, shape, mask_type="A").sum()) == (math.prod(shape) - 1) // 2
    assert causal_mask(ONE, ONE, shape, mask_type="A").shape[2:] == shape


def test_order_of_the_colors_at_the_center() -> None:
    """Red, green, blue: the six taps of each, drawn by hand from the paper's rule."""
    center = {
        mask_type: causal_mask(degrees(3, 3), degrees(6, 3), 3, mask_type=mask_type)[:, :, 1, 1].int().tolist()
        for mask_type in ("A", "B")
    }
    assert center["A"] == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert center["B"] == [[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    whole = causal_mask(degrees(3, 3), degrees(6, 3), 3, mask_type="A")
    assert bool(whole[:, :, 0].all() and whole[:, :, 1, 0].all())
    assert not bool(whole[:, :, 1, 2].any() or whole[:, :, 2].any())


def test_reverse_turns_pixels_and_leaves_channels() -> None:
    forwards, reverse = (
        causal_mask(degrees(2, 2), degrees(2, 2), 3, mask_type="A", reverse=value) for value in (False, True)
    )
    assert torch.equal(reverse, forwards.flip(2, 3))
    assert torch.equal(reverse[:, :, 1, 1], forwards[:, :, 1, 1])


def test_groups_take_their_part_of_the_whole_mask() -> None:
    """Of depth-wise kernels only the diagonal is there; other groups have blocks along it."""
    inputs, outputs = degrees(4, 4), degrees(8, 4)
    for mask_type, groups in itertools.product(("A", "B"), (2, 4)):
        whole = causal_mask(inputs, outputs, 5, mask_type=mask_type).view(
            groups, 8 // groups, groups, 4 // groups, 5, 5
        )
        expected = torch.cat([whole[group, :, group] for group in range(groups)])
        assert torch.equal(causal_mask(inputs, outputs, 5, mask_type=mask_type, groups=groups), expected)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_jacobian_of_one_convolution_is_triangular(parts: int, mask_type: MaskType, reverse: bool) -> None:
    own = degrees(3, parts)
    conv = MaskedConv2d(own, own, 3, mask_type=mask_type, reverse=reverse).double()
    jacobian = torch.autograd.functional.jacobian(conv, torch.randn(1, 3, 3, 4, dtype=torch.float64))
    found = raster(jacobian, 3, 3, reverse) != 0
    blocks = torch.ones(12 * parts, 12 * parts, dtype=torch.bool).tril(0 if mask_type == "B" else -1)
    allowed = blocks.repeat_interleave(3 // parts, 0).repeat_interleave(3 // parts, 1)
    assert not bool((found & ~allowed).any())
    pixel = 12  # the first variable of the second row (reversed: of the second last one): it sees all of its pixel
    assert torch.equal(found[pixel : pixel + 3, pixel : pixel + 3], allowed[pixel : pixel + 3, pixel : pixel + 3])
    assert bool(found[3:6, :3].all())  # and the pixel before in the same row is seen whole


def test_a_network_sees_everything_before_a_variable_and_nothing_else() -> None:
    """A, then B and B: strictly triangular, and full below the diagonal where the kernels reach."""
    variables, hidden = degrees(3, 3), degrees(12, 3)
    network = nn.Sequential(
        MaskedConv2d(variables, hidden, 5, mask_type="A"),
        nn.ELU(),
        MaskedConv2d(hidden, hidden, 3, mask_type="B"),
        nn.ELU(),
        MaskedConv2d(hidden, variables, 1, mask_type="B"),
    ).double()
    found = raster(torch.autograd.functional.jacobian(network, torch.randn(1, 3, 2, 2, dtype=torch.float64)), 3, 3)
    assert torch.equal(found != 0, torch.ones(12, 12, dtype=torch.bool).tril(-1))


def test_dense_layers_are_a_masked_autoencoder() -> None:
    """The matrices of MADE, from 1x1 masks: output i is a function of the inputs before it."""
    variables, hidden = degrees(5, 5), degrees(11, 5)
    first = causal_mask(variables, hidden, mask_type="A")[:, :, 0, 0]
    last = causal_mask(hidden, variables, mask_type="B")[:, :, 0, 0]
    w, v = torch.randn(11, 5, dtype=torch.float64), torch.randn(5, 11, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(
        lambda x: F.linear(F.linear(x, w * first).tanh(), v * last), torch.randn(5, dtype=torch.float64)
    )
    assert torch.equal(found != 0, torch.ones(5, 5, dtype=torch.bool).tril(-1))


def test_degrees_are_shared_out_equally() -> None:
    assert degrees(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    for channels, parts in itertools.product(range(1, 9), range(1, 6)):
        found = degrees(channels, parts).tolist()
        sizes = [found.count(part) for part in range(parts)]
        assert found == sorted(found)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("size", [2, 0, (3, 4), -1])
def test_an_even_kernel_has_no_center(size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^kernel_size: got .*, expected an odd number"):
        causal_mask(ONE, ONE, size, mask_type="A")


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="groups: got 2, expected a divisor of 3 and 4 channels"):
        causal_mask(degrees(3, 3), degrees(4, 3), 3, mask_type="B", groups=2)


def test_masks_are_no_weights() -> None:
    """They follow the module from device to device, but are not stored with it."""
    conv = MaskedConv2d(ONE, ONE, mask_type="A")
    assert set(conv.state_dict()) == {"conv.weight", "conv.bias"}
    assert conv.to("meta").mask.is_meta


def test_an_absurd_width_costs_nothing_on_paper() -> None:
    """Models are tried on the meta device first, where a width from a damaged file must not fill the memory."""
    with torch.device("meta"):
        wide = degrees(10**8, 10**8)
        assert causal_mask(wide, wide, 3, mask_type="A").shape == (10**8, 10**8, 3, 3)
