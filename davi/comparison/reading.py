"""Evaluated runs, read from their folders, with notes about each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from davi.errors import UserError
from davi.evaluation.result import Protocol
from davi.measurements import EVALUATION, Measured, load
from davi.metrics import read_metrics
from davi.runs import weights_of

_LARGEST = 1e12
"""No training takes more seconds, and none has more images a second."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One run that takes part.

    Arguments:
        name: how it is called in tables.
        measured: its evaluation.
        seconds: training time up to the evaluated step, over all resumptions, with validation and checkpoints; None
            where no run has recorded it.
        reached: the last step that training has recorded; None where there is no record.
        pace: steps per second of training alone (:func:`pace`); None where the records do not tell it.
        folder: of the run; tells runs of the same name apart.
        notes: what else has to be said about it, a line each.
    """

    name: str
    measured: Measured
    seconds: float | None = None
    reached: int | None = None
    pace: float | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = ()


def read(folder: Path, name: str | None = None) -> Entry:
    """The evaluation of a run, and how long it was trained.

    Arguments:
        folder: of the run.
        name: how to call it; the folder's path when None.

    Raises:
        UserError: one line, if the run was not evaluated, its files are damaged, or its evaluation is of other weights
            than the run holds now.
    """
    measured = load(folder)
    protocol = measured.result.protocol
    if protocol.images_sha256 is None:
        raise UserError(
            f"{folder / EVALUATION}.json: found no protocol.images_sha256, expected it to say which images were "
            f"measured; davi evaluate {folder} does"
        )
    notes = _weights(folder, protocol.model.weights_sha256)
    try:
        records = read_metrics(folder)
    except FileNotFoundError:  # weights from elsewhere were not trained here
        records = []
    step = math.inf if protocol.model.step is None else protocol.model.step
    steps = [record["step"] for record in records if record["step"] < 2**63]
    until = [record for record in records if record["step"] <= step]
    seconds = [time for record in until if (time := _number(record, "seconds")) is not None]
    return Entry(
        name or str(folder),
        measured,
        max(seconds, default=None),
        max(steps, default=None),
        pace(until),
        folder,
        notes,
    )


def _weights(folder: Path, measured: str | None) -> tuple[str, ...]:
    """Refuse an evaluation of other weights than those of the run; notes where that cannot be found out."""
    present = weights_of(folder)
    if measured is None:
        return ("its evaluation, of an older version, does not say which weights it is of; evaluate again to be sure",)
    if present is None:
        return ("the run holds no weights now, which its evaluation could be checked against",)
    if measured != present:
        raise UserError(
            f"{folder}: got an evaluation of weights {measured[:12]}..., expected {present[:12]}..., which the run "
            f"holds now; davi evaluate {folder} measures these"
        )
    return ()


def pace(records: Iterable[Mapping[str, Any]]) -> float | None:
    """Steps per second of training alone, from the records of a run in their order.

    The steps between two ``train`` records, and the time between them less what validations between the two have taken
    (``images`` by ``images_per_second``), both summed over the run. Left out are intervals in which a checkpoint was
    written, training was rolled back, or a validation does not say how fast it was, as in runs of older versions. None
    where no interval is left.
    """
    steps, seconds = 0, 0.0
    before, aside, usable = (0, 0.0), 0.0, True
    for record in records:
        kind, time = record["kind"], _number(record, "seconds")
        if kind == "validation":
            images, rate = (_number(record, key) for key in ("images", "images_per_second"))
            usable = usable and bool(images and rate)
            aside += images / rate if images and rate else 0.0
        elif kind in ("checkpoint", "rollback"):
            usable = False
        elif kind == "train" and time is not None:
            if usable and record["step"] > before[0] and time - before[1] > aside:
                steps, seconds = steps + record["step"] - before[0], seconds + time - before[1] - aside
            before, aside, usable = (record["step"], time), 0.0, True
    return steps / seconds if seconds else None


def _number(record: Mapping[str, Any], key: str) -> float | None:
    value = record.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        return None
    return float(value)


def trained_on_these(protocol: Protocol) -> bool:
    """Whether a model was trained on images that it was measured on, or on others of the same share of its set.

    ``davi evaluate`` says whether the images are the run's own, of which it was trained on those for training alone, or
    others, and counts how many of these are training images. Of a result that does not say it, the hashes decide: the
    measured images are all of the training images; or they are of the set that the model was trained on, but for its
    test images, and either of its training images, or the rest of the set is not what the model was trained on, so
    that another share of it was kept out then.

    Arguments:
        protocol: of the evaluation.
    """
    data, trained, split = protocol.data, protocol.model.trained_on, protocol.split
    known = trained.get("train_sha256")
    if data.training_images is not None:
        return data.training_images > 0
    if known is not None and known == protocol.images_sha256:
        return True
    if data.own_images:
        return split == "train"
    if known is None or trained.get("set") != data.set:
        return False
    if split == "test":
        return data.other_images is not None
    return split != "validation" or known != data.train_sha256


def distinct(entries: Sequence[Entry]) -> list[Entry]:
    """The same with no name twice: the shortest ends of their paths that tell them apart, else numbers."""
    names = [entry.name for entry in entries]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        for i, new in zip(same, _apart([entries[i].folder for i in same], name), strict=True):
            names[i] = new
    return [dataclasses.replace(entry, name=name) for entry, name in zip(entries, names, strict=True)]


def _apart(folders: Sequence[Path | None], name: str) -> list[str]:
    """Different names for runs of one name."""
    paths = [folder.resolve().parts for folder in folders if folder is not None]
    if len(set(paths)) == len(folders):
        for length in range(2, max(map(len, paths)) + 1):
            ends = [str(Path(*parts[-length:])) for parts in paths]
            if len(set(ends)) == len(ends):
                return ends
    return [name if i == 1 else f"{name} ({i})" for i in range(1, len(folders) + 1)]
