"""Sections of images: samples, originals beside reconstructions, and where the bits go."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from davi.distributions.logistic_mixture import ENUMERATED
from davi.inspection import BitMaps, Chosen, Inspection
from davi.page import pixels
from davi.page.blocks import Block, Cell, Figure, Prose, Section, Table, Tile, Tiles

_ROLES = {"best": "Best", "typical": "Typical", "worst": "Worst"}

_CELL = 84
"""Pixels of the screen for a map beside others."""

_MOST_LAYERS = 6
"""Maps of single layers beside an image; of more layers those with the most bits are shown."""


def samples(inspection: Inspection, levels: int, longest: int) -> Section:
    """Images drawn from the model at several temperatures.

    Arguments:
        inspection: of the model.
        levels: of a pixel.
        longest: of the sides of an image, in pixels of its picture.
    """
    title = "Samples"
    tiles = []
    for temperature, drawn in inspection.samples.items():
        columns = max(round(len(drawn) ** 0.5), 1)
        alt = f"{len(drawn)} images drawn from the model at temperature {temperature:g}."
        picture = pixels.sheet(drawn, levels, columns, alt, longest)
        tiles.append(Tile((picture,), f"temperature {temperature:g}"))
    if not tiles:
        return Section("samples", title, (Prose("Left out: no images were drawn."),))
    latent = bool(inspection.layers)
    reading = (
        "How to read it: at temperature 1 these are draws from the model as it is; lower temperatures narrow the prior "
        "of every latent layer, which gives smoother and less various images. The bits/dim above are about "
        "temperature 1 alone."
        if latent
        else "How to read it: at temperature 1 these are draws from the model that the bits/dim above are about."
    )
    paper = (
        "The kind of figure shown in NVAE (Vahdat and Kautz, NeurIPS 2020) and in Very Deep VAEs (Child, ICLR 2021), "
        "both with temperatures below 1."
    )
    figure = Figure("samples", (Tiles(tuple(tiles)),), reading + _reduced(inspection, longest), paper)
    return Section("samples", title, (figure,))


def chosen(inspection: Inspection, levels: int, longest: int) -> Section:
    """Originals beside reconstructions: best, typical and worst images.

    Arguments:
        inspection: of the model.
        levels: of a pixel.
        longest: of the sides of an image, in pixels of its picture.
    """
    title = "Reconstructions"
    blocks: list[Block] = []
    for role, heading in _ROLES.items():
        picked = [item for item in inspection.chosen if item.role == role]
        tiles = tuple(_beside(item, levels, longest) for item in picked)
        if tiles:
            blocks.append(
                Figure(f"reconstructions-{role}", (Tiles(tiles),), _CHOSEN[role], _CHOSEN_PAPER, title=heading)
            )
    lead = (
        f"Each original on the left, its reconstruction on the right (at the latents' posterior means, "
        f"{_most(levels)}) and the bits/dim of this image by the ELBO under them; chosen among {inspection.images} "
        f"images of {inspection.set}.{_reduced(inspection, longest)}"
    )
    return Section("reconstructions", title, (Prose(lead), *blocks))


def _most(levels: int) -> str:
    """What the mode of p(x | z) is, in words; the programs' one family for more levels is the logistic mixture."""
    if levels > ENUMERATED:
        return "of each sub-pixel (a channel of a pixel) the mean of the heaviest component of its mixture"
    return "of each sub-pixel (a channel of a pixel) the most probable value given those before it"


_CHOSEN = {
    "best": "How to read it: the images that cost the fewest bits, usually the simplest ones.",
    "typical": "How to read it: the images nearest to the median; judge the model by these.",
    "worst": "How to read it: the images that cost the most bits. What they have in common is what the model has not "
    "learned, or what is wrong with the data.",
}
_CHOSEN_PAPER = (
    "The kind of figure shown in Deep Attentive Variational Inference (Apostolopoulou et al., ICLR 2022), there not "
    "chosen by bits/dim."
)


