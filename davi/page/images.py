"""Sections of images: samples, and originals beside reconstructions."""

from __future__ import annotations

from torch import Tensor

from davi.formatting import listed
from davi.inspection import Chosen, Inspection
from davi.model import LatentModel
from davi.page import pixels
from davi.page.blocks import Block, Figure, Fold, Picture, Prose, Section, Tile, Tiles
from davi.page.contents import Contents
from davi.page.units import Unit

_SHOWN = {"means": "the mean of", "modes": "the mode of", "draws": "one draw from"}

_ROLES = {"typical": "Typical", "best": "Most probable", "worst": "Least probable"}


def samples(contents: Contents, longest: int) -> Section:
    """Images drawn from the model: at temperature 1, and folded away at others.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found, title = contents.inspection, "Samples"
    if not found.samples:
        return Section("samples", title, (Prose(f"Left out: no images were drawn.{not_finite(found)}"),))
    first, *others = sorted(found.samples, key=lambda temperature: (temperature != 1.0, -temperature))
    tiles = _kinds(contents, first, longest, pixels.LARGE)
    if len(tiles) == 1 and found.examples is not None:  # nothing else to set beside the samples
        alt = f"{len(found.examples)} images of {found.set}."
        tiles += (Tile((_square(contents, found.examples, alt, longest, pixels.LARGE),), f"Images of {found.set}"),)
    blocks: list[Block] = [
        Figure(
            "samples",
            (Tiles(tiles, large=True),),
            f"Drawn from the model at temperature {first:g}, not selected.{not_finite(found)}{reduced(found, longest)}",
            _what_pixels(contents, first)
            + ("" if contents.result is None else " The number above is about temperature 1."),
            "Papers about such models show such samples, many of them at temperatures below 1.",
        )
    ]
    if others:
        rows = [
            Tiles(_kinds(contents, temperature, longest, pixels.ROOM), f"temperature {temperature:g}")
            for temperature in others
        ]
        lower = Figure(
            "samples-temperature",
            tuple(rows),
            "The same random numbers at lower temperatures.",
            "A temperature below 1 narrows the distributions that are drawn from: samples look cleaner and are less "
            "diverse. No number on this page is about them.",
            "The kind of figure shown in Glow (Kingma and Dhariwal, NeurIPS 2018), in NVAE (Vahdat and Kautz, NeurIPS "
            "2020) and in Very Deep VAEs (Child, ICLR 2021).",
        )
        told = listed([f"{temperature:g}" for temperature in others])
        blocks.append(Fold(f"Samples at temperature {told}", (lower,)))
    return Section("samples", title, tuple(blocks))


def _kinds(contents: Contents, temperature: float, longest: int, room: int) -> tuple[Tile, ...]:
    """Draws beside the means of the same latents; of binary images the probabilities come first."""
    found = contents.inspection
    drawn, expected = found.samples[temperature], found.expected.get(temperature)
    tiles = [_sheet(contents, drawn, "pixels drawn", temperature, longest, room)]
    if expected is not None:
        name = "probability of a white pixel" if contents.levels == 2 else "means of the pixels, same latents"
        tiles.append(_sheet(contents, expected, name, temperature, longest, room))
        if contents.levels == 2:
            tiles.reverse()
    return tuple(tiles)


def _sheet(contents: Contents, x: Tensor, what: str, temperature: float, longest: int, room: int) -> Tile:
    alt = f"{len(x)} samples at temperature {temperature:g}, {what}."
    return Tile((_square(contents, x, alt, longest, room),), what[0].upper() + what[1:])


def _square(contents: Contents, x: Tensor, alt: str, longest: int, room: int) -> Picture:
    """As many rows as columns, if the number of images allows."""
    return pixels.sheet(x, contents.levels, max(round(len(x) ** 0.5), 1), alt, longest, room)


def _what_pixels(contents: Contents, temperature: float) -> str:
    """What the pixels of the samples are."""
    if temperature not in contents.inspection.expected:
        return "Each image is a draw from the model, pixels included."
    if contents.levels == 2:
        return (
            "Latents are drawn from the prior. The gray image shows p(x = 1 | z) of every pixel; beside it, the black "
            "and white image that is drawn from these probabilities."
        )
    return (
        "Latents are drawn from the prior, and every pixel from p(x | z). Beside the draws, the mean of p(x | z) for "
        "the same latents: the noise of the pixels is averaged out."
    )


def chosen(contents: Contents, longest: int) -> Section | None:
    """Originals beside reconstructions: typical, most and least probable images.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    return Section("reconstructions", "Reconstructions", (_chosen(contents, longest),))


