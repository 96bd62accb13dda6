"""Orders that can be resumed anywhere; images mirrored and drawn anew."""

import json
import math
from itertools import islice

import pytest
import torch

from davi.data import Augmentation, Images, Sampler
from davi.data.binarization import draw
from davi.errors import UserError


def images(levels: int = 256, n: int = 6) -> Images:
    pixels = torch.randint(levels, (n, 2, 3, 5), generator=torch.Generator().manual_seed(0))
    return Images(pixels.to(torch.uint8), levels, "set/train")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_plain_presentation_gathers_and_touches_no_randomness() -> None:
    data = images()
    g = generator()
    before = g.get_state()
    indices = torch.tensor([3, 0, 3])
    x = Augmentation(data, "none", "none")(indices, g)
    assert x.dtype == torch.uint8
    assert torch.equal(x, data.pixels[indices])
    assert torch.equal(g.get_state(), before)


@pytest.mark.parametrize(("flip", "axes"), [("horizontal", [(), (-1,)]), ("both", [(), (-1,), (-2,), (-1, -2)])])
def test_flips(flip: str, axes: list[tuple[int, ...]]) -> None:
    """Every presented image is one of the mirrored forms, and all forms are equally frequent."""
    data = images()
    n = 4000
    indices = torch.arange(n) % len(data)
    x = Augmentation(data, "none", flip)(indices, generator())  # type: ignore[arg-type]  # a plain str in a parameter
    original = data.pixels[indices]
    is_form = torch.stack([(x == original.flip(a)).flatten(1).all(1) for a in axes])  # [forms, n]
    assert (is_form.sum(0) == 1).all()
    p = 1 / len(axes)
    for count in is_form.sum(1).tolist():
        assert abs(count / n - p) < 5 * math.sqrt(p * (1 - p) / n)  # five standard errors; the seed is fixed


def test_random_crops_of_an_image_with_zeros_around_it() -> None:
    """Every presented image is one of the crops, in all channels alike, and all places are equally frequent."""
    data = images()
    n = 9000
    indices = torch.arange(n) % len(data)
    x = Augmentation(data, random_crop=1)(indices, generator())
    assert x.dtype == torch.uint8
    padded = torch.zeros(len(data), 2, 5, 7, dtype=torch.uint8)
    padded[:, :, 1:-1, 1:-1] = data.pixels
    crops = [padded[indices, :, row : row + 3, column : column + 5] for row in range(3) for column in range(3)]
    is_crop = torch.stack([(x == crop).flatten(1).all(1) for crop in crops])  # [places, n]
    assert (is_crop.sum(0) == 1).all()
    for count in is_crop.sum(1).tolist():
        assert abs(count / n - 1 / 9) < 5 * math.sqrt(8 / 81 / n)  # five standard errors; the seed is fixed


def test_crops_are_mirrored_afterwards() -> None:
    """The same generator, used by hand in the documented order."""
    data, indices = images(), torch.tensor([5, 1, 2, 2])
    x = Augmentation(data, "none", "horizontal", 2)(indices, generator(9))
    g = generator(9)
    cropped = Augmentation(data, random_crop=2)(indices, g)
    coins = torch.randint(2, (4, 1, 1, 1), generator=g).bool()
    assert torch.equal(x, torch.where(coins, cropped.flip(-1), cropped))


def test_dynamic_draws_are_fresh_and_follow_the_gray_values() -> None:
    data = images()
    presentation = Augmentation(data, "dynamic", "none")
    assert (presentation.levels, presentation.shape, len(presentation)) == (2, (2, 3, 5), 6)
    g = generator()
    n = 4000
    indices = torch.full((n,), 4)
    first, second = presentation(indices, g), presentation(indices, g)
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    p = data.pixels[4].double() / 255
    error = (torch.cat([first, second]).double().mean(0) - p).abs()
    assert (error <= 5 * (p * (1 - p) / (2 * n)).sqrt()).all()  # five standard errors of each pixel's frequency


def test_dynamic_with_flips_equals_mirroring_then_drawing() -> None:
    """The same generator, used by hand in the documented order: the coins of the mirrors, then the draws."""
    data = images()
    indices = torch.tensor([5, 1, 2, 2])
    x = Augmentation(data, "dynamic", "both")(indices, generator(9))
    g = generator(9)
    expected = data.pixels[indices]
    for axis in (-1, -2):
        coins = torch.randint(2, (4, 1, 1, 1), generator=g).flatten().tolist()
        expected = torch.stack([e.flip(axis) if coin else e for e, coin in zip(expected, coins, strict=True)])
    assert torch.equal(x, draw(expected, 256, g))


