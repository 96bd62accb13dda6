"""What the verbs on a trained model share: the run, its images, the device, and progress."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from davi import recipes
from davi.cli.options import Request
from davi.cli.sets import anchored, load_told, of_another_set
from davi.data import DataSets, Images, Presentation, check_same
from davi.data.protocol import HOW_READ
from davi.errors import UserError
from davi.model import Model
from davi.runs import RECIPE, load_model

_NO_OTHER_SET = tuple(f"--data.{key}=" for key in HOW_READ)
"""Assignments that say where and how images are read, not which."""


def open_run(request: Request) -> tuple[Model, dict[str, Any], Path]:
    """The trained model on the device asked for, what its file says, and the folder of the run.

    Raises:
        UserError: if there is no such run, its model is damaged, or there is no such device.
    """
    given = Path(request.options.run)
    folder = run_folder(given)
    model, info = load_model(given, lambda line: print(line, file=sys.stderr))
    return model.to(_device(request.options.device)), info, folder


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


def open_images(request: Request, info: Mapping[str, Any], folder: Path) -> tuple[DataSets, Images]:
    """The data sets of a run, with the user's overrides, and the split asked for as it is evaluated.

    Arguments:
        request: ``--data`` and ``--data.OPTION`` say which images are wanted knowingly. Without them (but for
            ``--data.root``, the folder, and the like) they must be those that the model was trained with.
        info: what the model's file says.
        folder: of the run.

    Raises:
        UserError: if the run does not say which images it is for, these have changed or have no such split.
    """
    path, assignments, split = folder / RECIPE, request.assignments, request.options.split
    if not path.is_file():
        raise UserError(f"run: {folder} holds no {RECIPE}, which says what images the model is for")
    begun, data = recipes.load(path).data, recipes.load(path, assignments).data
    if data is None:
        raise UserError(f"{path}: got no section data, expected one, or --data SET")
    if begun is not None and anchored(begun).set != anchored(data).set:
        data = recipes.load(path, [*of_another_set(begun, data), "--data.validation=0", *assignments]).data
        assert data is not None
    sets = load_told(anchored(data), sys.stderr)
    if all(word.startswith(_NO_OTHER_SET) for word in assignments):
        check_same(info.get("protocol", {}), sets.protocol, f"--data {data.set} evaluates on these images knowingly")
    images = {"train": sets.train, "validation": sets.validation, "test": sets.test}[split]
    if images is None:
        raise UserError(f"--split: got 'validation', but {data.set} has no validation images (data.validation is 0)")
    if split == "train" and images.levels != sets.levels:  # grey, and drawn afresh at each presentation
        generator = torch.Generator().manual_seed(data.binarization_seed)
        present = Presentation(images, data.binarization, "none")
        drawn = present(torch.arange(len(images)), generator).to(sets.test.pixels.dtype)
        images = Images(drawn, sets.levels, images.name)
    return sets, images


def data_protocol(sets: DataSets, split: str) -> dict[str, Any]:
    """The protocol of the data sets; of training images that are drawn at each presentation, also which draw it is."""
    data = dict(sets.protocol)
    if split == "train" and sets.train.levels != sets.levels:
        data["evaluated"] = f"training images drawn once, seed {data['binarization_seed']}"
    return data


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch's errors for what it does not know or have
        raise UserError(f"--device: got {name!r}, expected a device of this machine, such as cpu or cuda") from None
    if device.type == "meta":
        raise UserError("--device: got 'meta', expected a device that computes")
    return device
