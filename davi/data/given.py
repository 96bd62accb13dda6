"""Images that a Python program holds, as arrays that a run can keep: NumPy arrays, tensors, PIL images, data sets.

Which axis is which is never guessed from sizes. NumPy arrays are ``[N, H, W]`` or ``[N, H, W, C]``, single ones
``[H, W]`` or ``[H, W, C]``; tensors are ``[N, H, W]`` or ``[N, C, H, W]``, single ones ``[H, W]`` or ``[C, H, W]``. A
shape that is plausible only the other way round is refused. Values are integers; floats are taken where they are
``k / (levels - 1)``, as torchvision's ``ToTensor`` makes them of integers, which are thus restored without loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from davi.data.images import MAX_LEVELS, check_levels
from davi.data.labels import chosen_column
from davi.errors import UserError

EXPECTED = "a NumPy array, a tensor, a list of PIL images, a torch or Hugging Face data set, or the path of a folder"
_MODES = {"1": np.bool_, "L": np.uint8, "RGB": np.uint8, "I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16}
"""Pillow's modes whose values are taken as they are, and their type."""
_INFERRED = {"bool": 2, "uint8": 256, "uint16": MAX_LEVELS}
_FEW, _MANY = 4, 8
"""No more channels than the first, no fewer pixels on a side than the second: what a mistaken axis is told by."""


