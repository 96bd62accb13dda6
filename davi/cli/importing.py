"""``davi import``: an ordinary run folder from weights that others published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi import recipes
from davi.cli.options import Request
from davi.cli.sets import anchored
from davi.config import override, parse
from davi.data import DataConfig
from davi.errors import UserError
from davi.models import AttentiveVAE
from davi.published.attentive_h5 import import_h5
from davi.recipes import Recipe
from davi.runs import create_whole

_USUAL: dict[tuple[recipes.Shape, int], dict[str, Any]] = {
    ((3, 32, 32), 256): {"set": "cifar10"},
    ((1, 28, 28), 2): {"set": "omniglot28", "binarization": "dynamic"},
}
"""The sets for which the authors published weights."""


def run(request: Request) -> int:
    """Read the file, and only if all of it fits write the run; the exit status."""
    options = request.options
    base = recipes.load(options.recipe) if options.recipe is not None else None
    if base is not None and base.model_name != AttentiveVAE.name:
        raise UserError(f"--recipe: got {options.recipe}, a {base.model_name}, expected one of {AttentiveVAE.name}")
    sections = {} if base is None else base.to_dict()
    sections.get("model", {}).pop("name", None)
    given = override(sections, request.assignments)
    shape, levels, config, weights, notes = import_h5(options.file, given.get("model"))
    data = _data(given.get("data"), shape, levels)
    folder = Path(options.run)
    recipe = Recipe(folder.name, f"imported from {Path(options.file).name}", AttentiveVAE.name, config, data, None)
    model = recipes.build(recipe, shape, levels)
    model.load_state_dict(weights)
    create_whole(folder, recipe.to_dict(), model, {"imported": Path(options.file).name})
    for note in notes:
        print(note)
    where = "unknown: give --data when evaluating" if data is None else f"{data.set} ({data.binarization} binarisation)"
    print(f"images of {'x'.join(map(str, shape))} with {levels} levels; data set: {where}")
    print(f"the run is {folder}")
    return 0


def _data(given: Mapping[str, Any] | None, shape: recipes.Shape, levels: int) -> DataConfig | None:
    """The data section: what the user gave over what the authors used for such images."""
    values = {**_USUAL.get((shape, levels), {}), **(given or {})}
    if "set" not in values:
        return None
    data = anchored(parse(DataConfig, values, "command line"))
    if data.set in recipes.GEOMETRY and recipes.geometry(data) != (shape, levels):
        got, want = recipes.geometry(data), (shape, levels)
        raise UserError(
            f"data: got {data.set} with images {list(got[0])} of {got[1]} levels, expected {list(want[0])} of {want[1]}"
        )
    return data
