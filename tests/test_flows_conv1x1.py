"""Actnorm and invertible 1x1 convolutions: what they begin with, and exact values of determinants and inverses.

That their determinants are those of autograd's Jacobians is tested in test_bijections.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from davi.flows import ActNorm, Bijection, Conv1x1, LUConv1x1, Sequential
from davi.flows.conv1x1 import InvertibleConv1x1, rotation
from davi.layers.from_data import set_from_data

ROUNDING = 1e-10
"""float64."""


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel."""
    return torch.var_mean(y.transpose(0, 1).flatten(1), 1, correction=0)


def images(n: int = 7) -> Tensor:
    """With channels of very different means and scales."""
    scale = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)[:, None, None]
    return scale * (torch.randn(n, 3, 4, 5, dtype=torch.float64) + 4.0)


def test_actnorm_standardizes_the_first_images_and_no_others() -> None:
    """Each layer those that the one before it has standardized and mixed."""
    flow, x = Sequential(ActNorm(3), Conv1x1(3), ActNorm(3)).double(), images()
    untouched = Sequential(ActNorm(3))(x)
    assert torch.equal(untouched[0], x)
    assert not untouched[1].any()
    set_from_data(flow, lambda: (flow(x), flow(images() + 100.0)))
    first, mixture, second = flow
    y, log_det = first(x)
    for outputs in (y, second(mixture(y)[0])[0]):
        variance, mean = moments(outputs)
        close(variance, torch.ones_like(variance))
        close(mean, torch.zeros_like(mean))
    close(y, (x - moments(x)[1][:, None, None]) / moments(x)[0].sqrt()[:, None, None])
    close(log_det.sum((2, 3)), (-0.5 * 4 * 5 * moments(x)[0].log()).expand(7, 3))
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    flow.train()(images() + 7.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in flow.state_dict().items())


def test_actnorm_centers_a_constant_channel_and_leaves_its_scale() -> None:
    norm, x = ActNorm(2).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    x[:, 1] = 7.0
    norm.set_from(x)
    assert norm.log_scale[1] == 0.0
    assert not norm(x)[0][:, 1].any()
    norm.set_from(x[:1, :, :1])  # a single number has no scale
    assert norm.log_scale.detach().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("cls", [Conv1x1, LUConv1x1])
@pytest.mark.parametrize("channels", [1, 2, 12, 48])
def test_it_begins_as_a_rotation(cls: type[Conv1x1 | LUConv1x1], channels: int) -> None:
    conv = cls(channels)
    matrix = conv.matrix().detach()
    # float32, and products of 48 numbers
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(channels), rtol=0.0, atol=1e-5)
    assert float(torch.linalg.det(matrix)) == pytest.approx(1.0, abs=1e-4)
    assert float(conv.log_abs_det().detach()) == pytest.approx(0.0, abs=1e-5)
    assert sum(parameter.numel() for parameter in conv.parameters()) == channels**2


def test_rotations_are_drawn_evenly() -> None:
    """Every entry of a rotation of the plane is the cosine or the sine of an angle of its own: mean 0, variance 1/2."""
    drawn = torch.stack([rotation(2) for _ in range(2000)])
    assert bool((drawn.mean(0).abs() < 4 * (0.5 / 2000) ** 0.5).all())
    assert bool((drawn.square().mean(0) - 0.5).abs().max() < 4 * (0.125 / 2000) ** 0.5)


def given(matrix: Tensor) -> list[InvertibleConv1x1]:
    """Both forms of one matrix."""
    plain, factors = Conv1x1(len(matrix)).double(), LUConv1x1(len(matrix), matrix)
    plain.weight = nn.Parameter(matrix.clone())
    return [plain, factors]


@pytest.mark.parametrize("determinant", [3.0, -3.0])
def test_both_forms_compute_the_same_whatever_the_sign(determinant: float) -> None:
    """H W log |det W| for each image, by hand."""
    matrix = torch.randn(6, 6, dtype=torch.float64)
    matrix[0] *= determinant / torch.linalg.det(matrix)
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    expected = torch.einsum("oc,bchw->bohw", matrix, x)
    plain, factors = given(matrix)
    close(factors.matrix(), matrix)
    for conv in (plain, factors):
        y, log_det = conv(x)
        close(y, expected)
        close(log_det.sum((1, 2, 3)), torch.full((4,), 3 * 5 * math.log(3.0), dtype=torch.float64))
        back, log_det = conv.inverse(y)
        close(back, x)
        close(log_det.sum((1, 2, 3)), torch.full((4,), -3 * 5 * math.log(3.0), dtype=torch.float64))


def test_both_forms_have_the_same_gradients_of_what_they_are_given() -> None:
    gradients = []
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    for conv in given(torch.randn(6, 6, dtype=torch.float64)):
        moved = x.clone().requires_grad_()
        conv(moved)[0].square().sum().backward()
        gradients.append(moved.grad)
        own = next(conv.parameters())
        (wanted,) = torch.autograd.grad(conv.log_abs_det(), own)
        if isinstance(conv, Conv1x1):
            close(wanted, torch.linalg.inv(own).T)
        else:
            assert torch.equal(wanted, torch.eye(6, dtype=torch.float64))
    assert gradients[0] is not None
    assert gradients[1] is not None
    close(gradients[1], gradients[0])


@pytest.mark.parametrize("cls", [Conv1x1, LUConv1x1])
def test_the_inverse_matrix_is_exact_and_rounded_once(cls: type[Conv1x1 | LUConv1x1]) -> None:
    """Also where rounding of float32 alone would be seen: singular values from 1 to 1e-4."""
    conv = cls(12)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.mul_(torch.logspace(0, -4, 12)[:, None])
        matrix = conv.matrix()
        found = conv.inverse(torch.eye(12))[0].T  # each row of the identity is an image of one pixel
        assert torch.equal(found, torch.linalg.inv(matrix.double()).float())
        assert not torch.equal(found, torch.linalg.inv(matrix))


@pytest.mark.parametrize("cls", [Conv1x1, LUConv1x1])
def test_autocast_leaves_it_in_the_type_of_its_input(cls: type[Conv1x1 | LUConv1x1]) -> None:
    conv: Bijection = cls(4)
    x = torch.randn(2, 4, 3, 3)
    for function in (conv, conv.inverse):
        expected = function(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = function(x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_layout_in_memory_is_kept() -> None:
    conv, x = Conv1x1(8), torch.randn(2, 8, 3, 5)
    channels_last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(conv(channels_last)[0], conv(x)[0])
    assert conv(channels_last)[0].is_contiguous(memory_format=torch.channels_last)
