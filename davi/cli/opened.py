"""What the verbs on a trained model share: the run, its images, the device, and progress."""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from davi import recipes
from davi.cli.options import Request
from davi.cli.training import anchored
from davi.data import DataSets, Images, Presentation, check_same, load
from davi.errors import UserError
from davi.model import Model
from davi.runs import RECIPE, load_model

_OF_ONE_SET = ("--data.validation=0", "--data.levels=null", "--data.test=null")
"""Options that speak of the set they were given for, and of no other."""

_QUIET_SECONDS = 5.0
"""In a pipe there is a line of progress no more often than this, and none for quick work."""


def open_run(request: Request) -> tuple[Model, dict[str, Any], Path]:
    """The trained model on the device asked for, what its file says, and the folder of the run.

    Raises:
        UserError: if there is no such run, its model is damaged, or there is no such device.
    """
    given = Path(request.options.run)
    if not given.exists():
        siblings = [path.name for path in given.parent.iterdir() if path.is_dir()] if given.parent.is_dir() else []
        near = difflib.get_close_matches(given.name, siblings, n=1)
        hint = f"; did you mean {given.parent / near[0]}?" if near else ""
        raise UserError(f"run: got {given}, found nothing there, expected the folder of a run{hint}")
    model, info = load_model(given, lambda line: print(line, file=sys.stderr))
    return model.to(_device(request.options.device)), info, given if given.is_dir() else given.parent


def open_images(request: Request, info: Mapping[str, Any], folder: Path) -> tuple[DataSets, Images]:
    """The data sets of a run, with the user's overrides, and the split asked for as it is evaluated.

    Arguments:
        request: ``--data`` and ``--data.OPTION`` say which images are wanted knowingly. Without them (but for
            ``--data.root``, the folder) they must be those that the model was trained with.
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
        data = recipes.load(path, [*_OF_ONE_SET, *assignments]).data
        assert data is not None
    sets = load(anchored(data))
    if all(word.startswith("--data.root=") for word in assignments):
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


class Telling:
    """Progress of long work on standard error: a bar on a terminal, else a line now and then.

    Arguments:
        what: a word for the work.
        images: number of images.
    """

    def __init__(self, what: str, images: int) -> None:
        self._what, self._images = what, images
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=1.0, rate="")

    def __enter__(self) -> Telling:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """So much of the whole is done."""
        now = time.monotonic()
        share, seconds = done / total, max(now - self._began, 1e-9)
        rate = f"{share * self._images / seconds:.3g} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=share, rate=rate)
        elif now - self._said >= _QUIET_SECONDS and done:
            self._said = now
            left = seconds * (1.0 - share) / share
            print(f"{self._what}: {100 * share:.0f} %, {rate}, {left:.0f} s left", file=sys.stderr)
