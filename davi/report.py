"""Results as JSON and as a table: means, standard errors, bits per dimension, the protocol.

:func:`result_of` makes a record of the numbers and everything they depend on; :func:`to_terminal` makes a table of it
that fits into 80 columns, and :func:`write_json` a file. Here, at the edge, averages over images and bits per dimension
come into being.

Nats are those of the log-likelihood, thus mostly negative; bits per dimension are those that a code would need, thus
positive: -nats / (dims ln 2). KL divergences are positive in both units; so are the terms of latents drawn on the way
up, where they cost, but such a term is no divergence and may be negative (:mod:`davi.evaluation.activity`).
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from davi import __version__, records
from davi.evaluation import KL, Array, Evaluation, Measure, clusters
from davi.evaluation.activity import ACTIVE_UNITS, INACTIVE_LAYERS, INACTIVE_NATS, INACTIVE_RULE
from davi.evaluation.baselines import Baseline
from davi.evaluation.claims import both_errors, kind_in_words, terms_with_errors
from davi.evaluation.classification import BLIND_GUESS
from davi.evaluation.clusters import Groups
from davi.evaluation.codes import CODE_COSTS, code_costs, prior_doubt
from davi.evaluation.log_z import LogZ
from davi.evaluation.result import (
    Bound,
    DataFacts,
    Layer,
    LayerTerms,
    LayerUnits,
    ModelFacts,
    Protocol,
    Result,
    Units,
)
from davi.evidence import About, Kind, bits_per_dim
from davi.files import replace_text, writing
from davi.formatting import UNITS, in_units, significant, size
from davi.quantity import Quantity, Statistic, from_bits

_TOLD_APART = (ACTIVE_UNITS, INACTIVE_LAYERS)
"""Measures that have a place of their own in a result."""

COLUMNS = 80
_NAME, _VALUE = 28, 24
"""Widths of the table: the name of a row, and a value with its error."""


def result_of(evaluation: Evaluation, baselines: Sequence[Baseline], protocol: Protocol) -> Result:
    """All numbers, and what they depend on.

    Arguments:
        evaluation: what was measured.
        baselines: what other methods need for the same images.
        protocol: what :func:`protocol_of` returns.
    """
    dims, groups = _dims(evaluation), evaluation.groups
    bound = quantity(evaluation.bound, dims, groups)
    return Result(
        kind=evaluation.kind,
        bound=Bound(evaluation.samples, bound.nats, bound.bits_per_dim),
        elbo=quantity(evaluation.elbo, dims, groups),
        terms={
            name: quantity(values, dims, groups) for name, values in evaluation.terms.items() if not name.startswith(KL)
        },
        kl=_layer_terms(evaluation),
        active_units=_units(evaluation.measure(ACTIVE_UNITS)),
        baselines=tuple(baselines),
        protocol=protocol,
        about=evaluation.about,
        measures=tuple(measure for measure in evaluation.measures if measure.name not in _TOLD_APART),
        left_out=evaluation.left_out,
        deterministic=evaluation.deterministic,
        log_z=evaluation.log_z,
    )


def _dims(evaluation: Evaluation) -> int | None:
    """Values in one image; None where the claim is not about them."""
    return None if evaluation.about is About.Y_GIVEN_X else evaluation.dims


def _layer_terms(evaluation: Evaluation) -> LayerTerms | None:
    dims, kl, groups = evaluation.dims, evaluation.kl, evaluation.groups  # kl: [N, layers]
    names = [name for name in evaluation.terms if name.startswith(KL)]
    if not names:
        return None
    costs = [cost(layer, dims, groups) for layer in kl.T]
    judged = evaluation.measure(INACTIVE_LAYERS)
    flags = (judged and judged.layers) or [0.0] * len(names)
    return LayerTerms(
        total=cost(kl.sum(1), dims, groups),
        layers=tuple(Layer(name, cost.nats, cost.bits_per_dim) for name, cost in zip(names, costs, strict=True)),
        divergence=tuple(name not in evaluation.no_divergence for name in names),
        inactive=tuple(name for name, flag in zip(names, flags, strict=True) if flag),
        rule=INACTIVE_RULE,
    )


def _units(measure: Measure | None) -> Units | None:
    if measure is None or measure.layers is None or measure.out_of is None:
        return None
    layers = [LayerUnits(int(a), int(n)) for a, n in zip(measure.layers, measure.out_of, strict=True)]
    active, units = sum(layer.active for layer in layers), sum(layer.units for layer in layers)
    return Units(active, units, tuple(layers), measure.images, measure.draws, measure.rule)


def protocol_of(
    evaluation: Evaluation, model: Mapping[str, Any], data: Mapping[str, Any], split: str = "test"
) -> Protocol:
    """The protocol: everything that the numbers depend on.

    Arguments:
        evaluation: what was measured.
        model: what :func:`davi.runs.load_model` says about the file, or :func:`davi.runs.describe` about a model.
        data: the protocol of the data sets (:class:`davi.data.DataSets`).
        split: which of them was evaluated.
    """
    facts = {
        **model,
        "weights_sha256": evaluation.weights_sha256,
        "trained_with": model.get("version"),
        "trained_on": _trained_on(model.get("protocol", {})),
    }
    return Protocol(
        set=evaluation.set,
        split=split,
        images=len(evaluation),
        images_available=evaluation.available,
        subset=evaluation.subset,
        files=None if evaluation.groups is None else clusters.witnesses(evaluation.elbo, evaluation.groups),
        images_sha256=evaluation.images_sha256,
        labels_sha256=evaluation.labels_sha256,
        limit=evaluation.limit,
        dims=evaluation.dims,
        importance_samples=evaluation.samples,
        seed=evaluation.seed,
        batch_size=evaluation.batch_size,
        device=evaluation.device,
        precision=evaluation.precision,
        version=__version__,
        commit=commit(),
        torch=str(torch.__version__),
        model=records.read(ModelFacts, facts, "model"),
        data=records.read(DataFacts, data, "data"),
    )


def _trained_on(protocol: Mapping[str, Any]) -> dict[str, str | int | None]:
    """What of the protocol of a model's training can make it differ from another: images, their form, first weights."""
    images = ("set", "train_sha256", "binarization", "binarization_seed", "flip", "random_crop")
    told = (*images, "started_from", "started_from_sha256")
    return {key: protocol[key] for key in told if key in protocol and type(protocol[key]) in (str, int, type(None))}


