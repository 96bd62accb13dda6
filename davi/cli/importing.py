"""``davi import``: an ordinary run folder from weights that others published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from davi import recipes
from davi.cli.options import Request
from davi.cli.sets import anchored
from davi.config import load_yaml, override, parse, to_dict
from davi.data import DataConfig
from davi.errors import UserError, one_line
from davi.published.imported import Given, Imported, Known
from davi.published.importing import IMPORTERS, Form
from davi.recipes import Recipe
from davi.runs import create_whole


def run(request: Request) -> int:
    """Read the file, and only if all of it fits write the run; the exit status."""
    options = request.options
    form = IMPORTERS[options.form]
    base = recipes.load(options.recipe) if options.recipe is not None else None
    if base is not None and base.model_name != form.model:
        raise UserError(f"--recipe: got {options.recipe}, a {base.model_name}, expected one of {form.model}")
    sections = {} if base is None else base.to_dict()
    sections.get("model", {}).pop("name", None)
    given = override(sections, request.assignments)
    geometry = None if base is None or base.data is None or not _named(base.data) else recipes.geometry(base.data)
    candidates = partial(known, form.model) if base is None else tuple
    found = _read(form, Path(options.file), Given(given.get("model") or {}, geometry, candidates), options.mismatches)
    own = given.get("data") or {}
    data = _data({**found.data, **own}, found.shape, found.levels, bool(own))
    folder = Path(options.run)
    recipe = Recipe(folder.name, f"imported from {Path(options.file).name}", form.model, found.config, data, None)
    model = recipes.build(recipe, found.shape, found.levels)
    model.load_state_dict(found.state)
    create_whole(folder, recipe.to_dict(), model, {"imported": Path(options.file).name})
    for note in found.notes:
        print(note)
    where = "unknown: give --data when evaluating" if data is None else f"{data.set} ({data.binarization} binarisation)"
    print(f"images of {'x'.join(map(str, found.shape))} with {found.levels} levels; data set: {where}")
    print(f"the run is {folder}")
    return 0


def _read(form: Form, path: Path, given: Given, mismatches: bool) -> Imported:
    """What the file holds; if that does not fit, and the user wants to know, everything that does not."""
    try:
        return form.read(path, given)
    except UserError as error:
        for line in error.details if mismatches else ():
            print(one_line(line))
        raise


def _named(data: DataConfig) -> bool:
    return data.set in recipes.GEOMETRY or data.set in recipes.ELSEWHERE


def known(model: str) -> Iterator[Known]:
    """The program's recipes for a model."""
    for name in recipes.names():
        if load_yaml(recipes.find(name))["model"]["name"] != model:
            continue  # before the time is spent on judging every option
        recipe = recipes.load(name)
        if recipe.data is not None:
            options = {key: value for key, value in recipe.to_dict()["model"].items() if key != "name"}
            yield Known(name, options, recipes.geometry(recipe.data), to_dict(recipe.data))


def _data(values: Mapping[str, Any], shape: recipes.Shape, levels: int, own: bool) -> DataConfig | None:
    """The data section: what the user gave, if anything (``own``), over what the authors used for such images.

    Authors may have used a set with other images than it has here, such as CIFAR-10 with fewer bits: then none.
    """
    if "set" not in values:
        return None
    data = anchored(parse(DataConfig, values, "command line"))
    if _named(data) and recipes.geometry(data) != (shape, levels):
        if not own:
            return None
        got, want = recipes.geometry(data), (shape, levels)
        raise UserError(
            f"data: got {data.set} with images {list(got[0])} of {got[1]} levels, expected {list(want[0])} of {want[1]}"
        )
    return data
