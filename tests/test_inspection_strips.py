"""Pictures that a hierarchy draws: samples with their means, images between two others, and around one."""

from __future__ import annotations

from typing import Any

import torch
from test_inspection import SEED, attentive, some
from torch import Generator, Tensor

from davi.distributions import Normal, WithMean
from davi.inspection import inspect


def test_samples_are_the_models_own() -> None:
    model = attentive()
    found = inspect(model, some(model, 2), samples=3, temperatures=(0, 0.7, 1.0), seed=SEED)
    assert list(found.samples) == [0.0, 0.7, 1.0]
    for temperature, drawn in found.samples.items():
        assert torch.equal(drawn, model.sample(3, temperature, Generator().manual_seed(SEED)))
        # The same latents by another walk, whose pixels are averaged, not drawn.
        generator = Generator().manual_seed(SEED)
        likelihood = model.top_down(lambda i, prior, _: prior.expand(3).sample(generator, temperature))  # noqa: B023
        assert isinstance(likelihood, WithMean)
        assert torch.equal(found.expected[temperature], likelihood.mean())


def test_strips_between_and_around_images() -> None:
    model = attentive()
    images = some(model, 6)
    found = inspect(model, images, samples=1, seed=SEED)
    kinds = [strip.kind for strip in found.strips]
    assert kinds == ["interpolation", "interpolation", "variations", "variations"]  # three layers: 1 and 2 kept
    between = found.strips[0]
    ends = [between.title.split(" to ")[i] for i in (0, 1)]
    a, b = (images.pixels[int(name.rpartition(" ")[2])] for name in ends)
    assert torch.equal(between.images[0], a.double())
    assert torch.equal(between.images[-1], b.double())
    latents = model.latents(torch.stack([a, b]))
    half = [0.25 * z[:1] + 0.75 * z[1:] for z in latents]
    shares = [float(label) for label in between.labels[1:-1]]
    assert (shares[0], shares[-1], len(shares)) == (0.0, 1.0, 8)
    share = 4 / 7
    middle = model.decode([(1 - share) * z[:1] + share * z[1:] for z in latents]).mean()
    torch.testing.assert_close(between.images[5], middle[0])
    assert not torch.allclose(between.images[5], model.decode(half).mean()[0])


def test_variations_keep_the_top_layers_and_draw_the_others() -> None:
    model = attentive()
    images = some(model, 6)
    found = inspect(model, images, samples=1, seed=SEED)
    for depth, strip in zip((1, 2), found.strips[2:], strict=True):
        assert strip.title.endswith("top layer of 3 kept" if depth == 1 else "top 2 of 3 kept")
        original = images.pixels[int(strip.title.partition(",")[0].rpartition(" ")[2])]
        assert torch.equal(strip.images[0], original.double())
        kept = model.latents(original[None])[:depth]
        asked: list[int] = []

        def choose(i: int, prior: Normal, _: Any, kept: list[Tensor] = kept, asked: list[int] = asked) -> Tensor:
            asked.append(i)
            return kept[i].expand(400, -1, -1, -1) if i < len(kept) else prior.expand(400).sample()

        torch.manual_seed(0)
        many = model.top_down(choose).mean()
        assert asked == [0, 1, 2]
        drawn = strip.images[1:]
        assert not torch.equal(drawn[0], drawn[1])
        # Eight draws of the same distribution: their mean is within a few standard errors of that of many.
        error = many.std(0) / 8**0.5
        assert ((drawn.mean(0) - many.mean(0)).abs() <= 5 * error + 1e-9).all()
