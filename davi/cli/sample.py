"""``davi sample``: images that a trained model draws."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from davi.cli.completing import complete
from davi.cli.loading import open_run
from davi.cli.options import Request
from davi.errors import UserError
from davi.evaluation import measuring
from davi.layers.autoregressive_pixels import reporting
from davi.model import Hierarchy, Invertible, Model, Temperature
from davi.pictures import grid, save_png
from davi.progress import ProgressBar, part_of
from davi.recalibration import recalibrated

_IMAGES = 64
"""Default."""

_BATCH = 100
"""Images a pass. Draws depend on it."""


def run(request: Request) -> int:
    """Make the picture; the exit status."""
    options = request.options
    _check(request)
    model, info, folder = open_run(request)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    generator = Generator(device).manual_seed(options.seed)
    if options.given is not None:
        return complete(request, model, info, folder, generator)
    temperature: Temperature = options.temperature
    told = _told(temperature, model)
    statistics = ""
    if options.recalibrate:
        if isinstance(model, Invertible):
            raise UserError(
                f"--recalibrate: {info['name']} is a flow, whose likelihood would change with batch norms, expected a "
                "model of another kind"
            )
        path, known = recalibrated(model, folder, temperature)  # whatever the seed of the draws
        if path is None:
            raise UserError(f"--recalibrate: {info['name']} has no batch norms, expected a model that has some")
        statistics = f", batch-norm statistics {'from' if known else 'found and kept in'} {path.name}"
    n = options.n or _IMAGES
    with measuring(model):
        drawn = draw(model, n, temperature, generator, model.classes_in_turn(n))
    samples = _whole(drawn, f"at {told}")
    target = Path(options.out or folder / "samples.png")
    save_png(grid(samples, model.levels), target)
    of_classes = f", of {model.classes} classes in turn" if model.classes else ""
    print(f"{n} samples at {told}, seed {options.seed}{of_classes}{statistics}: {target}")
    return 0


def draw(model: Model, n: int, temperature: Temperature, generator: Generator, classes: Tensor | None) -> Tensor:
    """Images that a model draws, ``[n, C, H, W]`` on the CPU, with a progress bar.

    Arguments:
        model: any.
        n: how many.
        temperature: of all draws.
        generator: source of randomness, on the model's device.
        classes: of the images, ``[n]``, of a model with classes.
    """
    starts = range(0, max(n, 1), _BATCH)
    drawn = []
    with ProgressBar("drawing", n) as progress:
        for i, start in enumerate(starts):
            y = None if classes is None else classes[start : start + _BATCH]
            with reporting(part_of(progress, i, len(starts))):
                drawn.append(model.sample(min(_BATCH, n - start), temperature, generator, y).cpu())
            progress(i + 1, len(starts))
    return torch.cat(drawn)


def _check(request: Request) -> None:
    """Refuse options that make no sense with or without ``--given``."""
    options = request.options
    if options.given is None:
        given = {"--rows": options.rows, "--draws": options.draws}
        words = [*(name for name, value in given.items() if value is not None), *request.assignments]
        if words:
            raise UserError(f"{words[0].partition('=')[0]}: got it alone, expected --given X, whose images it is about")
    elif not options.given:
        raise UserError("--given: got '', expected test, validation, train, or a set, folder, array or file")
    elif options.recalibrate:
        raise UserError("--recalibrate: cannot be used with --given: these models have no batch norms")


def _told(temperature: Temperature, model: Model) -> str:
    """The temperatures in words, once their number is checked."""
    if isinstance(temperature, float):
        return f"temperature {temperature:g}"
    layers = model.num_layers if isinstance(model, Hierarchy) else 0
    if len(temperature) != layers:
        one_each = f" or one for each of its {layers} layers" if layers else ""
        raise UserError(f"--temperature: got a list of {len(temperature)}, expected one number{one_each}")
    return f"temperatures {', '.join(f'{factor:g}' for factor in temperature)}"


def _whole(images: Tensor, when: str) -> Tensor:
    """The images, unless a value is not finite: as an integer it would be the smallest one."""
    if int(images.min()) < 0:
        raise UserError(f"run: the model computes no finite pixels {when}; expected usable weights and temperature")
    return images
