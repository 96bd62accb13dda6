"""Parts of flows on pixels: what a split takes where, the logit's slope, scales that let go of channels, padding."""

from __future__ import annotations

import math

import pytest
import torch
from contract import seeded
from torch import Tensor

from davi.flows import Bijection, Dequantization, Logit, MultiScale, Sequential, Squeeze
from davi.flows.multiscale import parts
from davi.flows.noise import VariationalConfig, make_noise
from davi.flows.splits import Alternating, Channels, Checkerboard, Columns, Split
from davi.flows.variational import VariationalNoise

ROWS = torch.arange(12.0).view(1, 1, 3, 4)
SPLITS: list[tuple[Split, Tensor, list[float]]] = [
    (Channels(3), torch.arange(3.0).view(1, 3, 1, 1), [0]),
    (Channels(4), torch.arange(4.0).view(1, 4, 1, 1), [0, 1]),
    (Alternating(), torch.arange(5.0)[None], [0, 2, 4]),
    (Columns(), ROWS, [0, 2, 4, 6, 8, 10]),
    (Checkerboard(), ROWS, [0, 2, 5, 7, 8, 10]),
]


@pytest.mark.parametrize(("split", "x", "looked_at"), SPLITS)
def test_what_a_split_takes(split: Split, x: Tensor, looked_at: list[float]) -> None:
    a, b = split.split(x)
    assert a.flatten().tolist() == looked_at
    assert sorted(torch.cat((a.flatten(), b.flatten())).tolist()) == x.flatten().tolist()
    assert torch.equal(split.merge(a, b), x)
    flipped = Channels(x.shape[1], True) if isinstance(split, Channels) else type(split)(True)
    other, same = flipped.split(x)
    assert torch.equal(other, b)
    assert torch.equal(same, a)
    assert torch.equal(flipped.merge(b, a), x)


@pytest.mark.parametrize(("place", "expected"), [(0.5, -4.264244), (0.05, -2.603512)])
def test_slope_of_the_logit_of_pixels(place: float, expected: float) -> None:
    """From integers: log(.9 / 256) - log p - log(1 - p) where the logit is taken of p = .05 + .9 y."""
    logit = Logit(0.05)
    y = torch.tensor([[(place - 0.05) / 0.9]], dtype=torch.float64)
    at, log_det = logit(y)
    assert float(at) == pytest.approx(math.log(place / (1.0 - place)), abs=1e-12)
    assert float(log_det) - math.log(256) == pytest.approx(expected, abs=5e-7)
    ends, slopes = logit(torch.tensor([[0.0, 1.0]]))
    assert bool(ends.isfinite().all() and slopes.isfinite().all())


@pytest.mark.parametrize("alpha", [-0.1, 0.5, math.nan])
def test_a_logit_of_nothing_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha: got .*, expected a number from 0 to below 0\.5"):
        Logit(alpha)


