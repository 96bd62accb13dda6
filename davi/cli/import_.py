"""``davi import``: an ordinary run folder from weights that others published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from davi import recipes
from davi.cli.options import Request
from davi.cli.sets import anchored
from davi.config import load_yaml, override, parse, to_dict
from davi.data import DataConfig, geometry_of
from davi.data.sources import check_options
from davi.errors import UserError, one_line
from davi.keywords import DATA, assignments, check_known
from davi.models import RBM
from davi.published.importers import IMPORTERS, Form, read_weights
from davi.published.rbm import arrays_of, imported
from davi.published.reader import Given, Imported, Known
from davi.published.recognition import Kind
from davi.recipes import Recipe
from davi.renamed import complaint
from davi.runs import create_whole
from davi.sets import ELSEWHERE, Geometry, Shape, is_named


def run(request: Request) -> int:
    """Read the file, and only if all of it fits write the run; the exit status."""
    options = request.options
    form = IMPORTERS[options.form]
    base = recipes.load(options.recipe) if options.recipe is not None else None
    if base is not None and base.model_name != form.model:
        raise UserError(f"--recipe: got {options.recipe}, a {base.model_name}, expected one of {form.model}")
    sections = {} if base is None else base.to_dict()
    sections["model"] = {} if base is None else model_options(options.recipe, base, form.untold)
    given = override(sections, request.assignments)
    if words := complaint(given):
        raise UserError(f"command line: {words}")
    own = given.get("data") or {}
    candidates = partial(known, form) if base is None else tuple
    path = Path(options.file)
    if options.shape is not None and not form.shapeless:
        raise UserError(f"--shape: cannot be used with davi import {options.form}, whose files tell it")
    told = Given(given.get("model") or {}, named_geometry(own), candidates, options.shape)
    found = _read(options.form, path, told, options.mismatches)
    keep(found, form.model, Path(options.run), own, path.name)
    return 0


def keep(found: Imported, model_name: str, folder: Path, own: Mapping[str, Any], source: str) -> None:
    """Write the run, and say what it is.

    Arguments:
        found: what others have published.
        model_name: of the model.
        folder: of the run, new or empty.
        own: options of the images, as the user or the recipe gives them.
        source: where the weights are from.

    Raises:
        UserError: if the images are not those of the model, or the folder cannot be written.
    """
    theirs = found.data if own.get("set") in (None, found.data.get("set")) else {}
    data = _data({**theirs, **own}, found.shape, found.levels, bool(own))
    recipe = Recipe(folder.name, f"imported from {source}", model_name, found.config, data, None)
    model = recipes.build(recipe, found.shape, found.levels)
    model.load_state_dict(found.state)
    create_whole(folder, recipe.to_dict(), model, {"imported": source})
    for note in found.notes:
        print(note)
    where = "unknown: give --data when evaluating" if data is None else data.set
    if data is not None and data.binarization != "none":
        where += f" ({data.binarization} binarization)"
    print(f"images of {'x'.join(map(str, found.shape))} with {found.levels} levels; data set: {where}")
    print(f"the run is {folder}")


def import_rbm(
    source: Any, folder: Path, shape: Shape | None, data: str | Path | None, options: Mapping[str, Any]
) -> Path:
    """:func:`davi.import_rbm`; the folder of the run."""
    check_known(options, DATA, "davi.import_rbm")
    own = override({}, assignments("data", {**({} if data is None else {"set": str(data)}), **options})).get("data", {})
    given = Given(geometry=named_geometry(own), shape=shape)
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        found, name = read_weights("rbm", path, given), path.name
    else:
        found, name = imported(arrays_of(source), given), type(source).__name__
    keep(found, RBM.name, folder, own, name)
    return folder


def model_options(name: str, recipe: Recipe, untold: Sequence[str]) -> dict[str, Any]:
    """The options of a recipe's model, without those of ``untold`` that the recipe does not give itself."""
    own = load_yaml(recipes.find(name))["model"]
    options = recipe.to_dict()["model"]
    return {key: x for key, x in options.items() if key != "name" and (key not in untold or key in own)}


def named_geometry(own: Mapping[str, Any]) -> Geometry | None:
    """Shape and levels of the images that a recipe or the user names, where the set is a known one."""
    data = parse(DataConfig, own, "command line") if "set" in own else None
    return geometry_of(data) if data is not None and is_named(data.set) else None


def _read(form: Kind, path: Path, given: Given, mismatches: bool) -> Imported:
    """What the file holds; if that does not fit, and the user wants to know, everything that does not."""
    try:
        return read_weights(form, path, given)
    except UserError as error:
        for line in error.details if mismatches else ():
            print(one_line(line))
        raise


def known(form: Form) -> Iterator[Known]:
    """The program's recipes for a model."""
    for name in recipes.names():
        if load_yaml(recipes.find(name))["model"]["name"] != form.model:
            continue  # before the time is spent on judging every option
        recipe = recipes.load(name)
        if recipe.data is not None and recipe.model.likelihood.family != "autoregressive":  # nobody published any
            options = model_options(name, recipe, form.untold)
            yield Known(name, options, geometry_of(recipe.data), to_dict(recipe.data))


def _data(values: Mapping[str, Any], shape: Shape, levels: int, asked: bool) -> DataConfig | None:
    """The data section: what the user or the recipe gave over what the authors used for such images.

    A set that the user has asked for must have the images of the model, or the run could never be evaluated on it.
    Authors may have used a set with other images than it has here, such as CIFAR-10 with fewer bits: then none.
    """
    if "set" not in values:
        return None
    data = anchored(parse(DataConfig, values, "command line"))
    try:
        if data.set not in ELSEWHERE:
            check_options(data)
        got = geometry_of(data)
        if got != (shape, levels):
            images = f"images {list(got[0])} of {got[1]} levels, expected {list(shape)} of {levels}"
            hint = "; data.binarization: threshold makes bits of them" if got[0] == shape and levels == 2 else ""
            raise UserError(f"data: got {data.set} with {images}{hint}")
    except UserError:
        if asked:
            raise
        return None
    return data
