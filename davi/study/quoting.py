"""Published numbers as text, with the zeros at their end that YAML does not keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Published = Mapping[str, str | float | int]
"""Heading of a column -> what was published."""


def quoted(published: Published, column: str, every: Iterable[Published]) -> str:
    """What a row has in a column; empty where it has nothing.

    A number has as many decimals as that of the column which was published with most: YAML reads 3.50 as 3.5.

    Arguments:
        published: of the row.
        column: its heading.
        every: of all rows of the table.
    """
    value = published.get(column)
    if not isinstance(value, float):
        return "" if value is None else str(value)
    numbers = [str(row[column]) for row in every if isinstance(row.get(column), float)]
    return f"{value:.{max(len(text.partition('.')[2]) for text in numbers)}f}"
