"""``davi sample``: images that a trained model draws."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from davi.cli.loading import open_run
from davi.cli.options import Request
from davi.errors import UserError
from davi.evaluation import measuring
from davi.model import Hierarchy, Model, Temperature
from davi.pictures import grid, save_png
from davi.recalibration import recalibrated

_BATCH = 100
"""Images a pass."""


def run(request: Request) -> int:
    """Make the picture; the exit status."""
    options = request.options
    model, info, folder = open_run(request)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    generator = Generator(device).manual_seed(options.seed)
    temperature: Temperature = options.temperature
    told = _told(temperature, model)
    statistics = ""
    if options.recalibrate:
        path, known = recalibrated(model, folder, temperature)  # whatever the seed of the draws
        if path is None:
            raise UserError(f"--recalibrate: {info['name']} has no batch norms, expected a model that has some")
        statistics = f", batch-norm statistics {'from' if known else 'found and kept in'} {path.name}"
    counts = [min(_BATCH, options.n - start) for start in range(0, options.n, _BATCH)]
    classes = model.classes_in_turn(options.n)
    labels = [None] * len(counts) if classes is None else classes.split(_BATCH)
    with measuring(model):
        drawn = [model.sample(n, temperature, generator, y).cpu() for n, y in zip(counts, labels, strict=True)]
    samples = _whole(torch.cat(drawn), f"at {told}")
    target = Path(options.out or folder / "samples.png")
    save_png(grid(samples, model.levels), target)
    of_classes = f", of {model.classes} classes in turn" if model.classes else ""
    print(f"{options.n} samples at {told}, seed {options.seed}{of_classes}{statistics}: {target}")
    return 0


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
