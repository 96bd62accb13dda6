"""Glow: its likelihood by hand, what it begins with, its size, images of any shape, and the switches of training."""

from __future__ import annotations

import math
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import seeded, shake
from tiny import RECIPE, sets
from torch import Tensor

from davi.distributions import Normal
from davi.flows import ActNorm, Coupling, Sequential
from davi.models.glow import Affine, Glow, GlowConfig, GlowStep, NormalizedConv2d, Standardize
from davi.training import TrainingConfig, train
from davi.training.sections import ScheduleConfig

Shape = tuple[int, int, int]
SMALL: dict[str, Any] = {"scales": 2, "steps": 2, "width": 6}


def glow(shape: Shape = (3, 4, 8), levels: int = 256, **options: Any) -> Glow:
    return Glow(shape, levels, GlowConfig(**{**SMALL, **options}))


def some(model: Glow, n: int = 5) -> Tensor:
    return torch.randint(model.levels, (n, *model.shape))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_the_claim_by_hand() -> None:
    """Every latent has its density once: what is let go of given what stays, under a Normal with m and exp(s), and the
    top under one with a mean and a scale of each channel."""
    model = shake(glow(learned_top=True)).double()
    x = some(model)
    y, log_q, _ = model.dequantization(x, seeded(), torch.float64)
    total = torch.zeros(5, dtype=torch.float64)
    fine, coarse = ([*scale] for scale in model.bijection if isinstance(scale, Sequential))
    h = y
    for part in fine[:-1]:
        h, log_det = part(h)
        total += log_det.flatten(1).sum(1)
    stays, leaves = h.chunk(2, 1)
    assert isinstance(fine[-1], Coupling)
    raw = fine[-1].network(stays, None)
    log_scale, mean = raw.chunk(2, 1)
    total += Normal(mean, (8.0 * (log_scale / 8.0).tanh()).exp()).log_prob(leaves)
    for part in coarse:
        stays, log_det = part(stays)
        total += log_det.flatten(1).sum(1)
    assert model.top is not None
    mean, log_scale = model.top[..., None, None].expand(-1, *stays.shape[1:])
    scale = (8.0 * (log_scale / 8.0).tanh()).exp()
    total += Normal(mean.expand_as(stays), scale.expand_as(stays)).log_prob(stays)
    evidence = model.evidence(x, seeded())
    close(evidence.log_px, total - log_q.flatten(1).sum(1))
    close(evidence.terms["dequantization"], torch.full((5,), -3 * 4 * 8 * math.log(256), dtype=torch.float64))


