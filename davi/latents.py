"""The latents of images as arrays that any program can read.

``latents.npz`` holds, of N images and L layers, the top one first:

================ ============================= ==========================================================
array            type and shape                content
================ ============================= ==========================================================
``layer_00`` ..  float32 [N, ...]              posterior means, each given the means above it
                                               (:meth:`davi.model.LatentModel.latents`)
``active_00`` .. bool [...]                    which units respond to the image
                                               (:data:`davi.evaluation.activity.ACTIVE_RULE`); none for a single image
``grids``        int64 [L, 2]                  height and width of each layer; 1, 1 where it is no map
``files``        text [N]                      the file of each image; its number in the set where there is none
``corners``      int64 [N, 2]                  (top, left) of each image in its file, where images are patches
================ ============================= ==========================================================

``model.decode`` of the layers, as tensors, gives the reconstruction. The file holds no pickled objects
(``numpy.load`` reads it as it is).
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davi.batch import Batch
from davi.data import Images
from davi.data.cache import Writer
from davi.errors import UserError
from davi.evaluation import measuring
from davi.evaluation.activity import ACTIVE_VARIANCE, ActiveUnits
from davi.evaluation.bounds import check_images
from davi.files import writing
from davi.model import LatentModel

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""


@dataclass(frozen=True)
class Layer:
    """A layer in the file.

    Arguments:
        name: of the array.
        shape: of the latents of one image.
        active: number of active units; None for a single image.
    """

    name: str
    shape: tuple[int, ...]
    active: int | None

    @property
    def units(self) -> int:
        """Number of units."""
        return math.prod(self.shape)


def write_latents(
    path: Path,
    model: LatentModel,
    images: Images,
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Layer]:
    """Encode images and write the file (module docstring); no more than a batch is in memory.

    Arguments:
        path: of the file; its folder exists.
        model: the model.
        images: as they are evaluated.
        batch_size: images per pass.
        seed: of the draws behind the active units; the means are not drawn.
        progress: told how many images are done.

    Raises:
        UserError: if the images are not for the model, a latent is not finite, or the file cannot be written.
    """
    check_images(model, images)
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written, no such folder {path.parent}")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    meter = ActiveUnits(model, len(images), seed, batch_size)
    with writing(str(path)), tempfile.TemporaryDirectory(dir=path.parent) as place, ExitStack() as open_files:
        writers: list[Writer] = []
        with measuring(model):
            for start in range(0, len(images), batch_size):
                x = images.pixels[start : start + batch_size].to(device)
                means = model.latents(x)
                meter.add(Batch(x))
                for i, mean in enumerate(means):
                    if start == 0:
                        where = Path(place) / f"layer_{i:02d}.npy"
                        writers.append(open_files.enter_context(Writer(where, tuple(mean.shape[1:]), np.dtype("f4"))))
                    writers[i].append(_finite(mean, images.name))
                if progress is not None:
                    progress(min(start + batch_size, len(images)), len(images))
        shapes = [writer.finish()["shape"][1:] for writer in writers]
        masks = [(variance > ACTIVE_VARIANCE).cpu().numpy() for variance in meter.variances()]
        _pack(path, Path(place), _facts(images, shapes, masks))
    counts = [int(mask.sum()) for mask in masks]
    return [Layer(f"layer_{i:02d}", tuple(shape), counts[i] if counts else None) for i, shape in enumerate(shapes)]


def _facts(images: Images, shapes: list[Any], masks: list[NDArray[np.bool_]]) -> dict[str, NDArray[Any]]:
    """All arrays but those of the layers."""
    names = images.files or tuple(f"{images.name}/{i}" for i in range(len(images)))
    facts: dict[str, NDArray[Any]] = {f"active_{i:02d}": mask for i, mask in enumerate(masks)}
    facts["grids"] = np.array([shape[1:] if len(shape) == 3 else (1, 1) for shape in shapes], np.int64)
    facts["files"] = np.array(names)
    if images.corners is not None:
        facts["corners"] = images.corners.cpu().numpy()
    return facts


def _pack(path: Path, place: Path, facts: dict[str, NDArray[Any]]) -> None:
    """Put all arrays into one file, which appears under its name when it is whole."""
    for name, array in facts.items():
        np.save(place / f"{name}.npy", array, allow_pickle=False)
    beside = place / "whole"
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for array_file in sorted(place.glob("*.npy")):
            archive.write(array_file, array_file.name)
    beside.replace(path)


def _finite(mean: Tensor, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = mean.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError(f"run: the model computes latents that are not finite for {name}; expected usable weights")
    return values
