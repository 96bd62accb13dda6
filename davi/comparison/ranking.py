r"""Comparison of runs: which numbers may be ranked, and their differences, paired by image.

Two numbers can be ranked if they answer the same question about the same images: the same kind of claim about log p(x),
with the same number of importance samples, on the same values in the same order (SHA-256) and with the same labels
where it is one given the class, of the same split, treated in the same way. Rows whose protocols differ in any of this
(:data:`CONDITIONS`) stand in groups of their own, and what differs is named. Seed, batch size, device, precision,
versions and the images of *training* are stated where they differ and do not forbid a ranking.

Within a group all models are measured on the same N images, whose difficulty differs far more than the models do. It
cancels in the paired difference to a reference model,

.. math:: d_n = \log p(x_n) - \log p_\mathrm{ref}(x_n), \qquad
          \bar d \pm \frac{s_d}{\sqrt N}, \qquad s_d^2 = \frac 1{N-1} \sum_n (d_n - \bar d)^2

where each :math:`\log p` stands for the claim made about it. An estimated partition function has one error for all
images, which does not cancel: the squares of those of both models are added to the square of the error. The 95 %
interval is Student's. A difference is called significant if it is at least two standard errors and its interval leaves
out zero. Where images are patches, the error is clustered by file with G - 1 degrees of freedom, and with fewer than
five files there is no interval and no significance (:mod:`davi.evaluation.clusters`). All of this is about the choice
of test images; training again with another seed moves the numbers as well, which no single run can tell.

A run is not ranked on images that it was trained on, whatever their split is called (:func:`trained_on_these`).

References:
    The Probable Error of a Mean, Student, Biometrika 1908, https://doi.org/10.1093/biomet/6.1.1
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypeVar, cast

from scipy.special import stdtrit

from davi.comparison.reading import Entry, distinct, trained_on_these
from davi.comparison.result import Comparison, Conditions, Group, Interval, Pair, Row
from davi.errors import UserError
from davi.evaluation import Array, clusters
from davi.evaluation.classification import ERROR_RATE
from davi.evaluation.clusters import Groups
from davi.evaluation.result import LayerUnits, Protocol
from davi.evidence import About, Kind, bits_per_dim
from davi.report import quantity

CONDITIONS = (
    *("kind", "about", "importance_samples", "split", "images", "shape", "levels", "binarization", "images_sha256"),
    "labels_sha256",
    "trained_on_these_images",
    "were_log_z_known",
)
"""Fields that must agree for rows to be ranked; importance samples only matter where something is drawn."""

_EXPLAIN = ("set", "binarization_seed", "chosen")
"""Fields that say why other images were measured. That the same images go by another name is no difference."""

LARGER = 1.1
"""Two models whose numbers of parameters have a greater ratio are not of the same size."""

_STATED = ("seed", "batch_size", "device", "precision", "version", "commit", "torch")
_TRAINING = ("set", "train_sha256", "binarization", "binarization_seed", "flip", "random_crop")

T = TypeVar("T")

RULE = (
    "Differences are those of the claims about log p(x), paired over the same images, with the standard error of their "
    "mean and Student's 95 % interval. Significant: at least two standard errors, and zero outside of the interval. "
    "All errors are over test images and, where it is estimated, of log Z. Each run is one seed: another training seed "
    "would add to them."
)


def compare(entries: Sequence[Entry]) -> Comparison:
    """Rank the runs that can be ranked, and name what keeps the others apart.

    Arguments:
        entries: the runs. The first of each group is the one that the others of the group are compared with.

    Returns:
        Rows of runs that were trained on these images have no rank and no differences. Runs of the same name go by the
        ends of their paths.

    Raises:
        UserError: if there is nothing to compare.
    """
    if not entries:
        raise UserError("runs: got none, expected at least one")
    members: dict[tuple[str, ...], list[Entry]] = {}
    named = [dataclasses.replace(entry, name=_printable(entry.name)) for entry in entries]
    for entry in distinct(named):
        protocol = _protocol(entry)
        members.setdefault(tuple(repr(getattr(protocol, field)) for field in CONDITIONS), []).append(entry)
    groups = tuple(_group(_label(i), group) for i, group in enumerate(members.values()))
    of_classes = all(group.protocol.about is About.Y_GIVEN_X for group in groups)
    rule = RULE.replace("log p(x)", "log p(y|x)") if of_classes else RULE
    return _printable(Comparison(groups, _differences(groups), rule))


def _label(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def _protocol(entry: Entry) -> Conditions:
    """All fields that decide about ranking or explain why rows cannot be ranked."""
    result = entry.measured.result
    protocol, data, log_z = result.protocol, result.protocol.data, result.log_z
    return Conditions(
        kind=str(result.kind),
        importance_samples=result.bound.samples if result.depends_on_samples else None,
        split=protocol.split,
        images=protocol.images,
        shape=data.shape,
        levels=data.levels,
        binarization=data.binarization,
        images_sha256=protocol.images_sha256,
        set=protocol.set,
        binarization_seed=data.binarization_seed,
        chosen=_chosen(protocol),
        trained_on_these_images="yes" if trained_on_these(protocol) else "no",
        about=result.about,
        labels_sha256=protocol.labels_sha256,
        were_log_z_known=str(log_z.claim) if log_z is not None and result.kind is Kind.ESTIMATE else None,
    )


def _chosen(protocol: Protocol) -> str:
    """Which images of the set were measured; older versions took the first ones."""
    if protocol.images == protocol.images_available:
        return "all"
    return "the first ones" if protocol.subset is None else "spread evenly"


def _group(label: str, entries: Sequence[Entry]) -> Group:
    protocol = _protocol(entries[0])
    reference = entries[0]
    ordered = sorted(entries, key=lambda entry: -float(entry.measured.bound.mean()))  # stable: ties as they were given
    # The images are the same: where one evaluation knows their files, these are the files of all.
    groups = next((entry.measured.groups for entry in entries if entry.measured.groups is not None), None)
    ranked = protocol.trained_on_these_images == "no"
    rows = []
    for i, entry in enumerate(ordered):
        others = (None if entry is reference else reference, ordered[i - 1] if i else None)
        to_reference, to_row_above = (_difference(entry, other if ranked else None, groups) for other in others)
        rows.append(_row(entry, groups, i + 1 if ranked else None, to_reference, to_row_above))
    return Group(
        label=label,
        protocol=protocol,
        unit=reference.measured.result.units[0],
        reference=reference.name,
        rows=tuple(rows),
        stated=_stated(entries),
        notes=tuple(_notes(rows, groups, ranked)),
    )


def _row(
    entry: Entry, groups: Groups | None, rank: int | None, to_reference: Pair | None, to_row_above: Pair | None
) -> Row:
    result = entry.measured.result
    model, units = result.protocol.model, result.active_units
    step, rollbacks = model.step, model.rollbacks
    bound = quantity(entry.measured.bound, result.dims, groups)
    wrong = result.measure(ERROR_RATE) if result.about is About.Y_GIVEN_X else None
    notes = list(entry.notes)
    if step is not None and entry.reached is not None and entry.reached > step:
        notes.append(f"measured after step {step}, training has gone on to step {entry.reached}; evaluate it again")
    if result.log_z is not None:
        notes += result.log_z.warnings
    if rollbacks:
        notes.append(f"training was rolled back {rollbacks} times after losses that were not finite")
    return Row(
        rank=rank,
        run=entry.name,
        model=model.name,
        kind=result.kind,
        importance_samples=result.bound.samples,
        nats=bound.nats,
        bits_per_dim=bound.bits_per_dim,
        parameters=model.parameters,
        step=step,
        seconds=entry.seconds,
        steps_per_second=entry.pace,
        active_units=None if units is None else LayerUnits(units.active, units.units),
        rollbacks=rollbacks,
        notes=tuple(notes),
        to_reference=to_reference,
        to_row_above=to_row_above,
        error_rate=None if wrong is None else wrong.value,
        log_z_error=None if result.log_z is None else result.log_z.error("nats"),
        bits_per_dim_log_z_error=None if result.log_z is None else result.log_z.error("bits_per_dim"),
    )


def _difference(entry: Entry, other: Entry | None, groups: Groups | None) -> Pair | None:
    if other is None:
        return None
    results = entry.measured.result, other.measured.result
    errors = [result.log_z.error_of_difference for result in results if result.log_z is not None]
    return paired(entry.measured.bound, other.measured.bound, results[0].dims, groups, errors)


def _notes(rows: Sequence[Row], groups: Groups | None, ranked: bool) -> list[str]:
    """Notes on the differences within a group."""
    notes = []
    if not ranked:
        notes.append("not ranked: these images, or some of them, are training images of the run")
    if ranked and any(row.kind is Kind.ESTIMATE for row in rows):
        notes.append(
            "estimates may lie on either side of log p(x), so they are not ranked among bounds or exact values"
        )
    if ranked and len(rows) > 1 and any(row.log_z_error is not None for row in rows):
        notes.append("errors of log Z are the same for all images: they do not cancel in differences, which have both")
    if groups is not None:
        patches = clusters.in_words(len(groups), len(set(groups.tolist())))
        few = "" if clusters.tells(groups) else f"; {clusters.FEW}"
        notes.append(f"errors are clustered by file: {patches}{few}")
    sized = sorted((row.parameters, row.run) for row in rows if row.parameters)
    if ranked and sized and sized[-1][0] > LARGER * sized[0][0]:
        (small, least), (large, most) = sized[0], sized[-1]
        notes.append(
            f"{most} has {large / small:.2f} times the parameters of {least}: a difference can be one of size alone"
        )
    return notes


def paired(
    values: Array, reference: Array, dims: int | None, groups: Groups | None = None, common: Sequence[float] = ()
) -> Pair:
    r"""Mean difference of two models over the same images.

    Arguments:
        values: claims of one model about log p(x), ``[N]``, nats.
        reference: those of the other about the same images, ``[N]``, nats.
        dims: values in one image; None where the claims are not about these.
        groups: the file of each image, where several are cut from one.
        common: standard errors of what all images share, independent of each other, nats: they do not cancel, and
            :math:`s^2 / N + \sum_i c_i^2` is the square of the error; one that is infinite leaves no interval.
    """
    difference = values - reference
    mean, error = float(difference.mean()), clusters.standard_error(difference, groups)
    if error is not None and common:
        error = math.hypot(error, *common) if max(common) < math.inf else None
    if error is None or not clusters.tells(groups):
        return _pair(Interval(mean, error, None), dims, False)
    reach = float(stdtrit(clusters.witnesses(difference, groups) - 1, 0.975)) * error
    ends = (mean - reach, mean + reach)
    significant = bool(abs(mean) >= 2.0 * error and abs(mean) > reach)
    return _pair(Interval(mean, error, ends), dims, significant)


def _pair(nats: Interval, dims: int | None, significant: bool) -> Pair:
    """The difference in both units."""
    if dims is None:
        return Pair(nats, None, significant)
    error, ends = nats.standard_error, nats.interval
    bits = Interval(
        bits_per_dim(nats.mean, dims),
        None if error is None else -bits_per_dim(error, dims),
        None if ends is None else (bits_per_dim(ends[1], dims), bits_per_dim(ends[0], dims)),
    )
    return Pair(nats, bits, significant)


def _stated(entries: Sequence[Entry]) -> dict[str, dict[str, object]]:
    """What differs among rows that can be ranked nevertheless: field -> run -> value."""
    protocols = {entry.name: entry.measured.result.protocol for entry in entries}
    found: dict[str, dict[str, object]] = {
        field: {name: getattr(protocol, field) for name, protocol in protocols.items()} for field in _STATED
    }
    found["averaged weights"] = {name: protocol.model.ema for name, protocol in protocols.items()}
    for field in _TRAINING:
        found[f"trained on: {field}"] = {
            name: protocol.model.trained_on.get(field) for name, protocol in protocols.items()
        }
    return {field: values for field, values in found.items() if _differ(values)}


def _differences(groups: Sequence[Group]) -> dict[str, dict[str, object]]:
    """What keeps groups apart: field -> label of the group -> value."""
    fields = (*CONDITIONS, *_EXPLAIN)
    found = {field: {group.label: getattr(group.protocol, field) for group in groups} for field in fields}
    if _differ(found["about"]):
        del found["labels_sha256"]  # models without classes have no labels
    if _differ(found["kind"]):
        del found["were_log_z_known"]  # which tells apart what is of one kind
    if not _differ(found["images_sha256"]):
        found = {field: values for field, values in found.items() if field not in _EXPLAIN}
    return {field: values for field, values in found.items() if _differ(values)}


def _differ(values: Mapping[str, object]) -> bool:
    return len({repr(value) for value in values.values()}) > 1


def _printable(value: T) -> T:
    """The same with question marks for control characters, which a terminal would obey."""
    shown: object = value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _printable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        shown = dataclasses.replace(value, **fields)
    elif isinstance(value, Mapping):
        shown = {_printable(key): _printable(item) for key, item in value.items()}
    elif isinstance(value, tuple):
        shown = tuple(map(_printable, value))
    elif isinstance(value, str) and not isinstance(value, Enum):
        shown = "".join(c if c.isprintable() else "?" for c in value)
    return cast(T, shown)
