"""Real NVP: counts of published configurations, what the scales keep, batch norms in training, what is penalized."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from contract import seeded, shake
from torch import Tensor

from davi.errors import UserError
from davi.flows import Coupling, FlowBatchNorm, Logit, Reorder, Sequential, Squeeze
from davi.flows.batch_norm import RunningMoments, ShiftedBatchNorm
from davi.flows.splits import Checkerboard
from davi.models.real_nvp import (
    Moments,
    NormalizedConv2d,
    RealNVP,
    RealNVPConfig,
    ShiftThenScale,
    on_checkerboard,
)

Shape = tuple[int, int, int]


def flow(shape: Shape = (1, 4, 4), levels: int = 256, **options: object) -> RealNVP:
    """A small one, with weights that are neutral nowhere; eval mode."""
    torch.manual_seed(0)
    config = RealNVPConfig(**{"width": 2, "blocks": 1, **options})  # type: ignore[arg-type]
    return shake(RealNVP(shape, levels, config))


@pytest.mark.parametrize(
    ("size", "config", "expected"),
    [
        (32, RealNVPConfig(scales=4, width=32, blocks=4), 46_220_359),
        (64, RealNVPConfig(scales=5, width=32, blocks=4), 185_898_341),
        (32, RealNVPConfig(scales=2, width=64, blocks=8), 19_609_545),
    ],
    ids=["4 scales", "5 scales", "2 scales"],
)
def test_published_configurations_have_their_parameters(size: int, config: RealNVPConfig, expected: int) -> None:
    with torch.device("meta"):
        model = RealNVP((3, size, size), 256, config)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(("argument", "expected"), [(0.5, -4.264244), (0.05, -2.603512)])
def test_the_logit_of_256_levels(argument: float, expected: float) -> None:
    """The log-determinant from integers, by what the logit is taken of."""
    model = flow().double()
    assert isinstance(model.bijection, Sequential)
    logit = next(iter(model.bijection))
    assert isinstance(logit, Logit)
    y = torch.tensor([[(argument - 0.05) / 0.9]], dtype=torch.float64)
    assert float(logit(y)[1]) - math.log(model.levels) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "scales", "expected"),
    [
        ((3, 8, 8), 3, [(6, 4, 4), (12, 2, 2), (12, 2, 2)]),
        ((1, 4, 6), 2, [(2, 2, 3), (2, 2, 3)]),
        ((2, 3, 5), 1, [(2, 3, 5)]),
        ((1, 5, 3), 3, [(2, 4, 2), (4, 2, 1), (4, 2, 1)]),  # padded to 8 x 4
        ((1, 4, 4), 3, [(2, 2, 2), (4, 1, 1), (4, 1, 1)]),
    ],
)
def test_every_value_has_one_prior_and_one_latent(shape: Shape, scales: int, expected: list[Shape]) -> None:
    model = flow(shape, scales=scales)
    assert list(model.latent_shapes) == expected
    unit = 2 ** (scales - 1)
    padded = shape[0] * math.prod(math.ceil(side / unit) * unit for side in shape[1:])
    base = model.base(2)
    assert sum(map(math.prod, expected)) == padded == base.shape[1]
    nothing = torch.zeros(2, padded)
    torch.testing.assert_close(base.log_prob(nothing), torch.full((2,), -0.5 * padded * math.log(2 * math.pi)))


def test_what_goes_on_are_the_pixels_of_the_first_diagonals() -> None:
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    moved = x
    first, _ = flow((2, 4, 4)).scales
    assert isinstance(first, Sequential)
    for part in first:
        if isinstance(part, (Squeeze, Reorder)):
            moved, _ = part(moved)
    going, done = moved.chunk(2, 1)
    expected = [x[:, :, ::2, ::2], x[:, :, 1::2, 1::2], x[:, :, ::2, 1::2], x[:, :, 1::2, ::2]]
    assert torch.equal(going, torch.cat(expected[:2], 1))
    assert torch.equal(done, torch.cat(expected[2:], 1))


@pytest.mark.parametrize("moments", ["masked", "original"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 3)])
def test_integers_come_back_in_single_precision(shape: Shape, moments: Moments) -> None:
    model = flow(shape, moments=moments)
    x = torch.randint(256, (4, *shape), generator=seeded())
    x[0], x[1] = 0, 255
    assert torch.equal(model.decode(model.encode(x)), x)


def test_scales_are_bounded_by_one_learned_number() -> None:
    function = ShiftThenScale(FlowBatchNorm(2, eps=0.0), 1.5).eval()
    b, raw = torch.randn(3, 2, 4), 1e6 * torch.randn(3, 2, 2, 4)
    y, log_slope = function(b, raw)
    assert float(log_slope.detach().abs().max()) == pytest.approx(1.5)
    assert bool(y.isfinite().all())


def test_an_inverse_that_blows_up_is_diagnosed() -> None:
    model = flow()
    with pytest.raises(UserError, match=r"infinite pixels in 2 of 2 images.* lower the temperature"):
        model.sample(2, temperature=3e38, seed=0)


def test_in_training_the_determinant_is_that_with_the_statistics_of_the_batch() -> None:
    """They are put in the place of the running ones: the same outcome and the same determinants, which in evaluation
    are those of autograd's Jacobian (contract of flows)."""
    for moments in ("masked", "original"):
        model = flow((2, 4, 4), moments=moments).double().train()
        y = torch.rand(5, 2, 4, 4, dtype=torch.float64, generator=seeded())
        for part in model.modules():
            if isinstance(part, RunningMoments):
                part.momentum = 1.0
        there = model.bijection(y)
        model.eval()
        for found, expected in zip(there, model.bijection(y), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
@pytest.mark.parametrize("moments", ["masked", "original"])
def test_moments_are_those_of_the_positions_or_of_an_image_with_zeros(size: tuple[int, int], moments: Moments) -> None:
    coupling = on_checkerboard(2, size, 3, 1, RealNVPConfig(moments=moments, blocks=1)).double().train()
    x = 1.0 + torch.randn(6, 2, *size, dtype=torch.float64, generator=seeded())
    transformed = (torch.arange(size[0])[:, None] + torch.arange(size[1])) % 2 == 0
    function = coupling.function
    assert isinstance(function, ShiftThenScale)
    coupling(x)
    with torch.no_grad():
        raw = coupling.network(coupling.split.split(x)[0], None).unflatten(1, (2, -1))[:, 0]
        whole = coupling.split.merge(torch.zeros_like(coupling.split.split(x)[0]), raw) + x  # s is 0 at first
    for channel in range(2):
        values = whole[:, channel][:, transformed]
        if moments == "original":
            values = (whole[:, channel] * transformed).flatten()
        found = function.norm.moments
        # The pass has moved them by a tenth; that of the network alone has left them.
        expected = 0.1 * values.mean(), 0.9 + 0.1 * values.var(correction=0)
        torch.testing.assert_close((found.running_mean[channel], found.running_var[channel]), expected)


def test_batch_norm_with_an_offset_alone() -> None:
    norm = ShiftedBatchNorm(3).double()
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    x = 5.0 + 2.0 * torch.randn(4, 3, 2, 5, dtype=torch.float64, generator=seeded())
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    whitened = (x - mean[:, None, None]) / (variance + 1e-4).sqrt()[:, None, None]
    torch.testing.assert_close(norm(x), whitened + norm.bias[:, None, None])
    torch.testing.assert_close(norm.moments.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.moments.running_var, 0.9 + 0.1 * variance)
    own = norm.moments
    expected = F.batch_norm(x, own.running_mean, own.running_var, None, norm.bias, eps=1e-4)
    torch.testing.assert_close(norm.eval()(x), expected)


@pytest.mark.parametrize("norm", [FlowBatchNorm(2), ShiftedBatchNorm(2)])
def test_a_single_value_has_no_statistics(norm: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.zeros(1, 2, 1, 1))


def test_what_is_drawn_and_encoded_in_training_takes_running_statistics_and_moves_none() -> None:
    model = flow()
    x = torch.randint(256, (3, 1, 4, 4), generator=seeded())
    expected, latents = model.sample(3, seed=1), model.encode(x)
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert torch.equal(model.sample(3, seed=1), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.encode(x), latents, strict=True))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(part.training for part in model.modules())
    model.evidence(x, seeded())
    assert any(not torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_lengths_of_kernels_and_scales_of_checkerboards_are_penalized_in_training() -> None:
    model, x = flow(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert not model.evidence(x).penalties
    model.train()
    (penalty,) = model.evidence(x).penalties.values()
    penalty.backward()
    total = torch.zeros(())
    for part in model.modules():
        own: Tensor | None = None
        if isinstance(part, NormalizedConv2d):
            own = part.g
        elif isinstance(part, Coupling) and isinstance(part.function, ShiftThenScale):
            own = part.function.scale
            if not isinstance(part.split, Checkerboard):
                assert own.grad is None
                continue
        if own is not None:
            total = total + own.detach().square().sum()
            torch.testing.assert_close(own.grad, 1e-4 * own.detach())
    assert float(penalty.detach()) == pytest.approx(5e-5 * float(total))
    assert all(x.grad is None for name, x in model.named_parameters() if name.endswith((".v", ".bias")))
    assert not flow(length_penalty=0.0).train().evidence(x).penalties


def test_options_and_parts_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="scales: got 0, expected at least 1"):
        RealNVPConfig(scales=0)
    with pytest.raises(ValueError, match="length_penalty: got -1"):
        RealNVPConfig(length_penalty=-1.0)
    with pytest.raises(ValueError, match=r"order: got \[0, 0\], expected every number from 0 to 1 once"):
        Reorder([0, 0])
    split = Checkerboard()
    with pytest.raises(ValueError, match="size: got None, expected"):
        split.merge(*split.split(torch.zeros(1, 1, 3, 3)))
