"""What is seen of a flow: costs that sum to the evidence, latents of scales, noise, and inverses that are not exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import final

import numpy as np
import pytest
import torch
from inspected import contents
from test_page import Read
from torch import Generator, Tensor, nn
from toys.flow import TriangularFlow, TriangularFlowConfig
from toys.scales import ScalesFlow, ScalesFlowConfig

from davi import page
from davi.data import Images
from davi.distributions import Distribution, Normal
from davi.evaluation import evaluate
from davi.flows import Bijection, Inverse, Logit, MultiScale, Sequential, Squeeze
from davi.flows.multiscale import parts
from davi.inspection import FlowView, Inspection, inspect
from davi.inspection.determinants import Determinants
from davi.inspection.flows import between
from davi.model import Invertible
from davi.page import flows
from davi.page.blocks import Prose
from davi.page.images import not_finite, samples
from davi.report import protocol_of, result_of

LEVELS = 17


def images(shape: tuple[int, int, int], n: int = 7) -> Images:
    pixels = torch.randint(LEVELS, (n, *shape), generator=Generator().manual_seed(1), dtype=torch.uint8)
    return Images(pixels, LEVELS, "toy/test")


def scales(shape: tuple[int, int, int] = (1, 4, 4), learned: bool = False) -> ScalesFlow:
    torch.manual_seed(0)
    return ScalesFlow(shape, LEVELS, ScalesFlowConfig(learned)).double().eval().requires_grad_(False)


def linear(shape: tuple[int, int, int] = (1, 4, 4)) -> TriangularFlow:
    torch.manual_seed(0)
    return TriangularFlow(shape, LEVELS, TriangularFlowConfig()).double().eval().requires_grad_(False)


def flow_of(found: Inspection) -> FlowView:
    assert found.flow is not None
    return found.flow


def text_of(model: Invertible, found: Inspection) -> str:
    evaluation = evaluate(model, images(model.shape))
    data = {"shape": list(model.shape), "levels": LEVELS}
    result = result_of(evaluation, (), protocol_of(evaluation, {"name": model.name}, data))
    made = contents(inspection=found, result=result, model=model, levels=LEVELS)
    return "".join(Read(page.render(made, page.compose(made, 96))).text)


@pytest.mark.parametrize("model", [scales(), scales((2, 3, 6), True), linear()], ids=["scales", "padded", "linear"])
def test_costs_sum_to_the_evidence(model: Invertible) -> None:
    """Of the very draws of the evaluation, in batches of which the last is smaller."""
    some = images(model.shape)
    found = flow_of(inspect(model, some, samples=1, batch_size=3, seed=5))
    evaluation = evaluate(model, some, 1, 3, 5)
    means = {name: float(term.mean()) for name, term in evaluation.terms.items()}
    assert found.claim == pytest.approx(float(evaluation.elbo.mean()), abs=1e-9)
    assert -sum(scale.nats for scale in found.scales) == pytest.approx(means["base"], abs=1e-9)
    assert sum(block.log_det for block in found.blocks) == pytest.approx(means["log_det"], abs=1e-9)
    assert found.dequantization == pytest.approx(means["dequantization"], abs=1e-9)
    assert [scale.shape for scale in found.scales] == list(model.latent_shapes)
    assert all(abs(scale.nats) > 0.1 for scale in found.scales)


def test_scales_and_blocks_have_their_own_log_determinants() -> None:
    model = scales()
    x = images(model.shape)
    found = flow_of(inspect(model, x, samples=1, batch_size=7))
    y = model.dequantization(x.pixels, Generator().manual_seed(0), torch.float64).y
    whole = model.bijection
    assert isinstance(whole, Sequential)
    logit, several = whole
    assert isinstance(several, MultiScale)
    h, log_det = logit(y)
    assert found.outside == pytest.approx(float(log_det.sum()) / 7, abs=1e-9)
    first, second = several
    h, log_det = first(h)
    assert found.scales[0].log_det == pytest.approx(float(log_det.sum()) / 7, abs=1e-9)
    kept, let_go = h.chunk(2, 1)
    assert found.scales[0].nats == pytest.approx(float(-Normal(0 * let_go, 0 * let_go + 1).log_prob(let_go).mean()))
    _, log_det = second(kept)
    assert found.scales[1].log_det == pytest.approx(float(log_det.sum()) / 7, abs=1e-9)
    names = [block.name for block in found.blocks]
    couplings = [f"{i} TanhAffine" for i in (2, 3)]
    of_scale = [[f"scale {k}: {name}" for name in ("1 Squeeze", *couplings)] for k in (1, 2)]
    assert names == ["1 Logit", *of_scale[0], *of_scale[1]]
    assert [block.silent for block in found.blocks] == [False, *[True, False, False] * 2]


def test_a_bijection_is_divided_only_into_what_makes_its_determinant() -> None:
    @final
    class Odd(Bijection):
        """Calls another bijection for nothing but its outcome."""

        def __init__(self) -> None:
            super().__init__()
            self.other = Logit(0.1)

        def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return x + 0.0 * self.other(x)[0], torch.zeros_like(x)

        def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return y, torch.zeros_like(y)

    whole = Sequential(Odd(), Inverse(Sequential(Inverse(Logit(0.1)))), Inverse(Logit(0.1)), Squeeze())
    watch, x = Determinants(whole), torch.rand(4, 1, 2, 2, dtype=torch.float64)
    for part in x.split(3):
        with watch.recording():
            whole(part)
    assert [block.name for block in watch.blocks()] == ["1 Odd", "2 Logit", "3 inverse Logit", "4 Squeeze"]
    assert watch.blocks()[1].log_det == pytest.approx(float(Logit(0.1)(x)[1].sum()) / 4)
    whole(x)
    assert watch.root is not None
    assert len(watch.root.of_images()) == 4  # nothing is recorded any more


def test_points_between_latents_lie_on_an_arc_around_the_center_of_a_normal_base() -> None:
    model = scales()
    z = torch.randn(2, 16, dtype=torch.float64)
    z = z / z.norm(dim=1, keepdim=True)
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    along = between(model, z, shares)
    torch.testing.assert_close(along.norm(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(along[[0, 3]], z)
    angles = (along @ z[0]).acos()
    torch.testing.assert_close(angles, shares * angles[3])  # equal steps
    opposite = torch.stack([z[0], -z[0]])
    torch.testing.assert_close(between(model, opposite, shares)[2], torch.zeros(16, dtype=torch.float64))


def test_interpolations_begin_and_end_at_the_images_themselves() -> None:
    model = scales((3, 4, 4))
    strips = [s for s in inspect(model, images(model.shape), samples=1).strips if s.kind == "interpolation"]
    assert len(strips) == 2
    for strip in strips:
        assert strip.labels[0] == strip.labels[-1] == "original"
        assert torch.equal(strip.images[1], strip.images[0])
        assert torch.equal(strip.images[-2], strip.images[-1])
        assert not torch.equal(strip.images[1], strip.images[-2])


def test_a_scale_alone_keeps_its_latents_and_no_others() -> None:
    model = scales()
    found = inspect(model, images(model.shape), samples=1, seed=3)
    first = next(strip for strip in found.strips if strip.kind == "scales")
    assert first.labels == ("original", "scale 1", "scale 2", "scale 1, others drawn", "scale 2, others drawn")
    fine, coarse = model.encode(first.images[:1])
    assert torch.equal(first.images[1:2], model.decode([fine, torch.zeros_like(coarse)]))
    assert torch.equal(first.images[2:3], model.decode([torch.zeros_like(fine), coarse]))
    drawn = model.base(2).sample(Generator().manual_seed(3))
    others = parts(drawn, model.latent_shapes)
    assert torch.equal(first.images[3:4], model.decode([fine, others[1][:1]]))
    assert torch.equal(first.images[4:5], model.decode([others[0][1:], coarse]))
    assert not any(strip.kind == "scales" for strip in inspect(linear(), images((1, 4, 4)), samples=1).strips)


@final
class Low(Distribution):
    """Uniform in [0, 1/2)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.double()

    def log_prob_map(self, x: Tensor) -> Tensor:
        return torch.full_like(x, math.log(2.0))

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return 0.5 * torch.rand(self.x.shape, generator=generator, dtype=torch.float64)

    def mode(self) -> Tensor:
        return 0.0 * self.x


