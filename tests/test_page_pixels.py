"""Pictures and charts of the page: the tensors that they were given, in colors of its own."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import torch
from PIL import Image

from davi.page import charts, pixels
from davi.page.saved import inline


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_pictures_on_the_page_are_the_pixels() -> None:
    x = torch.tensor([[[0, 15], [5, 10]]])  # [1, 2, 2] of 16 levels, each 17 / 255 of the way
    picture = pixels.image(x, 16, "alt", 96)
    back = decoded(pixels.data_uri(picture.image))
    assert back.mode == "L"
    assert np.asarray(back).tolist() == [[0, 255], [85, 170]]
    assert picture.scale == pixels.TILE // 2
    means = pixels.image(x / 2, 16, "alt", 96)  # in units of levels: 0, 7.5, 2.5, 5
    assert np.asarray(means.image).tolist() == [[0, 128], [42, 85]]  # half to even


def test_a_map_over_an_image() -> None:
    x = torch.tensor([[[0, 15, 15]]])
    picture = pixels.overlay(x, 16, torch.tensor([[0.0, 0.0, 2.0]]), 2.0, "alt", 96, 30)
    dimmed = round(0.7 * 255)
    assert np.asarray(picture.image).tolist() == [[[0] * 3, [dimmed] * 3, list(pixels.PALETTE[-1])]]


def test_large_images_are_means_over_blocks() -> None:
    x = torch.arange(5 * 4).reshape(1, 5, 4)
    shrunk = pixels.shrunk(x, 3)  # blocks of two; the last row of blocks is one pixel high
    # by hand: (0+1+4+5)/4 = 2.5 -> 2 (half to even), (2+3+6+7)/4 = 4.5 -> 4, ... (16+17)/2 = 16.5 -> 16, 18.5 -> 18
    assert shrunk.tolist() == [[[2, 4], [10, 12], [16, 18]]]
    assert pixels.shrunk(x, 5) is x
    assert pixels.shrunk(x.double(), 3)[0, 0].tolist() == [2.5, 4.5]


def test_maps_go_from_dark_to_bright_and_what_is_no_number_is_transparent() -> None:
    values = torch.tensor([[[0.0, 0.5, 1.0, 7.0, float("nan")]]])
    picture = decoded(pixels.data_uri(pixels.maps(values, 1.0, "alt", 96).image))
    colors = np.asarray(picture.convert("RGBA"))[0].tolist()
    assert colors[0] == [*pixels.PALETTE[0], 255]
    assert colors[2] == colors[3] == [*pixels.PALETTE[-1], 255]
    assert colors[4][3] == 0
    lightness = [sum(color[:3]) for color in colors[:3]]
    assert lightness == sorted(lightness)
    assert picture.mode == "P"


def test_the_query_is_framed() -> None:
    plain = pixels.maps(torch.zeros(1, 4, 4), 1.0, "alt", 96, room=32)  # each pixel eight times
    framed = pixels.marked(plain, (1, 2), (4, 4))
    colors = np.asarray(framed.image.convert("RGB"))
    frame = (colors != pixels.PALETTE[0]).any(-1)
    rows, columns = np.nonzero(frame)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 15, 16, 23)
    assert not frame[11:13, 19:21].any()
    assert framed.image.width * framed.scale == 32


def test_charts_take_the_colors_of_the_page() -> None:
    drawing = charts.lines([charts.Curve("a < b & $c$", [1, 2], [3.0, 4.0])], "y", "x")
    text = inline(drawing, "one", 'said "so"')
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == 'said "so"'
    assert "var(--ink)" in text
    assert "var(--blue)" in text
    assert not any(color in text for color in charts.THEME)
    assert all(identifier.startswith("one-") for identifier in re.findall(r' id="([^"]+)"', text))
    assert inline(drawing, "one", 'said "so"') == text
    assert "<style" not in text


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    x, y = charts.thinned(range(10_000), [2.0 * i for i in range(10_000)])
    assert 200 <= len(x) <= 401
    assert (x[-1], y[-1]) == (9999, 19998)
    assert np.allclose(y, 2 * x)


def test_the_matrix_has_numbers_where_there_is_room() -> None:
    values = np.array([[1.0, np.nan], [0.25, 0.75]])
    text = inline(charts.matrix(values, ["r0", "r1"], ["c0", "c1"], ("rows", "columns"), ([1, 2], "far")), "m", "alt")
    written = [element.text for element in ElementTree.fromstring(text).iter() if element.text and element.text.strip()]
    assert [word for word in written if re.fullmatch(r"\d\.\d\d", word)] == ["1.00", "0.25", "0.75"]
    large = charts.matrix(np.full((40, 40), 1 / 40), ["r"] * 40, ["c"] * 40, ("rows", "columns"), ([1.0] * 40, "far"))
    assert "0.03" not in inline(large, "m", "alt")


def test_of_a_map_in_order_what_is_missing_is_earlier_or_later() -> None:
    """A pixel is 4 pixels wide in the picture; the frame is around the second one of the second row."""
    nan = float("nan")
    values = torch.tensor([[1.0, nan, 0.0], [nan, nan, nan]])
    picture = pixels.ordered(values, 1.0, (1, 1), "a map", 96, 12)
    colors = np.asarray(picture.image)[1::4, 1::4]
    assert colors[0].tolist() == [list(pixels.PALETTE[-1]), list(pixels.UNSEEN), list(pixels.PALETTE[0])]
    assert colors[1].tolist() == [list(pixels.UNSEEN), list(pixels.LATER), list(pixels.LATER)]
    assert np.asarray(picture.image)[4, 4].tolist() == [255, 77, 0]
    assert (picture.scale, picture.alt) == (1, "a map")
