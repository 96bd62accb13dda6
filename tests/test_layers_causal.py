"""What causal networks are built from, each against the ordinary convolution it is a part of."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers.causal import Canvas, PixelKernel, Progress, WithinPixel

LIKE = torch.zeros((), dtype=torch.float64)


def filled(x: Tensor, top: int = 0, left: int = 0, right: int = 0) -> Canvas:
    """A canvas with the values of a feature map."""
    n, channels, height, width = x.shape
    canvas = Canvas(n, channels, height, width, LIKE, top, left, right)
    for row, column in itertools.product(*map(range, x.shape[2:])):
        canvas.put(row, column, x[:, :, row, column])
    return canvas


def test_progress_goes_from_part_to_part_and_from_pixel_to_pixel() -> None:
    progress, seen = Progress((2, 2, 3), 2), []
    for _ in range(12):
        seen.append((progress.row, progress.column, progress.part))
        progress.step()
    assert seen == list(itertools.product(range(2), range(3), range(2)))


def test_a_canvas_has_zeros_around_it() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    canvas = filled(x, top=2, left=1, right=2)
    padded = F.pad(x, (1, 2, 2, 0))
    assert torch.equal(canvas.rows(-2, 4), padded)
    assert torch.equal(canvas.rows(0, 1), padded[:, :, 2:3])
    window = padded[:, :, 1:3, 3:6]  # rows -1 and 0, columns 2 to 4, the last of them beside the map
    assert torch.equal(canvas.window(-1, 2, 2, 3), window.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(canvas.at(1, 3), x[:, :, 1, 3])
    assert canvas.values.dtype == torch.float64


def test_a_row_is_put_at_once() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    canvas = Canvas(2, 3, 2, 4, LIKE, 1, 1, 1)
    for row in range(2):
        canvas.put_row(row, x[:, :, row : row + 1])
    assert torch.equal(canvas.values, filled(x, 1, 1, 1).values)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 4)])
def test_a_kernel_at_a_pixel_is_the_convolution_there(size: tuple[int, int], bias: bool) -> None:
    conv = nn.Conv2d(3, 5, size, bias=bias).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    left, right = size[1] - 1, 0
    canvas, kernel = filled(x, size[0] - 1, left, right), PixelKernel(conv.weight, conv.bias)
    expected = conv(F.pad(x, (left, right, size[0] - 1, 0)))
    for row, column in itertools.product(range(4), range(6)):
        window = canvas.window(row - size[0] + 1, column - left, *kernel.size)
        torch.testing.assert_close(kernel(window), expected[:, :, row, column], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("channels", "outputs", "each"), [(1, 4, 1), (2, 2, 1), (3, 12, 1), (3, 6, 4)])
def test_within_a_pixel_channels_see_those_before_them(channels: int, outputs: int, each: int) -> None:
    """And all of the features of their pixel, and nothing of other pixels."""
    inputs = each * channels
    layer = WithinPixel(5, channels, outputs, inputs, width=8).double()
    f, x = (torch.randn(1, n, 1, 2, dtype=torch.float64) for n in (5, inputs))
    of_f, of_x = (jacobian.squeeze() for jacobian in torch.autograd.functional.jacobian(layer, (f, x)))
    of_f, of_x = of_f.reshape(outputs, 2, 5, 2), of_x.reshape(outputs, 2, inputs, 2)
    own = torch.eye(2, dtype=torch.bool)[None, :, None]
    assert torch.equal(of_f != 0, own.expand(outputs, 2, 5, 2))
    earlier = torch.arange(inputs) // each < torch.arange(outputs)[:, None] % channels
    assert torch.equal(of_x != 0, own & earlier[:, None, :, None])