def bits(inspection: Inspection, levels: int, longest: int) -> Section | None:
    """Where in the image the bits go, for the pixels and for each latent layer.

    Arguments:
        inspection: of the model.
        levels: of a pixel.
        longest: of the sides of an image, in pixels of its picture.
    """
    maps = inspection.bits
    if maps is None:
        return None
    layers = _most_bits(maps)
    kinds = ["KL" if layer.divergence else "term" for layer in inspection.layers]
    planes = {"all bits": maps.reconstruction + maps.layers.sum(1)}  # [n, H, W] each
    if layers:
        planes["pixels given latents"] = maps.reconstruction
    planes |= {f"{kinds[layer]} of layer {layer}": maps.layers[:, layer] for layer in layers}
    shown = pixels.shrunk(torch.stack(list(planes.values()), 1), longest)  # [n, planes, h, w]
    high, high_kl = _brightest(shown[:, :2]), _brightest(shown[:, 2:])
    rows = []
    for i, original in enumerate(maps.images):
        bits = float(planes["all bits"][i].sum())
        cells: list[Cell] = [f"image {i + 1}: {bits:.0f} bits, {bits / original.numel():.3f} bits/dim"]
        cells.append(pixels.image(original, levels, f"Image {i + 1}, original.", longest, _CELL))
        for k, (name, values) in enumerate(zip(planes, shown[i], strict=True)):
            alt = f"Map of image {i + 1}, {name}: {float(values.mean()):.3f} bits per pixel on average."
            cells.append(pixels.maps(values[None], high if k < 2 else high_kl, alt, longest, _CELL))
        rows.append(tuple(cells))
    legends = [pixels.legend(high, f"all bits{', and pixels given latents' if layers else ''}, bits per pixel")]
    if layers:
        of_layers = f"{' or '.join(dict.fromkeys(kinds))} of a layer, bits per pixel"
        legends.append(pixels.legend(high_kl, of_layers))
    paper = "This page's own figure: the sum in the table of numbers, pixel by pixel."
    table = Table("Bits per pixel", ("image", "original", *planes), tuple(rows))
    reading = (_layers_read(inspection, maps) if layers else _PIXELS_READ) + _reduced(inspection, longest)
    return Section("bits", "Where the bits go", (Figure("bits", (table, *legends), reading, paper),))


_PIXELS_READ = (
    "How to read it: bright is where the model pays: for each pixel, all its channels together, the bits that it costs "
    "given the pixels before it, row by row from the top left. The brightest half percent are cut off."
)


def _layers_read(inspection: Inspection, maps: BitMaps) -> str:
    """How to read maps of pixels and latent layers."""
    reading = (
        "How to read it: bright is where the model pays. The map of all bits is the sum of all others: what the pixels "
        "cost given the latents, and what each latent layer costs, spread evenly over the pixels that one of its own "
        "covers. The maps of the layers have a scale of their own; the brightest half percent are cut off."
    )
    if any(layer.drawn for layer in inspection.layers):
        reading += " What is below zero, as terms that are estimated may be, is as dark as zero."
    if maps.layers.shape[1] > _MOST_LAYERS:
        reading += f" Of {maps.layers.shape[1]} layers those with the most bits are shown."
    return reading


def _brightest(maps: Tensor) -> float:
    """What is drawn brightest: a few pixels that cost far more than all others shall not darken the rest."""
    values = maps.flatten().numpy()
    return float(np.quantile(values, 0.995)) if values.size else 0.0


def _most_bits(maps: BitMaps) -> list[int]:
    """Layers with the most bits, in their own order."""
    each = maps.layers.double().sum((0, 2, 3))  # [L]
    return sorted(torch.argsort(each, descending=True)[:_MOST_LAYERS].tolist())


def _beside(item: Chosen, levels: int, longest: int) -> Tile:
    left = pixels.image(item.original, levels, f"Original of image {item.index}.", longest)
    right = pixels.image(
        item.reconstruction, levels, f"Reconstruction of image {item.index}, {item.bits_per_dim:.3f} bits/dim.", longest
    )
    return Tile((left, right), f"{item.bits_per_dim:.3f} bits/dim (image {item.index})")


def _reduced(inspection: Inspection, longest: int) -> str:
    """A sentence for images that are larger than the page has room for."""
    image = next(iter(inspection.samples.values()), None)
    if image is None or not len(image):
        return ""
    block = pixels.factor(image.shape[-2], image.shape[-1], longest)
    if block == 1:
        return ""
    return f" To keep the page small each pixel shown is the mean of {block} x {block} pixels."
