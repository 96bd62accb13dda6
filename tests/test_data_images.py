"""Images in memory, and black and white from gray."""

import math

import pytest
import torch

from davi.data import Images
from davi.data.binarization import draw, stream, threshold
from davi.errors import UserError


def gray(levels: int = 256, n: int = 5) -> Images:
    dtype = torch.uint8 if levels <= 256 else torch.int32
    pixels = torch.arange(n * 3 * 2 * 4).reshape(n, 3, 2, 4) % levels
    return Images(pixels.to(dtype), levels, "set/train")


def test_shape_and_length() -> None:
    images = gray(n=5)
    assert images.shape == (3, 2, 4)
    assert len(images) == 5


def test_subset_by_slice_shares_memory_and_by_index_keeps_the_order() -> None:
    images = gray()
    part = images.subset(slice(1, 3), "set/part")
    assert part.name == "set/part"
    assert part.pixels.data_ptr() == images.pixels[1].data_ptr()
    for chosen in ([4, 0, 0, -1], torch.tensor([4, 0, 0, -1])):
        part = images.subset(chosen)
        assert part.name == images.name
        assert torch.equal(part.pixels, torch.stack([images.pixels[i] for i in (4, 0, 0, 4)]))


@pytest.mark.parametrize(("chosen", "match"), [([5], "got index 5"), ([0, -6], "got index -6"), ([], "got shape")])
def test_subset_refuses(chosen: list[int], match: str) -> None:
    with pytest.raises(UserError, match=match):
        gray().subset(chosen)
    with pytest.raises(UserError, match="at least one image"):
        gray().subset(slice(9, None))


@pytest.mark.parametrize(
    ("pixels", "levels", "match"),
    [
        (torch.zeros(1, 1, 2, 2), 256, "set: got torch.float32, expected torch.uint8 for 256 levels"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 257, "expected torch.int32 for 257 levels"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int32), 256, "expected torch.uint8"),
        (torch.zeros(1, 2, 2, dtype=torch.uint8), 256, r"got shape \(1, 2, 2\)"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), 256, r"got shape \(0, 1, 2, 2\)"),
        (torch.full((1, 1, 2, 2), 17, dtype=torch.uint8), 17, "got values 17 to 17, expected 0 to 16"),
        (torch.full((1, 1, 2, 2), -1, dtype=torch.int32), 257, "got values -1 to -1"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 1, "levels: got 1, expected a whole number from 2 to 65536"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int32), 65537, "levels: got 65537"),
    ],
)
def test_images_refuse(pixels: torch.Tensor, levels: int, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Images(pixels, levels, "set")


@pytest.mark.parametrize("levels", [17, 256, 65536])
def test_draw_has_the_stated_probability_at_every_gray_value(levels: int) -> None:
    n = 20_000
    values = torch.tensor([0, 1, levels // 3, levels // 2, levels - 2, levels - 1])
    dtype = torch.uint8 if levels <= 256 else torch.int32
    x = draw(values.to(dtype).repeat(n, 1), levels, stream(7, levels))
    assert x.dtype == torch.uint8
    for value, frequency in zip(values.tolist(), x.double().mean(0).tolist(), strict=True):
        p = value / (levels - 1)
        # Five standard errors of a frequency: a right draw with a fixed seed passes; black and white are certain.
        assert abs(frequency - p) <= 5 * math.sqrt(p * (1 - p) / n)


def test_draw_treats_pixels_independently() -> None:
    n = 40_000
    x = draw(torch.full((n, 2), 128, dtype=torch.uint8), 256, stream(3)).double()
    correlation = torch.corrcoef(x.T)[0, 1].abs().item()
    assert correlation < 5 / math.sqrt(n)  # five standard errors of a correlation of zero


@pytest.mark.parametrize("levels", [3, 4, 17, 255, 256, 65536])
def test_threshold_at_every_gray_value(levels: int) -> None:
    values = torch.arange(levels, dtype=torch.int32)
    expected = [int(2 * value > levels - 1) for value in range(levels)]
    assert threshold(values, levels).tolist() == expected


def test_streams_depend_on_every_part_of_the_key() -> None:
    def first(*key: int) -> list[int]:
        return torch.randint(1000, (20,), generator=stream(*key)).tolist()

    assert first(1, 2) == first(1, 2)
    distinct = [first(1, 2), first(2, 1), first(1, 3), first(12), first(2**40 + 1, 2)]
    assert all(a != b for i, a in enumerate(distinct) for b in distinct[:i])
