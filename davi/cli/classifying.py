"""``davi score`` of a classifier: the class of each file and its probability."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi.cli.loading import Opened, open_images
from davi.cli.options import Request
from davi.cli.sets import tell
from davi.data.labels import UnlabeledError, numbers
from davi.errors import UserError
from davi.files import replace_text, writing
from davi.model import Classifier
from davi.pictures import save_png
from davi.progress import ProgressBar
from davi.scoring.classes import contact_sheet, patches_csv, predict, to_csv, to_terminal


def classify(request: Request, model: Classifier, info: Mapping[str, Any], folder: Path) -> int:
    """Ask about all files, write the table and the picture; the exit status."""
    options = request.options
    for name, value in (("--by", options.by), ("--llr", options.llr)):
        if value is not None:
            raise UserError(f"{name}: got it for {model.name}, a classifier, whose files have no such score")
    target = Path(options.out or folder / "scores.csv")
    if not target.parent.is_dir():
        raise UserError(f"{target}: cannot be written, no such folder {target.parent}")
    images = _opened(request, info, folder).images
    names = tuple(info.get("class_names") or numbers(model.classes))
    with ProgressBar("classifying", len(images)) as progress:
        found = predict(model, images, names, options.batch_size, progress)
    _write(target, to_csv(found))
    shown = min(options.top, len(found.files))
    sheet = target.with_suffix(".png")
    save_png(contact_sheet(found, shown), sheet)
    print(to_terminal(found, shown))
    count, first = len(found.files), "least sure" if found.labels is None else "least probable of its own class"
    print(f"\n{count} file{'s' * (count != 1)}, the {first} first: {target}")
    if options.patches:
        patches = target.with_name(f"{target.stem}-patches.csv")
        _write(patches, patches_csv(found))
        print(f"{len(images)} images, one by one: {patches}")
    print(f"the first {shown} as a picture: {sheet}")
    return 0


def _opened(request: Request, info: Mapping[str, Any], folder: Path) -> Opened:
    """The images, with their labels where they have some."""
    try:
        return open_images(request, info, folder, unlabeled=True)
    except UnlabeledError as error:
        tell([f"without labels: {error.why}"], sys.stderr)
    without = Request(request.verb, request.options, [*request.assignments, "--data.labels=false"])
    return open_images(without, info, folder, unlabeled=True)


def _write(path: Path, text: str) -> None:
    with writing(str(path)):
        replace_text(path, text)
