"""Sections of pictures in a row: interpolations, variations, completions and Markov chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from davi.inspection import Strip
from davi.inspection.flows import on_sphere
from davi.model import Invertible, Inverting
from davi.page import depths, pixels
from davi.page.blocks import Figure, Section, Tile, Tiles
from davi.page.contents import Contents


class _Words(NamedTuple):
    """Of a kind of strips: title of the section, caption, how to read it, papers."""

    title: str
    caption: str
    reading: str
    paper: str


_WORDS = {
    "interpolation": _Words(
        "Interpolation",
        "From one image to another along a straight line between their latents.",
        "The numbers are the share of the image on the right. The outermost pictures are the images themselves, their "
        "neighbors the reconstructions. Every layer is interpolated linearly between posterior means. Good latents "
        "give images all the way, not two images faded into each other.",
        "The kind of figure shown in Auto-Encoding Variational Bayes (Kingma and Welling, ICLR 2014) and after.",
    ),
    "flow": _Words(
        "Interpolation",
        "From one image to another along a straight line between their latents.",
        "The numbers are the share of the image on the right. Both images are encoded by the flow, and the points "
        "between them are decoded.",
        "The kind of figure shown in Glow (Kingma and Dhariwal, NeurIPS 2018).",
    ),
    "features": _Words(
        "Interpolation",
        "From one image to another along a straight line between their last representations.",
        "The numbers are the share of the image on the right. Points between the representations are taken back "
        "through the inverse of all blocks.",
        "The kind of figure shown in i-RevNet (Jacobsen, Smeulders and Oyallon, ICLR 2018).",
    ),
    "arc": _Words(
        "Interpolation",
        "From one image to another along an arc around the center of the latents.",
        "The numbers are the share of the image on the right. Both images are encoded by the flow, and the points "
        "between them are decoded. Draws of a Normal distribution of so many variables lie near a sphere; the middle "
        "of a straight line lies far inside of it, as draws at the temperature 0.7 do, and would look smoother than "
        "either image.",
        "The kind of figure shown in Density estimation using Real NVP (Dinh et al., ICLR 2017), there on such arcs, "
        "and in Glow (Kingma and Dhariwal, NeurIPS 2018), there on lines.",
    ),
    "scales": _Words(
        "Latents by scale",
        "Images from the latents of a single scale of the image on the left.",
        "Scale 1 is let go of first, next to the pixels; the last scale is the coarsest. All other latents are at the "
        "center of the base, or drawn from it. What is recognized of the image is what this scale carries about it.",
        "The kind of figure shown in Density estimation using Real NVP (Dinh et al., ICLR 2017), where the finest "
        "scales are drawn anew.",
    ),
    "variations": _Words(
        "Variations",
        "The top layers are those of the image on the left; all others are drawn from the prior.",
        "What the pictures of a row have in common is what the top layers know about the image; what differs is left "
        "to the layers below. The layers kept are at their posterior means.",
        "The kind of figure shown in Very Deep VAEs (Child, ICLR 2021).",
    ),
    "completions": _Words(
        "Completions",
        "The upper half of an image, and draws of the rest.",
        "The pixels of the upper half are given; all others are drawn in order, each given those before it. Where "
        "completions differ, the model is undecided.",
        "The kind of figure shown in Pixel Recurrent Neural Networks (van den Oord et al., ICML 2016).",
    ),
    "chain": _Words(
        "Markov chains",
        "A chain that begins at a test image, after more and more Gibbs steps.",
        "A model that has learned the data keeps producing images like it. A chain that stays at its first image mixes "
        "slowly, and samples from short chains would not be samples from the model.",
        "The kind of figure shown in A Practical Guide to Training Restricted Boltzmann Machines (Hinton, 2012).",
    ),
}


def section(kind: str) -> Callable[[Contents, int], Section | None]:
    """What makes the section of one kind of strips.

    Arguments:
        kind: of :class:`davi.inspection.Strip`; also the anchor of the section.
    """

    def build(contents: Contents, longest: int) -> Section | None:
        rows = tuple(_row(strip, contents, longest) for strip in contents.inspection.strips if strip.kind == kind)
        if not rows:
            return None
        own = kind
        if isinstance(contents.model, Invertible) and kind == "interpolation":
            own = "arc" if on_sphere(contents.model) else "flow"
        between = ""
        if isinstance(contents.model, Inverting) and kind == "interpolation":
            own, between = "features", depths.between(contents.inspection.inversions)
        words = _WORDS[own]
        means = f" Pictures are {contents.inspection.pixels} of p(x | z)." if contents.inspection.layers else ""
        figure = Figure(kind, rows, words.caption, words.reading + between + means, words.paper)
        return Section(kind, words.title, (figure,))

    return build


def _row(strip: Strip, contents: Contents, longest: int) -> Tiles:
    tiles, room = [], pixels.room_of(len(strip.labels))
    for i, (label, image) in enumerate(zip(strip.labels, strip.images, strict=True)):
        alt = f"{strip.title}, picture {i + 1} of {len(strip.labels)}{f': {label}' if label else ''}."
        picture = pixels.image(image, contents.levels, alt, longest, room)
        if label == "given":
            picture = pixels.given_rows(picture, strip.given, image.shape[1])
        tiles.append(Tile((picture,), label))
    return Tiles(tuple(tiles), strip.title)
