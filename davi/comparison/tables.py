"""Tables of what :func:`davi.comparison.compare` found, for a terminal and in Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from davi.comparison.result import Comparison, Group, Row
from davi.evidence import Kind
from davi.formatting import DIGITS, UNITS, decimals, duration, or_dash, size, with_error

COLUMNS = 80
_SAME = "≈"

Columns = dict[str, list[str]]
"""Head of a column -> its cells."""


def to_terminal(result: Comparison) -> str:
    """For each group a table of the numbers and one of the paired differences; text is wrapped at 80 columns."""
    lines: list[str] = []
    for group in result.groups:
        names = {"run": [row.run for row in group.rows]}
        lines += [*textwrap.wrap(_heading(group, result), COLUMNS), ""]
        numbers = _numbers(group)
        lines += _aligned({"rank": numbers.pop("rank"), **names, **numbers})
        if _compared(group):
            lines += ["", *_aligned({**names, **_pairs(group)})]
        lines += ["", *_wrapped(_remarks(group)), ""]
    return "\n".join([*lines, *_wrapped(_apart(result))]).strip()


def to_markdown(result: Comparison) -> str:
    """One table for each group, with everything in it; names stand as code, so that no name is taken for markup."""
    lines: list[str] = []
    for group in result.groups:
        rows, numbers = group.rows, _numbers(group)
        columns = {
            "rank": numbers.pop("rank"),
            "run": [_code(row.run) for row in rows],
            "model": [_code(row.model) for row in rows],
            "claim": [str(row.kind) for row in rows],
            "K": [str(row.importance_samples) for row in rows],
            **numbers,
            **(_pairs(group, _code) if _compared(group) else {}),
        }
        lines += [_heading(group, result, _code), "", *_piped(columns), ""]
        lines += [*(f"- {line}" for line in _remarks(group, _code)), ""]
    lines += [f"- {line}" for line in _apart(result, _code)]
    return "\n".join(lines).strip() + "\n"


def _compared(group: Group) -> bool:
    """Whether the rows of a group are ranked among themselves."""
    return len(group.rows) > 1 and group.rows[0].rank is not None


def _plain(text: str) -> str:
    return text


def _code(text: str) -> str:
    """As code in Markdown, also within a table."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


Mark = Callable[[str], str]
"""How a name from a file is set."""


def _heading(group: Group, result: Comparison, mark: Mark = _plain) -> str:
    """What the rows of a group have in common."""
    protocol = group.protocol
    label = f"{group.label}: " if len(result.groups) > 1 else ""
    shape = size(protocol.shape)
    samples = protocol.importance_samples
    draws = "" if samples is None else f", K = {samples} importance sample{'s' if samples > 1 else ''}"
    chosen = "" if protocol.chosen == "all" else f", {protocol.chosen}"
    split = "" if protocol.split == "all" else f" of the {mark(protocol.split)} split"
    return (
        f"{label}{mark(protocol.set)}: {protocol.images} images{split}{chosen}, {shape}, "
        f"{protocol.levels} levels, binarization {mark(protocol.binarization)}; "
        f"{protocol.kind}{'' if protocol.kind == str(Kind.EXACT) else ' of'} log p({protocol.about}){draws}"
        f"{'' if protocol.were_log_z_known is None else f', {protocol.were_log_z_known} but for log Z'}"
    )


def _numbers(group: Group) -> Columns:
    """Rank, number and cost of each row, and active units where models have latents."""
    rows, unit = group.rows, group.unit

    def rank(row: Row) -> str:
        above = row.to_row_above
        return or_dash(row.rank) + (f" {_SAME}" if above is not None and not above.significant else "")

    columns = {
        "rank": [rank(row) for row in rows],
        UNITS[unit]: [with_error(row.in_unit(unit), decimals(row, unit)) for row in rows],
        **_error_rates(rows),
        **_errors_of_log_z(rows, unit),
        "parameters": [or_dash(row.parameters, "{:,}") for row in rows],
        "steps": [or_dash(row.step) for row in rows],
        "time": ["-" if row.seconds is None else duration(row.seconds) for row in rows],
        "steps/s": [or_dash(row.steps_per_second, "{:.3g}") for row in rows],
    }
    if any(row.active_units is not None for row in rows):
        counts = ["-" if (of := row.active_units) is None else f"{of.active}/{of.units}" for row in rows]
        columns["active units"] = counts
    return columns


