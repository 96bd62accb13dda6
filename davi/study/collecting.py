r"""From the folder of a study to its result: what is trained and measured so far.

An arm has S trainings, which are measured on the same N images. With :math:`c_{sn}` what image n costs with seed s, the
number of the arm is the mean of all of them, with two standard errors: that of :math:`\frac 1S \sum_s c_{sn}` over the
images, and that of :math:`\frac 1N \sum_n c_{sn}` over the seeds. The first says how the number would differ on other
images of the kind, the second how it would differ after other trainings. Differences to the reference have the same two
errors; they are paired over the images, and over the seeds that both arms have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from davi import __version__, comparison
from davi.evaluation import clusters
from davi.evidence import Kind, bits_per_dim
from davi.metrics import read_metrics
from davi.quantity import Statistic
from davi.report import which_images
from davi.study.folder import Job, begun, jobs
from davi.study.format import Arm, Study, Table
from davi.study.quantities import LAYERS, METERS, Trained, decimals
from davi.study.result import Difference, Number, Row, StudyResult, TableResult

_CLAIMS = {Kind.EXACT: "exact", Kind.LOWER_BOUND: "bound", Kind.ESTIMATE: "estimate"}
Found = dict[tuple[int, int], Trained]
"""By the number of the arm and the seed."""

_SAME = ("images_sha256", "labels_sha256", "split", "about", "shape", "levels")


def collect(folder: Path) -> StudyResult:
    """What came out of the study in a folder so far.

    Arguments:
        folder: of ``davi study run``.

    Raises:
        UserError: if no study is run there, or a file of it is damaged.
    """
    study = begun(folder)
    return result_of(study, list(jobs(folder, study)))


def result_of(study: Study, every: Sequence[Job]) -> StudyResult:
    """What came out of the trainings of a study.

    Arguments:
        study: that is run, or only shown.
        every: its trainings; none of them to show the published numbers alone.
    """
    found: Found = {(job.number, job.seed): arm for job in every if (arm := _read(job)) is not None}
    numbers = iter(range(1, len(list(study.trained())) + 1))
    numbered = [{arm.name: next(numbers) for arm in table.trained} for table in study.tables]
    return StudyResult(
        name=study.name,
        title=study.title,
        question=study.question,
        sources=tuple(map(str, study.sources)),
        budget=str(study.budget),
        seeds=study.seeds,
        overrides=study.overrides,
        measured=study.measured,
        tables=tuple(_table(study, table, of, found) for table, of in zip(study.tables, numbered, strict=True)),
        notes=study.notes,
        missing=tuple(str(job) for job in every if (job.number, job.seed) not in found),
        version=__version__,
    )


def _read(job: Job) -> Trained | None:
    """What is known about a training that was measured; None of others."""
    if not job.is_trained or not job.is_measured:
        return None
    entry = comparison.read(job.run, str(job))
    last = [record for record in read_metrics(job.run) if record["kind"] == "train"]
    unit = entry.measured.result.units[0]
    return Trained(job.seed, entry, last[-1] if last else {}, job.costs(), unit)


def _table(study: Study, table: Table, numbers: Mapping[str, int], found: Found) -> TableResult:
    """A table.

    Arguments:
        study: that it is of.
        table: as the study has it.
        numbers: of its arms that can be trained, by their names.
        found: what is measured of all tables.
    """
    seeds: dict[str, list[Trained]] = {arm.name: [] for arm in table.arms}
    for name, number in numbers.items():
        seeds[name] = [arm for (one, _), arm in found.items() if one == number]
    reference = table.compared_with
    against = [] if reference is None else seeds[reference.name]
    known = against or next((arms for arms in seeds.values() if arms), [])
    rows = [_row(study, arm, numbers.get(arm.name), seeds[arm.name], against) for arm in table.arms]
    measured_on = ""
    if known:
        result = known[0].result
        draws = f", K = {result.bound.samples}" if result.depends_on_samples else ""
        measured_on = f"{result.protocol.set}, {which_images(result.protocol)}{draws}"
    return TableResult(
        title=table.title,
        unit=known[0].unit if known else None,
        measured_on=measured_on,
        reference=None if reference is None else reference.name,
        axis=None if table.axis is None else table.axis.label,
        log=table.axis is not None and table.axis.log,
        rows=tuple(rows),
        published=table.published,
        columns=tuple(dict.fromkeys([*table.columns, *(name for arm in table.arms for name in arm.published)])),
        drawn=table.drawn,
        note=table.note,
    )


def _row(study: Study, arm: Arm, number: int | None, arms: list[Trained], against: list[Trained]) -> Row:
    numbers = {name: one for name in study.measured if name in METERS and (one := _number(name, arms)) is not None}
    layers = {name: _layers(name, arms) for name in study.measured if name in LAYERS}
    notes: list[str] = []
    difference = None
    if arms and against and arms[0].entry is not against[0].entry:
        difference = _difference(arms, against, notes)
    if len(arms) < study.seeds and arms:
        notes.append(f"{len(arms)} of {study.seeds} seeds")
    notes += dict.fromkeys(note for one in arms for note in one.entry.notes)
    return Row(
        arm=arm.name,
        number=number,
        recipe=arm.recipe,
        overrides=arm.overrides,
        series=arm.series,
        x=arm.x,
        seeds=tuple(one.seed for one in arms),
        claim=_CLAIMS[arms[0].result.kind] if arms else "",
        numbers=numbers,
        layers={name: values for name, values in layers.items() if values},
        difference=difference,
        published=arm.published,
        notes=tuple(notes),
    )


def _number(name: str, arms: list[Trained]) -> Number | None:
    """A quantity over all seeds; None where no seed has it."""
    read = [value for arm in arms if (value := METERS[name].read(arm)) is not None]
    if not read:
        return None
    plain = [value.mean if isinstance(value, Statistic) else float(value) for value in read]
    over_images = None
    if isinstance(read[0], Statistic):
        over_images = _over_images(arms) if name == "bound" else read[0].standard_error if len(read) == 1 else None
    return Number(math.fsum(plain) / len(plain), tuple(plain), over_images, _error(plain), decimals(name, arms[0].unit))


def _over_images(arms: list[Trained]) -> float | None:
    """Standard error of the bound over the images, when each is the mean over the seeds."""
    first = arms[0].entry.measured
    error = clusters.standard_error(np.mean([arm.entry.measured.bound for arm in arms], 0), first.groups)
    return error if error is None or arms[0].unit == "nats" else -bits_per_dim(error, first.result.protocol.dims)


def _error(values: Sequence[float]) -> float | None:
    """Standard error of a mean over seeds."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _layers(name: str, arms: list[Trained]) -> tuple[float, ...]:
    """Means over the seeds, for each layer."""
    every = [values for arm in arms if (values := LAYERS[name](arm))]
    return tuple(float(mean) for mean in np.mean(every, 0)) if every else ()


