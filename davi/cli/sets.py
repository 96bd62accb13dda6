"""The images of a command: paths, options that no longer apply to other images, and notes."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from davi import recipes
from davi.data import DataConfig, DataSets, Selection, has_validation, kind_of, load, select, unused
from davi.data.config import HOW_READ
from davi.data.labels import SOURCES, UnlabeledError
from davi.data.sources import training_images
from davi.errors import UserError, one_line
from davi.progress import ProgressBar
from davi.recipes import Recipe
from davi.sets import is_named, refuse_elsewhere

_VALIDATION = 0.05
"""Share of a folder for validation, where a recipe gives a number of images of its own set."""


def load_told(data: DataConfig, out: TextIO) -> DataSets:
    """Load images, with progress on standard error, and write notes about them.

    Raises:
        UserError: as :func:`davi.data.load` does.
    """
    refuse_elsewhere(data.set, data.levels)
    with ProgressBar("decoding") as progress:
        sets = load(data, progress)
    followed = data.binarization != "none"
    notes = [note for note in sets.notes if not (followed and "give --data.binarization" in note)]
    tell([*notes, sets.told], out)
    return sets


def select_told(data: DataConfig, split: str | None, binary: bool, levels: int) -> Selection:
    """Select images that a trained model is to look at, and write notes about them on standard error.

    Arguments:
        data, split, binary: as for :func:`davi.data.select`.
        levels: of the model. What could be read otherwise is told only where the images do not have them.

    Raises:
        UserError: as :func:`davi.data.select` does.
    """
    refuse_elsewhere(data.set, data.levels)
    with ProgressBar("decoding") as progress:
        chosen = select(data, split, progress, binary)
    fits = chosen.images.levels == levels
    tell([note for note in chosen.notes if not (fits and "give --data." in note)], sys.stderr)
    return chosen


@contextmanager
def needing_labels(name: str | None) -> Iterator[None]:
    """Within it, images without labels are refused on behalf of a network that cannot do without them.

    Arguments:
        name: of the network; None: it can, and the labels were asked for in vain.
    """
    try:
        yield
    except UnlabeledError as error:
        if name is None:
            raise
        raise UserError(f"data: {error.why}; expected images with labels, which {name} needs ({SOURCES})") from None


def tell(notes: Iterable[str], out: TextIO) -> None:
    """Write notes about images, a line each."""
    for note in notes:
        print(f"data: {one_line(note)}", file=out)


def anchored(data: DataConfig) -> DataConfig:
    """The same with absolute paths, so that a run can be evaluated from any folder."""

    def absolute(path: str | None) -> str | None:
        try:
            return None if path is None else str(Path(path).expanduser().absolute())
        except RuntimeError:  # ~NAME
            raise UserError(f"data: got {path!r}, expected a path; there is no such user") from None

    name, prefix = data.set, "hub:" if data.set.startswith("hub:") else ""
    path = name.removeprefix(prefix)
    if not is_named(name) and (not prefix or Path(path).expanduser().exists()):
        name = f"{prefix}{absolute(path)}"
    return dataclasses.replace(
        data, set=name, root=absolute(data.root), test=absolute(data.test), cache=absolute(data.cache)
    )


def of_another_set(own: DataConfig, data: DataConfig) -> list[str]:
    """Assignments that reset options which belong to the recipe's own set or do not apply to the other one.

    Arguments:
        own: of the recipe or run.
        data: the same with the user's set.
    """
    plain = DataConfig()
    inherited = [key for key in ("levels", "test", *unused(data)) if getattr(own, key) == getattr(data, key)]
    changed = [key for key in dict.fromkeys(inherited) if getattr(own, key) != getattr(plain, key)]
    return [f"--data.{key}={json.dumps(getattr(plain, key))}" for key in changed]


def of_run(path: Path, assignments: Sequence[str], undone: Sequence[str] = ()) -> Recipe:
    """The recipe of a run with the user's assignments.

    Runs of older versions may say where and how images are read in ways that their set has no use for: it never had.

    Arguments:
        path: of the run's recipe.
        assignments: the user's; they have the last word.
        undone: assignments that come before those.
    """
    own, recipe = recipes.load(path).data, recipes.load(path, [*undone, *assignments])
    if own is None or recipe.data is None or anchored(own).set != anchored(recipe.data).set:
        return recipe
    useless = of_another_set(anchored(own), anchored(recipe.data))
    useless = [word for word in useless if word.startswith(tuple(f"--data.{key}=" for key in HOW_READ))]
    return recipes.load(path, [*useless, *undone, *assignments]) if useless else recipe


def adapted(load: Callable[[Sequence[str]], Recipe], assignments: Sequence[str], say: Callable[[str], None]) -> Recipe:
    """A recipe with the user's assignments. Where these name another set, options that cannot fit it are changed.

    Arguments:
        load: gives the recipe with assignments laid over it.
        assignments: the user's; they always have the last word.
        say: told of every change that the images or their split depend on.

    Raises:
        UserError: as :func:`davi.recipes.load` does.
    """
    own, recipe = load(()).data, load(assignments)
    if own is None or recipe.data is None or anchored(own).set == anchored(recipe.data).set:
        return recipe
    changes = of_another_set(own, recipe.data)
    given = {word.removeprefix("--").partition("=")[0] for word in assignments}
    if own.levels is not None and "data.levels" not in given:
        say(f"data.levels: those of {recipe.data.set} in place of the recipe's {own.levels}")
    if own.binarization != "none" and "data.binarization" not in given:
        say(f"data.binarization: {own.binarization} as in the recipe; --data.binarization none keeps the gray values")
    if kind_of(recipe.data.set) == "folder" and "data.validation" not in given:
        path = Path(recipe.data.set).expanduser()
        test = None if recipe.data.test is None else Path(recipe.data.test)
        if own.validation and has_validation(path, test):
            changes.append("--data.validation=0")
            say(f"data.validation: 0 in place of the recipe's {own.validation:g}; {path} has its own validation images")
        elif own.validation >= 1:
            changes.append(f"--data.validation={_VALIDATION}")
            say(
                f"data.validation: {_VALIDATION} in place of the recipe's {own.validation:g} images, which are of "
                f"{own.set}"
            )
    elif own.validation >= 1 and "data.validation" not in given:
        changes += _validation_of_few(own, recipe.data, say)
    return load([*changes, *assignments])


def _validation_of_few(own: DataConfig, data: DataConfig, say: Callable[[str], None]) -> list[str]:
    """The share of an array for validation, if the recipe's number would take most of it."""
    total = training_images(data)
    if total is None or 2 * own.validation <= total:
        return []
    share = _VALIDATION if total > 1 else 0
    what = f"{data.set} has {total} to train on"
    say(f"data.validation: {share} in place of the recipe's {own.validation:g} images; {what}")
    return [f"--data.validation={share}"]
