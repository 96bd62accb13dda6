"""``davi decode``: the images of latents that ``davi encode`` has written."""

from __future__ import annotations

from pathlib import Path

from davi.cli.encode import LATENTS
from davi.cli.loading import open_with_latents
from davi.cli.options import Request
from davi.errors import UserError
from davi.latents import decoded, read_latents, write_folder, write_images
from davi.pictures import grid, save_png
from davi.progress import ProgressBar

_SHOWN = 64
"""Images in the picture, at most."""


def run(request: Request) -> int:
    """Write the images, as PNG files in a folder, or as an array and some of them as a picture; the exit status."""
    options = request.options
    if options.latents is not None and options.encoded is not None:
        raise UserError(f"command line: got both {options.latents} and --data {options.encoded}, expected one of them")
    model, _, folder = open_with_latents(request)
    source = Path(options.encoded or options.latents or folder / LATENTS)
    target = Path(options.out or folder / "decoded.npy")
    if not target.parent.is_dir():
        raise UserError(f"{target}: cannot be written, no such folder {target.parent}")
    latents = read_latents(source, model)
    with ProgressBar("decoding", len(latents[0])) as progress:
        images = decoded(model, latents, options.batch_size, progress)
    if target.suffix.lower() != ".npy":
        write_folder(target, images, model.levels)
        print(f"{len(images)} images as PNG files: {target}")
        return 0
    write_images(target, images, model.levels)
    picture = target.with_suffix(".png")
    save_png(grid(images[:_SHOWN], model.levels), picture)
    print(f"{len(images)} images: {target}; the first {min(len(images), _SHOWN)} of them as a picture: {picture}")
    return 0