@final
class LowNoise(nn.Module):
    def forward(self, x: Tensor) -> Low:
        return Low(x)


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 2)])
def test_learned_noise_is_described(shape: tuple[int, int, int]) -> None:
    model = scales(shape)
    model.dequantization.noise = LowNoise()
    found = flow_of(inspect(model, images(shape), samples=1))
    assert found.noise is not None
    assert found.noise.means.shape == found.noise.deviations.shape == found.originals.shape
    # 64 draws, whose mean has the standard error 0.018
    assert bool(((found.noise.means - 0.25).abs() < 0.09).all())
    assert float(found.noise.deviations.mean()) == pytest.approx(0.25 / 3**0.5, abs=0.01)
    assert float(found.noise.shares[:10].sum()) == pytest.approx(1.0)
    assert found.noise.nats == pytest.approx(2 * 16 * math.log(2.0))  # the padding is noise as well
    assert flow_of(inspect(scales(shape), images(shape), samples=1)).noise is None


def spoiled(model: Invertible, by: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Change what the inverse gives."""
    inverse = model.bijection.inverse

    def other(z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = inverse(z, context)
        return by(y), log_det

    monkeypatch.setattr(model.bijection, "inverse", other)


@pytest.mark.parametrize(
    ("off", "changed", "told"),
    [
        (0.0, 0, "all of them come back exactly"),
        (0.3, 0, "off by at most 0.3 of a level's interval for 7 images"),
        (0.8, 7, "off by at most 0.8 of a level's interval for 7 images, encoded and decoded again: 7 of them change"),
        (math.nan, 7, "not finite for some images: of 7 images, encoded and decoded again, 7 do not come back"),
    ],
)
def test_the_error_of_the_inverse(off: float, changed: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scales()

    def by(y: Tensor) -> Tensor:
        y = y.clone()
        y[:, 0, 1, 2] += off / LEVELS
        return y

    spoiled(model, by, monkeypatch)
    found = inspect(model, images(model.shape), samples=1)
    expected = math.inf if math.isnan(off) else off
    assert flow_of(found).round_trip.error == pytest.approx(expected, abs=1e-9)
    assert flow_of(found).round_trip.changed == changed
    assert told in flows.inverse(flow_of(found).round_trip)


def test_draws_whose_inverse_is_not_finite_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scales()
    spoiled(model, lambda y: y.index_fill(0, torch.tensor([1]), math.inf) if len(y) == 5 else y, monkeypatch)
    found = inspect(model, images(model.shape), samples=5)
    assert {t: len(drawn) for t, drawn in found.samples.items()} == {0.7: 4, 0.8: 4, 0.9: 4, 1.0: 4}
    assert found.not_finite == {0.7: 1, 0.8: 1, 0.9: 1, 1.0: 1}
    told = " Not shown are draws that the inverse takes to numbers that are not finite: 1 at temperature 0.7, 1 at"
    assert not_finite(found).startswith(told)
    spoiled(model, lambda y: y * math.nan, monkeypatch)
    found = inspect(model, images(model.shape), samples=2, temperatures=(1.0,))
    assert (found.samples, found.not_finite) == ({}, {1.0: 2})
    made = contents(inspection=found, model=model, levels=LEVELS)
    (left_out,) = samples(made, 96).blocks
    assert isinstance(left_out, Prose)
    assert left_out.text.startswith("Left out: no images were drawn. Not shown are draws that")
    assert "0.14, not finite" in found.strips[0].labels


def test_a_flow_without_scales() -> None:
    model = linear()
    found = inspect(model, images(model.shape), samples=2)
    (block,) = flow_of(found).blocks
    assert (block.name, block.deviation) == ("1 Triangular", 0.0)
    assert block.log_det == pytest.approx(16.0)
    np.testing.assert_allclose(flow_of(found).latents[0].numpy(), model.encode(flow_of(found).originals)[0].numpy())


def test_the_page_of_a_flow() -> None:
    model = scales((3, 4, 4), learned=True)
    found = inspect(model, images(model.shape), samples=2)
    text = text_of(model, found)
    for title in ("Latents by scale", "Bits by scale", "Log-determinant by block", "Dequantization noise"):
        assert title in text
    assert "along an arc around the center" in text
    assert "Those left out preserve volume: Squeeze." in text
    assert "Samples at temperature 0.9, 0.8 and 0.7" in text


def test_many_bijections_of_a_kind_have_one_bar() -> None:
    model = linear()
    found = inspect(model, images(model.shape), samples=1)
    block = flow_of(found).blocks[0]
    several = tuple(replace(block, kind=kind, scale=i % 2 + 1) for i, kind in enumerate(["A", "A", "B"] * 12))
    made = contents(inspection=replace(found, flow=replace(flow_of(found), blocks=several)), model=model, levels=LEVELS)
    section = flows.determinants(made, 96)
    assert section is not None
    (figure,) = section.figures()
    (chart,) = figure.charts()
    for name in ("scale 1: 12 × A", "scale 2: 12 × A", "scale 2: 6 × B"):
        assert name in chart.alt
