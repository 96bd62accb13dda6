"""The folder of a run: what it is called inside, and whether it can be used. Known without torch, for quick answers."""

from __future__ import annotations

import difflib
from pathlib import Path

from davi.errors import UserError
from davi.kept import IMAGES
from davi.renamed import RECIPE as RECIPE

METRICS, CHECKPOINTS, MODEL, LOCK = "metrics.jsonl", "checkpoints", "model.safetensors", ".lock"
START = "start.safetensors"


def run_folder(given: Path) -> Path:
    """The folder of a run that is given by itself or by its model's file.

    Raises:
        UserError: if there is nothing of that name; the message gives the nearest.
    """
    if not given.exists():
        siblings = [path.name for path in given.parent.iterdir() if path.is_dir()] if given.parent.is_dir() else []
        near = difflib.get_close_matches(given.name, siblings, n=1)
        hint = f"; did you mean {given.parent / near[0]}?" if near else ""
        raise UserError(f"run: got {given}, found nothing there, expected the folder of a run{hint}")
    return given if given.is_dir() else given.parent


def check_free(run: Path) -> None:
    """Refuse a folder that a new run would share with something else.

    Raises:
        UserError: one line with the remedy.
    """
    if in_use(run):
        remedy = f"begin another from it with --from {run}" if only_a_model(run) else "go on with --resume"
        raise UserError(f"run: {run} is not empty; choose another folder, or {remedy}")


def only_a_model(run: Path) -> bool:
    """Whether a folder holds a model and no checkpoint: imported weights, or a run that has lost its checkpoints."""
    kept = [path for form in ("step-*", ".was-step-*") for path in (run / CHECKPOINTS).glob(form)]
    return (run / MODEL).exists() and not kept


def check_can_go_on(run: Path) -> None:
    """Refuse to resume where there is nothing to resume but a model, which would be trained anew and overwritten.

    Raises:
        UserError: one line with the remedy.
    """
    if only_a_model(run):
        raise UserError(
            f"run: {run} holds a {MODEL} and no checkpoint to go on from; a new run that begins with its weights: "
            f"davi train --from {run}"
        )


def in_use(run: Path) -> bool:
    """Whether a folder holds anything but a lock and images to train on; what is no folder is refused."""
    if run.exists() and not run.is_dir():
        raise UserError(f"run: got {run}, which is a file; expected a folder")
    return run.is_dir() and any(path.name not in (LOCK, IMAGES) for path in run.iterdir())
