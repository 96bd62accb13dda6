r"""Runs beside one another: which numbers may be ranked, and how large the differences are, image by image.

Two numbers can be ranked if they answer the same question about the same images: the same kind of claim about
log p(x), with the same number of importance samples, on the same values in the same order (SHA-256), of the same split,
treated in the same way. Rows whose protocols differ in any of this (:data:`CONDITIONS`) stand in groups of their own,
and what differs is named. Seed, batch size, device, precision, versions and the images of *training* are stated where
they differ and do not forbid a ranking.

Within a group all models are measured on the same N images, whose difficulty differs far more than the models do. It
cancels in the paired difference to a reference model,

.. math:: d_n = \log p(x_n) - \log p_\mathrm{ref}(x_n), \qquad
          \bar d \pm \frac{s_d}{\sqrt N}, \qquad s_d^2 = \frac 1{N-1} \sum_n (d_n - \bar d)^2

where each :math:`\log p` stands for the claim made about it. The 95 % interval is Student's. A difference is called
significant if it is at least two standard errors and its interval leaves out zero. Where images are patches, the error
is clustered by file with G - 1 degrees of freedom, and with fewer than five files there is no interval and no
significance (:mod:`davi.evaluation.clusters`). All of this is about the choice of test images; training again with
another seed moves the numbers as well, which no single run can tell.

A run is not ranked on images that it was trained on, whatever their split is called (:func:`trained_on_these`).

References:
    The Probable Error of a Mean, Student, Biometrika 1908, https://doi.org/10.1093/biomet/6.1.1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

from davi.comparison.reading import Entry, distinct, trained_on_these
from davi.errors import UserError
from davi.evaluation import Array, clusters
from davi.evaluation.clusters import Groups
from davi.evidence import Kind, bits_per_dim
from davi.report import both_units

CONDITIONS = (
    *("kind", "importance_samples", "split", "images", "shape", "levels", "binarization", "images_sha256"),
    "trained_on_these_images",
)
"""Fields that must agree for rows to be ranked; importance samples only matter where the claim is not exact."""

_EXPLAIN = ("set", "binarization_seed", "chosen")
"""Fields that say why other images were measured. That the same images go by another name is no difference."""

LARGER = 1.1
"""Two models whose numbers of parameters have a greater ratio are not of the same size."""

_STATED = ("seed", "batch_size", "device", "precision", "version", "commit", "torch")
_TRAINING = ("set", "train_sha256", "binarization", "binarization_seed", "flip")

RULE = (
    "Differences are those of the claims about log p(x), paired over the same images, with the standard error of their "
    "mean and Student's 95 % interval. Significant: at least two standard errors, and zero outside of the interval. "
    "All errors are over test images. Each run is one seed: another training seed would add to them."
)


def compare(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rank what can be ranked, and name what keeps the rest apart; strict JSON.

    Arguments:
        entries: the runs. The first of each group is the one that the others of the group are compared with.

    Returns:
        ``groups``, each with a ``label``, the ``protocol`` that its rows share (:data:`CONDITIONS` and the set's name),
        the ``unit`` the field uses (nats for binary images, else bits per dimension), the ``reference`` run, its
        ``rows`` from best to worst, ``stated``: what differs without forbidding a ranking, field -> run -> value, and
        ``notes``: what must be known to judge the differences.
        ``differences``: what keeps groups apart, field -> label of the group -> value. ``rule``: in words, what the
        paired differences mean.

        A row has ``rank``, ``run``, ``model``, ``kind``, ``importance_samples``, ``nats`` and ``bits_per_dim`` (each
        ``mean`` and ``standard_error``), ``parameters``, ``step``, ``seconds``, ``steps_per_second``,
        ``active_units`` (``active`` of ``units`` latent variables), ``rollbacks``, ``notes``, and the differences
        ``to_reference`` and ``to_row_above`` in the form of :func:`paired` (null where there is none). Rows of runs
        that were trained on these images have the rank null and no differences. Runs of the same name go by the ends
        of their paths.

    Raises:
        UserError: if there is nothing to compare.
    """
    if not entries:
        raise UserError("runs: got none, expected at least one")
    members: dict[tuple[str, ...], list[Entry]] = {}
    named = [dataclasses.replace(entry, name=_printable(entry.name)) for entry in entries]
    for entry in distinct(named):
        protocol = _protocol(entry)
        members.setdefault(tuple(repr(protocol[field]) for field in CONDITIONS), []).append(entry)
    groups = [_group(_label(i), group) for i, group in enumerate(members.values())]
    shown: dict[str, Any] = _printable({"groups": groups, "differences": _differences(groups), "rule": RULE})
    return shown


