"""Images that a Python program hands over: they are kept in the folder of the run that is trained on them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from davi.data.arrays import read_array, read_beside
from davi.data.given import EXPECTED, Given, collected
from davi.errors import UserError
from davi.files import sync_folder, writing
from davi.kept import IMAGES, PREFIX
from davi.keywords import assignments
from davi.runs import LOCK, RECIPE
from davi.training.lock import locked

_UNFINISHED = f"{IMAGES}.new"
"""Images that are being written; the file of a process that was killed then is nobody's."""


def image_words(
    images: Any,
    options: Mapping[str, Any],
    folder: Path,
    resume: bool,
    begun: bool,
    undone: contextlib.ExitStack | None,
) -> list[str]:
    """The words that say which images; those that are no files are written into the folder of the run.

    Of several processes the main one alone writes; it has ``undone``, which forgets them if the run never begins.
    """
    labels = options.get("labels", False)
    if images is None or isinstance(images, (str, Path)):
        if not isinstance(labels, bool):
            raise UserError(f"labels: got {type(labels).__name__}, expected True or False: files have their own labels")
        named = [] if images is None else assignments("data", {"set": str(images)})
        return [f"--{word}" for word in [*named, *(["data.labels=true"] if labels else [])]]
    if not begun and undone is not None:
        _check_free(folder, resume)
    given = collected(images, labels, options.get("levels"))
    if begun or (resume and (folder / IMAGES).exists()):
        _check_same(given, folder)
    elif undone is not None:
        with locked(folder):
            _check_free(folder, resume)  # once more: another process may have been quicker
            undone.callback(_forget, folder)
            _keep(given, folder)
    place = {"set": f"{PREFIX}{IMAGES}", "root": str(folder.expanduser().absolute())}
    return [f"--{word}" for word in assignments("data", {**place, "labels": given.labels is not None})]


def _check_free(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds anything: images of another's would be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run: got {folder}, which is a file; expected a folder")
    ours = (LOCK, _UNFINISHED, IMAGES) if resume else (LOCK, _UNFINISHED)
    if folder.is_dir() and any(path.name not in ours for path in folder.iterdir()):
        raise UserError(f"run: {folder} is not empty; choose another folder, or go on with resume=True")


def _keep(given: Given, folder: Path) -> None:
    """Write images into the folder of a run that is about to begin; the file is whole under its name, or not there."""
    path = folder / IMAGES
    beside = path.with_name(_UNFINISHED)
    with writing(f"{folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            classes = None if given.classes is None else np.array(given.classes)
            arrays: dict[str, Any] = {"images": given.images, "labels": given.labels, "classes": classes}
            np.savez(file, **{key: array for key, array in arrays.items() if array is not None})
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(folder)


def _forget(folder: Path) -> None:
    """Remove the images of a run that was never begun."""
    if not (folder / RECIPE).exists():
        with contextlib.suppress(OSError):  # what went wrong before is on its way to the user
            for name in (IMAGES, _UNFINISHED):
                (folder / name).unlink(missing_ok=True)


def _check_same(given: Given, folder: Path) -> None:
    """Refuse other images than those that a run was begun with."""
    path = folder / IMAGES
    if not path.is_file():
        raise UserError(f"images: got {EXPECTED.split(',')[0]}, expected none: {folder} was begun with images in files")
    labels, same = read_beside(path, ("labels",)), np.array_equal(read_array(path), given.images)
    if labels is None or given.labels is None:
        same = same and labels is given.labels
    else:
        same = same and np.array_equal(labels, given.labels)
    if not same:
        raise UserError(f"images: got others than {path} holds, expected those that the run was begun with, or None")
