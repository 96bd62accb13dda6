"""davi.pictures against pixels written down by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from davi import pictures
from davi.errors import UserError

G = pictures.GAP_LEVEL


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def gray(image: Image.Image) -> list[list[int]]:
    array = pixels(image)
    assert (array == array[..., :1]).all()
    return array[..., 0].tolist()


def test_grid_of_gray_images_pixel_by_pixel() -> None:
    images = torch.tensor(
        [[[[0, 1]]], [[[2, 4]]], [[[3, 0]]]]
    )  # [3, 1, 1, 2], five levels: 0, 63.75, 127.5, 191.25, 255
    result = pictures.grid(images, levels=5, columns=2, scale=1, padding=1)
    assert gray(result) == [
        [G, G, G, G, G, G, G],
        [G, 0, 64, G, 128, 255, G],
        [G, G, G, G, G, G, G],
        [G, 191, 0, G, G, G, G],
        [G, G, G, G, G, G, G],
    ]


def test_colors_and_enlargement_without_smoothing() -> None:
    images = torch.tensor([[[[255, 0]], [[0, 10]], [[7, 0]]]], dtype=torch.uint8)  # [1, 3, 1, 2]
    result = pixels(pictures.grid(images, levels=256, scale=2, padding=0))
    left, right = [255, 0, 7], [0, 10, 0]
    assert result.tolist() == [[left, left, right, right]] * 2


def test_other_channel_counts_stand_side_by_side_in_gray() -> None:
    images = torch.arange(8).reshape(1, 4, 2, 1)
    assert gray(pictures.grid(images, levels=256, scale=1, padding=0)) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    ("levels", "dtype", "expected"),
    [(2, torch.int64, [0, 255, 255]), (17, torch.uint8, [0, 16, 255]), (65536, torch.int32, [0, 0, 255])],
)
def test_levels_span_black_to_white(levels: int, dtype: torch.dtype, expected: list[int]) -> None:
    images = torch.tensor([0, 1, levels - 1], dtype=dtype).reshape(1, 1, 1, 3)
    assert gray(pictures.grid(images, levels, scale=1, padding=0)) == [expected]


def test_pairs_pixel_by_pixel() -> None:
    originals = torch.tensor([0, 1]).reshape(2, 1, 1, 1)
    result = pictures.pairs(originals, 1 - originals, levels=2, columns=2, scale=1, padding=1)
    # Three gaps of 3 around two pairs of 1 + 1 + 1.
    row = [G, G, G, 0, G, 255, G, G, G, 255, G, 0, G, G, G]
    assert gray(result) == [[G] * len(row)] * 3 + [row] + [[G] * len(row)] * 3


@pytest.mark.parametrize(
    "shape", [(64, 1, 8, 8), (16, 1, 8, 8), (1, 1, 8, 8), (100, 3, 32, 32), (7, 1, 5, 90), (3, 2, 64, 4)]
)
def test_default_size_is_visible_and_no_longer_than_promised(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape, dtype=torch.uint8)
    for picture in (pictures.grid(images, 2), pictures.pairs(images, images, 2)):
        # The next larger whole factor would not fit, so more than half of the room is always used.
        assert 500 < max(picture.size) <= pictures.LONGEST_SIDE


def test_large_images_are_not_shrunk() -> None:
    assert pictures.grid(torch.zeros(4, 1, 700, 600, dtype=torch.uint8), 2, padding=0).size == (1200, 1400)


@pytest.mark.parametrize(
    ("images", "levels", "options", "message"),
    [
        (
            torch.zeros(1, 8, 8, dtype=torch.int64),
            2,
            {},
            "images: got the shape [1, 8, 8], expected [N, C, H, W] with no zero",
        ),
        (
            torch.zeros(0, 1, 8, 8, dtype=torch.int64),
            2,
            {},
            "images: got the shape [0, 1, 8, 8], expected [N, C, H, W] with no zero",
        ),
        (torch.zeros(1, 1, 2, 2), 2, {}, "images: got torch.float32, expected integers"),
        (torch.full((1, 1, 1, 1), 2), 2, {}, "images: got values from 2 to 2, expected 0 to 1"),
        (torch.full((1, 1, 1, 1), -1), 2, {}, "images: got values from -1 to -1, expected 0 to 1"),
        (torch.full((1, 1, 1, 1), 0), 1, {}, "levels: got 1, expected 2 to 65536"),
        (torch.full((1, 1, 1, 1), 0), 2, {"columns": 0}, "columns: got 0, expected at least 1"),
        (torch.full((1, 1, 1, 1), 0), 2, {"scale": 0}, "scale: got 0, expected at least 1"),
        (torch.full((1, 1, 1, 1), 0), 2, {"padding": -1}, "padding: got -1, expected at least 0"),
    ],
)
def test_refusals(images: Tensor, levels: int, options: dict[str, int], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        pictures.grid(images, levels, **options)
    assert str(caught.value) == message


def test_pairs_need_equal_shapes() -> None:
    with pytest.raises(ValueError, match=r"^reconstructions: got \[1, 1, 1, 1\], expected \[2, 1, 1, 1\]$"):
        pictures.pairs(torch.zeros(2, 1, 1, 1).long(), torch.zeros(1, 1, 1, 1).long(), 2)


def test_save_png_round_trip_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    path.write_bytes(b"older")
    picture = pictures.grid(torch.arange(12).reshape(1, 3, 2, 2), 12)
    pictures.save_png(picture, path)
    with Image.open(path) as read:
        assert (np.asarray(read) == pixels(picture)).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.png"]


def test_save_png_refusals(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 2))
    with pytest.raises(UserError, match="cannot be written, no such folder"):
        pictures.save_png(picture, tmp_path / "absent" / "a.png")
    with pytest.raises(UserError, match="cannot be written, it is a folder"):
        pictures.save_png(picture, tmp_path)
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\)"):
        pictures.save_png(picture, tmp_path / ("x" * 250 + ".png"))
    assert list(tmp_path.iterdir()) == []
