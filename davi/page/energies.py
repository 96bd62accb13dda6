"""Sections about energies: filters, Markov chains, free energies, and estimates of the partition function."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from davi.evidence import Kind
from davi.inspection import Chains, Filters
from davi.model import Partition, WithPartition
from davi.page import energy_charts, pixels, signed, strips
from davi.page.blocks import Block, Chart, Figure, Fold, Prose, Section, Table, Tile, Tiles
from davi.page.contents import Contents
from davi.page.energy_charts import Interval
from davi.page.images import reduced

_BRIGHTEST = 0.995
"""Quantile of the sizes of weights that has the darkest red and blue."""


def filters(contents: Contents, longest: int) -> Section | None:
    """What the units of each layer look for.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    found = contents.inspection.filters
    if not found:
        return None
    title = "Filters" if len(found) == 1 else "Filters and receptive fields"
    return Section("filters", title, tuple(_filters(layer, contents, longest) for layer in found))


def _filters(found: Filters, contents: Contents, longest: int) -> Figure:
    shown, first = len(found.fields), found.layer == 1
    what = "filters" if first else "receptive fields"
    high = float(np.quantile(found.fields.abs().double().numpy(), _BRIGHTEST)) or 1.0
    alt = f"{what.capitalize()} of {shown} units of layer {found.layer}, in colors."
    columns = max(round(shown**0.5 * 1.6), 1)
    picture = signed.sheet(found.fields, high, columns, alt, longest, pixels.LARGE)
    which = f"the {shown} units with the largest {what}, of {found.units:,}" if shown < found.units else "all units"
    color = found.fields.shape[1] == 3
    signs = (
        "Gray is zero; a channel is brighter where its weight is positive, darker where it is negative."
        if color
        else "Red pixels speak for the unit, blue ones against it."
    )
    caption = f"{what.capitalize()} of {which}, largest first{f', layer {found.layer}' if not first else ''}."
    reading = (
        "Each picture holds the weights by which a hidden unit sums the pixels. "
        if first
        else "What the units below look for, summed by the weights that a unit of this layer gives them; what is not "
        "linear on the way is left out, so that only ratios have a meaning. "
    )
    levels = contents.levels > 2 and first
    more = " Of pixels with several levels it is the slope of the weight over the levels." if levels else ""
    return Figure(
        f"filters-{found.layer}",
        (
            Tiles((Tile((picture,), ""),), large=True),
            *(() if color else (signed.legend(high, "weight" if first else "sum of weights"),)),
        ),
        caption + reduced(contents.inspection, longest),
        f"{reading}{signs} All have the same contrast: ±{high:.3g} is the strongest color, and the largest half "
        f"percent is cut off.{more} Units that have learned nothing look like noise or are empty.",
        "Filters of hidden units are shown in A Practical Guide to Training Restricted Boltzmann Machines (Hinton, "
        "2012)."
        if first
        else "Linear combinations of filters are shown in Sparse deep belief net model for visual area V2 (Lee et al., "
        "NeurIPS 2007) and Convolutional Deep Belief Networks (Lee et al., ICML 2009).",
    )


def chain(contents: Contents, longest: int) -> Section | None:
    """The strip of a Markov chain, how quickly it forgets, and where many chains end.

    Arguments:
        contents: of the page.
        longest: of the sides of an image, in pixels of its picture.
    """
    section, found = strips.section("chain")(contents, longest), contents.inspection.chains
    if section is None or found is None:
        return section
    blocks = (*section.blocks, _correlation(found), _ends(found, contents, longest))
    return Section(section.anchor, section.title, blocks)


