"""``davi recipes``: the recipes that come with the program. It does not import torch, so that it answers at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from davi import recipes
from davi.cli.options import Request
from davi.config import load_yaml
from davi.errors import UserError
from davi.recipes.catalog import CATALOG, START

_CROSS_ENTROPY = "cross_entropy"
"""The objective of classifiers (:mod:`davi.objectives.cross_entropy`)."""

_HEAD = ("NAME", "DATA", "SIZE", "COST")
_CLASSIFIERS = "classifiers: which class an image is of, not how probable the image is"


def run(request: Request) -> int:
    """List the recipes in a table, or print the file of one; the exit status."""
    action, *words = request.options.words or ["list"]
    if action == "show":
        _show(words)
    else:
        _list(words if action == "list" else [action, *words], request.options.all)
    return 0


def _show(words: Sequence[str]) -> None:
    if len(words) != 1:
        got = f"{len(words)} names" if words else "no name"
        raise UserError(f"recipes show: got {got}, expected one (davi recipes lists them)")
    path = recipes.find(words[0])
    load_yaml(path)  # what is no recipe is not shown as one
    print(path.read_text(encoding="utf-8"), end="")


def _list(words: Sequence[str], tests: bool) -> None:
    """The recipes whose row or description has all these words in it, those of classifiers by themselves."""
    models: list[tuple[str, ...]] = []
    classifiers: list[tuple[str, ...]] = []
    for name in recipes.names():
        if tests or not name.endswith("_tiny"):
            entry = CATALOG[name]
            recipe = load_yaml(recipes.find(name))
            row = (name, str(recipe["data"]["set"]), _size(entry.parameters), entry.cost)
            searched = "\n".join((*row, str(recipe["description"]))).lower()
            if all(word.lower() in searched for word in words):
                (classifiers if _classifies(recipe) else models).append(row)
    if not models and not classifiers:
        raise UserError(
            f"recipes: got {' '.join(words)!r}, expected words that a recipe's row or description has, such as mnist"
        )
    if models:
        print("\n".join(_table([_HEAD, *models])))
    if classifiers:
        print(("\n" if models else "") + _CLASSIFIERS)
        print("\n".join(_table([_HEAD, *classifiers])))
    print("\ndavi recipes show NAME shows one in full, davi recipes WORD filters the list")
    if any(name == START for name, *_ in models):
        print(f"start with {START}: davi train {START}")


def _classifies(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe trains a classifier: its objective says so, and torch need not be imported to know."""
    return bool(recipe.get("training", {}).get("objective", {}).get("name") == _CROSS_ENTROPY)


def _table(rows: Iterable[tuple[str, ...]]) -> Iterable[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, data, size, cost = row
        yield f"{name:<{widths[0]}}  {data:<{widths[1]}}  {size:>{widths[2]}}  {cost}"


def _size(parameters: int) -> str:
    """A number of parameters, short."""
    if parameters >= 10**6:
        return f"{parameters / 10**6:.3g}M"
    return f"{parameters / 10**3:.3g}k"
