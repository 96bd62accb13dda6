"""The section about what an autoregressive model's pixels depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from davi.inspection import ReceptiveField
from davi.page import pixels
from davi.page.blocks import Figure, Scale, Section, Tile, Tiles
from davi.page.contents import Contents

_DECADES = 4
"""Powers of ten between the darkest color and the brightest."""

_LEAST = 0.08
"""Place of the weakest gradient on the scale of colors, so that it is told from a dark page."""


def receptive(contents: Contents, longest: int) -> Section | None:
    """Gradients of the parameters of chosen pixels.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.receptive
    if found is None:
        return None
    tiles = tuple(_tile(found, q, longest) for q in range(len(found.queries)))
    count = f"{found.images} images" if found.images > 1 else "one image"
    later = int(found.later().count_nonzero())
    exact = (
        "It does not depend on later ones."
        if later == 0
        else f"It must not depend on later ones, but does on {later}: the numbers on this page are no probabilities."
    )
    figure = Figure(
        "receptive-field",
        (
            Tiles(tiles),
            _legend(),
            pixels.swatch(pixels.UNSEEN, "earlier pixel without influence:"),
            pixels.swatch(pixels.LATER, "the pixel itself and later ones, without influence:"),
        ),
        f"How strongly the prediction of the framed pixel depends on earlier pixels. {exact}",
        f"The size of the gradient of the framed pixel's predicted distribution, root mean square over {count}, on a "
        "logarithmic scale. Pixels are predicted row by row, from the top left. In the two grays the gradient is "
        "exactly zero: at the framed pixel and after it, and at earlier pixels outside of the receptive field or in a "
        "blind spot. The framed pixel itself has a color if its channels are predicted one after the other.",
        "The kind of figure shown in Pixel Recurrent Neural Networks (van den Oord et al., ICML 2016) and Conditional "
        "Image Generation with PixelCNN Decoders (van den Oord et al., NeurIPS 2016), there as a drawing.",
    )
    return Section("receptive", "Receptive field", (figure,))


def _tile(found: ReceptiveField, q: int, longest: int) -> Tile:
    (row, column), values = found.queries[q], found.maps[q]
    before = row * values.shape[1] + column
    seen = int(values.flatten()[:before].count_nonzero())
    told = f"{seen} of {before} earlier pixels"
    alt = f"Gradient of the prediction in row {row}, column {column}: depends on {told}."
    picture = pixels.ordered(_colors(values), 1.0, (row, column), alt, longest, pixels.MIDDLE)
    return Tile((picture,), f"depends on {told}")


def _colors(values: Tensor) -> Tensor:
    """Places on the scale of colors, 0 to 1; NaN for what is exactly zero."""
    share = 1.0 + (values / values.max()).log10() / _DECADES
    return torch.where(values == 0, torch.nan, _LEAST + (1.0 - _LEAST) * share.clamp(0.0, 1.0))


def _legend() -> Scale:
    places = torch.linspace(_LEAST, 1.0, 9) * (len(pixels.PALETTE) - 1)
    colors = tuple("#{:02x}{:02x}{:02x}".format(*pixels.PALETTE[round(float(place))]) for place in places)
    return Scale(f"gradient relative to the largest: 1/{10**_DECADES:,} or less", "1", colors)