def _correlation(found: Chains) -> Block:
    measured = found.free_energy
    over = f"{measured.chains} chains of {measured.steps:,} steps, after {found.discarded:,} steps that do not count"
    if bool(measured.rho.isnan().any()):
        return Prose(f"The autocorrelation time is not known: the free energy does not vary ({over}).")
    if measured.time is None:
        told = "not reached"
        caption = (
            f"The autocorrelation time of the free energy is not reached by {over}: it is at least about "
            f"{measured.steps // 10:,} steps."
        )
    else:
        told = f"{measured.time:.3g} ± {measured.standard_error:.1g} steps"
        caption = f"The autocorrelation time of the free energy is {told}, over {over}."
    alt = f"Line chart of the autocorrelation of the free energy over the lag; autocorrelation time {told}."
    return Figure(
        "chain-autocorrelation",
        (Chart(energy_charts.correlation(measured.rho.numpy(), measured.time), alt),),
        caption,
        "How much the free energy of a state tells about the one so many steps later. The integrated autocorrelation "
        "time τ = 1 + 2 Σ ρ(t) is the number of steps that are worth one independent draw, summed up to the first lag "
        "of at least 5 τ (Sokal's window), with the standard error of Madras and Sokal. All chains share one mean: "
        "where they stay apart, the correlation does not fall to zero, and the time is not reached. A chain may also "
        "be slow in something that the free energy does not show.",
        "The estimator of Monte Carlo Methods in Statistical Mechanics (Sokal, 1997).",
    )


def _ends(found: Chains, contents: Contents, longest: int) -> Figure:
    steps = found.discarded + found.free_energy.steps
    n = len(found.ends)
    alt = f"States of {n} chains after {steps:,} steps."
    ends = pixels.sheet(found.ends, contents.levels, max(round(n**0.5), 1), alt, longest, pixels.LARGE)
    return Figure(
        "chain-ends",
        (Tiles((Tile((ends,), ""),), large=True),),
        f"Where {n} chains are after {steps:,} Gibbs steps, each from another image of {contents.inspection.set}.",
        "These are samples as far as the chains have forgotten where they began. Where many of them show the same, the "
        "model prefers a few kinds of images; where they are none that the data could hold, short chains in training "
        "have left probability where there are no images.",
        "Samples of chains that begin at data are shown in On the Quantitative Analysis of Deep Belief Networks "
        "(Salakhutdinov and Murray, ICML 2008).",
    )


def free_energies(contents: Contents, _: int) -> Section | None:
    """Histograms of free energies: training images, the inspected ones, samples."""
    found = contents.inspection.chains
    if found is None:
        return None
    of_images = (contents.inspection.set, found.images)
    known = (("training images", found.training), of_images, ("ends of chains", found.samples))
    values = [(name, numbers.numpy()) for name, numbers in known if numbers is not None]
    told = ", ".join(f"{name} {float(numbers.mean()):.1f}" for name, numbers in values)
    drawing = energy_charts.histograms(values, "free energy, nats")
    figure = Figure(
        "free-energies",
        (Chart(drawing, f"Histograms of free energies, nats: means {told}."),),
        _parted(found, contents),
        "The free energy is minus the log-probability up to a constant, log Z, which is the same for all: differences "
        "are differences of log-probabilities. Short marks at the bottom are means. Training images that lie below "
        "others are what the model has learned by heart: overfitting. Ends of chains that lie below all images are "
        "probable for the model, but are none that the data hold; ends far above them mean that the chains have not "
        "found what is probable.",
        "The comparison of free energies of training and validation images is that of A Practical Guide to Training "
        "Restricted Boltzmann Machines (Hinton, 2012).",
    )
    return Section("free-energies", "Free energies", (figure,))


def _parted(found: Chains, contents: Contents) -> str:
    """How far training images and others lie apart, in a sentence."""
    if found.training is None:
        return f"Free energies of {len(found.images)} images of {contents.inspection.set} and of the ends of chains."
    gap = float(found.images.mean() - found.training.mean())
    error = math.sqrt(_variance_of_mean(found.images) + _variance_of_mean(found.training))
    within = f" ± {error:.1f}" if error > 0 else ""
    where = "above" if gap >= 0 else "below"
    return (
        f"The images of {contents.inspection.set} lie {abs(gap):.1f}{within} nats {where} the training images on "
        f"average ({len(found.images)} and {len(found.training)} of them)."
    )


def _variance_of_mean(x: Tensor) -> float:
    return float(x.var()) / len(x) if len(x) > 1 else 0.0


