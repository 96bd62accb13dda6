"""The first section of the page: what was measured, what it has to beat, and everything the numbers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from davi.evaluation import clusters
from davi.evaluation.result import Protocol, Result
from davi.evidence import About, Kind
from davi.formatting import UNITS, in_units, size
from davi.page.blocks import Headline, Prose, Section, Table
from davi.quantity import from_bits
from davi.records import to_json
from davi.report import in_words, which_images

PNG_FRAME = 57
"""Bytes of a PNG file that are no pixels: the signature, and what the chunks IHDR, IDAT and IEND cannot do without."""

_DEEPEST = 4
_SEPARATE = ("model", "data", "dims", "set", "split", "images", "images_available", "limit", "subset", "files")
"""Fields of the protocol that are told in words of their own."""


def headline(result: Result) -> str:
    """The number of the page in one line, with its unit and the kind of claim it is."""
    head = _headline(result)
    return f"{head.value} ({head.other}), {head.claim}"


def numbers(result: Result, measured: str) -> Section:
    """The numbers with their protocol and baselines.

    Arguments:
        result: of the evaluation.
        measured: a sentence that says who measured it, and when.
    """
    units = tuple(UNITS[unit] for unit in result.units)
    blocks = (
        _headline(result),
        Prose(measured),
        Table(
            f"What was measured, mean ± standard error over the {_over(result.protocol)}",
            ("quantity", *units, "kind"),
            tuple(_measured(result)),
        ),
        Prose(_explained(result)),
        *_further(result),
        *_comparison(result, units),
        Table("What the numbers depend on", ("", ""), tuple(_protocol(result.protocol))),
    )
    return Section("numbers", "The numbers", blocks)


def _headline(result: Result) -> Headline:
    units = result.units
    value, other = (f"{cell} {UNITS[unit]}" for unit, cell in zip(units, in_units(result.bound, units), strict=True))
    claim = {
        Kind.EXACT: "exact log-likelihood",
        Kind.LOWER_BOUND: f"lower bound on the log-likelihood{_bound_name(result)}",
        Kind.ESTIMATE: "estimate of the log-likelihood, which may lie on either side",
    }[result.kind]
    of = "" if result.about is About.X else f", {result.log_p}"
    return Headline(value, other, f"{claim}{of}; {_images(result.protocol)}")


def _bound_name(result: Result) -> str:
    samples = result.bound.samples
    if samples > 1:
        return f", L_{samples} of {samples} importance samples"
    return "" if result.kl is None else f", the {result.claim}"


def _images(protocol: Protocol) -> str:
    every = "all " if protocol.images == protocol.images_available else ""
    return f"{every}{which_images(protocol)} of {protocol.set}"


def _over(protocol: Protocol) -> str:
    """What the errors are about."""
    files = protocol.files
    if files is None:
        return "images"
    few = f"; {clusters.FEW}" if files < clusters.FEWEST else ""
    return f"images, clustered by file ({clusters.in_words(protocol.images, files)}{few})"


def _measured(result: Result) -> Iterator[tuple[str, ...]]:
    """Rows of the table: the bound, the ELBO and its parts."""
    kind, samples, units = str(result.kind), result.bound.samples, result.units
    if result.kind is not Kind.LOWER_BOUND:
        yield result.log_p, *in_units(result.bound, units), kind
    else:
        if samples > 1:
            yield f"L_{samples}, importance-weighted", *in_units(result.bound, units), kind
        yield result.claim, *in_units(result.elbo, units), kind
    parts = list(result.terms.items())
    if result.kl is not None:
        parts.append(("KL divergence of all layers", result.kl.total))
    if len(parts) > 1:
        for name, values in parts:
            yield name, *in_units(values, units), f"part of the {result.claim}"


def _explained(result: Result) -> str:
    """What the units are, and which way is better."""
    text = (
        "How to read it: nats are those of the log-probability of one image, nearer to zero is better; bits/dim are "
        "the bits that an ideal code spends on one value of one pixel, fewer are better."
    )
    if result.kind is Kind.LOWER_BOUND:
        text += " A lower bound says that the images are at least so probable: the true bits/dim are at most these."
    if result.kl is not None:
        text += (
            " The ELBO is the reconstruction (log-probability of the pixels given the latents) minus the KL divergence "
            "(what the latents cost)."
        )
    return text


def _further(result: Result) -> Iterator[Table]:
    """Measures beside the claim."""
    if result.measures:
        rows = tuple((measure.name, in_words(measure), measure.rule) for measure in result.measures)
        yield Table("What else was measured", ("measure", "value", "what it is"), rows)


def _comparison(result: Result, units: tuple[str, ...]) -> Iterator[Table | Prose]:
    """What other methods need, and why small images need so much of some of them."""
    if not result.baselines:
        return
    dims = result.protocol.dims
    rows = []
    for baseline in result.baselines:
        cells: tuple[str, ...] = ("not available", "not available")
        if baseline.bits_per_dim is not None:
            cells = in_units(from_bits(baseline.bits_per_dim, baseline.standard_error, dims), result.units)
        rows.append((baseline.name, *cells, baseline.note))
    yield Table(
        "For comparison: what everybody has, on the same images (exact)",
        ("method", *units, "how"),
        tuple(rows),
    )
    frame = 8 * PNG_FRAME / dims
    yield Prose(
        "How to read it: a model should need fewer bits/dim than all of these. Independent pixels know how often each "
        "value occurs at each place and nothing else. PNG and WebP are the lengths of whole files, one for each image: "
        f"beside its pixels a PNG file holds at least {PNG_FRAME} bytes, which are {frame:.2f} bits/dim for images of "
        f"{dims} values. That is why small images cost so much as files."
    )


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
