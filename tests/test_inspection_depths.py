"""What an inspection and its page show of the depths of a classifier."""

from __future__ import annotations

import math

import pytest
import torch

from davi import page
from davi.data import Images
from davi.evaluation import evaluate
from davi.evaluation.separation import SEPARATION
from davi.inspection import inspect
from davi.model import Classifier
from davi.models import IRevNet, ResNet
from davi.models.i_revnet import IRevNetConfig
from davi.models.resnet import ResNetConfig
from davi.page import Contents
from davi.report import protocol_of, result_of
from davi.runs import describe

SHAPE = (1, 4, 4)
INJECTIVE = IRevNetConfig((2, 1), (1, 2), (4, 16), dropout=0.0)
BIJECTIVE = IRevNetConfig((1, 2), (1, 2), (2, 8), squeeze=2, bottleneck=1, dropout=0.0)
NAMES = ("a", "b", "c")


def images(n: int = 24) -> Images:
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (n,), generator=random)
    pixels = torch.randint(4, (n, *SHAPE), generator=random) + labels[:, None, None, None]
    return Images(pixels.to(torch.uint8), 6, "shades/test", labels=labels, classes=NAMES)


def network(config: IRevNetConfig) -> IRevNet:
    torch.manual_seed(3)
    model = IRevNet(SHAPE, 6, config, 3)
    model.initialize(images().pixels)
    return model.eval()


def contents(model: Classifier, own: Images) -> Contents:
    measured = evaluate(model, own)
    data = {"set": "shades", "shape": list(SHAPE), "levels": 6}
    return Contents(
        title="run",
        facts=[],
        result=result_of(measured, [], protocol_of(measured, describe(model), data)),
        measured="",
        inspection=inspect(model, own, limit=len(own)),
        model=model,
        levels=6,
        records=[],
        recipe=None,
    )


@pytest.mark.parametrize("config", [INJECTIVE, BIJECTIVE], ids=["injective", "bijective"])
def test_images_come_back_from_every_depth_and_points_between_them_where_the_network_is_bijective(
    config: IRevNetConfig,
) -> None:
    model, own = network(config), images()
    found = inspect(model, own, limit=24)
    view = found.inversions
    assert view is not None
    assert view.depths == (0, 1, 2, 3)
    assert view.count == 16
    assert view.names == ("test image 0", "test image 8", "test image 15", "test image 23")
    assert view.changed == (0, 0, 0, 0)
    assert max(view.errors) < 1e-4
    assert view.variables == tuple(math.prod(model.shape_at(depth)) for depth in view.depths)
    for pictures in view.images:
        assert torch.equal(pictures, view.originals.long())
    first, second = found.strips
    assert first.title == "test image 0 to test image 8"
    with torch.no_grad():
        ends = model.at_depths(own.pixels[[0, 8]])[-1]
        middle = 0.5 * (ends[:1] + ends[1:])
        moved = (model.at_depths(model.invert(middle))[-1] - middle).norm() / (ends[:1] - ends[1:]).norm()
        quarter = model.invert(ends[:1] + (ends[1:] - ends[:1]) * 2 / 7)
    torch.testing.assert_close(first.images[3:4], quarter, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first.images[[1, -2]].round(), own.pixels[[0, 8]].float())
    assert view.apart is not None
    assert (view.apart < 1e-4) == model.bijective == bool(moved < 1e-4)
    assert second.kind == "interpolation"


def test_a_single_image_has_nothing_between() -> None:
    found = inspect(network(INJECTIVE), images(), limit=1)
    assert found.inversions is not None
    assert found.inversions.apart is None
    assert found.strips == ()


@pytest.mark.parametrize(
    ("config", "said"), [(INJECTIVE, "injective, not bijective"), (BIJECTIVE, "The network is bijective")]
)
def test_the_page_of_a_network_with_an_inverse(config: IRevNetConfig, said: str) -> None:
    made = contents(network(config), images())
    sections = page.compose(made, 64)
    anchors = [section.anchor for section in sections]
    assert anchors[2:6] == ["mistakes", "separation", "inversion", "interpolation"]
    text = page.render(made, sections)
    assert "All of 16 images come back exactly after rounding, from every depth" in text
    assert said in text
    assert "no inverse" not in text
    assert made.result is not None
    measure = made.result.measure(SEPARATION)
    assert measure is not None
    assert measure.layers is not None
    assert f"depth 0 {measure.layers[-1]:.1f} %, depth 1 {measure.layers[-2]:.1f} %" in text


def test_the_page_of_a_network_without_one() -> None:
    torch.manual_seed(0)
    model = ResNet(SHAPE, 6, ResNetConfig(units=(1, 1), widths=(4, 4, 8)), 3).eval()
    made = contents(model, images())
    sections = page.compose(made, 64)
    anchors = [section.anchor for section in sections]
    assert "separation" in anchors
    assert "inversion" not in anchors
    assert "interpolation" not in anchors
    text = page.render(made, sections)
    assert "There are no images from each depth: this network has no inverse of all its blocks." in text
    assert made.inspection.inversions is None
