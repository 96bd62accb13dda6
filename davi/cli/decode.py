"""``davi decode``: the images of latents that ``davi encode`` has written."""

from __future__ import annotations

from pathlib import Path

from davi.cli.loading import open_with_latents
from davi.cli.options import Request
from davi.errors import UserError
from davi.latents import read_latents, write_decoded
from davi.pictures import grid, save_png
from davi.progress import ProgressBar

_SHOWN = 64
"""Images in the picture, at most."""


def run(request: Request) -> int:
    """Write the images, as an array and some of them as a picture; the exit status."""
    options = request.options
    model, _, folder = open_with_latents(request)
    source = Path(options.latents or folder / "latents.npz")
    target = Path(options.out or folder / "decoded.npy")
    if not target.parent.is_dir():
        raise UserError(f"{target}: cannot be written, no such folder {target.parent}")
    latents = read_latents(source, model)
    with ProgressBar("decoding", len(latents[0])) as progress:
        images = write_decoded(target, model, latents, options.batch_size, progress)
    picture = target.with_suffix(".png")
    save_png(grid(images[:_SHOWN], model.levels), picture)
    print(f"{len(images)} images: {target}; the first {min(len(images), _SHOWN)} of them as a picture: {picture}")
    return 0