class Times(Bijection):
    """All variables times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.factor, torch.full_like(x, math.log(self.factor))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y / self.factor, torch.full_like(y, -math.log(self.factor))


def test_scales_let_go_of_half_of_the_channels() -> None:
    """Of 16 variables 8 leave with a factor of 2, 4 with 2 x 3, and 4 with 2 x 3 x 5: the total is known."""
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    scales = [Sequential(Squeeze("offsets"), Times(2.0)), Sequential(Squeeze("offsets"), Times(3.0)), Times(5.0)]
    shapes = [(2, 2, 2), (4, 1, 1), (4, 1, 1)]
    flow = MultiScale(scales, shapes)
    z, log_det = flow(x)
    expected = 16 * math.log(2.0) + 8 * math.log(3.0) + 4 * math.log(5.0)
    torch.testing.assert_close(log_det.flatten(1).sum(1), torch.full((2,), expected, dtype=torch.float64))
    fine, middle, coarse = parts(z, shapes)
    below = x[:, :, 1::2]  # the odd rows are the last two places of each block
    torch.testing.assert_close(fine, 2.0 * torch.cat((below[..., ::2], below[..., 1::2]), 1))
    left = 6.0 * Squeeze("offsets")(Squeeze("offsets")(x)[0][:, :2])[0]
    torch.testing.assert_close(torch.cat((coarse / 5.0, middle), 1), left)
    torch.testing.assert_close(flow.inverse(z)[0], x)
    # Each variable has its prior once: the density is that of the flow that carries all of them to the end.
    normal = torch.distributions.Normal(0.0, 1.0)
    total = sum(normal.log_prob(part).flatten(1).sum(1) for part in (fine, middle, coarse))
    torch.testing.assert_close(total, normal.log_prob(z).sum(1))


LEVELS, PADDING = 4, (1, 2)
"""Rows and columns of padding."""


def padded(variational: bool = False, low: float = 0.0, high: float = 1.0) -> Dequantization:
    """Of images of 2 x 1 pixels, which become 3 x 3."""
    config = VariationalConfig(steps=2, width=4, blocks=1, heads=1, context_width=4, context_blocks=1)
    noise = make_noise((1, 3, 3), LEVELS, config) if variational else None
    if isinstance(noise, VariationalNoise):  # whose weights have no variance until it has learned to reach the ends
        steps, sigmoid = noise.flow
        noise.flow = Sequential(steps, Times(1.8), sigmoid)
    return Dequantization(LEVELS, low, high, noise, PADDING).double()


def draw(dequantization: Dequantization, x: Tensor) -> tuple[Tensor, Tensor]:
    y, log_q, _ = dequantization(x, seeded(), torch.float64)
    return y, log_q.flatten(1).sum(1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_padding_costs_nothing_where_it_is_uniform(low: float, high: float) -> None:
    """Under a density that is the same in the whole range each of the two pixels has 1 / 4, whatever is beside them."""
    x = torch.randint(LEVELS, (100, 1, 2, 1))
    dequantization = padded(low=low, high=high)
    y, log_q = draw(dequantization, x)
    assert y.shape == (100, 1, 3, 3)
    assert bool(((y >= low) & (y < high)).all())
    bound = -9.0 * math.log(high - low) - log_q
    torch.testing.assert_close(bound, torch.full_like(bound, -2.0 * math.log(LEVELS)))
    assert torch.equal(dequantization.quantize(y), x)
    beside = torch.cat((y[:, :, 2].flatten(), y[:, :, :, 1:].flatten()))
    spread = torch.linspace(low, high, 5, dtype=torch.float64)
    counts = torch.histogram(beside, spread).hist / len(beside)
    torch.testing.assert_close(counts, torch.full((4,), 0.25, dtype=torch.float64), rtol=0.0, atol=0.1)


@pytest.mark.parametrize("variational", [False, True])
@torch.no_grad()
def test_padding_is_integrated_out(variational: bool) -> None:
    """Under the density 2 y of each of the nine values, a pixel x has the probability (2 x + 1) / 16."""
    n = 20_000
    torch.manual_seed(3)
    x = torch.tensor([[3, 1], [2, 2]]).view(2, 1, 2, 1)
    y, log_q = draw(padded(variational), x.repeat(n, 1, 1, 1))
    log_weight = ((2.0 * y).log().flatten(1).sum(1) - log_q).view(n, 2)
    weight, exact = log_weight.exp(), torch.tensor([7 * 3, 5 * 5]) / 256
    error = weight.std(0) / n**0.5
    assert bool((error < 0.05 * exact).all())
    assert bool(((weight.mean(0) - exact).abs() < 5 * error).all())
    assert bool((log_weight.mean(0) < exact.log()).all())


def test_the_middle_of_padding_is_that_of_the_range() -> None:
    middle = padded(low=-1.0).middle(torch.tensor([0, 3]).view(1, 1, 2, 1))
    expected = torch.zeros(1, 1, 3, 3)
    expected[0, 0, :2, 0] = torch.tensor([-0.75, 0.75])
    torch.testing.assert_close(middle, expected)
