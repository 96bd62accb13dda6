"""Sections about classes: what is taken for what, how far the probabilities can be believed, and the worst mistakes."""

from __future__ import annotations

import numpy as np

from davi.inspection import Classes, Mistake
from davi.page import class_charts, pixels
from davi.page.blocks import Block, Chart, Figure, Fold, Prose, Section, Table, Tile, Tiles
from davi.page.contents import Contents
from davi.page.images import reduced

_DRAWN = 40
"""Classes up to which all of them are drawn."""

_PAIRS = 20
"""Pairs of classes in the table, at most."""


def reliability(contents: Contents, _: int) -> Section | None:
    """How often the network is right over how sure it is."""
    found = contents.inspection.classes
    if found is None:
        return None
    width, mass = found.by_confidence, found.by_rank
    bins, errors = len(width.counts), [f"{100.0 * each.error:#.3g} %" for each in (width, mass)]
    figure = Figure(
        "reliability",
        (Chart(class_charts.reliability(width), _told(found)),),
        f"Calibration error of {int(width.counts.sum()):,} images: {errors[0]} over {bins} bins of equal width, "
        f"{errors[1]} over bins of equally many images.",
        "The height of a bar is how often the most probable class is the right one, among images that give it such a "
        "probability. Bars below the diagonal: the network is surer than it is right. The calibration error is the "
        "mean distance of the points from the diagonal, weighted by the images below. It is biased upward: a "
        f"calibrated network would be expected to show {100.0 * width.chance:.2g} % on so many images. Bins with few "
        "images say little.",
        "The kind of figure shown in On Calibration of Modern Neural Networks (Guo et al., ICML 2017).",
    )
    return Section("reliability", "Reliability", (figure, Fold("The same as a table", (_bins(found),))))


def _told(found: Classes) -> str:
    width = found.by_confidence
    parts = [
        f"at confidence {sure:.2f} right in {share:.2f}"
        for sure, share in zip(width.confidence, width.accuracy, strict=True)
        if np.isfinite(sure)
    ]
    return f"Reliability diagram: {', '.join(parts)}."


def _bins(found: Classes) -> Table:
    width = found.by_confidence
    rows = tuple(
        (f"{width.edges[i]:.3f} to {width.edges[i + 1]:.3f}", f"{count:,}", *_of_bin(found, i))
        for i, count in enumerate(width.counts.tolist())
    )
    return Table("Bins of equal width", ("confidence", "images", "mean confidence", "right"), rows)


def _of_bin(found: Classes, i: int) -> tuple[str, str]:
    width = found.by_confidence
    if not width.counts[i]:
        return "-", "-"
    return f"{width.confidence[i]:.3f}", f"{width.accuracy[i]:.3f}"


def confusion(contents: Contents, _: int) -> Section | None:
    """Which classes are taken for which."""
    found = contents.inspection.classes
    if found is None:
        return None
    counts = found.confusion.numpy()
    totals = counts.sum(1)
    shares = counts / np.maximum(totals, 1)[:, None]
    blocks: list[Block] = []
    if len(found.names) <= _DRAWN:
        blocks.append(
            Figure(
                "confusion",
                (Chart(class_charts.confusion(shares, counts, found.names), _most_confused(found)),),
                f"Each of {int(totals.sum()):,} images of {contents.inspection.set} by its class and by the class that "
                "it is put into.",
                "A row holds the images of a class. What is on the diagonal is right; a cell is the brighter the "
                "larger its share of the row (on the scale of its square root, so that rare mistakes can be seen), and "
                "empty where there is no image.",
                "",
            )
        )
    pairs = _pairs(found)
    if pairs:
        table = Table("Most frequent mistakes", ("class", "put into", "images", "of the class"), pairs)
        blocks.append(table if not blocks else Fold("The most frequent mistakes as a table", (table,)))
    else:
        blocks.append(Prose("No image is put into a class other than its own."))
    return Section("confusion", "Confusion of classes", tuple(blocks))


def _pairs(found: Classes) -> tuple[tuple[str, ...], ...]:
    """The most frequent mistakes: class, the one that it is taken for, how many images, and their share."""
    counts = found.confusion.numpy()
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    places = [np.unravel_index(place, wrong.shape) for place in order.tolist()]
    return tuple(
        (
            found.names[int(own)],
            found.names[int(named)],
            f"{int(wrong[own, named]):,}",
            f"{100.0 * wrong[own, named] / counts[own].sum():.1f} %",
        )
        for own, named in places
        if wrong[own, named]
    )


def _most_confused(found: Classes) -> str:
    counts = found.confusion.numpy()
    right = f"{int(np.trace(counts))} of {int(counts.sum())} images on the diagonal"
    pairs = [f"{number} of {own} put into {named}" for own, named, number, _ in _pairs(found)[:3]]
    return f"Confusion matrix of {len(found.names)} classes: {', '.join([right, *pairs])}."


def mistakes(contents: Contents, longest: int) -> Section | None:
    """The images that are put into another class with the highest probability.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.classes
    if found is None:
        return None
    title = "Most confident mistakes"
    if not found.mistakes:
        return Section("mistakes", title, (Prose("No image is put into a class other than its own."),))
    room = pixels.TILE
    tiles = tuple(_tile(mistake, contents.levels, longest, room) for mistake in found.mistakes)
    figure = Figure(
        "mistakes",
        (Tiles(tiles),),
        "Images that the network is surest to put into a class other than their own, with the probabilities of both "
        f"classes.{reduced(contents.inspection, longest)}",
        "Some may have a wrong label, or show two things; the others are what the network has not learned.",
        "",
    )
    return Section("mistakes", title, (figure,))


def _tile(mistake: Mistake, levels: int, longest: int, room: int) -> Tile:
    taken = f"taken for {mistake.named} ({mistake.probability:.2g}), is {mistake.own} ({mistake.own_probability:.2g})"
    picture = pixels.image(mistake.image, levels, f"{mistake.name}, {taken}.", longest, room)
    return Tile((picture,), f"{mistake.name}: {taken}")
