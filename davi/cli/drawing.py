"""``davi sample`` and ``davi reconstruct``: pictures of what a trained model has learned."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from davi.cli.opened import open_images, open_run
from davi.cli.options import Request
from davi.data import evenly
from davi.data.subsets import rule
from davi.errors import UserError
from davi.evaluation import measuring
from davi.model import Hierarchy, LatentModel, Model, Temperature
from davi.pictures import grid, pairs, save_png
from davi.recalibration import recalibrated

_BATCH = 100
"""Images a pass."""


def run(request: Request) -> int:
    """Make the picture; the exit status."""
    return _sample(request) if request.verb == "sample" else _reconstruct(request)


def _sample(request: Request) -> int:
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
    with measuring(model):
        drawn = [model.sample(n, temperature, generator).cpu() for n in counts]
    samples = _whole(torch.cat(drawn), f"at {told}")
    target = Path(options.out or folder / "samples.png")
    save_png(grid(samples, model.levels), target)
    print(f"{options.n} samples at {told}, seed {options.seed}{statistics}: {target}")
    return 0


def _told(temperature: Temperature, model: Model) -> str:
    """The temperatures in words, after a look at their number."""
    if isinstance(temperature, float):
        return f"temperature {temperature:g}"
    layers = model.num_layers if isinstance(model, Hierarchy) else 0
    if len(temperature) != layers:
        one_each = f" or one for each of its {layers} layers" if layers else ""
        raise UserError(f"--temperature: got a list of {len(temperature)}, expected one number{one_each}")
    return f"temperatures {', '.join(f'{factor:g}' for factor in temperature)}"


def _reconstruct(request: Request) -> int:
    options = request.options
    model, info, folder = open_run(request)
    if not isinstance(model, LatentModel):
        raise UserError(f"run: {info['name']} has no latent variables, expected a model that reconstructs")
    images = open_images(request, info, folder).images
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    originals = evenly(images, options.n).pixels
    with measuring(model):
        made = torch.cat([_reconstructed(model, x.to(device), images.name) for x in originals.split(_BATCH)])
    made = made.to(originals.dtype)
    target = Path(options.out or folder / "reconstructions.png")
    save_png(pairs(originals, made, model.levels), target)
    some = rule(len(images), options.n)
    which = f"{len(images)} images of {images.name}" if some is None else f"{some}, of {images.name}"
    print(f"{which}, each beside its reconstruction: {target}")
    return 0


def _reconstructed(model: LatentModel, x: Tensor, name: str) -> Tensor:
    """:meth:`~davi.model.LatentModel.reconstruct`, of a model whose distribution of the pixels has finite numbers.

    A mode is some integer whatever the numbers behind it are, so they are asked for its probability.
    """
    pixels = model.decode(model.latents(x))
    made = pixels.mode()
    if not bool(pixels.log_prob(made).isfinite().all()):
        raise UserError(f"run: the model computes no finite pixels for {name}; expected usable weights")
    return made.cpu()


def _whole(images: Tensor, when: str) -> Tensor:
    """Images of a model that computes with numbers: what is not one becomes the smallest integer."""
    if int(images.min()) < 0:
        raise UserError(f"run: the model computes no finite pixels {when}; expected usable weights and temperature")
    return images