def commit() -> str | None:
    """The commit of the checkout that this code runs from, ``-dirty`` if files were changed; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def write_json(path: Path | str, result: Result) -> None:
    """Write a result atomically.

    Raises:
        UserError: if the file cannot be written.
        ValueError: if a number is not finite: JSON has no word for it.
    """
    path = Path(path)
    text = json.dumps(records.to_json(result), indent=2, allow_nan=False) + "\n"
    with writing(str(path)):
        replace_text(path, text)


def quantity(nats: Array, dims: int | None, groups: Groups | None = None) -> Quantity:
    """Mean and standard error over images of a log-probability, in nats and in bits per dimension.

    Arguments:
        nats: of each image, ``[N]``.
        dims: values in one image; None where it is not about these, and has no bits per dimension.
        groups: the file of each image, where several are cut from one (:mod:`davi.evaluation.clusters`).
    """
    mean, error = float(nats.mean()), clusters.standard_error(nats, groups)
    if dims is None:
        return Quantity(Statistic(mean, error), None)
    bits_error = None if error is None else -bits_per_dim(error, dims)
    return Quantity(Statistic(mean, error), Statistic(bits_per_dim(mean, dims), bits_error))


def cost(nats: Array, dims: int, groups: Groups | None) -> Quantity:
    """Like :func:`quantity`, for something that counts positive in bits as well."""
    both = quantity(nats, dims, groups)
    bits = both.in_unit("bits_per_dim")
    return Quantity(both.nats, Statistic(-bits.mean, bits.standard_error))


def to_terminal(result: Result) -> str:
    """A table of a result, at most 80 columns wide; nats come first for binary images."""
    units = result.units
    lines = heading(result.protocol, units)
    lines += [row(name, values, units) for name, values in _measured(result)]
    for unit in units:
        if (words := both_errors(result, unit)) is not None:
            lines += labeled(f"both errors, {UNITS[unit]}", words)
    lines += labeled("kind of claim", kind_in_words(result))
    if result.log_z is not None:
        lines += _log_z(result.log_z)
    if result.baselines:
        lines += ["", "for comparison"]
        for baseline in result.baselines:
            lines += _baseline_lines(baseline, result.protocol.dims, units)
        for baseline in result.baselines:
            if baseline.bits_per_dim is not None:
                note = f"{baseline.name}: {baseline.note}"
                lines += textwrap.wrap(note, COLUMNS, initial_indent="  ", subsequent_indent="    ")
    draws = result.about is not About.Y_GIVEN_X
    return "\n".join([*lines, "", *_layers(result), *_measures(result), *told_of(result.protocol, draws)])


def _log_z(log_z: LogZ) -> list[str]:
    """What is known of log Z, and whether to trust it."""
    lines = []
    for name, text in log_z.facts():
        lines += labeled(name, text)
    return lines + (labeled("warning", "; ".join(log_z.warnings)) if log_z.warnings else [])


def _measured(result: Result) -> list[tuple[str, Quantity]]:
    """Rows of the table: the headline, the sum of one draw's terms, and these."""
    samples, log_p = result.bound.samples, result.log_p
    rows: list[tuple[str, Quantity]]
    if result.estimated_bound:
        rows = [(f"{log_p}, estimated bound" if samples == 1 else f"L_{samples}, estimated", result.bound)]
        rows += [(f"{log_p}, estimated bound", result.elbo)] if samples > 1 else []
    elif result.kind is not Kind.LOWER_BOUND:
        rows = [(log_p if result.kind is Kind.EXACT else f"{log_p}, estimated", result.bound)]
    elif samples == 1:
        rows = [(f"{log_p}, {result.claim}" if result.kl is None else f"{log_p} >= {result.claim}", result.elbo)]
    else:
        rows = [(f"{log_p} >= L_{samples}", result.bound), (result.claim, result.elbo)]
    if (guess := result.measure(BLIND_GUESS)) is not None:
        rows.append((guess.name, Quantity(Statistic(guess.value, None), None)))
    parts = [(f"  {name}", values) for name, values in terms_with_errors(result).items()]
    if result.kl is not None:
        parts.append(("  KL divergence", result.kl.total))
    costs = code_costs(result.measures, result.protocol.dims)
    parts += [(f"  {name}", values) for name, values in costs.items()]
    return rows + parts if len(parts) > 1 else rows


