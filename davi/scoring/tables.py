"""Scores as CSV and as a table for the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from davi.data import Images
from davi.evaluation.log_z import LogZ
from davi.evaluation.scores import RAW
from davi.scoring.result import Calibration, Column, Files, Scores

_LONGEST_NAME = 44
_FEW = 100
"""Held-out files; with fewer, the least p is worth a word."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes a cell for a formula by."""


def to_csv(scores: Scores, by: str) -> str:
    """One row for each file, the oddest first: ``file``, ``images`` (patches), and of each score its value in bits per
    dimension, ``_rank`` and ``_p`` (empty without held-out files).

    A name that a spreadsheet would take for a formula gets ``./`` before it, and stays a path of the same file.
    """
    counts = scores.files.counts
    heads = [f"{name}{end}" for name in scores.columns for end in ("", "_rank", "_p")]
    rows: list[list[object]] = [["file", "images", *heads]]
    for i in scores.order(by):
        cells = [cell for column in scores.columns.values() for cell in _cells(column, int(i))]
        rows.append([safe(scores.files.names[i]), int(counts[i]), *cells])
    return written(rows)


def patches_csv(scores: Scores) -> str:
    """One row for each image, in the order of the set: ``file``, ``patch`` (from 0), ``top`` and ``left`` in pixels
    where they are known, and the scores. Patches of a file are no independent images, so they get no p-values."""
    rows: list[list[object]] = [["file", "patch", "top", "left", *scores.patches]]
    for i, place in enumerate(patch_rows(scores.images, scores.files)):
        rows.append([*place, *(f"{values[i]:.6f}" for values in scores.patches.values())])
    return written(rows)


def patch_rows(images: Images, files: Files) -> Iterator[tuple[object, ...]]:
    """The file of each image, its number in it, and its corner where that is known."""
    seen = dict[int, int]()
    for i, place in enumerate(files.place.tolist()):
        number = seen[place] = seen.get(place, -1) + 1
        corner = ["", ""] if images.corners is None else images.corners[i].tolist()
        yield (safe(files.names[place]), number, *corner)


def to_terminal(scores: Scores, by: str, top: int) -> str:
    """The oddest files as a table, and how to read it."""
    shown = scores.order(by)[:top]
    names = [shortened(scores.files.names[i]) for i in shown]
    width = max(map(len, [*names, "file"]))
    heads = [f"{title(name):>10}  {'p':<6}" for name in scores.columns]
    lines = [f"     {'file':<{width}}" + "".join(f"  {head}" for head in heads).rstrip()]
    for row, (i, name) in enumerate(zip(shown, names, strict=True), start=1):
        cells = "".join(
            f"  {column.values[i]:>10.4f}  {p_value(column, int(i)):<6}" for column in scores.columns.values()
        )
        lines.append(f"{row:>4} {name:<{width}}{cells}".rstrip())
    lines.append("")
    for name, column in scores.columns.items():
        lines.append(f"{title(name)}: {column.score.rule}; {column.score.direction}")
    return "\n".join(lines)


def shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """A name on one line, without what a terminal would obey; of a long one the end."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= most else f"...{plain[3 - most :]}"


def said_of(calibration: Calibration, samples: int | None) -> str:
    """What the p-values are, in words."""
    n = len(calibration.files)
    draws = "" if samples is None else f", K = {samples}"
    least = f"; no p is below {1 / (n + 1):.2g}" if n < _FEW else ""
    return f"p: (1 + held-out files at least as odd) / (n + 1), among {calibration.words}{draws}{least}"


def said_of_log_z(log_z: LogZ) -> str:
    """What an estimated partition function adds to all scores, in words."""
    facts = ", ".join(f"{name} {text}" if i else f"{name}: {text}" for i, (name, text) in enumerate(log_z.facts()))
    error = log_z.bits_per_dim_error
    known = "an unknown amount" if error is None else f"± {error:.2g} bits/dim"
    shared = f"its error, {known}, is the same for all files: it moves no rank and no p"
    return "\n".join([f"{facts}; {shared}", *(f"log Z: {warning}" for warning in log_z.warnings)])


def title(name: str) -> str:
    """A score as people write it."""
    return "bits/dim" if name == RAW else f"LLR>{name[4:]}" if name.startswith("llr_") else name


def _cells(column: Column, i: int) -> list[str]:
    value = f"{column.values[i]:.6f}"
    if column.ranked is None or math.isnan(column.ranked.p[i]):
        return [value, "", ""]
    return [value, str(int(column.ranked.ranks[i])), f"{column.ranked.p[i]:.6g}"]


def p_value(column: Column, i: int) -> str:
    """The p-value of a file as text; a dash where it has none."""
    found = float("nan") if column.ranked is None else float(column.ranked.p[i])
    return "-" if math.isnan(found) else f"{found:.3g}" if found >= 0.001 else f"{found:.0e}"


def safe(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"./{name}" if name.startswith(_FORMULA) else name


def written(rows: list[list[object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