def _error_rates(rows: Sequence[Row]) -> Columns:
    """Share of images that are put into a class other than their own; no column where none was measured."""
    if all(row.error_rate is None for row in rows):
        return {}
    return {"error rate": [or_dash(row.error_rate, "{:.4g} %") for row in rows]}


def _errors_of_log_z(rows: Sequence[Row], unit: str) -> Columns:
    """What an estimated log Z adds to the errors; no column where none is estimated."""
    if all(row.error_of_log_z(unit) is None for row in rows):
        return {}
    return {"± from log Z": [or_dash(row.error_of_log_z(unit), f"{{:.{DIGITS[unit]}f}}") for row in rows]}


def _pairs(group: Group, mark: Mark = _plain) -> Columns:
    """Difference of each row to the group's reference."""
    unit = group.unit
    digits = decimals(group.rows[0], unit) + 1
    columns: Columns = {f"difference to {mark(group.reference)}": [], "95 % interval": [], "significant": []}
    for row in group.rows:
        pair = row.to_reference
        if pair is None:
            cells = ["reference", "", ""]
        else:
            ends = pair.in_unit(unit).interval
            interval = "-" if ends is None else f"[{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]"
            significant = "-" if ends is None else "yes" if pair.significant else "no"
            cells = [with_error(pair.in_unit(unit), digits, "+"), interval, significant]
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return columns


def _remarks(group: Group, mark: Mark = _plain) -> list[str]:
    """What must be known to read a group's table."""
    better = "higher" if group.unit == "nats" else "lower"
    remarks = [f"{UNITS[group.unit]} per image ± standard error over images; {better} is better"]
    if group.unit == "bits_per_dim":
        remarks[0] = f"bits/dim ± standard error over images; {better} is better"
    if any(row.to_row_above is not None and not row.to_row_above.significant for row in group.rows):
        remarks.append(f"{_SAME} not significantly worse than the row above")
    if any(row.steps_per_second is not None for row in group.rows):
        remarks.append("time is that of training with validation and checkpoints, steps/s is without them")
    remarks += group.notes
    remarks += [f"{mark(row.run)}: {note}" for row in group.rows for note in row.notes]
    for field, values in group.stated.items():
        remarks.append(f"differs, but does not prevent a ranking: {field}: {_by_value(values, mark)}")
    return remarks


def _apart(result: Comparison, mark: Mark = _plain) -> list[str]:
    """What keeps groups apart, and the rule for differences."""
    lines = []
    if result.differences:
        fields = "; ".join(f"{field}: {_by_value(values, mark)}" for field, values in result.differences.items())
        lines.append(f"not ranked across groups, since their protocols differ in {fields}")
    if any(map(_compared, result.groups)):
        lines.append(result.rule)
    return lines


def _by_value(values: Mapping[str, object], mark: Mark) -> str:
    """``value (names), value (names)``; of a hash the beginning."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        text = "nothing" if value is None else size(value) if isinstance(value, tuple) else str(value)
        names.setdefault(f"{text[:12]}..." if len(text) == 64 else text, []).append(name)
    return ", ".join(f"{mark(text)} ({', '.join(map(mark, owners))})" for text, owners in names.items())


def _aligned(columns: Columns) -> list[str]:
    """A table for a terminal; names and ranks to the left, the rest to the right."""
    padded = []
    for head, cells in columns.items():
        width = max(map(len, (head, *cells)))
        side = "<" if head in ("rank", "run") else ">"
        padded.append([f"{cell:{side}{width}}" for cell in (head, *cells)])
    return ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]


def _piped(columns: Columns) -> list[str]:
    """The same in Markdown."""
    rule = ["---" if head in ("rank", "run", "model", "claim") else "---:" for head in columns]
    rows: list[Sequence[str]] = [list(columns), rule, *zip(*columns.values(), strict=True)]
    return [f"| {' | '.join(cells)} |" for cells in rows]


def _wrapped(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, COLUMNS, subsequent_indent="  ")]
