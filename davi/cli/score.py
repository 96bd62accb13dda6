"""``davi score``: which images of a folder are odd to a trained model, or of which class they are to a classifier."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from davi.cli.classifying import classify
from davi.cli.loading import Opened, open_claiming, open_images
from davi.cli.normalizing import check_likelihood
from davi.cli.options import Request
from davi.cli.sets import anchored, of_run, tell
from davi.data import Images, load
from davi.data.config import HOW_READ
from davi.errors import UserError
from davi.evaluation.log_z import log_z_of
from davi.evaluation.scores import ratios, scores_of
from davi.evidence import Kind
from davi.files import replace_text, writing
from davi.model import Classifier, Hierarchy, Model, WithPartition
from davi.pictures import save_png
from davi.progress import ProgressBar
from davi.runs import RECIPE
from davi.scoring import (
    Calibration,
    Scores,
    contact_sheet,
    held_out,
    histogram,
    patches_csv,
    score,
    to_csv,
    to_terminal,
)
from davi.scoring.result import best_of
from davi.scoring.tables import said_of, said_of_log_z

_HOW_READ = tuple(f"--data.{key}=" for key in HOW_READ)


def run(request: Request) -> int:
    """Score, rank, write the table and the pictures; the exit status."""
    options = request.options
    model, info, folder = open_claiming(request)
    if isinstance(model, Classifier):
        return classify(request, model, info, folder)
    assert isinstance(model, Model)
    check_likelihood(model, folder)
    target = Path(options.out or folder / "scores.csv")
    if not target.parent.is_dir():
        raise UserError(f"{target}: cannot be written, no such folder {target.parent}")
    opened = open_images(request, info, folder)
    found = _scored(request, model, info, folder, opened)
    by = options.by or best_of(found.columns)
    shown = min(options.top, len(found.files))
    _write(target, to_csv(found, by))
    sheet, bars = target.with_suffix(".png"), target.with_name(f"{target.stem}-histogram.png")
    save_png(contact_sheet(found, by, shown), sheet)
    histogram(found, bars)
    print(to_terminal(found, by, shown))
    if found.calibration is not None:
        print(said_of(found.calibration, found.samples))
    if isinstance(model, WithPartition) and model.partition is not None and model.partition.kind is not Kind.EXACT:
        print(said_of_log_z(log_z_of(model.partition, model.claim, model.dims)))
    count = len(found.files)
    print(f"\n{count} file{'s' * (count != 1)}, the oddest by {by} first: {target}")
    if options.patches:
        patches = target.with_name(f"{target.stem}-patches.csv")
        _write(patches, patches_csv(found))
        print(f"{len(found.images)} images, one by one: {patches}")
    print(f"the oddest as a picture: {sheet}; histograms: {bars}")
    return 0


def _scored(request: Request, model: Model, info: Mapping[str, Any], folder: Path, opened: Opened) -> Scores:
    """The scores of the images, ranked where the run has held-out ones."""
    options = request.options
    dropped = ratios(model) if options.llr is None else options.llr
    named = {each.name: None for each in scores_of(model, opened.images, dropped)}
    if options.by is not None and options.by not in named:
        raise UserError(f"--by: got {options.by!r}, expected one of {', '.join(named)}")
    if not dropped:
        layers = "one layer of latents" if isinstance(model, Hierarchy) else "no hierarchy of latents"
        tell([f"{info['name']} has {layers}, so there is no LLR>k"], sys.stderr)
    how = (dropped, options.importance_samples, options.batch_size, options.seed)
    known: Calibration | None = None
    try:
        images = _held_out_images(request, info, folder)
    except UserError as error:
        tell([f"no p-values: {error}"], sys.stderr)
    else:
        with ProgressBar("scoring held-out images", len(images)) as progress:
            known = held_out(model, images, *how, options.held_out, progress, folder)
    with ProgressBar("scoring", len(opened.images)) as progress:
        return score(model, opened.images, known, *how, progress)


def _held_out_images(request: Request, info: Mapping[str, Any], folder: Path) -> Images:
    """The run's own images that it was not trained on, to the last value.

    What the request says about where and how images are read is about these, unless it is about other ones.

    Training chooses nothing on validation images: it keeps its last averaged weights, whatever they say of these.

    Raises:
        UserError: why there are none.
    """
    part, others = request.options.calibrate_on, request.options.data is not None
    where = [] if others else [word for word in request.assignments if word.startswith(_HOW_READ)]
    own = of_run(folder / RECIPE, where).data
    if own is None:
        raise UserError("the recipe of the run names no images")
    before = info.get("protocol", {}).get(f"{part}_sha256")
    if before is None:
        raise UserError(f"it is not known which {part} images were held out when the run was trained")
    with ProgressBar("decoding") as progress:
        sets = load(anchored(own), progress)
    images = sets.test if part == "test" else sets.validation
    if images is None or sets.protocol[f"{part}_sha256"] != before:
        raise UserError(f"the {part} images of the run have changed")
    return images


def _write(path: Path, text: str) -> None:
    with writing(str(path)):
        replace_text(path, text)
