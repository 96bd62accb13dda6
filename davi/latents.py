"""The latents of images as arrays that any program can read, and back.

``latents.npz`` holds, of N images and L layers, the top one first, or the scales of a flow, the finest first:

================ ============================= ==========================================================
array            type and shape                content
================ ============================= ==========================================================
``layer_00`` ..  float32 [N, ...]              posterior means, each given the means above it
                                               (:meth:`davi.model.LatentModel.latents`); of a flow, where it takes
                                               the middle of every pixel's interval
                                               (:meth:`davi.model.Invertible.encode`)
``layer_00`` ..  uint8, uint16 .. [N, C, h, w] of a quantized model, the codes: C at each position of a grid, each from
                                               0 to K - 1, in the smallest type that holds them
``sizes``        int64 [L]                     of a quantized model, the K of each layer
``active_00`` .. bool [...]                    which units respond to the image
                                               (:data:`davi.evaluation.activity.ACTIVE_RULE`); none for a single image,
                                               a flow or a quantized model
``grids``        int64 [L, 2]                  height and width of each layer; 1, 1 where it is no map
``files``        text [N]                      the file of each image; its number in the set where there is none
``corners``      int64 [N, 2]                  (top, left) of each image in its file, where images are patches
================ ============================= ==========================================================

``model.decode`` of the layers, as tensors (codes as int64), gives the reconstruction, of a flow the very images. The
file holds no pickled objects (``numpy.load`` reads it as it is). ``sizes`` may be left out; those of another model are
refused.
"""

from __future__ import annotations

import math
import tempfile
import zipfile
from collections.abc import Callable, Sequence
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
from davi.inspection.walks import reconstruction
from davi.model import Invertible, LatentModel, Model
from davi.model.quantized import Quantized
from davi.pictures import grid, save_png

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""


@dataclass(frozen=True)
class Layer:
    """A layer in the file.

    Arguments:
        name: of the array.
        shape: of the latents of one image.
        active: number of active units; None for a single image, a flow or codes.
        codes: how many there are to choose from; None where the latents are no codes.
    """

    name: str
    shape: tuple[int, ...]
    active: int | None
    codes: int | None = None

    @property
    def units(self) -> int:
        """Number of units."""
        return math.prod(self.shape)


