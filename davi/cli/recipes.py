"""``davi recipes``: what comes with the program. Without torch, for a quick answer."""

from __future__ import annotations

import shutil
import textwrap

from davi import recipes
from davi.cli.options import Request
from davi.config import load_yaml
from davi.errors import UserError


def run(request: Request) -> int:
    """List the recipes of each model with their descriptions, or print the file of one; the exit status."""
    action, name = request.options.action, request.options.name
    if action == "show":
        if name is None:
            raise UserError("recipes show: got no name, expected one (davi recipes lists them)")
        path = recipes.find(name)
        load_yaml(path)  # what is no recipe is not shown as one
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    if name is not None:
        raise UserError(f"recipes list: got {name!r}, expected no name (davi recipes show {name}?)")
    models: dict[str, list[str]] = {}
    for known in recipes.names():
        models.setdefault(load_yaml(recipes.find(known))["model"]["name"], []).append(known)
    print("\n\n".join(f"{model}\n{_table(members)}" for model, members in sorted(models.items())))
    return 0


def _table(names: list[str]) -> str:
    """A line or more for each of these recipes, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns, 120)
    column = max(map(len, names)) + 4
    rows = []
    for name in names:
        description = textwrap.wrap(recipes.describe(name), max(width - column, 30))
        rows.append(f"{'  ' + name:<{column}}" + ("\n" + " " * column).join(description))
    return "\n".join(rows)
