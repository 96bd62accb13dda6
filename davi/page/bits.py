"""The section that shows where in the image the bits go."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from davi.inspection import BitMaps, Inspection
from davi.page import pixels
from davi.page.blocks import Figure, Fold, Section, Tile, Tiles
from davi.page.contents import Contents
from davi.page.images import reduced
from davi.page.units import Unit

_MOST_LAYERS = 6
"""Maps of single layers beside an image; of more layers those with the highest cost are shown."""


def bits(contents: Contents, longest: int) -> Section | None:
    """Where in the image the bits go: all of them over the image, those of pixels and of latent layers folded away.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found, unit = contents.inspection, contents.unit
    maps = found.bits
    if maps is None:
        return None
    total = _in_unit(maps.reconstruction + maps.layers.sum(1), maps, unit)  # [n, H, W]
    high = brightest(pixels.shrunk(total, longest))
    tiles = []
    for i, (original, values) in enumerate(zip(maps.images, total, strict=True)):
        cost = unit.short(float(values.sum() if unit.key == "nats" else values.mean()))
        name = name_of(found, i)
        alt = f"{name} with its cost per pixel laid over it, {cost} {unit.name} in all."
        pair = (
            pixels.image(original, contents.levels, f"{name}, original.", longest, pixels.MIDDLE),
            pixels.overlay(original, contents.levels, values, high, alt, longest, pixels.MIDDLE),
        )
        tiles.append(Tile(pair, f"{name} · {cost} {unit.name}"))
    legend = pixels.legend(high, unit.per_pixel, over=True)
    reading = _READ if maps.layers.shape[1] else _PIXELS_READ
    figure = Figure(
        "bits",
        (Tiles(tuple(tiles)), legend),
        f"Bright pixels cost most.{reduced(found, longest)}",
        reading + " The brightest half percent is cut off.",
        "This page's own figure: the number above, pixel by pixel.",
    )
    blocks = [figure]
    if not maps.layers.shape[1]:
        return Section("bits", "Where the bits go", tuple(blocks))
    fold = Fold("Pixels and single layers", (_layers(contents, maps, longest),))
    return Section("bits", "Where the bits go", (figure, fold))


_PIXELS_READ = (
    "For each pixel, all its channels together: what it costs given the pixels before it, row by row from the top left."
)
_READ = (
    "The sum of what each pixel costs given the latents, and of what each latent layer costs, spread evenly over the "
    "pixels that one of its own covers."
)


def _layers(contents: Contents, maps: BitMaps, longest: int) -> Figure:
    """Maps of the pixels given the latents, and of the layers that cost most."""
    found, unit = contents.inspection, contents.unit
    layers = _most_bits(maps)
    kinds = ["KL" if layer.divergence else "term" for layer in found.layers]
    names = ["pixels given latents", *(f"{kinds[layer]} of layer {layer}" for layer in layers)]
    planes = torch.stack([maps.reconstruction, *(maps.layers[:, layer] for layer in layers)], 1)
    planes = pixels.shrunk(_in_unit(planes, maps, unit), longest)  # [n, planes, h, w]
    high, high_kl = brightest(planes[:, :1]), brightest(planes[:, 1:])
    rows = []
    for i, shown in enumerate(planes):
        name = name_of(found, i)
        tiles = [
            Tile((pixels.maps(values[None], high_kl if k else high, f"{name}, {what}.", longest, pixels.SMALL),), what)
            for k, (what, values) in enumerate(zip(names, shown, strict=True))
        ]
        rows.append(Tiles(tuple(tiles), name))
    of_layers = " or ".join(dict.fromkeys(kinds[layer] for layer in layers))
    legends = (
        pixels.legend(high, f"pixels given latents, {unit.per_pixel}"),
        pixels.legend(high_kl, f"{of_layers} of a layer, {unit.per_pixel}"),
    )
    reading = "The maps of an image add up to the one above. Layers have a scale of their own."
    if any(layer.drawn for layer in found.layers):
        reading += " Estimated terms may be below zero, and are then as dark as zero."
    if maps.layers.shape[1] > len(layers):
        reading += f" Of {maps.layers.shape[1]} layers the {len(layers)} with the highest cost are shown."
    return Figure("bits-layers", (*rows, *legends), "The same cost, split into pixels and latent layers.", reading, "")


def name_of(found: Inspection, i: int) -> str:
    """The name of one of the images whose maps are shown."""
    return found.shown[i] if i < len(found.shown) else f"image {i + 1}"


def spread(n: int, most: int) -> list[int]:
    """At most so many indices out of n, evenly spaced, the first and the last included."""
    return sorted({round(place) for place in np.linspace(0, n - 1, min(n, most))})


def _in_unit(bits: Tensor, maps: BitMaps, unit: Unit) -> Tensor:
    """Bits of a pixel as nats, or as bits for each of its channels."""
    return bits * math.log(2.0) if unit.key == "nats" else bits / maps.images.shape[1]


def brightest(maps: Tensor) -> float:
    """The value that is drawn brightest, chosen so that a few very costly pixels do not darken the rest."""
    values = maps.flatten().numpy()
    return float(np.quantile(values, 0.995)) if values.size else 0.0


def _most_bits(maps: BitMaps) -> list[int]:
    """Layers with the most bits, in their own order."""
    each = maps.layers.double().sum((0, 2, 3))  # [L]
    return sorted(torch.argsort(each, descending=True)[:_MOST_LAYERS].tolist())