def write_latents(
    path: Path,
    model: LatentModel | Invertible,
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
    device, sizes = _device_of(model), sizes_of(model)
    meter = None
    if isinstance(model, LatentModel) and not sizes:
        meter = ActiveUnits(model, len(images), seed, batch_size)
    with writing(str(path)), tempfile.TemporaryDirectory(dir=path.parent) as place, ExitStack() as open_files:
        writers: list[Writer] = []
        with measuring(model):
            for start in range(0, len(images), batch_size):
                x = images.pixels[start : start + batch_size].to(device)
                means = latents_of(model, x)
                if meter is not None:
                    meter.add(Batch(x))
                for i, mean in enumerate(means):
                    if start == 0:
                        where = Path(place) / f"layer_{i:02d}.npy"
                        dtype = np.min_scalar_type(sizes[i] - 1) if sizes else np.dtype("f4")
                        writers.append(open_files.enter_context(Writer(where, tuple(mean.shape[1:]), dtype)))
                    writers[i].append(_whole(mean, sizes[i]) if sizes else _finite(mean, images.name))
                if progress is not None:
                    progress(min(start + batch_size, len(images)), len(images))
        shapes = [writer.finish()["shape"][1:] for writer in writers]
        variances = () if meter is None else meter.variances()
        masks = [(variance > ACTIVE_VARIANCE).cpu().numpy() for variance in variances]
        _pack(path, Path(place), _facts(images, shapes, masks, sizes))
    active: list[int | None] = [int(mask.sum()) for mask in masks] or [None] * len(shapes)
    codes: list[int | None] = [*sizes] or [None] * len(shapes)
    return [Layer(f"layer_{i:02d}", tuple(shape), active[i], codes[i]) for i, shape in enumerate(shapes)]


def sizes_of(model: Model) -> tuple[int, ...]:
    """Of a quantized model, how many codes each layer chooses from, the top first; of others nothing."""
    return tuple(grid.size for grid in model.autoencoder.code_grids()) if isinstance(model, Quantized) else ()


def latents_of(model: LatentModel | Invertible, x: Tensor) -> list[Tensor]:
    """Those that the file holds, of images ``[B, C, H, W]``."""
    return model.latents(x) if isinstance(model, LatentModel) else model.encode(x)


def read_latents(path: Path, model: LatentModel | Invertible) -> list[NDArray[Any]]:
    """The layers of a file that :func:`write_latents` has written for this model, or for one of the same shapes.

    Raises:
        UserError: if there is no such file, or its arrays are not latents of the model.
    """
    names = (f"layer_{i:02d}" for i in range(len(_like(model))))
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = [archive[name] for name in names if name in archive]
            sizes = archive["sizes"].tolist() if "sizes" in archive else None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected latents that davi encode has written") from None
    except Exception:  # of every type: of zip files, of what compresses them, and of the parser of numpy's headers
        raise UserError(f"{path}: cannot be read, expected latents that davi encode has written") from None
    if sizes is not None and sizes != [*sizes_of(model)]:
        expected = f"{[*sizes_of(model)]}" if sizes_of(model) else "latents that are no codes"
        raise UserError(f"{path}: got codes of another model, with the sizes {sizes}, expected {expected}")
    return check_latents(str(path), found, model)


def check_latents(name: str, found: Sequence[NDArray[Any]], model: LatentModel | Invertible) -> list[NDArray[Any]]:
    """Arrays as latents of a model, in its types.

    Arguments:
        name: of what holds them, for messages.
        found: an array for each layer, ``[N, ...]``.
        model: the model.

    Raises:
        UserError: if they are not latents of the model.
    """
    like = _like(model)
    shapes = [list(array.shape[1:]) for array in found]
    expected = [list(z.shape[1:]) for z in like]
    if shapes != expected:
        raise UserError(f"{name}: got latents of the shapes {shapes}, expected {expected} for each image")
    counts = [len(array) for array in found]
    if len(set(counts)) != 1 or not counts[0]:
        raise UserError(f"{name}: got layers of {counts} images, expected as many in each, at least one")
    if sizes := sizes_of(model):
        return [_codes(name, array, size) for array, size in zip(found, sizes, strict=True)]
    if all(array.dtype.kind in "fiu" for array in found):
        with np.errstate(over="ignore"):  # what is beyond the model's type is not finite in it
            types = [torch.empty(0, dtype=z.dtype).numpy().dtype for z in like]
            cast = [array.astype(of_model) for array, of_model in zip(found, types, strict=True)]
        if all(np.isfinite(array).all() for array in cast):
            return cast
    raise UserError(f"{name}: got latents that are not finite numbers, expected what davi encode has written")


def _like(model: LatentModel | Invertible) -> list[Tensor]:
    """Latents of an image of zeros."""
    with measuring(model):
        return latents_of(model, torch.zeros(1, *model.shape, dtype=torch.uint8, device=_device_of(model)))


def _codes(name: str, array: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Codes of a layer as a model takes them.

    Raises:
        UserError: if they are no integers from 0 to ``size`` - 1.
    """
    if array.dtype.kind not in "iu":
        raise UserError(f"{name}: got codes of the type {array.dtype}, expected integers from 0 to {size - 1}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= size:
        raise UserError(f"{name}: got codes from {low} to {high}, expected integers from 0 to {size - 1}")
    return array.astype(np.int64)


def decoded(
    model: LatentModel | Invertible,
    latents: Sequence[NDArray[Any]],
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Tensor:
    """The images of latents, integers ``[N, C, H, W]`` on the CPU.

    Arguments:
        model: the model.
        latents: as :func:`read_latents` gives them.
        batch_size: images per pass.
        progress: told how many images are done.

    Raises:
        UserError: if the model makes no finite pixels of them.
    """
    device, made = _device_of(model), []
    with measuring(model):
        for start in range(0, len(latents[0]), batch_size):
            batch = [torch.from_numpy(layer[start : start + batch_size]).to(device) for layer in latents]
            made.append(_decoded(model, batch).to(torch.uint8 if model.levels <= 256 else torch.int32).cpu())
            if progress is not None:
                progress(min(start + batch_size, len(latents[0])), len(latents[0]))
    return torch.cat(made)


def write_images(path: Path, images: Tensor, levels: int) -> None:
    """Write images as a ``.npy`` file that ``--data`` reads: integers ``[N, H, W, C]``, of one channel ``[N, H, W]``.

    Arguments:
        path: of the file; its folder exists.
        images: integers, ``[N, C, H, W]``.
        levels: of a pixel.

    Raises:
        UserError: if the file cannot be written.
    """
    array = images.permute(0, 2, 3, 1).numpy()
    array = array[..., 0] if images.shape[1] == 1 else array
    with writing(str(path)):
        beside = path.with_name(path.name + ".new")
        with beside.open("wb") as file:
            np.save(file, array if levels <= 256 else array.astype(np.uint16), allow_pickle=False)
        beside.replace(path)


def write_folder(folder: Path, images: Tensor, levels: int) -> None:
    """Write images as PNG files, one each, named by their numbers: ``0.png``, or ``000.png`` where there are hundreds.

    Arguments:
        folder: made if it does not exist; files of these names are replaced.
        images: integers, ``[N, C, H, W]``.
        levels: of a pixel; the highest is shown as white.

    Raises:
        UserError: if a file cannot be written.
    """
    with writing(str(folder)):
        folder.mkdir(exist_ok=True)
    digits = len(str(len(images) - 1))
    for number, image in enumerate(images):
        picture = grid(image[None], levels, scale=1, padding=0)
        save_png(picture if len(image) == 3 else picture.convert("L"), folder / f"{number:0{digits}d}.png")


def _decoded(model: LatentModel | Invertible, latents: Sequence[Tensor]) -> Tensor:
    """Integer images of a batch."""
    if isinstance(model, Invertible):
        return model.decode(latents)
    pixels = model.decode(latents)
    images = reconstruction(pixels)
    if not bool(pixels.log_prob(images).isfinite().all()):
        raise UserError("run: the model computes no finite pixels of these latents; expected usable weights")
    return images


def _device_of(model: LatentModel | Invertible) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _facts(
    images: Images, shapes: list[Any], masks: list[NDArray[np.bool_]], sizes: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """All arrays but those of the layers."""
    names = images.files or tuple(f"{images.name}/{i}" for i in range(len(images)))
    facts: dict[str, NDArray[Any]] = {f"active_{i:02d}": mask for i, mask in enumerate(masks)}
    facts["grids"] = np.array([shape[1:] if len(shape) == 3 else (1, 1) for shape in shapes], np.int64)
    facts["files"] = np.array(names)
    if sizes:
        facts["sizes"] = np.array(sizes, np.int64)
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


def _whole(codes: Tensor, size: int) -> NDArray[Any]:
    """Codes in the smallest type that holds them all."""
    return codes.cpu().numpy().astype(np.min_scalar_type(size - 1))


def _finite(mean: Tensor, name: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = mean.float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError(f"run: the model computes latents that are not finite for {name}; expected usable weights")
    return values
