"""``davi recipes``: a table that is true, filters, and one recipe as it is."""

from __future__ import annotations

import pytest

from davi import recipes
from davi.cli import main
from davi.cli.verbs import VERBS
from davi.recipes.catalog import CATALOG, START

Capture = pytest.CaptureFixture[str]


def table(capsys: Capture, *words: str) -> list[str]:
    """The rows of models and of classifiers, without the heads and what stands below the tables."""
    assert main(["recipes", *words]) == 0
    *tables, below = capsys.readouterr().out.split("\n\n")
    assert below.startswith("davi recipes show NAME")
    rows = []
    for lines in (found.splitlines() for found in tables):
        head, *rest = lines[1:] if lines[0].startswith("classifiers: ") else lines
        assert head.split() == ["NAME", "DATA", "SIZE", "COST"]
        assert max(map(len, lines)) <= 80 or "--all" in words
        rows += rest
    return rows


def test_recipes_are_listed(capsys: Capture) -> None:
    names = [row.split()[0] for row in table(capsys)]
    assert sorted(names) == [name for name in recipes.names() if not name.endswith("_tiny")]
    assert sorted(row.split()[0] for row in table(capsys, "--all")) == recipes.names()
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.endswith(f"\nstart with {START}: davi train {START}\n")


def test_rows_are_filtered_by_all_words(capsys: Capture) -> None:
    rows = table(capsys, "mnist", "minutes")
    assert len(rows) > 3
    assert all("mnist" in row and "minutes" in row for row in rows)
    assert table(capsys, "list", "MNIST", "minutes") == rows
    (row,) = table(capsys, START)
    assert row.split() in [other.split() for other in table(capsys)]


def test_every_recipe_has_a_row() -> None:
    """Their sizes are compared with the models in test_recipes.py."""
    assert list(CATALOG) == recipes.names()
    assert all(0 < len(entry.cost) <= 20 for entry in CATALOG.values())


def test_a_recipe_is_shown(capsys: Capture) -> None:
    assert main(["recipes", "show", START]) == 0
    assert capsys.readouterr().out == recipes.find(START).read_text(encoding="utf-8")


def test_without_a_verb_there_is_help(capsys: Capture) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: davi VERB")
    assert all(f"  {verb} " in said for verb in VERBS)
    assert f"davi train {START}" in said