@pytest.mark.parametrize("convolution", ["plain", "lu"])
@torch.no_grad()
def test_before_it_sees_images_it_is_a_rotation_and_known_scales(convolution: str) -> None:
    """Additive, all lengths stay; affine, each step takes half of the channels times sigmoid(2)."""
    x = torch.randn(4, 3, 4, 8, dtype=torch.float64)
    for coupling in ("additive", "affine"):
        model = glow(coupling=coupling, convolution=convolution).double()
        z, log_det = model.bijection(x)
        number = 0 if coupling == "additive" else x[0].numel() / 2 * 2 + x[0].numel() / 4 * 2
        expected = torch.full((4,), number * math.log(1 / (1 + math.exp(-2.0))), dtype=torch.float64)
        # float32 rotations
        close(log_det.flatten(1).sum(1), expected, 1e-4)
        if coupling == "additive":
            close(z.norm(dim=1), x.flatten(1).norm(dim=1), 1e-5)
        else:
            assert bool((z.norm(dim=1) < x.flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize(("levels", "bits"), [(256, 9.385860), (32, 6.385860)])
def test_additive_and_untouched_it_costs_what_standard_normal_pixels_cost(levels: int, bits: float) -> None:
    """log2 n + (log 2 pi + 1/12) / (2 log 2), for y uniform on [-1/2, 1/2): a rotation changes no length."""
    model = glow((3, 16, 32), levels, coupling="additive")
    x = (torch.arange(64 * model.dims) % levels).view(64, *model.shape)
    # four standard errors of the mean of y^2 / (2 log 2) over 98,304 draws, and rounding of float32
    assert float(model.bits_per_dim(x, seed=1).mean()) == pytest.approx(bits, abs=1e-3)


@torch.no_grad()
def test_after_the_first_images_all_layers_have_standard_outputs() -> None:
    """Those of the flow and those of its networks, on the very images and noise."""
    model = glow().double()
    x = some(model, 64)
    torch.manual_seed(3)
    model.initialize(x)
    found: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, (ActNorm, NormalizedConv2d)):
            module.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
    torch.manual_seed(3)
    evidence = model.evidence(x)
    assert len(found) == 4 * 3
    for y in found:
        variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        close(mean, torch.zeros_like(mean))
        close(variance, torch.ones_like(variance))
    before = glow().double().evidence(x).log_px
    assert float(evidence.log_px.mean()) > float(before.mean())


def test_training_sees_the_first_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped and goes on has them in its weights, and ends as one that was not."""
    calls: list[int] = []
    initialize = Glow.initialize

    def counted(model: Glow, images: Tensor, kept: Container[str] = ()) -> None:
        calls.append(len(images))
        initialize(model, images, kept)

    monkeypatch.setattr(Glow, "initialize", counted)
    for name, budgets in (("once", [6]), ("twice", [3, 6])):
        for steps in budgets:
            torch.manual_seed(1)
            config = TrainingConfig(steps=steps, batch_size=8, schedule=ScheduleConfig("constant"), threads=1)
            model = glow((1, 4, 4), 16)
            train(model, sets(binarization="none"), config, tmp_path / name, RECIPE, resume=steps != budgets[0])
    assert calls == [40, 40]  # all images there are
    once, twice = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


@pytest.mark.parametrize("options", [{}, {"coupling": "additive", "convolution": "lu"}, {"learned_top": True}])
def test_number_of_parameters(options: dict[str, Any]) -> None:
    """By formula, for the published network: actnorm 2 C, a matrix C^2, and convolutions with a bias and a scale."""
    with torch.device("meta"):
        model = Glow((3, 32, 32), 256, GlowConfig(**options))
    numbers = 1 if options.get("coupling") == "additive" else 2
    expected, width = 0, 512

    def conv(inputs: int, outputs: int, size: int) -> int:
        return size**2 * inputs * outputs + 2 * outputs

    for channels in (12, 24, 48):
        half = channels // 2
        network = conv(half, width, 3) + conv(width, width, 1) + conv(width, numbers * half, 3)
        expected += 32 * (2 * channels + channels**2 + network)
        expected += conv(half, channels, 3) if channels < 48 else 0
    expected += 2 * 48 if options.get("learned_top") else 0
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_shapes_of_latents() -> None:
    with torch.device("meta"):
        assert glow((3, 32, 32), scales=3).latent_shapes == ((6, 16, 16), (12, 8, 8), (48, 4, 4))
        assert glow((1, 28, 28), scales=3).latent_shapes == ((2, 16, 16), (4, 8, 8), (16, 4, 4))
        assert glow((1, 28, 28), scales=2).dequantization.padding == (0, 0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 6), (2, 1, 1)])
@pytest.mark.parametrize("levels", [256, 32])
@pytest.mark.parametrize("convolution", ["plain", "lu"])
def test_images_come_back_in_float32(shape: Shape, levels: int, convolution: str) -> None:
    """Also those that are at the first or the last level everywhere."""
    model = glow(shape, levels, convolution=convolution, learned_top=True)
    x = some(model, 32)
    model.initialize(x)
    x = torch.cat((torch.zeros_like(x[:1]), torch.full_like(x[:1], levels - 1), shake_a_little(model, x)))
    assert torch.equal(model.decode(model.encode(x)), x)
    assert model.sample(3).shape == (3, *shape)


def shake_a_little(model: Glow, x: Tensor) -> Tensor:
    """The images; the model has weights that are neutral nowhere, but of a sensible size."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return x


@torch.no_grad()
def test_log_scales_are_bounded() -> None:
    """Even of nonsense; near zero they are what they are given."""
    x = torch.randn(2, 3, 2, 2)
    for function, low, high in ((Affine(), -math.log1p(math.exp(6.0)), 0.0), (Standardize(), -8.0, 8.0)):
        for raw in (-1e30, 1e30):
            y, log_slope = function(x, torch.full((2, 2, 3, 2, 2), raw).index_fill(1, torch.tensor([1]), 0.5))
            assert bool(((log_slope >= low - 1e-5) & (log_slope <= high)).all())
            assert bool(y.isfinite().all())
    small = torch.full((2, 2, 3, 2, 2), 0.01, dtype=torch.float64)
    close(Standardize()(x.double(), small)[1], torch.full_like(x, -0.01, dtype=torch.float64), 1e-6)


def test_the_top_has_its_own_mean_and_scale() -> None:
    model = glow((1, 8, 4), learned_top=True)
    assert model.latent_shapes == ((2, 4, 2), (8, 2, 1))
    assert model.top is not None
    base = model.base(2)
    assert not base.mean.any()
    assert bool((base.scale == 1.0).all())
    with torch.no_grad():
        model.top[:, 1] = torch.tensor([3.0, -1.0])  # of the second channel of the top, which has two pixels
    base = model.base(2)
    expected = torch.zeros(2, 32)
    expected[:, 18:20] = 1.0
    close(base.mean, 3.0 * expected)
    close(base.scale.log(), -expected, 0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": 0}, "scales: got 0, expected at least 1"),
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"width": -1}, "width: got -1, expected at least 1"),
        ({"coupling": "spline"}, "coupling: got 'spline', expected affine or additive"),
        ({"convolution": "qr"}, "convolution: got 'qr', expected plain or lu"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GlowConfig(**options)


def loss_and_gradients(model: Glow, x: Tensor, bfloat16: bool = False) -> tuple[Tensor, Tensor]:
    """In bits/dim, and of all weights in one row."""
    model.zero_grad()
    torch.manual_seed(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        evidence = model.evidence(x)
    assert evidence.log_px.dtype == torch.float32
    loss = -evidence.log_px.mean() / (model.dims * math.log(2.0))
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("convolution", ["plain", "lu"])
def test_switches_leave_loss_and_gradients_alone(convolution: str) -> None:
    """float32 in another order, 1e-5; bfloat16 within the networks, 1 % of a bit and 5 % of the gradients' length."""
    model = glow((3, 8, 8), scales=1, convolution=convolution, learned_top=True).train()
    x = some(model, 16)
    model.initialize(x)
    shake_a_little(model, x)
    expected, slopes = loss_and_gradients(model, x)

    def check(tolerance: float, of_slopes: float, bfloat16: bool = False) -> None:
        loss, found = loss_and_gradients(model, x, bfloat16)
        assert float(loss) == pytest.approx(float(expected), abs=tolerance)
        assert float((found - slopes).norm() / slopes.norm()) < of_slopes

    check(0.01, 0.05, bfloat16=True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    check(1e-5, 1e-4)
    blocks = list(model.blocks())
    assert len(blocks) == 2
    for block in blocks:
        assert isinstance(block, GlowStep)
        block.recompute = True
    check(1e-5, 1e-4)
    for block in blocks:
        block.compile(backend="aot_eager")
    check(1e-5, 1e-4)
