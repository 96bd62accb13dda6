"""The result of a study as tables: for the terminal, as Markdown and as JSON.

Columns of ours and published ones are never the same, and are told apart by their headings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from davi.errors import UserError
from davi.files import replace_text, writing
from davi.formatting import UNITS
from davi.measurements import read_json
from davi.records import read, to_json
from davi.study.format import QUANTITIES
from davi.study.quantities import LAYER_DECIMALS, LAYERS
from davi.study.quoting import quoted
from davi.study.result import Difference, Number, Row, StudyResult, TableResult

_WIDTH = 118

_ERRORS = (
    "± is a standard error over the test images; after it, in brackets, one over the seeds. Differences are paired "
    "over the same images; * at least two standard errors over the images, with a 95 % interval without zero, and with "
    "several seeds a 95 % interval over these without zero."
)


def headings(result: StudyResult, table: TableResult) -> tuple[list[str], list[str]]:
    """Headings of our columns and of the published ones."""
    unit = "" if table.unit is None else f", {UNITS[table.unit]}"
    costs = ("bound", "elbo", "rate", "reconstruction", "training")
    ours = [QUANTITIES[name] + (unit if name in costs else "") for name in result.measured]
    if _compares(result, table):
        ours.insert(result.measured.index("bound") + 1, f"difference to {table.reference!r}{unit}")
    return ours, list(table.columns)


def _compares(result: StudyResult, table: TableResult) -> bool:
    """Whether the table has a column of differences, beside that of the bound."""
    return table.reference is not None and len(table.rows) > 1 and "bound" in result.measured


def cells(result: StudyResult, table: TableResult, row: Row) -> tuple[list[str], list[str]]:
    """What stands in our columns and in the published ones; a dash where nothing is known."""
    ours = []
    for name in result.measured:
        if name in LAYERS:
            values = row.layers.get(name, ())
            ours.append(" ".join(f"{value:.{LAYER_DECIMALS[name]}f}" for value in values) or "-")
        else:
            number = row.numbers.get(name)
            text = "-" if number is None else _number(number)
            ours.append(f"{text} ({row.claim})" if name == "bound" and number is not None else text)
    if _compares(result, table):
        first = row.numbers.get("bound")
        decimals = 2 if first is None else first.decimals
        text = "-" if row.difference is None else _difference(row.difference, decimals)
        ours.insert(result.measured.index("bound") + 1, text)
    every = [one.published for one in table.rows]
    return ours, [quoted(row.published, name, every) or "-" for name in table.columns]


def _number(number: Number) -> str:
    text = f"{number.mean:,.{number.decimals}f}" + _with(number.over_images, number.decimals)
    return text + (f" [{number.over_seeds:,.{number.decimals}f}]" if number.over_seeds else "")


def _difference(difference: Difference, decimals: int) -> str:
    text = f"{difference.mean:+.{decimals}f}" + _with(difference.over_images, decimals)
    seeds = "" if difference.over_seeds is None else f" [{difference.over_seeds:.{decimals}f}]"
    return text + seeds + ("*" if difference.significant else "")


def _with(error: float | None, decimals: int) -> str:
    return "" if error is None else f" ± {error:.{decimals}f}"


def _rows(result: StudyResult, table: TableResult) -> list[list[str]]:
    """Heading and rows of a table, ours before the published columns."""
    ours, published = headings(result, table)
    rows = [["", *ours, *(f"published: {name}" for name in published)]]
    rows += [[row.arm, *(cell for part in cells(result, table, row) for cell in part)] for row in table.rows]
    return rows


def told(table: TableResult) -> list[str]:
    """What has to be said about a table."""
    lines = [f"Ours: {table.measured_on or 'nothing is measured yet'}."]
    lines += [f"Published: {table.published}."] if table.published else []
    lines += [table.note] if table.note else []
    return lines + [f"{row.arm}: {note}." for row in table.rows for note in row.notes]


def of_all(result: StudyResult) -> list[str]:
    """What has to be said about all tables of a study."""
    lines = [f"Budget of each training: {result.budget}; seeds: {result.seeds}."]
    lines += [f"Changed in all arms: {', '.join(result.overrides)}."] if result.overrides else []
    lines += [_ERRORS] if any(table.is_measured for table in result.tables) else []
    lines += [f"Not measured yet: {'; '.join(result.missing)}."] if result.missing else []
    return [*lines, *result.notes, *(f"Source: {source}" for source in result.sources)]


def to_terminal(result: StudyResult) -> str:
    """The tables as text."""
    lines = [result.title]
    for table in result.tables:
        notes = [line for text in told(table) for line in wrap(text, _WIDTH)]
        lines += ["", table.title, *_aligned(_rows(result, table)), *notes]
    return "\n".join([*lines, "", *(line for text in of_all(result) for line in wrap(text, _WIDTH))])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}" for i, (cell, width) in enumerate(found)
        ).rstrip()
        for found in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def to_markdown(result: StudyResult) -> str:
    """The tables as Markdown."""
    lines = [f"# {result.title}", "", result.question, ""]
    for table in result.tables:
        head, *rows = _rows(result, table)
        lines += [f"## {table.title}", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
        lines += [line for text in told(table) for line in (text, "")]
    lines += [line for text in of_all(result) for line in (text, "")]
    return "\n".join(lines)


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def write(result: StudyResult, folder: Path) -> tuple[Path, Path]:
    """Write ``table.md`` and ``table.json``.

    Arguments:
        result: of the study.
        folder: an existing one.

    Raises:
        UserError: if one of them cannot be written.
    """
    markdown, as_json = folder / "table.md", folder / "table.json"
    with writing(str(markdown)):
        replace_text(markdown, to_markdown(result))
    with writing(str(as_json)):
        replace_text(as_json, json.dumps(to_json(result), indent=2, allow_nan=False) + "\n")
    return markdown, as_json


def load(path: Path) -> StudyResult:
    """Read a ``table.json``.

    Raises:
        UserError: one line, if there is none, or it is not in the form of
            :class:`~davi.study.result.StudyResult`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected what davi study table writes")
    return read(StudyResult, read_json(path), str(path))
