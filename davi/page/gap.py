"""The section that shows what lies between the ELBO and log p(x)."""

from __future__ import annotations

from matplotlib.figure import Figure as Drawing

from davi.evaluation.gap_result import GapParts, GapResult
from davi.page import charts
from davi.page.blocks import Chart, Figure, Fold, Prose, Section, Table
from davi.page.contents import Contents
from davi.page.units import Unit
from davi.quantity import Quantity

_TITLE = "The variational gap"


def gap(contents: Contents, _: int) -> Section:
    """The bound for every number of samples, and how its distance from the ELBO divides; else how to measure it."""
    found, unit = contents.gap, contents.unit
    if found is None:
        return Section("gap", _TITLE, (Prose(contents.no_gap),))
    figure = Figure(
        "gap",
        (Chart(_drawn(found, unit), _alt(found, unit)),),
        "The bound for more and more importance samples, and how the gap divides.",
        _READ + (_READ_PARTS if found.parts is not None else ""),
        "Curves of this kind are in Importance Weighted Autoencoders (Burda et al., ICLR 2016); the division is that "
        "of Inference Suboptimality in Variational Autoencoders (Cremer et al., ICML 2018).",
    )
    if found.parts is None:
        return Section("gap", _TITLE, (figure, Prose(f"The gap is not divided: {found.why_not}.")))
    return Section("gap", _TITLE, (figure, Fold("The numbers, and what kind they are", (_table(found.parts, unit),))))


_READ = (
    "Blue is minus L_K, the cost of an image by the bound with K samples; more samples come closer to the true cost, "
    "which lies below all points. The bars are standard errors of the distance from the last point, over the same "
    "images. "
)
_READ_PARTS = (
    "K = 1 is the ELBO. The dashed line is the ELBO with a posterior that is optimized for each image. Its distance "
    "from the first point is the amortization gap, which a better encoder can close; its distance from the last point "
    "is the family gap, which only a richer family of posteriors can close. The last point is a bound as well, so the "
    "whole gap is at least what is shown."
)


def _drawn(found: GapResult, unit: Unit) -> Drawing:
    points, parts = found.curve, None
    if found.parts is not None:
        names = [
            f"{name}\n{unit.text(unit.loss(part))}"
            for name, part in (("amortization", found.parts.amortization), ("family", found.parts.family))
        ]
        parts = (unit.cost(found.parts.optimized).mean, names[0], names[1])
    return charts.bounds(
        [point.samples for point in points],
        [unit.cost(point).mean for point in points],
        [unit.loss(point.below).standard_error or 0.0 for point in points],
        parts,
        f"cost of an image, {unit.name}",
    )


def _alt(found: GapResult, unit: Unit) -> str:
    first, last = (unit.text(unit.cost(point)) for point in (found.curve[0], found.curve[-1]))
    text = f"Line chart over K: the bound falls from {first} for K = 1 to {last} for K = {found.curve[-1].samples}"
    if found.parts is None:
        return f"{text} ({unit.name})."
    named = {"amortization gap": found.parts.amortization, "family gap": found.parts.family}
    told = [f"{name} {unit.text(unit.loss(part))}" for name, part in named.items()]
    return "; ".join([text, *told]) + f" ({unit.name})."


def _table(parts: GapParts, unit: Unit) -> Table:
    def value(quantity: Quantity) -> str:
        return f"{unit.text(unit.loss(quantity))} {unit.name}"

    named = {"Amortization gap": parts.amortization, "Family gap": parts.family, "Both": parts.total}
    rows = tuple((name, value(part), str(part.kind)) for name, part in named.items())
    return Table("How the gap divides", ("part", "mean over images", "kind"), rows)
