"""``davi sample --given``: images continued below their first rows."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Generator, Tensor

from davi.cli.loading import open_images
from davi.cli.options import Request, set_assignment
from davi.data import Images, evenly
from davi.data.subsets import rule
from davi.errors import UserError
from davi.evaluation import measuring
from davi.evaluation.bounds import check_images
from davi.layers.autoregressive_pixels import reporting
from davi.model import Autoregressive, Model, Temperature
from davi.pictures import completions, save_png
from davi.progress import ProgressBar, part_of
from davi.repetition import repeat_images

_IMAGES, _DRAWS = 8, 4
"""Defaults: images, and draws of each."""

_BATCH = 100
"""Draws a pass."""

_OWN = ("test", "validation", "train")
"""Images of the run itself."""


def complete(request: Request, model: Model, info: dict[str, object], folder: Path, generator: Generator) -> int:
    """Make the picture; the exit status."""
    options = request.options
    _, height, _ = model.shape
    if not isinstance(model, Autoregressive):
        raise UserError(
            f"--given: {info['name']} does not predict each pixel from those before it, expected a model that does"
        )
    if options.rows is None or options.rows > height:
        got = "nothing" if options.rows is None else options.rows
        raise UserError(f"--rows: got {got}, expected 0 to {height}, how many rows of each image are kept")
    if isinstance(options.temperature, tuple):
        raise UserError("--temperature: got a list, expected one number")
    images = open_images(_asking(request), info, folder).images
    check_images(model, images)
    chosen, draws = evenly(images, options.n or _IMAGES), options.draws or _DRAWS
    drawn = _drawn(model, chosen, draws, options.rows, options.temperature, generator)
    target = Path(options.out or folder / "completions.png")
    save_png(completions(chosen.pixels, drawn, options.rows, model.levels), target)
    some = rule(len(images), options.n or _IMAGES)
    which = f"{len(images)} images of {images.name}" if some is None else f"{some}, of {images.name}"
    print(
        f"{which}, {options.rows} of {height} rows given, {draws} {'draws' if draws > 1 else 'draw'} of the rest "
        f"at temperature {options.temperature:g}, seed {options.seed}: {target}"
    )
    return 0


def _asking(request: Request) -> Request:
    """The request as a verb on images would have it."""
    options = argparse.Namespace(**vars(request.options), data=None, split=None)
    words = request.assignments
    if options.given in _OWN:
        options.split = options.given
    else:
        options.data = options.given
        words = [set_assignment("--given", options.given), *words]
    return Request(request.verb, options, words)


def _drawn(
    model: Autoregressive, images: Images, draws: int, rows: int, temperature: Temperature, generator: Generator
) -> Tensor:
    """Completions of each image, ``[N, draws, C, H, W]``."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batches = repeat_images(images.pixels, draws).split(_BATCH)
    labels = [None] * len(batches)
    if model.classes:
        assert images.labels is not None
        labels = repeat_images(images.labels, draws).split(_BATCH)
    found = []
    with measuring(model), ProgressBar("drawing", len(images) * draws) as progress:
        for i, (x, y) in enumerate(zip(batches, labels, strict=True)):
            y = None if y is None else y.to(device)
            with reporting(part_of(progress, i, len(batches))):
                found.append(model.complete(x.to(device), None, temperature, generator, y, rows=rows).cpu())
    return torch.cat(found).unflatten(0, (-1, draws))
