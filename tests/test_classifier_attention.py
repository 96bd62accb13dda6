"""Depth-wise attention in residual classifiers: off, closed and open, by hand, and what training keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inspected import contents, inspection
from torch import Tensor, nn

from davi.data import Images
from davi.inspection import inspect
from davi.inspection.attention import attention_over_depth
from davi.layers import DepthApproximation, resize_to
from davi.layers.context_attention import ContextAttention, ContextAttentionOptions
from davi.models.resnet import ResidualUnit, ResNet, ResNetConfig
from davi.models.revnet import RevNet, RevNetConfig
from davi.page import attention
from davi.page.blocks import Tiles
from davi.training.plan import saved_bytes

ATTENTION = ContextAttentionOptions(2, 3)
IDENTITY = 1e-12  # float64, numbers of order one
Net = ResNet | RevNet


def build(kind: type[Net], attention: ContextAttentionOptions = ATTENTION, **options: Any) -> Net:
    usual = {"units": (2, 2), "widths": (4, 4, 8), "mean": (0.5,), "std": (0.5,), "depth_attention": attention}
    torch.manual_seed(0)
    if issubclass(kind, ResNet):
        return ResNet((1, 8, 6), 5, ResNetConfig(**{**usual, **options}), 3).double()
    return RevNet((1, 8, 6), 5, RevNetConfig(**{**usual, **options}), 3).double()


def opened(model: Net) -> Net:
    with torch.no_grad():
        for parameter in model.attention.parameters():
            parameter.add_(0.3)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randint(5, (3, 1, 8, 6))


@pytest.mark.parametrize("kind", [ResNet, RevNet])
def test_without_attention_nothing_is_added(kind: type[Net]) -> None:
    model = build(kind, ContextAttentionOptions())
    assert not list(model.attention.parameters())
    assert not list(model.depth_attentions())
    assert not any(name.startswith("attention") for name in model.state_dict())


@pytest.mark.parametrize("kind", [ResNet, RevNet])
def test_closed_gates_are_the_plain_network(kind: type[Net], images: Tensor) -> None:
    plain, attentive = build(kind, ContextAttentionOptions()), build(kind)
    attentive.load_state_dict({**attentive.state_dict(), **plain.state_dict()})
    # The halves of a RevNet lie otherwise in memory, so that convolutions may add up in another order.
    rounding = 0.0 if kind is ResNet else IDENTITY
    torch.testing.assert_close(attentive(images), plain(images), rtol=rounding, atol=rounding)
    loss = attentive(images).square().sum()
    loss.backward()
    gates = [site.gate.grad for site in attentive.depth_attentions()]
    assert gates
    assert all(gate is not None and bool(gate != 0) for gate in gates)
    assert not torch.equal(opened(attentive)(images), plain(images))


@pytest.mark.parametrize("kind", [ResNet, RevNet])
def test_who_reads_whom(kind: type[Net]) -> None:
    readers = {ResNet: 4, RevNet: 2}[kind]  # units, or stages; the last of them makes the logits
    for window, sources in ((0, [tuple(range(i)) for i in range(1, readers + 1)]), (1, [(i,) for i in range(readers)])):
        model = build(kind, ContextAttentionOptions(2, 3, DepthApproximation(window=window)))
        sites = list(model.depth_attentions())
        assert [site.layer for site in sites] == list(range(1, readers + 1))
        assert [site.sources for site in sites] == sources
        assert {site.side for site in sites} == {"classifier"}


def read(part: ContextAttention, h: Tensor, before: list[tuple[ContextAttention, Tensor]]) -> Tensor:
    """What a part makes of h and earlier outputs, all layers stacked."""
    if not before:
        return h
    assert part.query is not None
    assert part.result is not None
    assert part.gate is not None
    assert part.attention is not None
    size = (h.shape[2], h.shape[3])
    keys = torch.stack([resize_to(own.key(x), size) for own, x in before], 1)  # type: ignore[misc]  # all offer
    values = torch.stack([resize_to(own.value(x), size) for own, x in before], 1)  # type: ignore[misc]  # all offer
    weights = (part.attention.scale * part.query(h)[:, None] * keys).sum(2, keepdim=True).softmax(1)
    return h + part.gate * part.result((weights * values).sum(1))


def parts_of(model: Net) -> list[ContextAttention]:
    return [part for part in model.attention if isinstance(part, ContextAttention)]


def test_a_residual_network_by_hand(images: Tensor) -> None:
    model = opened(build(ResNet)).eval()
    assert isinstance(model, ResNet)
    parts = parts_of(model)
    outputs = [model.stem(model.standardize(images))]
    for i, unit in enumerate(model.units):
        assert isinstance(unit, ResidualUnit)
        seen = read(parts[i], outputs[-1], list(zip(parts, outputs[:-1], strict=False)))
        outputs.append(unit.shortcut(outputs[-1]) + unit.branch(seen))
    seen = read(parts[-1], outputs[-1], list(zip(parts, outputs[:-1], strict=False)))
    torch.testing.assert_close(model(images), model.head(seen), rtol=IDENTITY, atol=IDENTITY)
    torch.testing.assert_close(model.at_depths(images), outputs, rtol=IDENTITY, atol=IDENTITY)


def test_a_reversible_network_by_hand(images: Tensor) -> None:
    model = opened(build(RevNet)).eval()
    assert isinstance(model, RevNet)
    parts = parts_of(model)
    outputs = [model.stem(model.standardize(images))]
    for i, stage in enumerate(model.stages):
        seen = read(parts[i], outputs[-1], list(zip(parts, outputs[:-1], strict=False)))
        outputs.append(torch.cat(stage(*seen.chunk(2, 1)), 1))
    seen = read(parts[-1], outputs[-1], list(zip(parts, outputs[:-1], strict=False)))
    torch.testing.assert_close(model(images), model.head(seen), rtol=IDENTITY, atol=IDENTITY)
    depths = model.at_depths(images)
    torch.testing.assert_close([depths[0], depths[2], depths[4]], outputs, rtol=IDENTITY, atol=IDENTITY)


def test_a_reversible_network_has_the_gradients_of_plain_autograd(images: Tensor) -> None:
    found = []
    for recompute in (True, False):
        model = opened(build(RevNet, recompute=recompute)).train()
        model(images).sin().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [ResNet, RevNet])
def test_the_inspection_shows_who_reads_whom(kind: type[Net]) -> None:
    model = opened(build(kind)).eval()
    images = Images(torch.randint(5, (5, 1, 8, 6), dtype=torch.uint8), 5, "random")
    with torch.no_grad():
        (view,) = attention_over_depth(model, images, [4, 1], 2, torch.device("cpu"))
        found: list[Tensor] = []
        site = list(model.depth_attentions())[-1]
        site.attention.register_forward_hook(lambda module, _, given: found.append(given.weights))
        model(images.pixels)
    assert view.side == "classifier"
    assert view.readers == tuple(str(i) for i in range(1, len(view.readers) + 1))
    assert view.sources == tuple(str(i) for i in range(len(view.readers)))
    torch.testing.assert_close(view.matrix[-1], found[0].mean((0, 2, 3)), rtol=IDENTITY, atol=IDENTITY)
    assert bool(view.matrix[0, 1:].isnan().all())
    expected = resize_to(found[0][[4, 1]], (view.maps.shape[3], view.maps.shape[4]))
    torch.testing.assert_close(view.maps[:, -1], expected.float(), rtol=1e-6, atol=1e-6)
    section = attention.depth(contents(inspection=inspection(depth_attention=(view,), bits=None)), 96)
    assert section is not None
    assert next(section.figures()).title == "Classifier"


@pytest.mark.parametrize("kind", [ResNet, RevNet])
def test_an_inspection_of_a_classifier_has_its_attention(kind: type[Net]) -> None:
    pixels, labels = torch.randint(5, (7, 1, 8, 6), dtype=torch.uint8), torch.arange(7) % 3
    images = Images(pixels, 5, "random", labels=labels, classes=("a", "b", "c"))
    plain = inspect(build(kind, ContextAttentionOptions()).eval(), images)
    assert plain.depth_attention == plain.shown == ()
    found = inspect(opened(build(kind)).eval(), images, batch_size=3)
    (view,) = found.depth_attention
    assert len(found.shown) == len(view.maps) == 4
    assert found.examples is not None
    places = [int((pixels == x).flatten(1).all(1).nonzero()) for x in found.examples]
    assert list(found.shown) == [f"image {i}" for i in places]
    section = attention.depth(contents(inspection=found), 96)
    assert section is not None
    (maps,) = (figure for figure in section.figures() if figure.name.endswith("maps"))
    rows = [part for part in maps.content if isinstance(part, Tiles)]
    assert rows[0].tiles[0].label == "original"


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """By a forward pass, for the backward pass."""
    return saved_bytes(lambda: model(x), [*model.parameters(), *model.buffers()])


def test_what_a_reversible_network_keeps_does_not_grow_with_its_units(images: Tensor) -> None:
    few, many = (kept_bytes(build(RevNet, units=(n, n)).train(), images) for n in (2, 8))
    plain = kept_bytes(build(RevNet, ContextAttentionOptions()).train(), images)
    assert few == many > plain
    # A residual network, whose units are read one by one, does keep more.
    assert kept_bytes(build(ResNet, units=(8, 8)).train(), images) > 3 * kept_bytes(build(ResNet).train(), images)


@pytest.mark.parametrize("config", [ResNetConfig, RevNetConfig])
def test_options_of_attention_are_checked(config: type) -> None:
    with pytest.raises(ValueError, match="key_channels: got -1, expected at least 0"):
        config(depth_attention=ContextAttentionOptions(-1))
