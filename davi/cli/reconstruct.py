"""``davi reconstruct``: images beside their reconstructions by a trained model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from davi.cli.loading import open_images, open_run
from davi.cli.options import Request
from davi.data import evenly
from davi.data.subsets import rule
from davi.errors import UserError
from davi.evaluation import measuring
from davi.inspection.walks import reconstruction
from davi.model import Invertible, LatentModel
from davi.pictures import pairs, save_png

_BATCH = 100
"""Images a pass."""


def run(request: Request) -> int:
    """Make the picture; the exit status."""
    options = request.options
    model, info, folder = open_run(request)
    if isinstance(model, Invertible):
        raise UserError(
            f"run: {info['name']} is a flow, whose latents give back the very images; davi inspect says how exactly"
        )
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
    """:func:`~davi.inspection.walks.reconstruction` by a model whose distribution of the pixels has finite numbers.

    A mode is some integer whatever the numbers behind it are, so they are asked for its probability.
    """
    pixels = model.decode(model.latents(x))
    made = reconstruction(pixels)
    if not bool(pixels.log_prob(made).isfinite().all()):
        raise UserError(f"run: the model computes no finite pixels for {name}; expected usable weights")
    return made.cpu()
