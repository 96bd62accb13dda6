"""Which parts of a folder of images are for training, validation and test, where its sub-folders or the user say it.

A sub-folder says it by its name, :data:`NAMES`, in capitals or small letters: ``train`` and ``test`` together, and
``validation`` beside them, are the splits of a folder that holds nothing else. What could be meant in two ways is
refused; a class may be called ``train``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from davi.errors import UserError

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of the splits, in small letters."""

_SPELLED = {name: part for part, names in NAMES.items() for name in names}


@dataclass(frozen=True)
class Rule:
    """Which images of a folder are for what.

    Arguments:
        words: who said so; None where the content of each image decides.
        parts: top sub-folder -> split of all that is below it; None: not used.
        rest: split of all other images.
        notes: what the user should be told.
    """

    words: str | None = None
    parts: Mapping[str, str | None] = field(default_factory=dict)
    rest: str | None = None
    notes: tuple[str, ...] = ()


def split_folders(folder: Path) -> dict[str, list[str]]:
    """Sub-folders whose names are those of splits: split -> names as they are written, sorted."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        part = _SPELLED.get(path.name.lower())
        if part is not None and path.is_dir():
            found.setdefault(part, []).append(path.name)
    return found


def has_validation(folder: Path, test: Path | None = None) -> bool:
    """Whether a folder of images has a sub-folder with validation images of its own.

    Arguments:
        folder: the set.
        test: a folder of test images, where the user gives one.
    """
    own = set(split_folders(folder))
    return {"train", "validation"} <= own and (test is not None or "test" in own)


def has_test(folder: Path) -> bool:
    """Whether a folder of images has sub-folders with training and test images of its own."""
    return {"train", "test"} <= set(split_folders(folder))


def splits_among(folder: Path, names: Sequence[str]) -> set[str]:
    """The sub-folders that are splits, and no classes which happen to be called so.

    Arguments:
        folder: the set.
        names: relative paths of all its images.
    """
    own = split_folders(folder)
    found = {name for names_of_part in own.values() for name in names_of_part}
    alone = "train" in own and len(own) > 1 and all(name.partition("/")[0] in found for name in names)
    return found if alone or has_test(folder) else set()


def inside(folder: Path, test: Path) -> str | None:
    """The path of the test images relative to the folder that they are in; None if they are elsewhere.

    Raises:
        UserError: if it is the other way round.
    """
    root, place = folder.resolve(), test.resolve()
    if root.is_relative_to(place):
        raise UserError(f"data.test: got {test}, which holds all images of {folder}, expected other images for test")
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else None


def rule_of(folder: Path, names: Sequence[str], test: Path | None = None, place: str | None = None) -> Rule:
    """Which images of a folder are for what.

    Arguments:
        folder: its absolute path.
        names: relative paths of its images, without those for ``test``.
        test: a folder of test images, where the user gives one.
        place: where in ``folder`` it is (:func:`inside`).

    Raises:
        UserError: one line, if the names of the sub-folders could be meant in two ways.
    """
    own = {part: kept for part, found in split_folders(folder).items() if (kept := [n for n in found if n != place])}
    parts: dict[str, str | None] = {name: part for part, found in own.items() for name in found}
    others = [name for name in names if name.partition("/")[0] not in parts]
    alone = "train" in own and len(own) > 1 and not others  # and not the name of one class among others
    if test is not None:
        words = f"those in {test.name}/ for test"
        return _beside_test(folder, words, own, parts) if alone else Rule(words, rest="train")
    if {"train", "test"} <= own.keys():
        _refuse_twice(folder, own, others)
        return Rule(_in_words(own), parts)
    if "test" in own:
        name = own["test"][0]
        raise UserError(
            f"data.set: {folder} has {name}/ but no train/, expected both, or --data.test {folder / name}, which "
            "leaves the other images for training (a class of this name needs another one)"
        )
    if alone:
        both = f"{own['train'][0]}/ and {own['validation'][0]}/"
        raise UserError(
            f"data.set: {folder} has {both} but no test/, expected the test images there or by data.test, another "
            "folder"
        )
    return Rule()


def _beside_test(folder: Path, rule: str, own: dict[str, list[str]], parts: dict[str, str | None]) -> Rule:
    """Sub-folders for training and validation; one for test is not used, since another folder is."""
    _refuse_twice(folder, own, [])
    unused = [f"{folder / name}" for name in own.get("test", ())]
    notes = tuple(f"images in {name} are not used: data.test says which are for test" for name in unused)
    kept = {name: None if part == "test" else part for name, part in parts.items()}
    words = _in_words({part: found for part, found in own.items() if part != "test"})
    return Rule(f"{words}, {rule}", kept, None, notes)


def _refuse_twice(folder: Path, own: Mapping[str, Sequence[str]], others: Sequence[str]) -> None:
    """Refuse what stands beside the splits, and a split that is there twice."""
    twice = next((found for found in own.values() if len(found) > 1), None)
    if others:
        raise UserError(f"data.set: {folder} has {others[0]} beside train/ and test/, expected only validation/")
    if twice:
        names = " and ".join(f"{name}/" for name in twice)
        raise UserError(f"data.set: {folder} has {names}, which stand for the same split; expected one of them")


def _in_words(own: Mapping[str, Sequence[str]]) -> str:
    """The sub-folders in words."""
    names = [f"{own[part][0]}/" for part in NAMES if part in own]
    return f"sub-folders {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"sub-folder {names[0]}"