def partition(contents: Contents, _: int) -> Section | None:
    """Estimates of log Z over the number of temperatures."""
    assert isinstance(contents.model, WithPartition)
    now, title = contents.model.partition, "Partition function"
    kept = sorted((one for one in contents.estimates if one.temperatures), key=lambda one: one.temperatures or 0)
    exact = now.log_z if now is not None and now.kind is Kind.EXACT else None
    blocks: list[Block] = [Prose(_in_use(now))]
    if not kept:
        blocks.append(Prose(contents.no_estimates))
        return Section("partition", title, tuple(block for block in blocks if block != Prose("")))
    forward = [_interval(one, one.log_z, one.low, one.high) for one in kept]
    reverse = [
        _interval(one, one.reverse, one.reverse_low, one.reverse_high) for one in kept if one.reverse is not None
    ]
    told = ", ".join(f"{one.temperatures:,} temperatures {one.value:.2f}" for one in forward)
    figure = Figure(
        "partition",
        (
            Chart(
                energy_charts.estimates(forward, reverse, exact, "log Z, nats"),
                f"Estimates of log Z with their intervals over the number of temperatures: {told}.",
            ),
        ),
        "Estimates of log Z by annealed importance sampling, with three standard errors, over the number of "
        "temperatures.",
        "Chains walk from independent units to the model in so many steps. With too few, most weights are small, and "
        "the estimate is too low on average: the likelihood too high. Where more temperatures do not change it within "
        "its interval, it can be trusted as far as the chains have seen all that is probable. An interval that reaches "
        "zero is open below (an arrow). The reverse estimate walks from the ends of long Markov chains back, and errs "
        "to the other side if these are draws from the model, which nothing guarantees: where the two agree, that is "
        "an indication and no proof.",
        "Annealed importance sampling of restricted Boltzmann machines is that of On the Quantitative Analysis of Deep "
        "Belief Networks (Salakhutdinov and Murray, ICML 2008); estimates from both ends are those of Sandwiching the "
        "marginal likelihood using bidirectional Monte Carlo (Grosse et al., 2015).",
    )
    return Section("partition", title, (*blocks, figure, Fold("The same as a table", (_table(kept),))))


def _in_use(now: Partition | None) -> str:
    """What the numbers of the page take as log Z."""
    if now is None:
        return "The partition function is not known: no number on this page is a likelihood."
    if now.kind is Kind.EXACT:
        return f"log Z = {now.log_z:.4f} nats, exactly: it was summed over all states."
    between = "" if now.low is None or now.high is None else f", three standard errors {_ends_of(now.low, now.high)}"
    return f"The numbers of this page take log Z = {now.log_z:.2f} nats, an estimate{between}{_made(now)}."


def _made(one: Partition) -> str:
    """Of what an estimate was made; empty where that is not known."""
    if one.chains is None or one.temperatures is None or one.effective_samples is None:
        return ""
    chains = f"{one.chains} chains, which count as {one.effective_samples:.1f} independent ones"
    return f"; it comes from {one.temperatures:,} temperatures and {chains}"


def _ends_of(low: float | None, high: float | None) -> str:
    """An interval in words."""

    def number(end: float | None) -> str:
        return "unknown" if end is None else f"{end:.2f}" if math.isfinite(end) else f"{'-' if end < 0 else ''}infinity"

    return f"{number(low)} to {number(high)}"


def _interval(one: Partition, value: float, low: float | None, high: float | None) -> Interval:
    assert one.temperatures is not None
    return Interval(one.temperatures, value, value if low is None else low, value if high is None else high)


def _table(kept: list[Partition]) -> Table:
    def told(value: float, low: float | None, high: float | None) -> str:
        return f"{value:.2f} ({_ends_of(low, high)})"

    rows = tuple(
        (
            f"{one.temperatures:,}",
            told(one.log_z, one.low, one.high),
            "unknown" if one.effective_samples is None else f"{one.effective_samples:.1f} of {one.chains}",
            "not made" if one.reverse is None else told(one.reverse, one.reverse_low, one.reverse_high),
        )
        for one in kept
    )
    head = ("temperatures", "forward", "effective samples", "reverse")
    return Table("Estimates of log Z with three standard errors, nats", head, rows)
