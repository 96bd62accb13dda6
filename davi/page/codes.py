"""Sections about quantized models: what codes cost, which are in use, their maps, samples by level, and neighbors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from davi.evaluation import RECONSTRUCTION
from davi.evaluation.codes import CODE_COSTS, UNIFORM_SHARE, code_costs, prior_doubt
from davi.formatting import listed, size
from davi.inspection import Coded, CodeView
from davi.layers.quantizer import perplexity
from davi.page import code_charts, pixels
from davi.page.bits import name_of
from davi.page.blocks import GAP, Block, Chart, Figure, Fold, Picture, Prose, Section, Table, Tile, Tiles
from davi.page.contents import Contents
from davi.page.energy_curves import number
from davi.page.images import reduced
from davi.page.units import Unit

_MOST_MAPS = 4
"""Of a layer with several codes at each position, the first ones."""

_WIDE, _NARROWEST = 560, 48
"""Pixels of the screen for all pictures of an image, and for each of them at least."""

_MOST_NEIGHBORS = 12
"""Samples beside their nearest training images."""

_VQVAE2 = "Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi et al., NeurIPS 2019)"


# What the codes cost


def costs(contents: Contents, _: int) -> Section | None:
    """How the cost of an image divides into pixels and codes, with each of the priors."""
    result, unit = contents.result, contents.unit
    assert result is not None
    title = "What pixels and codes take"
    found = code_costs(result.measures, result.protocol.dims)
    if not found or RECONSTRUCTION not in result.terms:
        return Section("code-costs", title, (Prose("Left out: the evaluation does not say what the codes take."),))
    pixels_cost = unit.cost(result.terms[RECONSTRUCTION]).mean
    names = [name.removeprefix("codes, ") for name in found]
    codes = [values.in_unit(unit.key).mean for values in found.values()]
    texts = [unit.short(pixels_cost + cost) for cost in codes]
    told = ", ".join(f"{name} {unit.short(cost)}" for name, cost in zip(names, codes, strict=True))
    figure = Figure(
        "code-costs",
        (
            Chart(
                code_charts.divided(names, pixels_cost, codes, ("pixels given codes", "codes"), texts, unit.name),
                f"Bars of {unit.name}: pixels {unit.short(pixels_cost)}, and codes with each prior: {told}.",
            ),
        ),
        f"Pixels given the codes take {unit.short(pixels_cost)} {unit.name}; what the codes "
        "take depends on their prior.",
        "Uniform: all codes are equally probable, and each takes the log of their number. Unigram: by how often a code "
        f"occurred in training ({UNIFORM_SHARE:g} of the uniform prior mixed in). Trained: by the codes before it and "
        "above it. The last bar is the bound of this page with one draw. What the trained prior saves over the unigram "
        "one is what it knows about images.",
        "Papers report the sum, or the mean squared error of reconstructions and the prior's nats for each code.",
    )
    doubt = prior_doubt(found)
    blocks: list[Block] = [figure, *([Prose(f"Warning: {doubt}.")] if doubt else [])]
    ended = [record for record in contents.records if _is_whole(record)]
    if ended:
        head = ("", *(str(record.get("stage") or "end") for record in ended))
        table = Table(f"On validation images at the end of each stage, {unit.name}", head, _after_stages(ended, unit))
        blocks.append(Fold("After each stage", (table,)))
    return Section("code-costs", title, tuple(blocks))


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record is what a run says of codes at the end of a stage; a file can be damaged."""
    nats, perplexity = record.get("nats"), record.get("perplexity")
    return record.get("kind") == "codes" and isinstance(nats, Mapping) and isinstance(perplexity, list)


def _after_stages(records: Sequence[Mapping[str, Any]], unit: Unit) -> tuple[tuple[str, ...], ...]:
    """What the run said at the ends of its stages, a column each."""
    rows = []
    for name, words in ((RECONSTRUCTION, "pixels given codes"), *((name, name) for name in CODE_COSTS)):
        values = [record["nats"].get(name) for record in records]
        rows.append((words, *(unit.short(unit.of_nats(value)) if number(value) else "" for value in values)))
    layers = [[f"{value:.4g}" for value in record["perplexity"] if number(value)] for record in records]
    rows.append(("perplexity of codes, top first", *(", ".join(each) for each in layers)))
    rows.append(("images", *(str(record.get("images", "")) for record in records)))
    return tuple(rows)


