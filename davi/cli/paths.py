"""Errors that can be reported without torch: missing paths, folders in use, missing sets.

Loading torch takes seconds; a mistyped path shall not cost them. Whoever reads the files checks them again.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi import recipes
from davi.cli.options import Request
from davi.config import override
from davi.errors import UserError
from davi.renamed import RECIPE, complaint, read
from davi.run_folder import MODEL, check_can_go_on, check_free, in_use, run_folder
from davi.sets import FILES, folder_of, refuse_elsewhere, refuse_unknown


def check(request: Request) -> None:
    """Refuse what cannot work.

    Raises:
        UserError: one line.
    """
    options = request.options
    if request.verb == "evaluate":
        _check_gap(options)
    if request.verb == "train":
        _check_training(request)
    elif request.verb == "import":
        if not Path(options.file).exists():
            raise UserError(f"{options.file}: no such file, expected published weights")
        if in_use(Path(options.run)):
            raise UserError(f"run: {options.run} is not empty; choose another folder")
    elif request.verb == "compare":
        for run in options.runs:
            run_folder(Path(run))
    elif request.verb == "study":
        return  # it looks for its own
    elif request.verb != "recipes":
        folder = run_folder(Path(options.run))
        if request.verb != "sample" and (folder / RECIPE).is_file():
            _check_images(request, read(folder / RECIPE))
    out = getattr(options, "out", None)
    if out is not None and not Path(out).parent.is_dir():
        raise UserError(f"{out}: cannot be written, no such folder {Path(out).parent}")
    if out is not None and Path(out).is_dir():
        raise UserError(f"{out}: cannot be written, it is a folder")


def _check_gap(options: Namespace) -> None:
    """The gap has options of its own, which are good for nothing else."""
    own = ("gap_images", "gap_steps", "gap_samples")
    others = {"limit": "--gap-images", "importance_samples": "--gap-samples"}
    for name in others if options.gap else own:
        value = getattr(options, name)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            wanted = others[name] if options.gap else f"--gap beside {option}"
            raise UserError(f"{option}: got {value} {'with' if options.gap else 'without'} --gap, expected {wanted}")


def check_source(given: str) -> Path:
    """The path of ``--from``.

    Raises:
        UserError: if there is nothing.
    """
    path = Path(given)
    if not path.exists():
        raise UserError(f"--from: got {path}, found nothing there, expected a run, its {MODEL} or a checkpoint")
    return path


def _check_training(request: Request) -> None:
    options = request.options
    folder = None if options.run is None else Path(options.run)
    begun = folder is not None and options.resume and (folder / RECIPE).is_file()
    if options.source is not None and not begun:  # a run that has begun needs its source no more
        check_source(options.source)
    if folder is not None and options.resume:
        check_can_go_on(folder)
    elif folder is not None and not options.plan and os.environ.get("RANK", "0") == "0":
        check_free(folder)  # of several processes the first may have begun by the time another one looks
    if options.recipe is not None:
        _check_images(request, read(recipes.find(options.recipe)))
    elif folder is not None and begun:
        _check_images(request, read(folder / RECIPE))
    elif options.source is not None:
        _check_images(request, {})


def _check_images(request: Request, sections: Mapping[str, Any]) -> None:
    """Look for the images of a recipe's sections under the user's options, if these say which."""
    chosen = override(sections, request.assignments)
    if complaint(chosen):
        return  # whoever reads the recipe names today's words first
    data = chosen.get("data")
    name = data.get("set") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(name, str):
        return  # the reader of the recipe reports what is missing
    root, levels = data.get("root"), data.get("levels")
    try:
        refuse_unknown(name)
        refuse_elsewhere(name, levels if isinstance(levels, int) else None)
        if name in FILES and (root is None or isinstance(root, str)):
            folder_of(name, root)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
