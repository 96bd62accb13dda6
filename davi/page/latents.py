"""Sections about the latent layers: what each of them costs, which of its units are used, and what it adds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from davi.evaluation.activity import ACTIVE_RULE, INACTIVE_NATS
from davi.formatting import size, with_error
from davi.inspection import Inspection, Layer, Progressive
from davi.page import charts, pixels
from davi.page.blocks import Block, Chart, Figure, Prose, Section, Table
from davi.page.charts import Curve
from davi.quantity import Statistic

_STRIP = 236
"""Pixels of the screen for a row of images beside its name, so that both fit on a phone."""

_NO_CLOSED_FORM = (
    "Divergences marked as estimates have no closed form: each is the mean of log q(z) - log p(z) over images, with "
    "one draw each, and may be below zero by chance. Such a layer may be in use or not, within its standard error."
)

_NO_DIVERGENCE = (
    "Layers marked as terms hold latents that are drawn on the way up, before their prior is known. Their bar is the "
    "mean of log q(z) - log p(z) over images, with one draw each, and no KL divergence: the prior depends on latents "
    "that were inferred from these, and a layer that does its work may be below zero. So none of them is called "
    "inactive by its own term. The sum over all layers is a KL divergence again."
)


def divergences(inspection: Inspection) -> Section:
    """KL divergence of each layer and of each scale, or its term where that is none; inactive layers by name."""
    title, layers = "KL divergence of the latent layers", inspection.layers
    pure = all(layer.divergence for layer in layers)
    what, plural = ("KL divergence",) * 2 if pure else ("term", "terms")
    title = title if pure else "Terms of the latent layers"
    heights = [layer.nats for layer in layers]
    errors = [layer.standard_error or 0.0 for layer in layers]
    hollow = [layer.inactive for layer in layers]
    drawing = charts.bars(heights, errors, hollow, f"{what}, nats per image", "latent layer, 0 is the top")
    told = ", ".join(f"layer {i} {layer.nats:.2f}" for i, layer in enumerate(layers))
    figure = Figure(
        "kl",
        (Chart(drawing, f"Bar chart of the {plural} in nats: {told}."),),
        f"How to read it: a bar is what one layer costs for an image, mean and standard error over {inspection.images} "
        "images with one draw each; all bars together are the KL divergence in the ELBO, that of the posterior of all "
        "latents from their prior. "
        + ("A layer tells no more about an image than it costs. " if pure else "")
        + "Outlined bars are inactive layers.",
        "The kind of figure shown in Ladder Variational Autoencoders (Sønderby et al., NeurIPS 2016); Deep Attentive "
        "Variational Inference (Apostolopoulou et al., ICLR 2022) shows the use of the latent layers to the same end.",
    )
    heads = ("layer", *(("latent",) if _named(layers) else ()), "grid", "channels", "nats", "state")
    blocks: list[Block] = [Prose(_inactive(layers)), figure]
    if not pure:
        blocks.append(Prose(_NO_DIVERGENCE))
    if any(layer.drawn and layer.divergence for layer in layers):
        blocks.append(Prose(_NO_CLOSED_FORM))
    blocks.append(Table("By scale", ("latent grid", "layers", "nats", "share"), tuple(_scales(layers))))
    blocks.append(Table("By layer, top first", heads, tuple(_by_layer(layers))))
    return Section("kl", title, tuple(blocks))


def _named(layers: Sequence[Layer]) -> bool:
    return any(layer.latent for layer in layers)


def _inactive(layers: Sequence[Layer]) -> str:
    names = [layer.name for layer in layers if layer.inactive]
    judged = [layer for layer in layers if layer.divergence]
    if any(layer.inactive for layer in layers if not layer.divergence):
        return (
            f"All {len(layers)} layers are inactive: together their terms are below {INACTIVE_NATS:g} nats per image. "
            "The posterior of the latents is their prior, whatever the image."
        )
    if names:
        return (
            f"{len(names)} of {len(layers)} layers {'is' if len(names) == 1 else 'are'} inactive, with a KL divergence "
            f"below {INACTIVE_NATS:g} nats per image: {', '.join(names)}. The posterior of such a layer is its prior, "
            "whatever the image."
        )
    least = f"a KL divergence of at least {INACTIVE_NATS:g} nats per image"
    if len(judged) == len(layers):
        return f"No layer is inactive: each has {least}."
    if len(judged) == 1:
        return f"The one layer that can be judged alone, {judged[0].name}, is not inactive: it has {least}."
    return f"None of the {len(judged)} layers that can be judged alone is inactive: each has {least}."


def _scales(layers: Sequence[Layer]) -> Iterator[tuple[str, ...]]:
    grids = dict.fromkeys(layer.grid for layer in layers)
    total = sum(layer.nats for layer in layers)
    for grid in grids:
        members = [layer for layer in layers if layer.grid == grid]
        nats = sum(layer.nats for layer in members)
        share = f"{100 * nats / total:.1f} %" if total > 0 else "none"
        yield size(grid), str(len(members)), f"{nats:.3f}", share


def _by_layer(layers: Sequence[Layer]) -> Iterator[tuple[str, ...]]:
    for layer in layers:
        nats = with_error(Statistic(layer.nats, layer.standard_error), 3)
        state = "inactive" if layer.inactive else "in use" if layer.divergence else "term, no divergence"
        state += ", an estimate" if layer.drawn and layer.divergence else ""
        name = (layer.name, layer.latent) if _named(layers) else (layer.name,)
        yield *name, size(layer.grid), str(layer.channels), nats, state


def _measured(inspection: Inspection) -> str:
    """Over what active units were counted; inspections made by hand need not say."""
    counted = inspection.active_units
    return "" if counted is None else f" over {counted.images} images, with {counted.draws} draws of the latents each"


def units(inspection: Inspection) -> Section:
    """Active units of each layer."""
    title, layers = "Active units", inspection.layers
    if not any(layer.units for layer in layers):
        return Section("units", title, (Prose("Left out: a variance over images needs at least two images."),))
    active, all_ = sum(layer.active for layer in layers), sum(layer.units for layer in layers)
    shares = [100 * layer.active / max(layer.units, 1) for layer in layers]
    drawing = charts.bars(
        shares, [0.0] * len(layers), [not layer.active for layer in layers], "active units, %", "latent layer, 0 is top"
    )
    drawing.axes[0].set_ylim(0, 100)
    told = ", ".join(f"layer {i} {layer.active} of {layer.units}" for i, layer in enumerate(layers))
    figure = Figure(
        "active-units",
        (Chart(drawing, f"Bar chart of the share of active units: {told}."),),
        f"How to read it: {active} of {all_} units are active{_measured(inspection)}. {ACTIVE_RULE[0].upper()}"
        f"{ACTIVE_RULE[1:]}. A unit whose prior moves with what the layers above have inferred is active even if it "
        "tells nothing of its own; where its layer has a KL divergence, that says whether it does.",
        "The measure of Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, ICLR 2016), there a number "
        "for each layer.",
    )
    rows = tuple(
        (layer.name, str(layer.active), str(layer.units), f"{s:.1f} %") for layer, s in zip(layers, shares, strict=True)
    )
    return Section("units", title, (figure, Table("By layer", ("layer", "active", "units", "share"), rows)))


def progressive(inspection: Inspection, levels: int, longest: int) -> Section | None:
    """Reconstructions that use the first layers only.

    Arguments:
        inspection: of the model.
        levels: of a pixel.
        longest: of the sides of an image, in pixels of its picture.
    """
    title = "Reconstructions from the first layers"
    found = inspection.progressive
    if found is None:
        return None
    n = len(found.originals)
    top = found.depths[-1]
    rows = [
        ("original", pixels.sheet(found.originals, levels, n, f"{n} originals.", longest, _STRIP)),
        *(
            (
                f"{_first(k, top)}: {value:.2f} nats",
                pixels.sheet(image, levels, n, f"{n} reconstructions from {_first(k, top)}.", longest, _STRIP),
            )
            for k, image, value in zip(found.depths, found.images, found.nats, strict=True)
        ),
    ]
    strips = Figure(
        "progressive",
        (Table("From the top layer to all layers", ("latents used: negative bound", "images"), tuple(rows)),),
        "How to read it: the first k layers are taken from the posterior of the image above, all others are the mean "
        "of the prior. Where a row begins to look like the original, the layers up to there hold what makes it this "
        "image; layers that change nothing are not needed for it. No layer at all gives the same image for all. The "
        "nats are explained below.",
        "The kind of figure shown in Very Deep VAEs (Child, ICLR 2021), where images are built up layer by layer.",
    )
    return Section("progressive", title, (strips, _bound(found, inspection)))


def _first(k: int, top: int) -> str:
    if k in (0, top):
        return ("no layer", "the layer" if top == 1 else f"all {top} layers")[bool(k)]
    return f"top layer of {top}" if k == 1 else f"top {k} layers of {top}"


def _bound(found: Progressive, inspection: Inspection) -> Figure:
    dims = found.originals[0].numel()
    bits = [value / (dims * math.log(2.0)) for value in found.nats]
    curve = Curve("bound", [float(k) for k in found.depths], bits)
    drawing = charts.lines([curve], "bits/dim (negative bound)", "layers taken from the posterior")
    told = ", ".join(f"{k} layers {value:.3f}" for k, value in zip(found.depths, bits, strict=True))
    return Figure(
        "progressive-bound",
        (Chart(drawing, f"Line chart of bits/dim over the number of layers used: {told}."),),
        "How to read it: the lower bound of a model that knows the image through its first k layers only and draws all "
        f"others from the prior, mean over {inspection.images} images; lower is better. A step down is what a layer is "
        "worth; a flat end means layers without use.",
        "The number beside the figure above; it is this page's own.",
    )