# Codes in use


def in_use(contents: Contents, _: int) -> Section | None:
    """How often each code occurs, layer by layer."""
    found = contents.inspection.codes
    if found is None:
        return None
    layers = list(zip(_names(found), found.layers, strict=True))
    told = "; ".join(f"{name}: perplexity {layer.perplexity:.4g} of {layer.size:,}" for name, layer in layers)
    unused = [f"{int((layer.counts == 0).sum()):,} of {layer.counts.numel():,}" for layer in found.layers]
    images = contents.inspection.images
    drawing = code_charts.usage(
        [(name, _relative(layer.counts)) for name, layer in layers],
        "share, times the number of codes",
        "codes, most frequent first",
    )
    figure = Figure(
        "codebook",
        (Chart(drawing, f"How often codes occur, the most frequent first. {told}."),),
        f"Codes that do not occur in these {images:,} images: {listed(unused)}"
        f"{', top layer first' if len(layers) > 1 else ''}.",
        "The share that each code has of all positions in the inspected images, times the number of codes. Where a "
        "curve stays near 1, codes are used alike; where it ends, the codes that do not occur begin: vectors that the "
        "model has and does not use. Few images cannot use many codes; the perplexity in training, in the table, is of "
        "many.",
        "Papers report the perplexity: with so many codes, all equally frequent, as many bits would be carried.",
    )
    rows = (
        ("grid", *(size(layer.grid) for layer in found.layers)),
        ("codes at each position", *(str(layer.books) for layer in found.layers)),
        ("to choose from", *(f"{layer.size:,}" for layer in found.layers)),
        ("in use", *(f"{int((layer.counts > 0).sum()):,}" for layer in found.layers)),
        ("perplexity", *(f"{layer.perplexity:.4g}" for layer in found.layers)),
        ("perplexity in training", *(f"{_perplexity(layer.training):.4g}" for layer in found.layers)),
    )
    return Section("codebook", "Codes in use", (figure, Table("Codes by layer", ("", *_names(found)), rows)))


def _names(found: CodeView) -> list[str]:
    """What layers are called, the top first."""
    count = len(found.layers)
    if count > 3:
        return [f"layer {i}" for i in range(count)]
    return {1: ["codes"], 2: ["top layer", "bottom layer"]}.get(count, ["top layer", "middle layer", "bottom layer"])


def _relative(counts: Tensor) -> NDArray[np.float64]:
    """Shares of a layer's codes times their number, the largest first; of several lists those of the same rank."""
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    ranked: NDArray[np.float64] = (shares * counts.shape[1]).sort(1, descending=True).values.mean(0).numpy()
    return ranked


def _perplexity(shares: Tensor) -> float:
    return float(perplexity(shares).log().mean().exp())


# Maps of codes


def maps(contents: Contents, longest: int) -> Section | None:
    """Images beside the maps of their codes.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.codes
    if found is None:
        return None
    tiles = []
    count, levels = 2 + _count_of_maps(found), contents.levels
    room = max(_WIDE // count - GAP, _NARROWEST)
    for i, (original, made) in enumerate(zip(found.shown.images, found.reconstructions, strict=True)):
        name = name_of(contents.inspection, i)
        pictures = [
            pixels.image(original, levels, f"{name}, original.", longest, room),
            pixels.image(made, levels, f"{name}, reconstruction.", longest, room),
            *_maps(found, found.shown, i, name, longest, room),
        ]
        tiles.append(Tile(tuple(pictures), name))
    order = listed(["original", "reconstruction", *_names(found)])
    figure = Figure(
        "code-maps",
        (Tiles(tuple(tiles)),),
        f"From left to right: {order}.{reduced(contents.inspection, longest)}",
        "Each pixel of a map is one code. Codes with similar vectors have similar colors: how light a code is, is its "
        "place along the first principal component of all vectors, its hue the places along the second and the third. "
        "Regions of one color are regions that the decoder is told the same about." + _several(found),
        "",
    )
    return Section("code-maps", "Maps of codes", (figure,))


def _several(found: CodeView) -> str:
    if max(layer.books for layer in found.layers) == 1:
        return ""
    return f" Where several codes stand at each position, the maps of the first {_MOST_MAPS} are shown at most."


def _count_of_maps(found: CodeView) -> int:
    return sum(min(layer.books, _MOST_MAPS) for layer in found.layers)


def _maps(found: CodeView, coded: Coded, i: int, of: str, longest: int, room: int) -> Iterator[Picture]:
    """The maps of one image's codes, the top layer first."""
    for name, layer, codes in zip(_names(found), found.layers, coded.codes, strict=True):
        for book in range(min(layer.books, _MOST_MAPS)):
            which = name if layer.books == 1 else f"{name}, {book + 1} of {layer.books}"
            yield _map(codes[i, book], layer.colors[book], f"{of}, {which}.", longest, room)


