"""Sections about flows: latents by scale, bits by scale, log-determinants, learned noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from davi.formatting import listed, size
from davi.inspection import Block as Bijection
from davi.inspection import FlowView, Noise, RoundTrip
from davi.page import flow_charts, pixels, signed, strips
from davi.page.bits import name_of, spread
from davi.page.blocks import Block, Chart, Figure, Fold, Prose, Section, Table, Tile, Tiles
from davi.page.contents import Contents
from davi.page.flow_charts import Bar
from davi.page.images import reduced
from davi.page.units import Unit

_MOST_CHANNELS = 16
"""Latent maps of a scale of one image."""

_MOST_BARS = 24
"""Bijections with bars of their own; of more, those of a scale and a kind have one together."""

_ROUNDING = 1e-5
"""Share of all costs that is no cost of its own."""

_ROOM = 180
"""Pixels of the screen for a picture in either direction."""

_BRIGHTEST = 0.995
"""Quantile of the sizes of numbers that has the strongest color."""


def latents(contents: Contents, longest: int) -> Section | None:
    """What each scale carries: its latents alone, maps of all of them, and how exact the way back is.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.flow
    if found is None:
        return None
    kept = strips.section("scales")(contents, longest)
    blocks = () if kept is None else kept.blocks
    title = "Latents" if kept is None else kept.title
    return Section("scales", title, (*blocks, _maps(found, contents, longest), Prose(inverse(found.round_trip))))


def inverse(found: RoundTrip) -> str:
    """How exact the inverse is, in a sentence."""
    return f"The inverse is {_exactness(found)}."


def _exactness(found: RoundTrip) -> str:
    n = f"{found.images:,} image{'s' * (found.images != 1)}"
    if not math.isfinite(found.error):
        return f"not finite for some images: of {n}, encoded and decoded again, {found.changed:,} do not come back"
    off = f"off by at most {found.error:.1g} of a level's interval for {n}, encoded and decoded again"
    if not found.changed:
        return f"{off}: all of them come back exactly, as they do where this is below 0.5"
    return f"{off}: {found.changed:,} of them change, since this is not below 0.5"


def _maps(found: FlowView, contents: Contents, longest: int) -> Figure:
    several = len(found.latents) > 1
    high = float(np.quantile(torch.cat([z.flatten() for z in found.latents]).abs().double().numpy(), _BRIGHTEST)) or 1.0
    maps = [_channels(z, contents.model.shape) for z in found.latents]
    rows = []
    for i, original in enumerate(found.originals):
        name = name_of(contents.inspection, i)
        picture = pixels.image(original, contents.levels, f"{name}, original.", longest, _ROOM)
        tiles = [Tile((picture,), "original")]
        for scale, (z, shown) in enumerate(zip(found.latents, maps, strict=True), 1):
            what = f"scale {scale}, {size(z.shape[1:])}" if several else size(z.shape[1:])
            columns = max(math.ceil(shown.shape[1] ** 0.5), 1)
            alt = f"{name}: latents of {what}, in colors."
            sheet = signed.sheet(shown[i][:, None], high, columns, alt, longest, _ROOM)
            tiles.append(Tile((sheet,), what))
        rows.append(Tiles(tuple(tiles), name))
    most = max(z.shape[1] for z in found.latents if z.ndim == 4) if any(z.ndim == 4 for z in found.latents) else 0
    which = f" Of more than {_MOST_CHANNELS} channels, some at equal distances." if most > _MOST_CHANNELS else ""
    return Figure(
        "latents",
        (*rows, signed.legend(high, "latents")),
        f"The latents of images, where the flow takes them.{which}{reduced(contents.inspection, longest)}",
        "Red is above zero, blue below. A perfect flow turns images into draws of its base, in which no image can be "
        "seen: an outline that is left is what the model has not explained. The largest half percent is cut off.",
        "This page's own figure.",
    )