def _difference(arms: list[Trained], against: list[Trained], notes: list[str]) -> Difference | None:
    """To the reference; None, with a note, where the two do not claim something about the same images."""
    others = {one.seed: one for one in against}
    pairs = [(one, others[one.seed]) for one in arms if one.seed in others]
    for one, other in pairs:
        differing = [key for key in _SAME if _condition(one, key) != _condition(other, key)]
        if differing:
            notes.append(f"not compared with the reference: other {', '.join(differing)}")
            return None
    if not pairs:
        notes.append("not compared with the reference: no seed that both have")
        return None
    first, result = pairs[0][1].entry.measured, pairs[0][1].result
    values, reference = (np.mean([pair[i].entry.measured.bound for pair in pairs], 0) for i in range(2))
    errors = [one.result.log_z.error_of_difference for one in pairs[0] if one.result.log_z is not None]
    paired = comparison.paired(values, reference, result.dims, first.groups, errors)
    unit = pairs[0][0].unit
    sign = -1.0 if unit == "nats" else 1.0
    found = paired.in_unit(unit)
    ends = None if found.interval is None else sorted(sign * end for end in found.interval)
    seeds = [_cost(one) - _cost(other) for one, other in pairs]
    if pairs[0][0].result.kind is not result.kind:
        notes.append(f"a difference of {_CLAIMS[pairs[0][0].result.kind]} and {_CLAIMS[result.kind]}")
    return Difference(
        mean=sign * found.mean,
        over_images=found.standard_error,
        over_seeds=_error(seeds),
        interval=None if ends is None else (ends[0], ends[1]),
        significant=paired.significant and _tell_apart(seeds),
        seeds=tuple(seeds),
    )


def _tell_apart(differences: Sequence[float]) -> bool:
    """Whether Student's 95 % interval over the seeds leaves out zero; one seed says nothing against it."""
    error = _error(differences)
    if error is None:
        return True
    mean = math.fsum(differences) / len(differences)
    return abs(mean) > float(stdtrit(len(differences) - 1, 0.975)) * error


def _condition(arm: Trained, key: str) -> object:
    """What must be the same for two numbers to be compared."""
    result = arm.result
    for record in (result.protocol, result, result.protocol.data):
        if hasattr(record, key):
            return getattr(record, key)
    raise AttributeError(key)


def _cost(arm: Trained) -> float:
    read = METERS["bound"].read(arm)
    assert isinstance(read, Statistic)
    return read.mean
