"""Sections about the latent layers: what each of them costs, which of its units are used, and what it adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from davi.evaluation.activity import ACTIVE_RULE, INACTIVE_NATS
from davi.formatting import listed, size
from davi.inspection import Inspection, Layer, Progressive
from davi.page import charts, pixels
from davi.page.bits import name_of, spread
from davi.page.blocks import Block, Chart, Figure, Fold, Prose, Section, Table, Tile, Tiles
from davi.page.charts import Curve
from davi.page.contents import Contents
from davi.page.images import reduced
from davi.page.units import Unit
from davi.quantity import Statistic

_MOST_PICTURES = 11
"""In a row, beside the original."""

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


def divergences(contents: Contents, _: int) -> Section:
    """KL divergence of each layer and of each scale, or its term where that is none; inactive layers by name."""
    found, unit = contents.inspection, contents.unit
    layers = found.layers
    pure = all(layer.divergence for layer in layers)
    what, plural = ("KL divergence",) * 2 if pure else ("term", "terms")
    heights = [unit.of_nats(layer.nats) for layer in layers]
    errors = [unit.of_nats(layer.standard_error or 0.0) for layer in layers]
    hollow = [layer.inactive for layer in layers]
    drawing = charts.bars(heights, errors, hollow, f"{what}, {unit.name}", "latent layer, 0 is the top")
    told = ", ".join(f"layer {i} {height:.3g}" for i, height in enumerate(heights))
    figure = Figure(
        "kl",
        (Chart(drawing, f"Bar chart of the {plural} in {unit.name}: {told}."),),
        _inactive(layers) + (f" To change that, {contents.remedy}." if contents.remedy and any(hollow) else ""),
        f"A bar is what one layer costs, mean and standard error over {found.images} images with one draw each. All "
        "bars together are the KL divergence in the ELBO, that of the posterior of all latents from their prior. "
        + ("A layer carries at most as much information about an image as it costs. " if pure else "")
        + f"Outlined bars are inactive layers: below {INACTIVE_NATS:g} nats per image the posterior is the prior, "
        "whatever the image.",
        "The kind of figure shown in Ladder Variational Autoencoders (Sønderby et al., NeurIPS 2016); Deep Attentive "
        "Variational Inference (Apostolopoulou et al., ICLR 2022) shows the use of the latent layers to the same end.",
    )
    heads = ("layer", *(("latent",) if _named(layers) else ()), "grid", "channels", unit.name, "state")
    tables: list[Block] = []
    if not pure:
        tables.append(Prose(_NO_DIVERGENCE))
    if any(layer.drawn and layer.divergence for layer in layers):
        tables.append(Prose(_NO_CLOSED_FORM))
    tables.append(Table("By scale", ("grid", "layers", unit.name, "share"), tuple(_scales(layers, unit))))
    tables.append(Table("By layer, top first", heads, tuple(_by_layer(layers, unit))))
    title = "KL divergence by layer" if pure else "Terms of the latent layers"
    folds = (Fold("By layer and scale", tuple(tables)), Fold("Active units", _units(found)))
    return Section("kl", title, (figure, *folds))


def _named(layers: Sequence[Layer]) -> bool:
    return any(layer.latent for layer in layers)


def _inactive(layers: Sequence[Layer]) -> str:
    """The inactive layers in one sentence."""
    numbers = [str(i) for i, layer in enumerate(layers) if layer.inactive]
    judged = [str(i) for i, layer in enumerate(layers) if layer.divergence]
    if len(numbers) == len(layers):
        return f"All {len(layers)} layers are inactive." if len(layers) > 1 else "The layer is inactive."
    if numbers:
        are = "layers are inactive: layers" if len(numbers) > 1 else "layers is inactive: layer"
        return f"{len(numbers)} of {len(layers)} {are} {listed(numbers)}."
    if len(judged) == len(layers):
        return "No layer is inactive."
    if len(judged) == 1:
        return f"Layer {judged[0]}, the only one that can be judged by itself, is active."
    return f"None of the {len(judged)} layers that can be judged by themselves is inactive."


def _scales(layers: Sequence[Layer], unit: Unit) -> Iterator[tuple[str, ...]]:
    grids = dict.fromkeys(layer.grid for layer in layers)
    total = sum(layer.nats for layer in layers)
    for grid in grids:
        members = [layer for layer in layers if layer.grid == grid]
        nats = sum(layer.nats for layer in members)
        share = f"{100 * nats / total:.1f} %" if total > 0 else "none"
        yield size(grid), str(len(members)), f"{unit.of_nats(nats):.3g}", share


def _by_layer(layers: Sequence[Layer], unit: Unit) -> Iterator[tuple[str, ...]]:
    for i, layer in enumerate(layers):
        error = None if layer.standard_error is None else unit.of_nats(layer.standard_error)
        cost = unit.text(Statistic(unit.of_nats(layer.nats), error))
        state = "inactive" if layer.inactive else "active" if layer.divergence else "term, no divergence"
        state += ", an estimate" if layer.drawn and layer.divergence else ""
        name = (str(i), layer.latent) if _named(layers) else (str(i),)
        yield *name, size(layer.grid), str(layer.channels), cost, state


def _units(found: Inspection) -> tuple[Block, ...]:
    """Active units of each layer."""
    layers = found.layers
    if found.codes is not None:
        return (Prose("Left out: codes are no numbers, and have no variance."),)
    if not any(layer.units for layer in layers):
        return (Prose("Left out: a variance over images needs at least two images."),)
    active, all_ = sum(layer.active for layer in layers), sum(layer.units for layer in layers)
    shares = [100 * layer.active / max(layer.units, 1) for layer in layers]
    hollow = [not layer.active for layer in layers]
    drawing = charts.bars(shares, [0.0] * len(layers), hollow, "active units, %", "latent layer, 0 is the top")
    drawing.axes[0].set_ylim(0, 100)
    told = ", ".join(f"layer {i} {layer.active} of {layer.units}" for i, layer in enumerate(layers))
    counted = found.active_units
    over = "" if counted is None else f", over {counted.images} images with {counted.draws} draws of the latents each"
    figure = Figure(
        "active-units",
        (Chart(drawing, f"Bar chart of the share of active units: {told}."),),
        f"{active:,} of {all_:,} units are active.",
        f"{ACTIVE_RULE[0].upper()}{ACTIVE_RULE[1:]}{over}. A unit whose prior moves with what the layers above have "
        "inferred is active even if it tells nothing of its own; where its layer has a KL divergence, that says "
        "whether it does.",
        "The measure of Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, ICLR 2016), there a number "
        "for each layer.",
    )
    rows = tuple(
        (str(i), str(layer.active), str(layer.units), f"{share:.1f} %")
        for i, (layer, share) in enumerate(zip(layers, shares, strict=True))
    )
    return figure, Table("Active units by layer", ("layer", "active", "units", "share"), rows)


def progressive(contents: Contents, longest: int) -> Section | None:
    """The image building up: reconstructions that use the first layers only.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    inspection = contents.inspection
    found = inspection.progressive
    if found is None:
        return None
    rows = []
    for i, original in enumerate(found.originals):
        name = name_of(inspection, i)
        tiles = []
        places = spread(len(found.depths), _MOST_PICTURES)
        room = pixels.room_of(len(places) + 1)
        for place in places:
            k, images = found.depths[place], found.images[place]
            alt = f"{name}, from {_first(k, found.depths[-1])}."
            tiles.append(Tile((pixels.image(images[i], contents.levels, alt, longest, room),), str(k)))
        last = pixels.image(original, contents.levels, f"{name}, original.", longest, room)
        rows.append(Tiles((*tiles, Tile((last,), "original")), name))
    figure = Figure(
        "progressive",
        tuple(rows),
        f"Reconstructions from the first k of {found.depths[-1]} latent layers.{reduced(inspection, longest)}",
        "The number is k. The first k layers are at the posterior means of the image, all others at the prior means. "
        "Where a row begins to look like the original, the layers up to there hold what makes it this image; layers "
        f"that change nothing are not needed for it. Pictures are {inspection.pixels} of p(x | z).",
        "The kind of figure shown in Very Deep VAEs (Child, ICLR 2021), where images are built up layer by layer.",
    )
    fold = Fold("What each layer is worth", (_bound(found, contents),))
    return Section("progressive", "Layer by layer", (figure, fold))


def _first(k: int, top: int) -> str:
    if k in (0, top):
        return ("no layer", "the layer" if top == 1 else f"all {top} layers")[bool(k)]
    return f"top layer of {top}" if k == 1 else f"top {k} layers of {top}"


def _bound(found: Progressive, contents: Contents) -> Figure:
    unit = contents.unit
    costs = [unit.of_nats(value) for value in found.nats]
    curve = Curve("bound", [float(k) for k in found.depths], costs)
    drawing = charts.lines([curve], f"{unit.name} (negative bound)", "layers taken from the posterior")
    told = ", ".join(f"{k} layers {value:.3f}" for k, value in zip(found.depths, costs, strict=True))
    return Figure(
        "progressive-bound",
        (Chart(drawing, f"Line chart of {unit.name} over the number of layers used: {told}."),),
        "Each step down is the gain of a layer; a flat end means layers that add nothing.",
        "The lower bound on the log-likelihood when only the first k layers are inferred from the image and all others "
        f"are drawn from the prior, mean over {contents.inspection.images} images; lower is better.",
        "This page's own figure.",
    )
