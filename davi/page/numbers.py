"""The numbers: the one at the top of the page, the comparison with baselines, and all that they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from davi.evaluation import clusters
from davi.evaluation.claims import both_errors, kind_in_words, terms_with_errors
from davi.evaluation.classification import BLIND_GUESS, ERROR_RATE
from davi.evaluation.codes import CODE_COSTS, code_costs
from davi.evaluation.measure import Measure
from davi.evaluation.result import Protocol, Result
from davi.evidence import About, Kind
from davi.formatting import UNITS, significant, size
from davi.page import charts
from davi.page.blocks import Block, Chart, Figure, Fold, Headline, Prose, Section, Source, Table
from davi.page.contents import Contents
from davi.page.units import Unit
from davi.quantity import from_bits
from davi.records import to_json
from davi.report import in_words, which_images

PNG_FRAME = 57
"""Bytes of a PNG file that are no pixels: the signature, and what the chunks IHDR, IDAT and IEND cannot do without."""

_LONGEST_RECIPE = 50_000
"""Letters: a recipe is some two thousand."""

_COMPARISON = "Comparison with baselines"

_DEEPEST = 4
_SEPARATE = ("model", "data", "dims", "set", "split", "images", "images_available", "limit", "subset", "files")
"""Fields of the protocol that are told in words of their own."""


def in_one_line(result: Result) -> str:
    """The number of the page in one line, with its unit, what to compare it with, and the kind of claim it is."""
    head = headline(result)
    return "; ".join(part for part in (head.value, head.beside, head.claim) if part)


def head(contents: Contents) -> Headline:
    """What stands at the top of the page: its number, or why there is none."""
    return Headline("No likelihood", "", contents.no_result) if contents.result is None else headline(contents.result)


def headline(result: Result) -> Headline:
    """The number of the page in words."""
    unit = Unit.of(result)
    claim = {
        Kind.EXACT: "exact log-likelihood",
        Kind.LOWER_BOUND: f"lower bound on the log-likelihood{_bound_name(result)}",
        Kind.ESTIMATE: "estimate of the log-likelihood, which may err on either side",
    }[result.kind]
    if result.estimated_bound:
        claim = f"estimate of a lower bound on the log-likelihood{_bound_name(result)}"
    of = "" if result.about is About.X else f", {result.log_p}"
    sign = ", shown as -log p" if unit.key == "nats" else ""
    if result.about is About.Y_GIVEN_X:
        claim = f"{result.kind} {result.log_p}"
        of = ""
    value = f"{unit.text(unit.cost(result.bound))} {unit.name}"
    both = both_errors(result, unit.key, cost=True)
    errors = "" if both is None else f": {both}"
    return Headline(value, _beside(result, unit), f"{claim}{of}{sign}{errors}; {_images(result.protocol)}")


def _beside(result: Result, unit: Unit) -> str:
    """The cost of the first baseline, independent pixels; of a classifier a blind guess and the share of mistakes."""
    guess, wrong = result.measure(BLIND_GUESS), result.measure(ERROR_RATE)
    if guess is not None:
        return f"{guess.name} {-guess.value:.3f}" + ("" if wrong is None else f"; {_error_rate(wrong)}")
    for baseline in result.baselines:
        if baseline.bits_per_dim is not None:
            return f"{baseline.name} {unit.short(unit.of_bits(baseline.bits_per_dim))}"
    return ""


def _error_rate(wrong: Measure) -> str:
    ends = "" if wrong.interval is None else " (95 % interval {:.3g} to {:.3g})".format(*wrong.interval)
    return f"error rate {wrong.value:.3g} %{ends}"


def comparison(contents: Contents, _: int) -> Section:
    """The model beside the baselines."""
    result, unit = contents.result, contents.unit
    assert result is not None
    known = [baseline for baseline in result.baselines if baseline.bits_per_dim is not None]
    if not known:
        return Section("comparison", _COMPARISON, (Prose("Left out: no baseline was measured."),))
    model = unit.cost(result.bound)
    costs = [model.mean, *(unit.of_bits(baseline.bits_per_dim or 0.0) for baseline in known)]
    names = ["this model", *(baseline.name for baseline in known)]
    texts = [unit.short(cost) for cost in costs]
    told = ", ".join(f"{name} {text}" for name, text in zip(names, texts, strict=True))
    best = min(known, key=lambda baseline: baseline.bits_per_dim or 0.0)
    than = unit.of_bits(best.bits_per_dim or 0.0) / model.mean if model.mean > 0 else 0.0
    dims = result.protocol.dims
    frame = unit.of_bits(8 * PNG_FRAME / dims)
    figure = Figure(
        "comparison",
        (Chart(charts.levels(costs, names, texts, unit.name), f"Bar chart of {unit.name}: {told}."),),
        f"The best baseline, {best.name}, costs {than:.2g} times as much."
        if than > 1
        else f"The best baseline, {best.name}, costs less than the model.",
        "The same images, coded by other methods; lower is better. Independent pixels know how often each value occurs "
        "at each place and nothing else. PNG and WebP are the sizes of whole files, one for each image: beside its "
        f"pixels a PNG file holds at least {PNG_FRAME} bytes, which are {unit.short(frame)} {unit.name} for images of "
        f"{dims:,} values. That is why small images cost so much as files.",
        "",
    )
    rows = [("this model", unit.text(model), headline(result).claim)]
    for baseline in result.baselines:
        cost = "not available"
        if baseline.bits_per_dim is not None:
            cost = unit.text(unit.cost(from_bits(baseline.bits_per_dim, baseline.standard_error, dims)))
        rows.append((baseline.name, cost, baseline.note))
    fold = Fold(
        "The same as a table", (Table("Baselines on the same images", ("method", unit.name, "how"), tuple(rows)),)
    )
    return Section("comparison", _COMPARISON, (figure, fold))


def details(contents: Contents, _: int) -> Section:
    """All numbers, everything they depend on, and the recipe, folded away."""
    folds = [] if contents.result is None else _folds(contents.result, contents)
    if contents.recipe is None:
        folds.append(Fold("Recipe", (Prose("Left out: the run holds no recipe."),)))
    else:
        folds.append(Fold("Recipe", (Prose(_RECIPE), Source(_cut(contents.recipe)))))
    return Section("details", "Details", tuple(folds))


def _folds(result: Result, contents: Contents) -> list[Fold]:
    """The numbers, and everything they depend on."""
    unit = contents.unit
    measured: list[Block] = [
        Prose(contents.measured),
        Table(
            f"Mean ± standard error over the {_over(result.protocol)}",
            ("quantity", unit.name, "kind"),
            tuple(_measured(result, unit)),
        ),
        Prose(_explained(result, unit)),
    ]
    if result.log_z is not None:
        measured.append(Table("The partition function", ("", ""), tuple(result.log_z.facts())))
        words = kind_in_words(result)
        measured.append(Prose(f"{words[0].upper()}{words[1:]}."))
    if result.measures:
        others = [measure for measure in result.measures if measure.name not in CODE_COSTS]
        rows = tuple((measure.name, in_words(measure), measure.rule) for measure in others)
        measured.append(Table("Other measures", ("measure", "value", "what it is"), rows))
    protocol = Table("Everything the numbers depend on", ("", ""), tuple(_protocol(result.protocol)))
    return [Fold("All numbers", tuple(measured)), Fold("Protocol and hashes", (protocol,))]


_RECIPE = "Every option the run was made with, defaults included. davi train accepts it as it stands."


def _cut(text: str) -> str:
    if len(text) <= _LONGEST_RECIPE:
        return text
    return f"{text[:_LONGEST_RECIPE]}\n... and {len(text) - _LONGEST_RECIPE} more letters"


def _bound_name(result: Result) -> str:
    samples = result.bound.samples
    if samples > 1:
        return f" (L_{samples}, {samples} importance samples)"
    return "" if result.kl is None else f" ({result.claim})"


def _images(protocol: Protocol) -> str:
    every = "all " if protocol.images == protocol.images_available else ""
    return f"{protocol.set}, {every}{which_images(protocol)}"


def _over(protocol: Protocol) -> str:
    """What the errors are about."""
    files = protocol.files
    if files is None:
        return "images"
    few = f"; {clusters.FEW}" if files < clusters.FEWEST else ""
    return f"images, clustered by file ({clusters.in_words(protocol.images, files)}{few})"


def _measured(result: Result, unit: Unit) -> Iterator[tuple[str, ...]]:
    """Rows of the table: the bound, the ELBO and its parts."""
    kind, samples = str(result.kind), result.bound.samples
    if result.kind is not Kind.LOWER_BOUND:
        cost = both_errors(result, unit.key, cost=True) or unit.text(unit.cost(result.bound))
        which = f"-{result.log_p}"
        if result.estimated_bound:
            which += f", {'lower bound' if samples == 1 else f'L_{samples}'} with an estimated log Z"
        yield which, cost, kind
        if result.estimated_bound and samples > 1:
            yield f"-{result.log_p}, lower bound with an estimated log Z", unit.text(unit.cost(result.elbo)), kind
    else:
        if samples > 1:
            yield f"-L_{samples}, importance-weighted", unit.text(unit.cost(result.bound)), kind
        yield f"-{result.claim}", unit.text(unit.cost(result.elbo)), kind
    parts = [(f"-{name}", unit.cost(values)) for name, values in terms_with_errors(result).items()]
    if result.kl is not None:
        parts.append(("KL divergence of all layers", result.kl.total.in_unit(unit.key)))
    if len(parts) > 1:
        for name, values in parts:
            yield name, unit.text(values), f"part of the {result.claim}"
    for name, cost_of_codes in code_costs(result.measures, result.protocol.dims).items():
        yield name, unit.text(cost_of_codes.in_unit(unit.key)), "what codes take"


def _explained(result: Result, unit: Unit) -> str:
    """What the units are, and which way is better."""
    if result.about is About.Y_GIVEN_X:
        return "Minus the log-probability of the class of an image, given the image, in nats; lower is better."
    other = next(key for key in result.units if key != unit.key)
    same = f"{significant(Unit(other, unit.dims).cost(result.bound), 4)} {UNITS[other]}"
    text = (
        f"Minus log-likelihood of an image in nats, lower is better; the same number is {same}."
        if unit.key == "nats"
        else "Bits that an ideal code spends on one value of one pixel, lower is better; the same number as minus "
        f"log-likelihood of an image is {same}."
    )
    if result.kind is Kind.LOWER_BOUND:
        text += " A lower bound on the log-likelihood means that the true cost is at most this."
    if result.kl is not None:
        text += (
            " The ELBO is the reconstruction (log-probability of the pixels given the latents) minus the KL divergence "
            "(what the latents cost)."
        )
    return text


def _protocol(protocol: Protocol) -> Iterator[tuple[str, str]]:
    """Names and values of everything the numbers depend on; the model's options stand with the recipe."""
    yield "images", f"{_images(protocol)} (split {protocol.split}), {protocol.dims} values each"
    for field in dataclasses.fields(protocol):
        if field.name not in _SEPARATE:
            yield _words(field.name), _value(getattr(protocol, field.name))
    for key, value in to_json(dataclasses.replace(protocol.model, config=None, shape=None, levels=None)).items():
        yield f"model: {_words(key)}", _value(value)
    for key, value in protocol.data.told.items():
        yield f"data: {_words(key)}", _value(value)


def _words(key: str) -> str:
    return str(key).replace("_", " ")


def _value(value: object, depth: int = 0) -> str:
    """A value of the protocol as a reader would write it; what a file has nested deeper than we do is left out."""
    if depth > _DEEPEST:
        return "..."
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, (list, tuple)):
        return size(_value(item, depth + 1) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{_words(key)}: {_value(item, depth + 1)}" for key, item in value.items())
    return str(value)