@dataclass(frozen=True, eq=False)
class Given:
    """Images as a file of arrays holds them.

    Arguments:
        images: ``[N, H, W, C]``, of bool, uint8 or uint16.
        labels: class numbers ``[N]``, int64; None where they were not asked for.
        classes: the name of each class; None where only numbers are known.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None


def collected(images: Any, labels: Any = False, levels: int | None = None) -> Given:
    """Take over images that a Python program holds.

    Arguments:
        images: as the module's docstring says; an item of a torch data set may also be a tuple of image and label.
        labels: true: those of the data set are wanted; or class numbers, ``[N]``; false: none.
        levels: number of values of a channel; None: what the type tells (bool 2, uint8 256, uint16 65536).

    Raises:
        UserError: one line, if these are no images, their axes cannot be as said, their values do not fit the levels,
            or they are not of one size.

    Example:
        >>> collected(torch.zeros(5, 3, 8, 16, dtype=torch.uint8)).images.shape
        (5, 8, 16, 3)
    """
    if levels is not None:
        check_levels("levels", levels)
    of_set = labels is True
    if isinstance(images, (np.ndarray, Tensor)):
        if of_set:
            raise UserError("labels: got True with an array of images, expected class numbers, one for each image")
        found, numbers = _stack(images, levels), None
    else:
        found, numbers = _items(_opened(images, of_set), of_set, levels)
    if not of_set and labels is not None and labels is not False:
        numbers = _numbers(labels, len(found))
    return Given(found, numbers, _class_names(images) if of_set else None)


def _stack(images: NDArray[Any] | Tensor, levels: int | None) -> NDArray[Any]:
    """An array of images as ``[N, H, W, C]``."""
    shape = list(images.shape)
    if images.ndim not in (3, 4) or 0 in shape:
        axes = "[N, C, H, W]" if isinstance(images, Tensor) else "[N, H, W, C]"
        raise UserError(f"images: got shape {shape}, expected [N, H, W] or {axes}, with no zero")
    _check_axes("images", images, stacked=True)
    if isinstance(images, Tensor):
        values = _numpy(images)
        stacked = values[..., None] if values.ndim == 3 else values.transpose(0, 2, 3, 1)
    else:
        stacked = images[..., None] if images.ndim == 3 else images
    return _integers("images", stacked, levels)


def _check_axes(name: str, x: NDArray[Any] | Tensor, stacked: bool) -> None:
    """Refuse what has its channels in the other place, and one image where a stack of them is expected."""
    *batch, a, b, c = (0, *x.shape) if not stacked and x.ndim == 2 else x.shape
    shape = f"{list(x.shape)}"
    lead = "N, " if stacked else ""
    if isinstance(x, Tensor):
        if stacked and x.ndim == 3 and a <= _FEW:
            raise UserError(
                f"{name}: got a tensor {shape}, which is one image or {a} gray ones, expected [N, C, H, W] (x[None] or "
                "x[:, None])"
            )
        if len(batch) == stacked and c <= _FEW and min(a, b) >= _MANY:
            order = "0, 3, 1, 2" if stacked else "2, 0, 1"
            raise UserError(
                f"{name}: got a tensor {shape}, which looks like [{lead}H, W, C], expected [{lead}C, H, W] "
                f"(x.permute({order}))"
            )
        return
    if stacked and x.ndim == 3 and c <= _FEW and min(a, b) >= _MANY:
        raise UserError(f"{name}: got an array {shape}, which looks like one image, expected [N, H, W, C] (x[None])")
    if len(batch) == stacked and x.ndim > 2 and a <= _FEW and min(b, c) >= _MANY:
        order = "0, 2, 3, 1" if stacked else "1, 2, 0"
        raise UserError(
            f"{name}: got an array {shape}, which looks like [{lead}C, H, W], expected [{lead}H, W, C] "
            f"(x.transpose({order}); of tensors channels come first)"
        )


def _numpy(x: Tensor) -> NDArray[Any]:
    x = x.detach().cpu().to_dense()
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()


def _integers(name: str, values: NDArray[Any], levels: int | None) -> NDArray[Any]:
    """The values as bool, uint8 or uint16.

    Raises:
        UserError: if they are no integers from 0 to levels - 1, or it is not known how many levels there are.
    """
    dtype = values.dtype
    if dtype.kind == "f":
        return _of_shares(name, values, levels or 256)
    if dtype.kind not in "bui":
        raise UserError(f"{name}: got {dtype.name}, expected integers")
    if levels is None and dtype.name not in _INFERRED:
        raise UserError(
            f"levels: not given, and {dtype.name} does not tell it, expected 2 to {MAX_LEVELS} (levels=256, or "
            "x.astype('uint8'))"
        )
    known = levels or _INFERRED[dtype.name]
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= known:
        raise UserError(f"{name}: got values {low} to {high}, expected 0 to {known - 1}")
    return values if dtype.name in _INFERRED else values.astype(_type(known))


def _of_shares(name: str, values: NDArray[Any], levels: int) -> NDArray[Any]:
    """The integers k of floats k / (levels - 1)."""
    low, high = float(values.min()), float(values.max())
    top = levels - 1
    scaled = values.astype(np.float64) * top
    whole = np.rint(scaled)
    if not (low >= 0 and high <= 1 and np.abs(scaled - whole).max() < 0.01):
        raise UserError(
            f"{name}: got {values.dtype.name} from {low:.4g} to {high:.4g}, expected integers, or k / {top} with whole "
            f"k (levels={levels})"
        )
    return whole.astype(_type(levels))


def _type(levels: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if levels <= 256 else np.uint16


def _opened(images: Any, labels: bool) -> Iterable[Any]:
    """What gives one item after the other: an image, or a tuple of image and label."""
    kind = type(images)
    if isinstance(images, Image.Image):
        raise UserError("images: got one image, expected a list of images")
    if isinstance(images, torch.utils.data.DataLoader):
        raise UserError("images: got a DataLoader, expected its data set (loader.dataset)")
    if isinstance(images, Mapping) or (kind.__module__.startswith("datasets.") and not hasattr(images, "features")):
        splits = ", ".join(map(str, list(images)[:5])) if isinstance(images, Mapping) else kind.__name__
        raise UserError(f"images: got several data sets ({splits}), expected one of them, such as x['train']")
    if kind.__module__.startswith("datasets."):
        return _rows(images, labels)
    if isinstance(images, (str, bytes)) or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise UserError(f"images: got {kind.__name__}, expected {EXPECTED}")
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):  # torch data sets need not end by themselves
        return (images[i] for i in range(len(images)))
    return images


def _rows(table: Any, labels: bool) -> Iterable[Any]:
    """Rows of a Hugging Face data set, as tuples."""
    columns = [name for name, kind in table.features.items() if type(kind).__name__ == "Image"]
    if len(columns) != 1:
        held = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in table.features.items())
        raise UserError(f"images: got columns {held}, expected exactly one of type Image")
    label = None
    if labels:
        label = chosen_column(table.features)
        if label is None:
            raise UserError(f"labels: got True, and the columns {', '.join(table.features)}, none of type ClassLabel")
    plain = table.with_format(None)  # PIL images, whatever else the user wants of it
    wanted = columns if label is None else [*columns, label]
    return (tuple(row[name] for name in wanted) for row in plain.select_columns(wanted))


def _class_names(images: Any) -> tuple[str, ...] | None:
    """The names of the classes of a Hugging Face data set; None where there are only numbers."""
    if not type(images).__module__.startswith("datasets."):
        return None
    column = chosen_column(images.features)
    if column is None:
        return None
    kind = images.features[column]
    return tuple(kind.names) if type(kind).__name__ == "ClassLabel" else None


def _items(items: Iterable[Any], labels: bool, levels: int | None) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """All items, ``[N, H, W, C]`` and their labels, if these are wanted."""
    found: list[NDArray[Any]] = []
    numbers: list[Any] = []
    for i, item in enumerate(items):
        name = f"images: item {i}"
        image, *rest = item if isinstance(item, (tuple, list)) and item else (item,)
        found.append(_one(name, image, levels))
        if labels:
            if not rest:
                raise UserError(f"labels: got True, and item {i} is an image alone, expected (image, label)")
            numbers.append(rest[0])
        first, this = found[0], found[-1]
        if (this.shape, this.dtype) != (first.shape, first.dtype):
            got, want = (f"[H, W, C] = {list(x.shape)} of {x.dtype.name}" for x in (this, first))
            raise UserError(
                f"{name}: got {got}, expected {want} as item 0; save images of several sizes in a folder, which can be "
                "cropped, resized or cut into patches"
            )
    if not found:
        raise UserError("images: got none, expected at least one")
    return np.stack(found), _numbers(numbers, len(found)) if labels else None


def _one(name: str, image: Any, levels: int | None) -> NDArray[Any]:
    """One image as ``[H, W, C]``."""
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            remedy = "image.convert('RGB'), or 'L' for gray"
            raise UserError(f"{name}: got Pillow's mode {image.mode}, expected 1, L, RGB or I;16 ({remedy})")
        values: NDArray[Any] = np.asarray(image).astype(_MODES[image.mode])
    elif isinstance(image, (np.ndarray, Tensor)):
        if image.ndim not in (2, 3) or 0 in image.shape:
            axes = "[C, H, W]" if isinstance(image, Tensor) else "[H, W, C]"
            raise UserError(f"{name}: got shape {list(image.shape)}, expected [H, W] or {axes}, with no zero")
        _check_axes(name, image, stacked=False)
        values = _numpy(image) if isinstance(image, Tensor) else image
        if isinstance(image, Tensor) and values.ndim == 3:
            values = values.transpose(1, 2, 0)
    else:
        raise UserError(f"{name}: got {type(image).__name__}, expected a PIL image, an array or a tensor")
    return _integers(name, values[..., None] if values.ndim == 2 else values, levels)


def _numbers(labels: Any, count: int) -> NDArray[np.int64]:
    """Class numbers ``[N]``."""
    try:
        values = _numpy(labels) if isinstance(labels, Tensor) else np.asarray(labels)
    except (ValueError, TypeError):  # ragged
        values = np.empty(0, object)
    if values.shape != (count,) or values.dtype.kind not in "ui":
        got = f"{values.dtype.name} {list(values.shape)}"
        raise UserError(f"labels: got {got}, expected [{count}] class numbers from 0, one for each image")
    return values.astype(np.int64)