def row(name: str, values: Quantity, units: Sequence[str]) -> str:
    """A row of a table: a name, and a quantity in each of the units."""
    return f"{name:<{_NAME}}" + "".join(f"{cell:>{_VALUE}}" for cell in in_units(values, units))


def _baseline_lines(baseline: Baseline, dims: int, units: Sequence[str]) -> list[str]:
    if baseline.bits_per_dim is None:
        return labeled(baseline.name, f"not available: {baseline.note}")
    return [row(baseline.name, from_bits(baseline.bits_per_dim, baseline.standard_error, dims), units)]


def _layers(result: Result) -> list[str]:
    """The layers one by one: KL divergences or terms, inactive ones by name, and active units."""
    lines = []
    kl, units = result.kl, result.active_units
    if kl is not None:
        terms = kl.no_divergence
        each = "  ".join(_small(layer.nats.mean) for layer in kl.layers)
        lines += labeled(f"{'term' if terms else 'KL'} by layer, top first", f"{each} nats")
        if terms:
            lines += labeled("no KL divergence", f"{', '.join(terms)}: {NO_DIVERGENCE}")
        if kl.inactive:
            lines += labeled("inactive layers", f"{', '.join(kl.inactive)} ({_why_inactive(kl)})")
    if units is not None:
        each = "  ".join(f"{layer.active}/{layer.units}" for layer in units.layers)
        lines += labeled("active units", f"{units.active} of {units.units}: {each}")
        if units.draws is not None:
            lines += labeled("", f"({units.images} images, {units.draws} draws of the latents each)")
    return lines


def _small(nats: float) -> str:
    """A term with two decimals; near zero with two significant digits, since 0.0099 and 0.01 are judged differently."""
    return f"{nats:.2g}" if abs(nats) < 0.1 else f"{nats:.2f}"


def _measures(result: Result) -> list[str]:
    """The further numbers; what each is, is said in the JSON file and on the page."""
    lines = []
    for measure in result.measures:
        if measure.name not in (BLIND_GUESS, *CODE_COSTS):  # which stand beside the claim
            lines += labeled(measure.name, in_words(measure))
    if doubt := prior_doubt(code_costs(result.measures, result.protocol.dims)):
        lines += labeled("warning", doubt)
    for one in result.left_out:
        lines += labeled(one.name, f"left out: {one.reason}")
    return lines


