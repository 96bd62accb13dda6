"""What every causal network promises: no pixel is told of itself or of later ones, in any of its uses.

The network of every ``_tiny`` recipe whose model is a :class:`~davi.model.CausalModel`: alone, of classes, and given
features of every pixel, as a hierarchy's likelihood has it. All of it on images so small that they can be listed, or
that every derivative can be taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from contract import all_images, class_of, names, recipe, seeded, shake
from tiny import same_files, sets
from torch import Tensor, nn

from davi.errors import OptionError
from davi.inspection.attention import queries_on
from davi.inspection.bits import pixel_bits
from davi.inspection.causal import attention_of_pixels, receptive_field
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.causal import CausalNetwork, Progress, refuse_batch_norm
from davi.layers.causal_attention import SpatialAttentive
from davi.layers.pixel_head import LikelihoodConfig, PixelHead
from davi.model import CausalModel
from davi.training import Interrupted, TrainingConfig, train
from davi.training.sections import CheckpointConfig
from davi.training.signals import Signals

NAMES = names(CausalModel)
MIXTURE = LikelihoodConfig("logistic_mixture", 2)
SOFTMAX = LikelihoodConfig("categorical")

Shape = tuple[int, int, int]


def of(
    name: str, shape: Shape, levels: int, likelihood: LikelihoodConfig | None = None, classes: int = 0
) -> CausalModel:
    """The model of a recipe for other images, shaken, in eval mode, float64."""
    cls = class_of(name)
    assert issubclass(cls, CausalModel)
    config = recipe(name).model
    if likelihood is not None:
        config = replace(config, likelihood=likelihood)
    torch.manual_seed(0)
    return shake(cls(shape, levels, config, classes)).double()


def network_of(
    name: str, shape: Shape, levels: int, likelihood: LikelihoodConfig, embedding: int = 0
) -> CausalNetwork[Any]:
    """Its network alone, with two classes and three features of each pixel; with an embedding, of codes."""
    cls = class_of(name)
    assert issubclass(cls, CausalModel)
    config = replace(recipe(name).model, likelihood=likelihood)
    torch.manual_seed(0)
    return shake(cls.Causal(shape, levels, config, 2, 3, embedding)).double()


def pixels_of(
    name: str, shape: Shape, levels: int, likelihood: LikelihoodConfig, n: int, embedding: int = 0
) -> AutoregressivePixels:
    """The distribution of n images, given features and classes."""
    network = network_of(name, shape, levels, likelihood, embedding)
    features = torch.randn(n, 3, *shape[1:], dtype=torch.float64)
    return AutoregressivePixels(network, n, features, torch.arange(n) % 2)


def jacobian(pixels: AutoregressivePixels, x: Tensor) -> Tensor:
    """Which parameters depend on what, ``[parts * H * W, C * H * W]`` in the order in which pixels are drawn.

    Of the parameters of each part a random combination stands for all: if its derivative is zero, theirs are.
    """
    network = pixels.network
    image = x.double().requires_grad_()
    raw = network(image, pixels.features, pixels.y)[0]  # [P, H, W]
    parts = raw.unflatten(0, (-1, network.parts))  # those of channel c are at c, c + C, ...
    combined = (parts * torch.randn_like(parts[:, :, :1, :1])).sum(0)  # [parts, H, W]
    rows = []
    for one in combined.permute(1, 2, 0).flatten():
        (slope,) = torch.autograd.grad(one, image, retain_graph=True)
        rows.append(slope[0].permute(1, 2, 0).flatten())  # pixel by pixel, channels within
    return torch.stack(rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "levels", "likelihood"),
    [((1, 4, 5), 5, SOFTMAX), ((3, 3, 4), 5, SOFTMAX), ((3, 4, 3), 256, MIXTURE), ((2, 3, 3), 9, MIXTURE)],
)
def test_no_parameter_depends_on_its_pixel_or_later_ones(
    name: str, shape: Shape, levels: int, likelihood: LikelihoodConfig
) -> None:
    """The Jacobian at every position is exactly zero from the pixel's own part on, and the first row altogether."""
    pixels = pixels_of(name, shape, levels, likelihood, 1)
    found = jacobian(pixels, torch.randint(levels, (1, *shape)))
    parts, channels = pixels.network.parts, shape[0]
    first_unknown = torch.arange(len(found)) // parts * channels + torch.arange(len(found)) % parts
    unknown = torch.arange(found.shape[1]) >= first_unknown[:, None]
    assert bool((found[unknown] == 0).all())
    assert not found[0].any()
    assert not found.isnan().any()
    answers = found.masked_fill(unknown, 0).any(1)
    assert float(answers.double().mean()) > 0.5  # of few hidden units, all may be off at a pixel


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "levels"), [((1, 3, 4), 300), ((2, 3, 3), 4), ((3, 2, 3), 2)])
def test_no_code_tells_of_itself_or_of_earlier_ones(name: str, shape: Shape, levels: int) -> None:
    """What is stated stays the same if codes change whose turn has not come; one place at a time."""
    network = network_of(name, shape, levels, SOFTMAX, 3)
    total, channels = math.prod(shape), shape[0]
    x = torch.randint(levels, (1, *shape[1:], channels)).repeat(total + 1, 1, 1, 1)  # in the order of drawing
    places = torch.arange(total)
    x.flatten(1)[places, places] = (x.flatten(1)[places, places] + 1) % levels  # image i has another code i
    y, features = torch.zeros(total + 1).long(), torch.randn(1, 3, *shape[1:]).double().expand(total + 1, -1, -1, -1)
    with torch.no_grad():
        raw = network(x.movedim(-1, 1), features, y)
    stated = raw.unflatten(1, (levels, channels)).permute(0, 3, 4, 2, 1).flatten(1, 3)  # [images, places, levels]
    changed = ((stated[:-1] - stated[-1:]).abs() > 1e-12).any(2)  # [code, place]; rows of a batch may round otherwise
    assert not changed.tril().any()
    assert float(changed[places[:, None] < places].double().mean()) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_categorical(name: str) -> None:
    """However many there are, and without a word in the options."""
    cls = class_of(name)
    assert issubclass(cls, CausalModel)
    config = replace(recipe(name).model, likelihood=LikelihoodConfig())
    assert cls.Causal((1, 2, 2), 512, config, embedding=2).head.inputs == 512
    assert cls.Causal((1, 2, 2), 2, config, embedding=2).head.inputs == 2
    with pytest.raises(OptionError, match=r"^likelihood.family: got logistic_mixture, expected categorical for codes$"):
        cls.Causal((1, 2, 2), 512, replace(config, likelihood=MIXTURE), embedding=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "levels", "likelihood"),
    [
        ((1, 3, 3), 2, None),
        ((1, 2, 2), 4, SOFTMAX),
        ((1, 2, 2), 4, MIXTURE),
        ((3, 2, 2), 2, SOFTMAX),
        ((3, 1, 2), 4, SOFTMAX),
        ((3, 1, 2), 4, MIXTURE),
        ((2, 1, 2), 5, SOFTMAX),
        ((2, 1, 2), 5, MIXTURE),
    ],
)
def test_all_images_together_have_probability_one(
    name: str, shape: Shape, levels: int, likelihood: LikelihoodConfig | None
) -> None:
    model = of(name, shape, levels, likelihood)
    with torch.no_grad():
        log_p = model.evidence(all_images(model)).log_px
    assert bool(log_p.isfinite().all())
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("switch", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-5), ("compile", 1e-5), ("channels_last", 1e-5)]
)
def test_they_do_under_every_switch(name: str, switch: str, tolerance: float) -> None:
    """What a network computes may be rounded: each conditional still sums to one, if it is of earlier pixels alone."""
    model = of(name, (1, 3, 3), 2, SOFTMAX).float()
    x = all_images(model)
    if switch == "compile":
        for block in model.blocks():
            block.compile(backend="aot_eager")
    if switch == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=switch == "bfloat16"):
        log_p = model.evidence(x).log_px
    assert float(log_p.double().exp().sum()) == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "levels", "likelihood", "embedding"),
    [
        ((1, 5, 6), 5, SOFTMAX, 0),
        ((3, 4, 3), 7, SOFTMAX, 0),
        ((3, 3, 5), 256, MIXTURE, 0),
        ((1, 5, 6), 300, SOFTMAX, 4),
        ((2, 3, 4), 7, SOFTMAX, 3),
    ],
)
def test_draws_from_what_is_known_are_those_of_whole_passes(
    name: str, shape: Shape, levels: int, likelihood: LikelihoodConfig, embedding: int
) -> None:
    """Bit for bit; and what was stated while drawing is what is stated of the image in one pass."""
    pixels = pixels_of(name, shape, levels, likelihood, 3, embedding)
    x = torch.randint(levels, (3, *shape))
    for given in (0, shape[2] + 1):
        drawn, again = (pixels.complete(x, given, 1.0, seeded(), cached=cached) for cached in (True, False))
        assert torch.equal(drawn, again)
        assert torch.equal(drawn.flatten(2)[..., :given], x.flatten(2)[..., :given])
    network = pixels.network
    with torch.no_grad():
        state, whole = network.start(3, pixels.features, pixels.y), network(drawn, pixels.features, pixels.y)
        for place in range(shape[1] * shape[2]):
            for part in range(network.parts):
                stated = network.advance(state, drawn)[..., 0, 0]
                expected = whole.flatten(2)[..., place]
                mine = slice(part, None, network.parts)  # those of other channels are not asked for here
                torch.testing.assert_close(stated[:, mine], expected[:, mine], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_bits_of_pixels_sum_to_the_claim(name: str) -> None:
    model = of(name, (3, 4, 3), 256, MIXTURE)
    x = torch.randint(256, (4, *model.shape))
    with torch.no_grad():
        maps, claim = pixel_bits(model, x), model.evidence(x).log_px
    total = -maps.reconstruction.flatten(1).sum(1) * math.log(2.0)
    torch.testing.assert_close(total, claim, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_receptive_fields_are_those_of_the_jacobian(name: str) -> None:
    """Exactly zero where no parameter depends on a pixel; elsewhere the size of all derivatives, by few signs."""
    model = of(name, (1, 4, 5), 5, SOFTMAX)
    x = torch.randint(5, (1, 1, 4, 5))
    with torch.inference_mode():  # as an inspection has it
        found = receptive_field(model, x.expand(24, -1, -1, -1), None, seeded())
    assert found.queries == queries_on((4, 5))
    assert not found.later().any()
    image = x.double().requires_grad_()
    parameters = model.causal(image)[0]
    for (row, column), values in zip(found.queries, found.maps, strict=True):
        slopes = [torch.autograd.grad(one, image, retain_graph=True)[0] for one in parameters[:, row, column]]
        exact = torch.cat(slopes).square().sum((0, 1)).sqrt()  # [H, W]
        assert torch.equal(values == 0, exact == 0)
        torch.testing.assert_close(values, exact, rtol=0.5, atol=1e-12)  # of 48 signs: a tenth is usual


@pytest.mark.parametrize("name", names(SpatialAttentive))
def test_attention_of_pixels_is_of_earlier_ones(name: str) -> None:
    model = of(name, (1, 4, 5), 5, SOFTMAX)
    assert isinstance(model, SpatialAttentive)
    with torch.inference_mode():
        views = attention_of_pixels(model, torch.randint(5, (2, 1, 4, 5)), None)
    assert [view.name for view in views] == ["block 1 of 2", "block 2 of 2"]
    for view in views:
        assert view.gate is None
        for q, (row, column) in enumerate(view.queries):
            weights, before = view.maps[:, q].flatten(1), 5 * row + column
            assert bool(weights[:, before:].isnan().all())  # exactly zero, and shown as such
            torch.testing.assert_close(weights[:, :before].sum(1), torch.ones(2).double(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_even_extreme_images_have_finite_gradients(name: str) -> None:
    model = of(name, (3, 4, 4), 256, MIXTURE).float()
    x = torch.stack([torch.zeros(model.shape), torch.full(model.shape, 255)]).long()
    loss = -model.evidence(x).log_px.sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert bool(loss.isfinite())
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_moves_its_own_rows_alone(name: str) -> None:
    classes, y = 11, 4
    plain = {key for key, _ in of(name, (1, 4, 4), 3, SOFTMAX).named_parameters()}
    model = of(name, (1, 4, 4), 3, SOFTMAX, classes)
    own = {key: parameter for key, parameter in model.named_parameters() if key not in plain}
    assert own
    x = torch.randint(3, (5, *model.shape))
    claim = model.evidence(x, y=torch.full((5,), y)).log_px.sum()
    gradients = torch.autograd.grad(claim, list(own.values()))
    moved = 0
    for gradient in gradients:
        rows = gradient.movedim(list(gradient.shape).index(classes), 0)
        assert not torch.cat([rows[:y], rows[y + 1 :]]).any()
        moved += int(rows[y].count_nonzero())
    assert moved


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_it_has_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Initial weights from images, dropout and all: bit for bit."""
    config = TrainingConfig(
        steps=3, batch_size=8, ema_decay=0.9, checkpoints=CheckpointConfig(minutes=0.0, steps=1), threads=1
    )

    def go(run: Path, resume: bool = False) -> None:
        model = of(name, (1, 4, 4), 2, SOFTMAX).float()
        train(model, sets(), config, run, {"model": {"name": model.name}}, resume=resume, print_fn=lambda line: None)

    go(tmp_path / "whole")
    monkeypatch.setattr(Signals, "__enter__", _received)
    with pytest.raises(Interrupted):
        go(tmp_path / "run")
    monkeypatch.undo()
    go(tmp_path / "run", resume=True)
    assert same_files(tmp_path / "whole", tmp_path / "run")


def _received(signals: Signals) -> Signals:
    """A signal has come before the first step."""
    signals.received = 15
    return signals


class Leaking(CausalNetwork[Progress]):
    """A network with a batch norm."""

    name: ClassVar[str] = "leaking"

    def __init__(self, shape: Shape, levels: int, config: Any, classes: int = 0, features: int = 0) -> None:
        super().__init__(shape, levels, config, classes, features)
        self.head, self.parts = PixelHead(SOFTMAX, shape[0], levels), 1
        self.layers = nn.Sequential(nn.Conv2d(1, levels, 1), nn.BatchNorm2d(levels))

    def forward(self, x: Tensor, features: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        raw: Tensor = self.layers(0.0 * self.scaled(x))
        return raw

    def start(self, n: int, features: Tensor | None = None, y: Tensor | None = None) -> Progress:
        return Progress(self.shape, self.parts)

    def advance(self, state: Progress, x: Tensor) -> Tensor:
        state.step()
        return self(x)[:, :, :1, :1]


@dataclass(frozen=True)
class Nothing:
    pass


@final
class LeakingModel(CausalModel):
    name = "leaking"
    Config = Nothing
    Causal = Leaking


def test_a_batch_norm_is_refused() -> None:
    """Of a batch of one image, it tells each pixel of all others."""
    expected = (
        r"^layers\.1: got BatchNorm2d, expected no batch norm in a causal network: its statistics tell each pixel "
    )
    with pytest.raises(ValueError, match=expected + r"of later ones$"):
        LeakingModel((1, 3, 3), 2, Nothing())
    for name in NAMES:
        refuse_batch_norm(of(name, (1, 3, 3), 2))
