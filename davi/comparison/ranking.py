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
significant if it is at least two standard errors and its interval leaves out zero. All of this is about the choice of
test images; training again with another seed moves the numbers as well, which no single run can tell.

References:
    The Probable Error of a Mean, Student, Biometrika 1908, https://doi.org/10.1093/biomet/6.1.1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from davi.errors import UserError
from davi.evaluation import Array
from davi.evidence import Kind, bits_per_dim
from davi.measurements import EVALUATION, Measured, load
from davi.report import both_units
from davi.runs import read_metrics

CONDITIONS = ("kind", "importance_samples", "split", "images", "shape", "levels", "binarization", "images_sha256")
"""Fields that must agree for rows to be ranked; importance samples only matter where the claim is not exact."""

_EXPLAIN = ("set", "binarization_seed")
"""Fields that say why other images were measured. That the same images go by another name is no difference."""

_STATED = ("seed", "batch_size", "device", "precision", "version", "commit", "torch")
_TRAINING = ("set", "train_sha256", "binarization", "binarization_seed", "flip")

RULE = (
    "Differences are those of the claims about log p(x), paired over the same images, with the standard error of their "
    "mean and Student's 95 % interval. Significant: at least two standard errors, and zero outside of the interval. "
    "All errors are over test images; another training seed would add to them."
)


@dataclass(frozen=True, eq=False)
class Entry:
    """One run that takes part.

    Arguments:
        name: how it is called in tables.
        measured: its evaluation.
        seconds: training time up to the evaluated step, over all resumptions; None where no run has recorded it.
        reached: the last step that training has recorded; None where there is no record.
    """

    name: str
    measured: Measured
    seconds: float | None = None
    reached: int | None = None


def read(folder: Path, name: str | None = None) -> Entry:
    """The evaluation of a run, and how long it was trained.

    Arguments:
        folder: of the run.
        name: how to call it; the folder's path when None.

    Raises:
        UserError: one line, if the run was not evaluated or its files are damaged.
    """
    measured = load(folder)
    if measured.result["protocol"].get("images_sha256") is None:
        raise UserError(
            f"{folder / EVALUATION}.json: found no protocol.images_sha256, expected it to say which images were "
            f"measured; davi evaluate {folder} does"
        )
    try:
        records = read_metrics(folder)
    except FileNotFoundError:  # weights from elsewhere were not trained here
        records = []
    step = measured.result["protocol"]["model"].get("step", math.inf)
    steps = [record["step"] for record in records if record["step"] < 2**63]
    until = [record.get("seconds") for record in records if record["step"] <= step]
    seconds = [float(value) for value in until if isinstance(value, (int, float)) and 0 <= value < 1e12]
    return Entry(name or str(folder), measured, max(seconds, default=None), max(steps, default=None))


def compare(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rank what can be ranked, and name what keeps the rest apart; strict JSON.

    Arguments:
        entries: the runs. The first of each group is the one that the others of the group are compared with.

    Returns:
        ``groups``, each with a ``label``, the ``protocol`` that its rows share (:data:`CONDITIONS` and the set's name),
        the ``unit`` the field uses (nats for binary images, else bits per dimension), the ``reference`` run, its
        ``rows`` from best to worst, and ``stated``: what differs without forbidding a ranking, field -> run -> value.
        ``differences``: what keeps groups apart, field -> label of the group -> value. ``rule``: in words, what the
        paired differences mean.

        A row has ``rank``, ``run``, ``model``, ``kind``, ``importance_samples``, ``nats`` and ``bits_per_dim`` (each
        ``mean`` and ``standard_error``), ``parameters``, ``step``, ``seconds``, ``steps_per_second``,
        ``active_units`` (``active`` of ``units`` latent variables), ``rollbacks``, ``notes``, and the differences
        ``to_reference`` and ``to_row_above`` in the form of :func:`paired` (null where there is none).

    Raises:
        UserError: if there is nothing to compare.
    """
    if not entries:
        raise UserError("runs: got none, expected at least one")
    members: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
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
    }


def _group(label: str, entries: Sequence[Entry]) -> dict[str, Any]:
    protocol = _protocol(entries[0])
    reference = entries[0]
    ordered = sorted(entries, key=lambda entry: -float(entry.measured.bound.mean()))  # stable: ties as they were given
    rows = [
        _row(entry, rank, None if entry is reference else reference, ordered[rank - 2] if rank > 1 else None)
        for rank, entry in enumerate(ordered, start=1)
    ]
    return {
        "label": label,
        "protocol": protocol,
        "unit": "nats" if protocol["levels"] == 2 else "bits_per_dim",
        "reference": reference.name,
        "rows": rows,
        "stated": _stated(entries),
    }


def _row(entry: Entry, rank: int, reference: Entry | None, above: Entry | None) -> dict[str, Any]:
    measured = entry.measured
    protocol = measured.result["protocol"]
    model, dims = protocol["model"], protocol["dims"]
    step, rollbacks = model.get("step"), model.get("rollbacks")
    notes = []
    if step is not None and entry.reached is not None and entry.reached > step:
        notes.append(f"measured after step {step}, training has gone on to step {entry.reached}; evaluate it again")
    if rollbacks:
        notes.append(f"training was rolled back {rollbacks} times after losses that were not finite")
    return {
        "rank": rank,
        "run": entry.name,
        "model": model["name"],
        "kind": measured.kind.name,
        "importance_samples": measured.result["bound"]["samples"],
        **both_units(measured.bound, dims),
        "parameters": model.get("parameters"),
        "step": step,
        "seconds": entry.seconds,
        "steps_per_second": step / entry.seconds if step is not None and entry.seconds else None,
        "active_units": _active(measured.result["active_units"]),
        "rollbacks": rollbacks,
        "to_reference": None if reference is None else paired(measured.bound, reference.measured.bound, dims),
        "to_row_above": None if above is None else paired(measured.bound, above.measured.bound, dims),
        "notes": notes,
    }


def _active(units: Mapping[str, Any] | None) -> dict[str, int] | None:
    """How many latent variables carry information, and how many there are."""
    return None if units is None else {"active": units["active"], "units": units["units"]}


def paired(values: Array, reference: Array, dims: int) -> dict[str, Any]:
    """Mean difference of two models over the same images.

    Arguments:
        values: claims of one model about log p(x), ``[N]``, nats.
        reference: those of the other about the same images, ``[N]``, nats.
        dims: values in one image.

    Returns:
        ``nats`` (positive: better than the reference) and ``bits_per_dim`` (negative: better), each with ``mean``,
        ``standard_error`` and ``interval`` (the 95 % interval; both null for a single image); and ``significant``.
    """
    difference = values - reference
    both = both_units(difference, dims)
    mean, error = both["nats"]["mean"], both["nats"]["standard_error"]
    if error is None:
        both["nats"]["interval"] = both["bits_per_dim"]["interval"] = None
        return {**both, "significant": False}
    reach = float(stdtrit(len(difference) - 1, 0.975)) * error
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