def _label(number: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return letters


def _protocol(entry: Entry) -> dict[str, Any]:
    """All fields that decide about ranking or explain why rows cannot be ranked."""
    result = entry.measured.result
    protocol = result["protocol"]
    data = protocol["data"]
    return {
        "kind": str(entry.measured.kind),
        "importance_samples": None if entry.measured.kind is Kind.EXACT else result["bound"]["samples"],
        "split": protocol["split"],
        "images": protocol["images"],
        "shape": data["shape"],
        "levels": data["levels"],
        "binarization": data.get("binarization", "none"),
        "images_sha256": protocol["images_sha256"],
        "set": protocol["set"],
        "binarization_seed": data.get("binarization_seed"),
        "chosen": _chosen(protocol),
        "trained_on_these_images": "yes" if trained_on_these(protocol) else "no",
    }


def _chosen(protocol: Mapping[str, Any]) -> str:
    """Which images of the set were measured; older versions took the first ones."""
    if protocol["images"] == protocol["images_available"]:
        return "all"
    return "the first ones" if protocol.get("subset") is None else "spread evenly"


def _group(label: str, entries: Sequence[Entry]) -> dict[str, Any]:
    protocol = _protocol(entries[0])
    reference = entries[0]
    ordered = sorted(entries, key=lambda entry: -float(entry.measured.bound.mean()))  # stable: ties as they were given
    # The images are the same: where one evaluation knows their files, these are the files of all.
    groups = next((entry.measured.groups for entry in entries if entry.measured.groups is not None), None)
    ranked = protocol["trained_on_these_images"] == "no"
    rows = []
    for i, entry in enumerate(ordered):
        others = (None if entry is reference else reference, ordered[i - 1] if i else None)
        differences = [_difference(entry, other if ranked else None, groups) for other in others]
        named = dict(zip(("to_reference", "to_row_above"), differences, strict=True))
        rows.append({"rank": i + 1 if ranked else None, **_row(entry, groups), **named})
    return {
        "label": label,
        "protocol": protocol,
        "unit": "nats" if protocol["levels"] == 2 else "bits_per_dim",
        "reference": reference.name,
        "rows": rows,
        "stated": _stated(entries),
        "notes": _notes(rows, groups, ranked),
    }


def _row(entry: Entry, groups: Groups | None) -> dict[str, Any]:
    measured = entry.measured
    protocol = measured.result["protocol"]
    model, dims = protocol["model"], protocol["dims"]
    step, rollbacks = model.get("step"), model.get("rollbacks")
    notes = list(entry.notes)
    if step is not None and entry.reached is not None and entry.reached > step:
        notes.append(f"measured after step {step}, training has gone on to step {entry.reached}; evaluate it again")
    if rollbacks:
        notes.append(f"training was rolled back {rollbacks} times after losses that were not finite")
    return {
        "run": entry.name,
        "model": model["name"],
        "kind": measured.kind.name,
        "importance_samples": measured.result["bound"]["samples"],
        **both_units(measured.bound, dims, groups),
        "parameters": model.get("parameters"),
        "step": step,
        "seconds": entry.seconds,
        "steps_per_second": entry.pace,
        "active_units": _active(measured.result["active_units"]),
        "rollbacks": rollbacks,
        "notes": notes,
    }


def _difference(entry: Entry, other: Entry | None, groups: Groups | None) -> dict[str, Any] | None:
    if other is None:
        return None
    return paired(entry.measured.bound, other.measured.bound, entry.measured.result["protocol"]["dims"], groups)


def _notes(rows: Sequence[Mapping[str, Any]], groups: Groups | None, ranked: bool) -> list[str]:
    """What must be known to judge the differences within a group."""
    notes = []
    if not ranked:
        notes.append("not ranked: these images, or some of them, are training images of the run")
    if groups is not None:
        patches = clusters.in_words(len(groups), len(set(groups.tolist())))
        few = "" if clusters.tells(groups) else f"; {clusters.FEW}"
        notes.append(f"errors are clustered by file: {patches}{few}")
    sized = sorted((row["parameters"], row["run"]) for row in rows if row["parameters"])
    if ranked and sized and sized[-1][0] > LARGER * sized[0][0]:
        (small, least), (large, most) = sized[0], sized[-1]
        notes.append(
            f"{most} has {large / small:.2f} times the parameters of {least}: a difference can be one of size alone"
        )
    return notes


def _active(units: Mapping[str, Any] | None) -> dict[str, int] | None:
    """How many latent variables carry information, and how many there are."""
    return None if units is None else {"active": units["active"], "units": units["units"]}


def paired(values: Array, reference: Array, dims: int, groups: Groups | None = None) -> dict[str, Any]:
    """Mean difference of two models over the same images.

    Arguments:
        values: claims of one model about log p(x), ``[N]``, nats.
        reference: those of the other about the same images, ``[N]``, nats.
        dims: values in one image.
        groups: the file of each image, where several are cut from one.

    Returns:
        ``nats`` (positive: better than the reference) and ``bits_per_dim`` (negative: better), each with ``mean``,
        ``standard_error`` and ``interval`` (the 95 % interval; both null for a single image or file, and the interval
        also for patches of fewer than five files); and ``significant``.
    """
    difference = values - reference
    both = both_units(difference, dims, groups)
    mean, error = both["nats"]["mean"], both["nats"]["standard_error"]
    if error is None or not clusters.tells(groups):
        both["nats"]["interval"] = both["bits_per_dim"]["interval"] = None
        return {**both, "significant": False}
    reach = float(stdtrit(clusters.witnesses(difference, groups) - 1, 0.975)) * error
    both["nats"]["interval"] = [mean - reach, mean + reach]
    both["bits_per_dim"]["interval"] = [bits_per_dim(mean + reach, dims), bits_per_dim(mean - reach, dims)]
    return {**both, "significant": bool(abs(mean) >= 2.0 * error and abs(mean) > reach)}


def _stated(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """What differs among rows that can be ranked nevertheless: field -> run -> value."""
    protocols = {entry.name: entry.measured.result["protocol"] for entry in entries}
    found = {field: {name: protocol[field] for name, protocol in protocols.items()} for field in _STATED}
    found["averaged weights"] = {name: protocol["model"].get("ema") for name, protocol in protocols.items()}
    for field in _TRAINING:
        trained = {name: protocol["model"].get("trained_on", {}).get(field) for name, protocol in protocols.items()}
        found[f"trained on: {field}"] = trained
    return {field: values for field, values in found.items() if _differ(values)}


def _differences(groups: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What keeps groups apart: field -> label of the group -> value."""
    found = {
        field: {group["label"]: group["protocol"][field] for group in groups} for field in (*CONDITIONS, *_EXPLAIN)
    }
    if not _differ(found["images_sha256"]):
        found = {field: values for field, values in found.items() if field not in _EXPLAIN}
    return {field: values for field, values in found.items() if _differ(values)}


def _differ(values: Mapping[str, Any]) -> bool:
    return len({repr(value) for value in values.values()}) > 1


def _printable(value: Any) -> Any:
    """The same with question marks for characters that a file could use to command a terminal."""
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return "".join(c if c.isprintable() else "?" for c in value) if isinstance(value, str) else value
