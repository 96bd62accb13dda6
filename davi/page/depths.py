"""Sections about the depths of a network: how far apart classes are, and what comes back from representations."""

from __future__ import annotations

from collections.abc import Iterator

from davi.evaluation.classification import ERROR_RATE
from davi.evaluation.separation import SEPARATION
from davi.inspection import Inversions
from davi.model import Inverting
from davi.page import charts, pixels
from davi.page.blocks import Chart, Figure, Fold, Prose, Section, Table, Tile, Tiles
from davi.page.charts import Curve
from davi.page.contents import Contents
from davi.page.images import reduced

_PAPER = "i-RevNet (Jacobsen, Smeulders and Oyallon, ICLR 2018)"


def separation(contents: Contents, _: int) -> Section | None:
    """The share of images nearest to the mean of their own class, over depth."""
    result = contents.result
    found = None if result is None else result.measure(SEPARATION)
    if result is None or found is None or found.layers is None or found.depths is None:
        return None
    depths, right = found.depths[::-1], found.layers[::-1]
    curves = [Curve("nearest class mean", [float(depth) for depth in depths], right)]
    wrong = result.measure(ERROR_RATE)
    if wrong is not None:
        curves.append(Curve("the classifier", [0.0, float(depths[-1])], [100.0 - wrong.value] * 2))
    told = ", ".join(f"depth {depth} {value:.1f} %" for depth, value in zip(depths, right, strict=True))
    figure = Figure(
        "separation",
        (Chart(charts.lines(curves, "% of the images right", "depth, in blocks"), f"Line chart over depth: {told}."),),
        f"The share of {found.images:,} images that are nearest to the mean of their own class, at each depth.",
        "At each depth an image stands for the mean over space of its representation there; depth 0 is the stem. It "
        "is put into the class whose mean over the other images is nearest. Nothing is fitted, so that what rises "
        "from depth to depth is the network's own work. The dashed line is what its last layer, which is fitted, "
        "makes of the last depth.",
        f"Such a figure is shown in {_PAPER}, there with nearest neighbors and linear SVMs.",
    )
    rows = tuple((str(depth), f"{value:.2f} %") for depth, value in zip(depths, right, strict=True))
    fold = Fold("The same as a table", (Table("Nearest class mean", ("depth, in blocks", "right"), rows),))
    inverse = () if isinstance(contents.model, Inverting) else (Prose(_NO_INVERSE),)
    return Section("separation", "Classes over depth", (figure, *inverse, fold))


_NO_INVERSE = "There are no images from each depth: this network has no inverse of all its blocks."


def inversion(contents: Contents, longest: int) -> Section | None:
    """Images that come back from each depth.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.inversions
    if found is None:
        return None
    figure = Figure(
        "inversion",
        tuple(_rows(found, contents, longest)),
        f"Images from their representations at several depths.{reduced(contents.inspection, longest)}",
        "The number is the depth in blocks from which an image is taken back, block by block; 0 is the stem. The "
        "network loses nothing before its last layer, so that the whole row is the original.",
        f"Images from the last representation are shown in {_PAPER}.",
    )
    rows = tuple(
        (str(depth), f"{variables:,}", f"{error:.1g}", f"{changed} of {found.count}")
        for depth, variables, error, changed in zip(
            found.depths, found.variables, found.errors, found.changed, strict=True
        )
    )
    head = ("depth, in blocks", "size", "error, levels", "images changed")
    fold = Fold("By depth", (Table(f"What comes back, of {found.count} images", head, rows),))
    return Section("inversion", "Images from each depth", (figure, Prose(exactness(found)), fold))


def exactness(found: Inversions) -> str:
    """How exact the inverse is, in a sentence."""
    worst, n = max(found.errors), f"{found.count} image{'s' * (found.count != 1)}"
    changed = max(found.changed)
    if changed:
        return f"Of {n}, {changed} are others after rounding; the largest error is {worst:.1g} of a level."
    return (
        f"All of {n} come back exactly after rounding, from every depth; the largest error is {worst:.1g} of a level."
    )


def _rows(found: Inversions, contents: Contents, longest: int) -> Iterator[Tiles]:
    room = min(pixels.room_of(len(found.depths) + 1), pixels.TILE)  # a row on a page of usual width
    for i, (name, original) in enumerate(zip(found.names, found.originals, strict=True)):
        first = pixels.image(original, contents.levels, f"{name}, original.", longest, room)
        tiles = [Tile((first,), "original")]
        for depth, images in zip(found.depths, found.images, strict=True):
            alt = f"{name}, taken back from depth {depth}."
            tiles.append(Tile((pixels.image(images[i], contents.levels, alt, longest, room),), str(depth)))
        yield Tiles(tuple(tiles), name)


def between(found: Inversions | None) -> str:
    """What points between two representations are, in sentences; empty where that is not known."""
    if found is None or found.apart is None:
        return ""
    if found.variables[-1] == found.variables[0]:
        return " The network is bijective: each of these points is the representation of the image that it gives."
    return (
        " The network is injective, not bijective: points between representations are in general those of no image. "
        "Represented anew, the image from the middle is "
        f"{100.0 * found.apart:.2g} % of the distance between the two representations away from it."
    )
