"""Weights in files that ``torch.save`` wrote, read without running anything that is in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi.errors import UserError

_SHOWN = 3
"""Names that a message lists of each kind of mismatch."""
_FAULTS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    AttributeError,
    MemoryError,
    EOFError,
)
"""What torch.load raises on damaged files."""


def load_state(path: Path | str, classes: Sequence[type] = ()) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Arguments:
        path: the file.
        classes: plain classes that it may hold besides tensors and Python's own containers.

    Raises:
        UserError: one line that begins with the path, if the file is missing, is none of torch's, is damaged, or wants
            to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        _refuse_packed(path)
        with torch.serialization.safe_globals(list(classes)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual files; what matters is whether they can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (asked := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            raise UserError(
                f"{path}: refused, since it holds more than tensors and would run code (it asks for {asked[1][:80]})"
            ) from None
        raise UserError(f"{path}: not a file of weights that torch.save wrote, or damaged ({_short(error)})") from None
    except (*_FAULTS, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a file of weights that torch.save wrote, or damaged ({_short(error)})") from None


def _refuse_packed(path: Path) -> None:
    """A few bytes can unpack to many gigabytes; torch stores its archives as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"an archive that unpacks to {claimed} bytes")


def _short(error: Exception) -> str:
    """What is wrong, without torch's advice on how to run the file all the same."""
    text = " ".join(str(error).split("WeightsUnpickler error:")[-1].split("Check the documentation")[0].split())
    return text[:120] or type(error).__name__


def fitted(expected: Mapping[str, Tensor], found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A complete state dictionary, if everything fits.

    Arguments:
        expected: our model's state dictionary; on the meta device it costs nothing.
        found: the file's tensors by their names.
        names: their name -> ours, for everything our model has.

    Returns:
        The file's tensors by our names.

    Raises:
        UserError: one line with all that is missing, unexpected, of another shape, or not finite floating point
            numbers: how many of each, and the first few; the details are all of them.
    """
    wrong: dict[str, list[str]] = {
        "missing": [name for name in names if name not in found],
        "unexpected": [str(name) for name in found if name not in names],
    }
    shapes: list[str] = []
    values: list[str] = []
    for name, key in names.items():
        x = found.get(name)
        if name in found and not isinstance(x, Tensor):
            values.append(f"{name} is {type(x).__name__}")
        elif isinstance(x, Tensor) and x.shape != expected[key].shape:
            shapes.append(f"{name} {list(x.shape)}, expected {list(expected[key].shape)}")
        elif isinstance(x, Tensor) and (fault := _fault(x, expected[key].dtype)) is not None:
            values.append(f"{name} {fault}")
    wrong |= {"of another shape": shapes, "not usable": values}
    told = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in wrong.items() if names]
    if told:
        details = [f"{kind}: {name}" for kind, names in wrong.items() for name in names]
        raise UserError(f"weights: {'; '.join(told)}; of {len(expected)} expected, {len(found)} found", details)
    return {key: found[name].to(expected[key].dtype) for name, key in names.items()}


def _fault(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why the numbers of a tensor cannot be used, if they cannot."""
    if x.is_floating_point() != dtype.is_floating_point:
        return f"is {x.dtype}, expected {dtype}"
    # Strides of zero let one number claim to be any amount of them.
    if x.layout != torch.strided or x.is_meta or x.untyped_storage().nbytes() < x.numel() * x.element_size():
        return "does not hold all its numbers"
    return None if bool(torch.isfinite(x.to(dtype)).all()) else "is not finite"


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(" ".join(name.split())[:100] for name in names[:_SHOWN]) + more
