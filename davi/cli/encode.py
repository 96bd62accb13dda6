"""``davi encode``: the latents of images, as arrays."""

from __future__ import annotations

from pathlib import Path

from davi.cli.loading import open_images, open_with_latents
from davi.cli.options import Request
from davi.latents import sizes_of, write_latents
from davi.model import Invertible
from davi.progress import ProgressBar

LATENTS = "latents.npz"
"""The file in the folder of a run, where the user names none."""


def run(request: Request) -> int:
    """Write the file; the exit status."""
    options = request.options
    model, info, folder = open_with_latents(request)
    target = Path(options.out or folder / LATENTS)
    images = open_images(request, info, folder).images
    with ProgressBar("encoding", len(images)) as progress:
        layers = write_latents(target, model, images, options.batch_size, options.seed, progress)
    for layer in layers:
        grid = " x ".join(map(str, layer.shape))
        told = "" if layer.active is None else f", {layer.active} of {layer.units} units active"
        told += "" if layer.codes is None else f", codes from 0 to {layer.codes - 1}"
        print(f"{layer.name}: {grid}{told}")
    what = "latents" if isinstance(model, Invertible) else "codes" if sizes_of(model) else "posterior means"
    print(f"{what} of {len(images)} images of {images.name}: {target}")
    return 0