def in_words(measure: Measure) -> str:
    """The value of a measure with its unit and error, what kind of claim it is, and how many numbers it is the mean
    of."""
    digits = 6 if measure.interval is None and not measure.unit.startswith("%") else 4
    number = f"{measure.value:.{digits}g}"
    if measure.standard_error is not None:
        number = significant(Statistic(measure.value, measure.standard_error), 4)
    value = f"{number} {measure.unit}"
    cap = "" if measure.cap is None else f"{'at' if measure.at_cap else 'below'} the cap of {measure.cap:.4g}"
    ends = "" if measure.interval is None else "95 % interval {:.4g} to {:.4g}".format(*measure.interval)
    images = "" if measure.images is None else f"{measure.images:,} images"
    draws = "" if measure.draws is None else f"{measure.draws:,} draws"
    kind = "" if measure.kind is None else str(measure.kind)
    if measure.layers is not None and measure.out_of is not None:
        kind = f"by layer, top first: {_by_layer(measure.layers, measure.out_of)}"
    told = ", ".join(part for part in (kind, cap, ends, images, draws) if part)
    return f"{value} ({told})" if told else value


def _by_layer(layers: Sequence[float], out_of: Sequence[float]) -> str:
    """What each layer has of the most it could have."""
    pairs = zip(layers, out_of, strict=False)  # a file may hold anything
    return "  ".join(f"{value:.4g}/{most:.4g}" for value, most in pairs)


NO_DIVERGENCE = "E[log q - log p] of latents drawn on the way up, which may be below zero"
"""What the terms are that are no KL divergences."""


def _why_inactive(kl: LayerTerms) -> str:
    if set(kl.inactive).isdisjoint(kl.no_divergence):
        return f"KL divergence below {INACTIVE_NATS:g} nats; kl/00 is the top"
    return f"all layers together below {INACTIVE_NATS:g} nats"


def which_images(protocol: Protocol) -> str:
    """The measured images in words; a result of an older version, without ``subset``, is about the first of a set."""
    some, all_ = protocol.images, protocol.images_available
    patches = clusters.in_words(some, protocol.files)
    if some == all_:
        return patches or f"{some} images"
    subset = protocol.subset or f"the first {some} of {all_} images"
    return subset if patches is None else f"{subset} ({patches})"


def heading(protocol: Protocol, units: Sequence[str]) -> list[str]:
    """What stands above a table: the images, the model, and the units of the columns."""
    model, data = protocol.model, protocol.data
    parts = [model.name]
    if model.parameters is not None:
        parts.append(f"{model.parameters:,} parameters")
    if model.step is not None:
        parts.append(f"step {model.step}")
    if model.ema is not None:
        parts.append("averaged weights" if model.ema else "last weights")
    images = f"{protocol.set}: {which_images(protocol)}, {size(data.shape)}, {data.levels} levels"
    columns = " " * _NAME + "".join(f"{UNITS[unit]:>{_VALUE}}" for unit in units)
    return [*textwrap.wrap(images, COLUMNS), *textwrap.wrap(", ".join(parts), COLUMNS), "", columns]


def told_of(protocol: Protocol, draws: bool = True) -> list[str]:
    """What must be known to compare the numbers with others.

    Arguments:
        protocol: of the evaluation.
        draws: whether a number of importance samples means something.
    """
    data = protocol.data
    lines = []
    if data.other_images:
        lines += labeled("images", f"{data.other_images}, not the run's own" + _among(data.training_images))
    if data.binarization != "none":
        lines += labeled("binarization", f"{data.binarization}: {data.evaluated}")
    first = protocol.images < protocol.images_available and protocol.subset is None
    if first and data.test_order is not None and protocol.split == "test":
        lines += labeled("order of the images", data.test_order)
    if protocol.files is not None:
        few = f"; {clusters.FEW}" if protocol.files < clusters.FEWEST else ""
        lines += labeled("standard errors", f"clustered by file{few}")
    if rollbacks := protocol.model.rollbacks:
        lines += labeled("rollbacks in training", f"{rollbacks}, each of which halved the learning rate")
    code = f"davi {protocol.version}" + (f" ({protocol.commit})" if protocol.commit else "")
    samples = f"K = {protocol.importance_samples}, " if draws else ""
    how = (
        f"{samples}seed {protocol.seed}, batch size {protocol.batch_size}, "
        f"{protocol.precision} on {protocol.device}, {code}, torch {protocol.torch}"
    )
    return [*lines, *labeled("measured with", how)]


def _among(trained: int | None) -> str:
    """How many images the model was trained on, in words; nothing where it was on none."""
    if trained is None:
        return "; it is not known how many of them the model was trained on"
    return f"; the model was trained on {trained} of them" if trained else ""


def labeled(label: str, text: str) -> list[str]:
    """A label in the column of the names, and a text wrapped beside it."""
    wrapped = textwrap.wrap(text, COLUMNS - _NAME) or [""]
    return [f"{label if i == 0 else '':<{_NAME}}{line}" for i, line in enumerate(wrapped)]
