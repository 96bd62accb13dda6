"""The first section of the page: what was measured, what it has to beat, and everything the numbers depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from davi.evaluation import clusters
from davi.evidence import Kind
from davi.formatting import UNITS, from_bits, in_units, size, unit_order
from davi.page.blocks import Headline, Prose, Section, Table
from davi.report import which_images

PNG_FRAME = 57
"""Bytes of a PNG file that are no pixels: the signature, and what the chunks IHDR, IDAT and IEND cannot do without."""

_CLAIMS = {Kind.EXACT: "exact", Kind.LOWER_BOUND: "lower bound", Kind.ESTIMATE: "estimate"}
_DEEPEST = 4
_SEPARATE = ("model", "data", "dims", "set", "split", "images", "images_available", "limit", "subset", "files")
"""Fields of the protocol that are told in words of their own."""


def headline(result: Mapping[str, Any]) -> str:
    """The number of the page in one line, with its unit and the kind of claim it is."""
    head = _headline(result)
    return f"{head.value} ({head.other}), {head.claim}"


def numbers(result: Mapping[str, Any], measured: str) -> Section:
    """The numbers with their protocol and baselines.

    Arguments:
        result: what :func:`davi.report.to_json` made, with its protocol.
        measured: a sentence that says who measured it, and when.
    """
    units = tuple(UNITS[unit] for unit in unit_order(result["protocol"]))
    blocks = (
        _headline(result),
        Prose(measured),
        Table(
            f"What was measured, mean ± standard error over the {_over(result['protocol'])}",
            ("quantity", *units, "kind"),
            tuple(_measured(result)),
        ),
        Prose(_explained(result)),
        *_comparison(result, units),
        Table("What the numbers depend on", ("", ""), tuple(_protocol(result["protocol"]))),
    )
    return Section("numbers", "The numbers", blocks)


def _headline(result: Mapping[str, Any]) -> Headline:
    protocol, bound = result["protocol"], result["bound"]
    units = unit_order(protocol)
    value, other = (f"{cell} {UNITS[unit]}" for unit, cell in zip(units, in_units(bound, units), strict=True))
    kind = Kind[result["kind"]]
    claim = {
        Kind.EXACT: "exact log-likelihood",
        Kind.LOWER_BOUND: f"lower bound on the log-likelihood, {_bound_name(result)}",
        Kind.ESTIMATE: "estimate of the log-likelihood, which may lie on either side",
    }[kind]
    return Headline(value, other, f"{claim}; {_images(protocol)}")


def _bound_name(result: Mapping[str, Any]) -> str:
    samples = result["bound"]["samples"]
    return "the ELBO" if samples == 1 else f"L_{samples} of {samples} importance samples"


def _images(protocol: Mapping[str, Any]) -> str:
    some, all_ = protocol["images"], protocol["images_available"]
    which = which_images(protocol)
    return f"{'all ' if some == all_ else ''}{which} of {protocol['set']}"


def _over(protocol: Mapping[str, Any]) -> str:
    """What the errors are about."""
    files = protocol.get("files")
    if files is None:
        return "images"
    few = f"; {clusters.FEW}" if files < clusters.FEWEST else ""
    return f"images, clustered by file ({clusters.in_words(protocol['images'], files)}{few})"


def _measured(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows of the table: the bound, the ELBO and its parts."""
    kind, samples = Kind[result["kind"]], result["bound"]["samples"]
    units = unit_order(result["protocol"])
    if kind is not Kind.LOWER_BOUND:
        yield "log p(x)", *in_units(result["bound"], units), _CLAIMS[kind]
    else:
        if samples > 1:
            yield f"L_{samples}, importance-weighted", *in_units(result["bound"], units), _CLAIMS[kind]
        yield "ELBO", *in_units(result["elbo"], units), _CLAIMS[kind]
    parts = list(result["terms"].items())
    if result["kl"] is not None:
        parts.append(("KL divergence of all layers", result["kl"]["total"]))
    if len(parts) > 1:
        for name, values in parts:
            yield name, *in_units(values, units), f"part of the {'ELBO' if kind is Kind.LOWER_BOUND else 'sum'}"


def _explained(result: Mapping[str, Any]) -> str:
    """What the units are, and which way is better."""
    text = (
        "How to read it: nats are those of the log-probability of one image, nearer to zero is better; bits/dim are "
        "the bits that an ideal code spends on one value of one pixel, fewer are better."
    )
    if Kind[result["kind"]] is Kind.LOWER_BOUND:
        text += " A lower bound says that the images are at least so probable: the true bits/dim are at most these."
    if result["kl"] is not None:
        text += (
            " The ELBO is the reconstruction (log-probability of the pixels given the latents) minus the KL divergence "
            "(what the latents cost)."
        )
    return text


def _comparison(result: Mapping[str, Any], units: tuple[str, ...]) -> Iterator[Table | Prose]:
    """What other methods need, and why small images need so much of some of them."""
    if not result["baselines"]:
        return
    dims, order = result["protocol"]["dims"], unit_order(result["protocol"])
    rows = []
    for baseline in result["baselines"]:
        mean, error = baseline["bits_per_dim"], baseline["standard_error"]
        if mean is None:
            rows.append((baseline["name"], "not available", "not available", baseline["note"]))
            continue
        rows.append((baseline["name"], *in_units(from_bits(mean, error, dims), order), baseline["note"]))
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


def _protocol(protocol: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of everything the numbers depend on; the model's options stand with the recipe."""
    model, data = protocol["model"], protocol["data"]
    yield "images", f"{_images(protocol)} (split {protocol['split']}), {protocol['dims']} values each"
    for key, value in protocol.items():
        if key not in _SEPARATE:
            yield _words(key), _value(value)
    for key, value in model.items():
        if key not in ("config", "shape", "levels"):
            yield f"model: {_words(key)}", _value(value)
    for key, value in data.items():
        yield f"data: {_words(key)}", _value(value)


def _words(key: str) -> str:
    return str(key).replace("_", " ")


def _value(value: Any, depth: int = 0) -> str:
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