def _channels(z: Tensor, shape: Sequence[int]) -> Tensor:
    """Latents of images as maps, ``[n, channels, h, w]``: a vector as many as an image has values as that, any other as
    a row of numbers that is broken into lines."""
    if z.ndim == 4:
        return z[:, spread(z.shape[1], _MOST_CHANNELS)]
    flat = z.flatten(1)
    if flat.shape[1] == math.prod(shape):
        return flat.unflatten(1, tuple(shape))
    width = math.ceil(flat.shape[1] ** 0.5)
    rows = -(-flat.shape[1] // width)
    padded = torch.nn.functional.pad(flat, (0, rows * width - flat.shape[1]))
    return padded.unflatten(1, (1, rows, width))


def costs(contents: Contents, _: int) -> Section | None:
    """The claim, divided into what the latents of each scale cost, log-determinants, and dequantization."""
    found, unit = contents.inspection.flow, contents.unit
    if found is None:
        return None
    bars = [_bar(name, cost, unit) for name, cost in _costs(found)]
    bars.append(_bar("sum", -found.claim, unit, whole=True))
    told = ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    n = contents.inspection.images
    figure = Figure(
        "scale-bits",
        (Chart(flow_charts.parts(bars, unit.name), f"Bar chart of costs in {unit.name}: {told}."),),
        f"What an image costs, mean over {n} images with one draw of the noise each.",
        "Latents cost minus the logarithm of their density. Layers that stretch their input make it more probable, by "
        "their log-determinant: their bars point to the left. Layers before all scales, such as a logit, are the other "
        "ones. Dequantization costs minus the logarithm of the volume over which an image is spread. The bars sum to "
        "the last one, the bound with one draw; with several draws, as at the top of this page, it is tighter. Layers "
        "also shape what the scales after them let go of, so no bar says by itself what its scale is worth.",
        "The terms are those of Density estimation using Real NVP (Dinh et al., ICLR 2017); this page's own figure.",
    )
    table = Table(
        f"In {unit.name}, the finest scale first",
        ("scale", "shape", "values", "latents", "layers"),
        tuple(_by_scale(found, unit)),
    )
    return Section("scale-bits", "Bits by scale", (figure, Fold("By scale", (table,))))


def _costs(found: FlowView) -> Iterator[tuple[str, float]]:
    """Names and costs of all parts, nats; they sum to minus the claim."""
    single = len(found.scales) == 1
    for i, scale in enumerate(found.scales, 1):
        yield "latents" if single else f"scale {i}, latents", scale.nats
        if scale.log_det is not None:
            yield "layers" if single else f"scale {i}, layers", -scale.log_det
    size = sum(scale.nats + abs(scale.log_det or 0.0) for scale in found.scales) + abs(found.dequantization)
    if abs(found.outside) > _ROUNDING * size:
        yield "other layers", -found.outside
    yield "dequantization", -found.dequantization


def _bar(name: str, nats: float, unit: Unit, whole: bool = False) -> Bar:
    value = unit.of_nats(nats)
    return Bar(name, value, _text(value, unit), whole=whole)


def _text(value: float, unit: Unit) -> str:
    return f"{value:.1f}" if unit.key == "nats" else f"{value:.3f}"


def _by_scale(found: FlowView, unit: Unit) -> Iterator[tuple[str, ...]]:
    total = sum(math.prod(scale.shape) for scale in found.scales)
    for i, scale in enumerate(found.scales, 1):
        share = f"{100 * math.prod(scale.shape) / total:.1f} %"
        layers = "not known" if scale.log_det is None else _text(unit.of_nats(-scale.log_det), unit)
        yield str(i), size(scale.shape), share, _text(unit.of_nats(scale.nats), unit), layers


def in_lines(found: FlowView, unit: Unit) -> str:
    """What a terminal shows: the costs, and how exact the way back is."""
    parts = "; ".join(f"{name} {_text(unit.of_nats(cost), unit)}" for name, cost in _costs(found))
    total = _text(unit.of_nats(-found.claim), unit)
    return f"parts:  {parts}; sum {total} {unit.name}\ninverse: {_exactness(found.round_trip)}"


def determinants(contents: Contents, _: int) -> Section | None:
    """Log-determinants of the bijections."""
    found, unit = contents.inspection.flow, contents.unit
    if found is None:
        return None
    silent = [block for block in found.blocks if block.silent]
    heard = [block for block in found.blocks if not block.silent]
    kinds = listed(list(dict.fromkeys(block.kind for block in silent)))
    title = "Log-determinant by block"
    if not heard:
        return Section("determinants", title, (Prose(f"Every bijection preserves volume: {kinds}."),))
    grouped = len(heard) > _MOST_BARS
    bars = list(_together(heard, unit)) if grouped else [_alone(block, unit) for block in heard]
    told = ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    quiet = f" Those left out preserve volume: {kinds}." if silent else ""
    figure = Figure(
        "determinants",
        (
            Chart(
                flow_charts.parts(bars, f"log-determinant, {unit.name}"),
                f"Bar chart of log-determinants in {unit.name}: {told}.",
            ),
        ),
        f"By how much bijections stretch (right) or shrink (left) what reaches them, mean over "
        f"{contents.inspection.images} images{', those of a kind in a scale together' if grouped else ''}.{quiet}",
        "The logarithm of the factor by which a bijection changes volumes; the sum is what layers add to the "
        "log-likelihood. Names are those of the classes; couplings are called after their function."
        + (" Black lines are standard deviations over images." if not grouped else "")
        + " The first layers undo the scaling of pixels to a small range; after these, a single bijection with by far "
        "the longest bar is worth a look.",
        "This page's own figure.",
    )
    rows = tuple(
        (block.name, _text(unit.of_nats(block.log_det), unit), _text(unit.of_nats(block.deviation), unit))
        for block in found.blocks
    )
    head = ("bijection", f"log-determinant, {unit.name}", "deviation")
    fold = Fold("All bijections", (Table("In the order in which an image passes them", head, rows),))
    return Section("determinants", title, (figure, fold))


def _alone(block: Bijection, unit: Unit) -> Bar:
    value = unit.of_nats(block.log_det)
    return Bar(block.name, value, _text(value, unit), unit.of_nats(block.deviation))


def _together(blocks: Sequence[Bijection], unit: Unit) -> Iterator[Bar]:
    """One bar for those of the same scale and kind."""
    groups: dict[tuple[int | None, str], list[Bijection]] = {}
    for block in blocks:
        groups.setdefault((block.scale, block.kind), []).append(block)
    for (scale, kind), members in groups.items():
        value = unit.of_nats(sum(block.log_det for block in members))
        many = f"{len(members)} × " if len(members) > 1 else ""
        name = f"{'' if scale is None else f'scale {scale}: '}{many}{kind}"
        yield Bar(name, value, _text(value, unit))


def noise(contents: Contents, longest: int) -> Section | None:
    """Where learned noise of dequantization lies: its mean and standard deviation at pixels, and a histogram.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    flow = contents.inspection.flow
    if flow is None or flow.noise is None:
        return None
    found, unit = flow.noise, contents.unit
    told = ", ".join(f"{share * len(found.shares):.2f}" for share in found.shares.tolist())
    histogram = Figure(
        "noise-histogram",
        (Chart(flow_charts.noise(found.shares.tolist()), f"Histogram of the noise, densities from 0 to 1: {told}."),),
        f"Noise of all pixels of {contents.inspection.images} images, one draw each.",
        "Uniform noise would be flat. Noise that depends on the image may be far from uniform at each pixel and still "
        "flat over all of them.",
        "",
    )
    blocks: list[Block] = [_noise_maps(found, flow, contents, longest), histogram]
    gain = _text(unit.of_nats(found.nats), unit)
    blocks.append(
        Prose(
            f"The logarithm of its density is {gain} {unit.name} on average; of uniform noise it is 0. The bound pays "
            "for this, and wins where the noise takes pixels to places that the flow finds more probable."
        )
    )
    return Section("noise", "Dequantization noise", tuple(blocks))


def _noise_maps(found: Noise, flow: FlowView, contents: Contents, longest: int) -> Figure:
    off = found.means.mean(1, keepdim=True) - 0.5  # [n, 1, H, W]
    spreads = found.deviations.mean(1)
    high = float(np.quantile(off.abs().numpy(), _BRIGHTEST)) or 0.5
    widest = float(spreads.max())
    rows = []
    for i, original in enumerate(flow.originals):
        name = name_of(contents.inspection, i)
        colors = signed.colored(pixels.shrunk(off[i], longest)[None], high)[0]
        mean = pixels.image(colors, 256, f"{name}: mean of the noise.", longest, _ROOM)
        alt = f"{name}: standard deviation of the noise."
        deviation = pixels.maps(spreads[i : i + 1], widest, alt, longest, _ROOM)
        picture = pixels.image(original, contents.levels, f"{name}, original.", longest, _ROOM)
        tiles = (Tile((picture,), "original"), Tile((mean,), "mean"), Tile((deviation,), "standard deviation"))
        rows.append(Tiles(tiles, name))
    legends = (signed.legend(high, "mean of u, less 1/2"), pixels.legend(widest, "standard deviation of u"))
    return Figure(
        "noise",
        (*rows, *legends),
        f"Noise that the model has learned to add to pixels.{reduced(contents.inspection, longest)}",
        f"Of {found.draws} draws u in [0, 1) for each image, mean and standard deviation at each pixel, over its "
        f"channels. Of uniform noise these are 1/2 and {12**-0.5:.3f}.",
        "Variational dequantization is that of Flow++ (Ho et al., ICML 2019).",
    )
