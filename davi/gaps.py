"""The file of ``davi evaluate --gap`` in the folder of a run, ``gap.json``: made, written, read back and printed.

Its numbers are explained in :mod:`davi.evaluation.gap`.
"""

from __future__ import annotations

import json
from pathlib import Path

from davi import records
from davi.errors import UserError
from davi.evaluation import Array
from davi.evaluation.clusters import Groups
from davi.evaluation.gap import Gap
from davi.evaluation.gap_result import CurvePoint, GapParts, GapResult, Part, StartCount
from davi.evaluation.optimized import STARTS, STEP_DRAWS
from davi.evaluation.result import Protocol
from davi.evidence import Kind
from davi.files import replace_text, writing
from davi.measurements import read_json
from davi.report import cost, heading, labeled, quantity, row, told_of

GAP = "gap.json"

RULE = (
    "for each image a shift of the mean and a factor of the standard deviation of every latent, and of a flow also "
    "its context"
)
"""What was optimized, in the words that go into every result."""

_KINDS = {
    Kind.EXACT: "exact",
    Kind.LOWER_BOUND: "at least this: L_K is a lower bound, and a better q may exist",
    Kind.ESTIMATE: "estimate: the two errors have opposite signs",
}


def result_of(gap: Gap, protocol: Protocol) -> GapResult:
    """All numbers, and what they depend on.

    Arguments:
        gap: what was measured.
        protocol: what :func:`davi.report.protocol_of` says of its evaluation.
    """
    dims, groups = gap.evaluation.dims, gap.evaluation.groups
    points = []
    for samples, count, bound in zip(gap.sizes, gap.groups, gap.curve, strict=True):
        both = quantity(bound, dims, groups)
        below = cost(gap.curve[-1] - bound, dims, groups)
        points.append(CurvePoint(both.nats, both.bits_per_dim, samples, count, below))
    kind = gap.evaluation.kind
    return GapResult(kind, gap.evaluation.about, tuple(points), _parts(gap), gap.why_not, protocol)


def _parts(gap: Gap) -> GapParts | None:
    found, amortization, family = gap.optimized, gap.amortization, gap.family
    if found is None or amortization is None or family is None:
        return None
    dims, groups, kind = gap.evaluation.dims, gap.evaluation.groups, gap.evaluation.kind
    chosen = found.chosen.tolist()
    return GapParts(
        optimized=quantity(found.elbo, dims, groups),
        amortization=_part(amortization, dims, groups, kind),
        family=_part(family, dims, groups, Kind.ESTIMATE),
        total=_part(amortization + family, dims, groups, kind),
        steps=gap.steps,
        step_draws=STEP_DRAWS,
        starts=tuple(StartCount(start.name, chosen.count(number)) for number, start in enumerate(STARTS)),
        rule=RULE,
    )


def _part(nats: Array, dims: int, groups: Groups | None, kind: Kind) -> Part:
    both = cost(nats, dims, groups)
    return Part(both.nats, both.bits_per_dim, kind)


def write(folder: Path, result: GapResult) -> Path:
    """Write a result into the folder of a run, in place of an earlier one.

    Returns:
        The path of the file.

    Raises:
        UserError: if it cannot be written.
        ValueError: if a number is not finite.
    """
    path = folder / GAP
    text = json.dumps(records.to_json(result), indent=2, allow_nan=False) + "\n"
    with writing(str(path)):
        replace_text(path, text)
    return path


def read(folder: Path) -> GapResult:
    """Read what :func:`write` wrote, and check it.

    Raises:
        UserError: one line, if the file is missing, damaged or of another program.
    """
    path = folder / GAP
    if not path.is_file():
        raise UserError(f"{folder}: found no {GAP}; davi evaluate {folder} --gap writes it")
    result: GapResult = records.read(GapResult, read_json(path), str(path))
    return result


def to_terminal(result: GapResult) -> str:
    """A table of a result, at most 80 columns wide; nats come first for binary images."""
    units, log_p = result.units, f"log p({result.about})"
    lines = heading(result.protocol, units)
    for point in result.curve:
        name = "ELBO, which is L_1" if point.samples == 1 and result.parts is not None else f"L_{point.samples}"
        lines.append(row(name, point, units))
    parts = result.parts
    if parts is None:
        lines += ["", *labeled("gap not divided", result.why_not)]
    else:
        last = result.curve[-1].samples
        lines += [row("ELBO, q optimized per image", parts.optimized, units), ""]
        lines += [row("amortization gap", parts.amortization, units), row("family gap", parts.family, units)]
        lines += [row(f"both: L_{last} - ELBO", parts.total, units), ""]
        lines += labeled("amortization gap and both", _KINDS[parts.total.kind])
        lines += labeled("family gap", _KINDS[parts.family.kind])
        how = f"{parts.rule}; {parts.steps} steps of Adam, {parts.step_draws} draws a step"
        lines += labeled("q optimized per image", how)
        best = "; ".join(f"{start.name}: {start.images}" for start in parts.starts)
        lines += labeled("best start, images", best)
    lines += labeled("L_K", f"lower bound of {log_p}, mean over groups of K draws of each image")
    return "\n".join([*lines, *told_of(result.protocol)])
