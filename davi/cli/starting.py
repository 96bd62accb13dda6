"""``davi train --from``: the run or the file whose weights a new run begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from davi import recipes
from davi.cli.import_ import known, model_options, named_geometry
from davi.cli.options import Request
from davi.cli.paths import check_source
from davi.config import load_yaml, override, to_dict
from davi.data.labels import classes_digest
from davi.errors import UserError
from davi.files import read_tensors
from davi.model import Claiming, Classifier
from davi.models import MODELS
from davi.published.importers import IMPORTERS, read_weights
from davi.published.reader import Given, Imported
from davi.published.recognition import Kind, recognized
from davi.published.torch_files import load_state
from davi.recipes import Recipe
from davi.renamed import complaint, read
from davi.runs import MODEL, RECIPE, START, PrintFunction, load_claiming, on_paper
from davi.training.start import HEAD


@dataclass(frozen=True)
class Source:
    """Weights to begin with.

    Arguments:
        name: as the user gave it.
        model: with these weights, the averaged ones where there are such.
        sections: what is known of its images and training: sections ``data`` and ``training`` of a recipe, if any.
        title: what a run that begins with it is called.
        classes: digest of the names of its classes; None where they are not known, or there are none.
    """

    name: str
    model: Claiming
    sections: Mapping[str, Any]
    title: str
    classes: str | None = None

    def has_other_classes(self, names: Sequence[str]) -> bool:
        """Whether it is a classifier of other classes than these."""
        known = self.classes is not None and isinstance(self.model, Classifier)
        return known and self.classes != classes_digest(names)

    def load(self, assignments: Sequence[str]) -> Recipe:
        """The recipe of a run with the same model, images and training, and assignments over it.

        Raises:
            UserError: as :func:`davi.recipes.load` does.
        """
        model = {"name": self.model.name, **to_dict(self.model.config)}
        values = {"name": self.title, "description": f"begun from {self.name}", "model": model, **self.sections}
        return recipes.laid_over(values, assignments, self.name, self.title)


def open_source(request: Request, say: PrintFunction) -> Source:
    """The weights that ``--from`` asks for.

    Arguments:
        request: of the user.
        say: told what was found.

    Raises:
        UserError: one line, if there are none, or they cannot be read.
    """
    path = check_source(request.options.source)
    kind = None if path.is_dir() else recognized(path)
    sections: Mapping[str, Any] = {}
    classes: str | None = None
    model: Claiming
    if path.is_dir() or kind == "davi":
        model, info = load_claiming(path, say)
        classes = info.get("protocol", {}).get("classes_sha256")
        file = path / RECIPE if path.is_dir() else path.with_name(RECIPE)
        if file.is_file() and (path.is_dir() or path.name == MODEL):
            sections = read(file)
    elif kind in IMPORTERS:
        found = _original(path, kind, request)
        cls: Any = MODELS[IMPORTERS[kind].model]
        model = cls(found.shape, found.levels, found.config)
        model.load_state_dict(found.state)
        for note in found.notes:
            say(note)
        sections = {"data": found.data or None}
    else:
        load_state(path)  # says what is wrong with it, unless it holds something else
        raise UserError(f"--from: got {path}, which holds other things than weights, expected a run or a checkpoint")
    kept = {key: sections[key] for key in ("data", "training", "stages") if sections.get(key) is not None}
    if request.options.recipe is None and "training" not in kept:
        kept |= _training(model, kept.get("data"), say)
    return Source(str(path), model, kept, str(sections.get("name") or path.resolve().stem), classes)


def _original(path: Path, kind: Kind, request: Request) -> Imported:
    """A checkpoint of an original program. What it does not tell comes from the recipe and the user's options."""
    form, base = IMPORTERS[kind], request.options.recipe
    if not form.untold:
        return read_weights(kind, path, Given())
    recipe = None if base is None else recipes.load(base)
    own: dict[str, Any] = {"model": {}}
    if recipe is not None and recipe.model_name == form.model:
        own = {**recipe.to_dict(), "model": model_options(base, recipe, form.untold)}
    given = override(own, [word for word in request.assignments if word.startswith("--model.")])
    if words := complaint(given):
        raise UserError(f"command line: {words}")
    options = {key: value for key, value in given["model"].items() if key != HEAD}
    return read_weights(kind, path, Given(options, named_geometry(own.get("data") or {}), partial(known, form)))


def _training(model: Claiming, data: Any, say: PrintFunction) -> dict[str, Any]:
    """The section of one of the program's own recipes whose model has the names and shapes of these weights, if there
    is any; best of one for the same images."""
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    fitting = []
    for name in recipes.names():
        if load_yaml(recipes.find(name))["model"]["name"] != model.name:
            continue
        recipe = recipes.load(name)
        cls: Any = MODELS[model.name]
        try:
            state = on_paper(name, partial(cls, model.shape, model.levels, recipe.model, model.classes), len(shapes))
        except UserError:  # larger, or not for these images
            continue
        if recipe.training is not None and {key: x.shape for key, x in state.items()} == shapes:
            fitting.append(recipe)
    if not fitting:
        return {}
    wanted = data.get("set") if isinstance(data, Mapping) else None
    best = min(fitting, key=lambda recipe: recipe.data is None or recipe.data.set != wanted)
    say(f"training: that of {best.name}, whose model has such weights")
    return {"training": best.to_dict()["training"]}


def check_same_source(run: Path, source: str) -> None:
    """Refuse to go on with a run that has begun with other weights than those that are asked for again.

    Raises:
        UserError: one line.
    """
    path = run / START
    begun = read_tensors(path)[1].get("started_from") if path.exists() else None
    if begun != str(Path(source)):
        words = f"{begun}, with which" if begun is not None else "no such option, without which"
        raise UserError(f"--from: got {source}, expected {words} {run} was begun; --resume needs none")