def _map(codes: Tensor, colors: Tensor, alt: str, longest: int, room: int) -> Picture:
    """A map of codes ``[h, w]`` in their colors ``[K, 3]``; of one that is too large some rows and columns."""
    height, width = codes.shape
    every = pixels.factor(height, width, longest)
    picture = Image.fromarray(colors[codes[::every, ::every].long()].numpy())
    return Picture(picture, max(room // max(picture.size), 1), alt)


# Samples of the prior


def samples(contents: Contents, longest: int) -> Section | None:
    """Samples of the prior, layer by layer.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.codes
    if found is None:
        return None
    levels, names = contents.levels, [f"sample {i + 1}" for i in range(len(found.drawn.images))]
    room = max(_WIDE // (1 + _count_of_maps(found)) - GAP, _NARROWEST)
    tiles = []
    for i, (name, image) in enumerate(zip(names, found.drawn.images, strict=True)):
        made = pixels.image(image, levels, f"{name}, image.", longest, room)
        tiles.append(Tile((*_maps(found, found.drawn, i, name, longest, room), made), name))
    rows = [Tiles(tuple(tiles))]
    room = pixels.room_of(len(names))
    for count, images in enumerate(found.kept, 1):
        title = f"codes of the top {'layer' if count == 1 else f'{count} layers'} as in sample 1, all others drawn"
        pictures = [pixels.image(x, levels, f"Sample {i + 1}: {title}.", longest, room) for i, x in enumerate(images)]
        rows.append(Tiles(tuple(Tile((picture,), "") for picture in pictures), title))
    untrained = "" if found.trained else " The prior is not trained yet: every code is equally probable."
    kept = (
        " Pictures of a row below have the codes of their top layers in common: what differs is what the prior of the "
        "layers below leaves open."
        if len(found.kept)
        else ""
    )
    figure = Figure(
        "code-samples",
        tuple(rows),
        f"Drawn from the prior, from left to right: {listed([*_names(found), 'the image that they stand for'])}."
        f"{untrained}",
        "The prior draws the codes of a layer one after the other, row by row, given those of the layers above. Colors "
        "are those of the maps of images above: where both look alike, the prior knows which codes go together."
        f"{kept}",
        f"What single layers add to an image is shown in {_VQVAE2}.",
    )
    return Section("code-samples", "Samples of the prior", (figure,))


# Neighbors of samples


def neighbors(contents: Contents, longest: int) -> Section | None:
    """Samples beside the training images nearest to them.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.codes
    if found is None:
        return None
    title, near = "Nearest training images", found.nearest
    if near is None:
        return Section("nearest", title, (Prose("Left out: the training images of this model were not given."),))
    tiles = []
    for i in range(min(len(near.samples), _MOST_NEIGHBORS)):
        name, distance = f"sample {i + 1}", float(near.distances[i])
        pair = (
            pixels.image(near.samples[i], contents.levels, f"{name}.", longest),
            pixels.image(near.neighbors[i], contents.levels, f"The training image nearest to {name}.", longest),
        )
        tiles.append(Tile(pair, f"{name} · {distance:.3g}"))
    usual, least = (float(near.images.quantile(share)) for share in (0.5, 0.05))
    copies = int((near.distances < least).sum())
    figure = Figure(
        "nearest",
        (Tiles(tuple(tiles)),),
        f"A sample on the left, the nearest of {near.training:,} training images on the right, and their distance: "
        f"root mean square over all values, in levels.{reduced(contents.inspection, longest)}",
        f"Images of {contents.inspection.set} are {usual:.3g} away from their nearest training image (median); 5 % of "
        f"them are nearer than {least:.3g}, and so are {copies} of {len(near.samples)} samples. A sample that is much "
        "nearer than new images are is a copy. Blurred images are near to everything, so look at the pictures as well.",
        "",
    )
    return Section("nearest", title, (figure,))
