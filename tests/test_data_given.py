"""Images that a Python program holds: which axis is which, which values count, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davi.data.given import collected
from davi.errors import UserError

U8 = torch.uint8


@pytest.mark.parametrize(
    ("images", "shape", "dtype"),
    [
        (np.zeros((5, 9, 8), np.uint8), (5, 9, 8, 1), "uint8"),
        (np.zeros((5, 9, 8, 3), np.uint16), (5, 9, 8, 3), "uint16"),
        (np.zeros((5, 2, 2, 7), bool), (5, 2, 2, 7), "bool"),
        (torch.zeros(5, 9, 8, dtype=U8), (5, 9, 8, 1), "uint8"),
        (torch.zeros(5, 3, 9, 8, dtype=U8), (5, 9, 8, 3), "uint8"),
        (torch.zeros(5, 7, 2, 2, dtype=torch.bool), (5, 2, 2, 7), "bool"),
        ([np.zeros((9, 8), np.uint8)] * 5, (5, 9, 8, 1), "uint8"),
        ([torch.zeros(3, 9, 8, dtype=U8)] * 5, (5, 9, 8, 3), "uint8"),
        ([Image.new("1", (8, 9))] * 5, (5, 9, 8, 1), "bool"),
        ([Image.new("I;16", (8, 9))] * 5, (5, 9, 8, 1), "uint16"),
        ([Image.new("RGB", (8, 9))] * 5, (5, 9, 8, 3), "uint8"),
    ],
)
def test_axes_are_those_of_the_type(images: Any, shape: tuple[int, ...], dtype: str) -> None:
    found = collected(images)
    assert (found.images.shape, found.images.dtype.name, found.labels) == (shape, dtype, None)


def test_a_sparse_tensor_is_what_it_stands_for() -> None:
    dense = torch.eye(8, dtype=torch.bool).expand(5, 8, 8).clone()
    assert np.array_equal(collected(dense.to_sparse()).images[..., 0], dense.numpy())


def test_channels_are_where_they_were() -> None:
    x = torch.arange(5 * 3 * 4 * 2).view(5, 3, 4, 2)
    assert torch.equal(torch.from_numpy(collected(x, levels=256).images).permute(0, 3, 1, 2), x)
    assert np.array_equal(collected(list(x), levels=256).images, collected(x, levels=256).images)


@pytest.mark.parametrize("levels", [None, 2, 17, 256, 65536])
def test_floats_are_the_integers_that_they_were_made_of(levels: int | None) -> None:
    top = (levels or 256) - 1
    whole = torch.randint(top + 1, (4, 1, 8, 9))
    found = collected(whole.float() / top, levels=levels).images
    assert np.array_equal(found.transpose(0, 3, 1, 2), whole.numpy())
    assert found.dtype == (np.uint16 if top > 255 else np.uint8)


GRAY = np.zeros((5, 9, 8), np.uint8)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (
            np.zeros((5, 3, 9, 8), np.uint8),
            {},
            r"an array \[5, 3, 9, 8\], which looks like \[N, C, H, W\], expected \[N, H",
        ),
        (
            np.zeros((9, 8, 3), np.uint8),
            {},
            r"an array \[9, 8, 3\], which looks like one image, expected \[N, H, W, C\]",
        ),
        (
            torch.zeros(5, 9, 8, 3, dtype=U8),
            {},
            r"a tensor \[5, 9, 8, 3\], which looks like \[N, H, W, C\], expected \[N, C",
        ),
        (
            torch.zeros(3, 9, 8, dtype=U8),
            {},
            r"a tensor \[3, 9, 8\], which is one image or 3 gray ones, expected \[N, C",
        ),
        (
            [np.zeros((3, 9, 8), np.uint8)],
            {},
            r"item 0: got an array \[3, 9, 8\], which looks like \[C, H, W\], expected",
        ),
        (
            [torch.zeros(9, 8, 3, dtype=U8)],
            {},
            r"item 0: got a tensor \[9, 8, 3\], which looks like \[H, W, C\], expected",
        ),
        (np.zeros((5, 9), np.uint8), {}, r"^images: got shape \[5, 9\], expected \[N, H, W\] or \[N, H, W, C\]"),
        (np.zeros((0, 9, 8), np.uint8), {}, r"^images: got shape \[0, 9, 8\], expected .* with no zero$"),
        (
            np.zeros((5, 9, 8)) - 1,
            {},
            r"^images: got float64 from -1 to -1, expected integers, or k / 255 with whole k",
        ),
        (np.full((5, 9, 8), 0.3), {}, r"^images: got float64 from 0\.3 to 0\.3, expected integers, or k / 255"),
        (np.full((5, 9, 8), np.nan), {}, r"^images: got float64 from nan to nan, expected integers"),
        (GRAY.astype(int), {}, r"^levels: not given, and int64 does not tell it, expected 2 to 65536 \(levels=256, or"),
        (GRAY.astype(int) - 1, {"levels": 256}, r"^images: got values -1 to -1, expected 0 to 255$"),
        (GRAY, {"levels": 1}, r"^levels: got 1, expected a whole number from 2 to 65536$"),
        (GRAY.astype(complex), {}, r"^images: got complex128, expected integers$"),
        (
            [Image.new("RGBA", (8, 9))],
            {},
            r"^images: item 0: got Pillow's mode RGBA, expected 1, L, RGB or I;16 \(image\.conv",
        ),
        (
            [GRAY[0], GRAY[0, 1:]],
            {},
            r"^images: item 1: got \[H, W, C\] = \[8, 8, 1\] of uint8, expected \[H, W, C\] = \[9, 8, 1\] of uint8 as",
        ),
        (
            [GRAY[0], GRAY[0].astype(bool)],
            {},
            r"^images: item 1: got .* of bool, expected \[H, W, C\] = \[9, 8, 1\] of uint8 as item 0",
        ),
        (["a.png"], {}, r"^images: item 0: got str, expected a PIL image, an array or a tensor$"),
        ([], {}, r"^images: got none, expected at least one$"),
        (7, {}, r"^images: got int, expected a NumPy array, a tensor, a list of PIL images, a torch or Hugging Face"),
        (Image.new("L", (8, 9)), {}, r"^images: got one image, expected a list of images$"),
        ({"train": GRAY, "test": GRAY}, {}, r"^images: got several data sets \(train, test\), expected one of them"),
        (torch.utils.data.DataLoader([1]), {}, r"^images: got a DataLoader, expected its data set"),  # type: ignore[arg-type]
        (
            GRAY,
            {"labels": True},
            r"^labels: got True with an array of images, expected class numbers, one for each image$",
        ),
        (
            GRAY,
            {"labels": [1, 2]},
            r"^labels: got int64 \[2\], expected \[5\] class numbers from 0, one for each image$",
        ),
        (list(GRAY), {"labels": True}, r"^labels: got True, and item 0 is an image alone, expected \(image, label\)$"),
        (
            [(GRAY[0], "cat")],
            {"labels": True},
            r"^labels: got .* \[1\], expected \[1\] class numbers from 0, one for each",
        ),
    ],
)
def test_what_is_refused_is_one_line(images: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        collected(images, **options)
    assert "\n" not in str(caught.value)


def test_columns_of_a_table_that_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    numbers = datasets.Dataset.from_dict({"a": [1, 2]})
    with pytest.raises(UserError, match=r"^images: got columns a \(Value\), expected exactly one of type Image$"):
        collected(numbers)
    with pytest.raises(
        UserError, match=r"^images: got several data sets \(train\), expected one of them, such as x\['train'\]$"
    ):
        collected(datasets.DatasetDict({"train": numbers}))
    images = datasets.Dataset.from_dict({"image": [Image.new("L", (8, 9))]})
    images = images.cast(datasets.Features({"image": datasets.Image()}))
    with pytest.raises(UserError, match=r"^labels: got True, and the columns image, none of type ClassLabel$"):
        collected(images, labels=True)