def test_presentation_resumes_with_its_generator() -> None:
    presentation = Augmentation(images(), "dynamic", "both", 1)
    indices = torch.arange(6)
    g = generator()
    presentation(indices, g)
    state = g.get_state()
    expected = [presentation(indices, g) for _ in range(3)]
    other = torch.Generator()
    other.set_state(state)
    assert all(torch.equal(presentation(indices, other), e) for e in expected)


def test_presentation_refuses_contradictions() -> None:
    with pytest.raises(UserError, match="binary already"):
        Augmentation(images(2), "dynamic")
    for binarization in ("static", "threshold"):
        assert Augmentation(images(2), binarization).levels == 2
        with pytest.raises(UserError, match="set/train: got 256 levels, expected images made binary"):
            Augmentation(images(256), binarization)
    with pytest.raises(UserError, match="binarization: got 'fresh', expected one of none, static, dynamic, threshold"):
        Augmentation(images(), "fresh")  # type: ignore[arg-type]  # the wrong name is the point
    with pytest.raises(UserError, match="flip: got 'vertical', expected one of none, horizontal, both"):
        Augmentation(images(), "none", "vertical")  # type: ignore[arg-type]  # the wrong name is the point


@pytest.mark.parametrize(
    ("n", "batch_size", "batch", "batches"), [(10, 3, 3, 3), (10, 10, 10, 1), (4, 32, 4, 1), (1, 1, 1, 1)]
)
def test_a_pass_shows_every_image_at_most_once(n: int, batch_size: int, batch: int, batches: int) -> None:
    order = Sampler(n, batch_size, seed=5)
    assert order.batches_per_epoch == batches
    for epoch in range(4):
        seen: list[int] = []
        for _ in range(batches):
            assert order.epoch == epoch
            indices = next(order)
            assert indices.dtype == torch.int64
            assert indices.shape == (batch,)
            seen += indices.tolist()
        assert len(set(seen)) == len(seen) == batch * batches
        assert set(seen) <= set(range(n))
    assert order.epoch == 4


def test_passes_and_seeds_differ() -> None:
    def first_passes(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in islice(Sampler(50, 50, seed), 3)]

    passes = [*first_passes(0), *first_passes(1)]
    assert all(a != b for i, a in enumerate(passes) for b in passes[:i])
    assert first_passes(0) == first_passes(0)


def test_every_image_is_equally_likely_in_every_place() -> None:
    n, passes = 5, 4000
    places = torch.stack(list(islice(Sampler(n, n, seed=3), passes)))  # [passes, n]
    counts = torch.stack([(places == image).sum(0) for image in range(n)]).double()
    p = 1 / n
    assert ((counts / passes - p).abs() < 5 * math.sqrt(p * (1 - p) / passes)).all()  # five standard errors


@pytest.mark.parametrize("stop", range(12))
def test_order_resumes_bit_for_bit(stop: int) -> None:
    whole = [batch.tolist() for batch in islice(Sampler(17, 4, seed=11), 20)]
    order = Sampler(17, 4, seed=11)
    for _ in range(stop):
        next(order)
    state = json.loads(json.dumps(order.state_dict()))
    resumed = Sampler(17, 4, seed=11)
    next(resumed)  # a position of its own, which must leave no trace
    resumed.load_state_dict(state)
    assert resumed.epoch == order.epoch == stop // 4
    assert [batch.tolist() for batch in islice(resumed, 20 - stop)] == whole[stop:]


def test_order_refuses() -> None:
    for arguments, match in (((0, 1, 0), "n: got 0"), ((5, 0, 0), "batch_size: got 0"), ((5, 2, -1), "seed: got -1")):
        with pytest.raises(UserError, match=match):
            Sampler(*arguments)
    order = Sampler(10, 2, 0)
    good = order.state_dict()
    bad = [
        ({**good, "n": 11}, "got a position with n 11, expected n 10"),
        ({**good, "batch_size": 3}, "batch_size 3"),
        ({**good, "seed": 1}, "seed 1"),
        ({**good, "offset": 5}, "got offset 5, expected 0 to 4"),
        ({**good, "epoch": -1}, "epoch -1"),
        ({}, "n None"),
        ({"n": 10, "batch_size": 2, "seed": 0}, "epoch None"),
    ]
    for state, match in bad:
        with pytest.raises(UserError, match=match):
            order.load_state_dict(state)
    assert order.state_dict() == good