def ranked(contents: Contents, longest: int) -> Section | None:
    """The same images where there are no reconstructions.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    if isinstance(contents.model, LatentModel) or not contents.inspection.chosen:
        return None
    return Section("images", "Most and least probable images", (_chosen(contents, longest),))


def _chosen(contents: Contents, longest: int) -> Block:
    found, unit = contents.inspection, contents.unit
    rows = []
    for role, heading in _ROLES.items():
        tiles = tuple(_beside(item, contents.levels, unit, longest) for item in found.chosen if item.role == role)
        if tiles:
            rows.append(Tiles(tiles, heading))
    if not rows:
        return Prose("Left out: no images were chosen.")
    pairs = any(item.reconstruction is not None for item in found.chosen)
    of = f"{found.images} images of {found.set}"
    caption = (
        f"Original on the left, reconstruction on the right, and the cost of the image in {unit.name}."
        if pairs
        else f"Images of {found.set} and what each costs, in {unit.name}."
        if contents.result is not None
        else f"Images of {found.set}, ranked by their probability; what each costs is not known."
    )
    made = (
        f" A reconstruction shows {_SHOWN[found.pixels]} p(x | z) at the posterior means of the latents."
        if pairs
        else ""
    )
    return Figure(
        "reconstructions",
        tuple(rows),
        caption + reduced(found, longest),
        f"Typical images are those nearest to the median of {of}; judge the model by these. The most probable ones are "
        "usually the simplest. What the least probable ones have in common is what the model has not learned, or what "
        f"is wrong with the data.{made}",
        "The kind of figure shown in Deep Attentive Variational Inference (Apostolopoulou et al., ICLR 2022), there "
        "not chosen by likelihood.",
    )


def _beside(item: Chosen, levels: int, unit: Unit, longest: int) -> Tile:
    known = item.bits_per_dim is not None
    cost = f"{unit.short(unit.of_bits(item.bits_per_dim or 0.0))} {unit.name}"
    room = pixels.MIDDLE if item.reconstruction is None else pixels.TILE
    alt = f"{item.name}, original{f', {cost}' if known else ''}."
    pictures = [pixels.image(item.original, levels, alt, longest, room)]
    if item.reconstruction is not None:
        pictures.append(pixels.image(item.reconstruction, levels, f"{item.name}, reconstruction.", longest))
    return Tile(tuple(pictures), f"{item.name} · {cost}" if known else item.name)


def not_finite(inspection: Inspection) -> str:
    """A sentence about draws of a flow that are not shown."""
    missing = [f"{count} at temperature {t:g}" for t, count in sorted(inspection.not_finite.items())]
    if not missing:
        return ""
    return f" Not shown are draws that the inverse takes to numbers that are not finite: {listed(missing)}."


def reduced(inspection: Inspection, longest: int) -> str:
    """A sentence for images that are larger than the page has room for."""
    known = list(inspection.samples.values())
    if inspection.classes is not None:
        known += [mistake.image[None] for mistake in inspection.classes.mistakes[:1]]
    image = next(iter(known), None)
    if image is None or not len(image):
        return ""
    block = pixels.factor(image.shape[-2], image.shape[-1], longest)
    if block == 1:
        return ""
    return f" To keep the page small each pixel shown is the mean of {block} x {block} pixels."
