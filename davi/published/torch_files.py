"""Weights in files that ``torch.save`` or safetensors wrote, read without running anything that is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from davi.errors import UserError

_SHOWN = 3
"""Names that a message lists of each kind of mismatch."""
_PREFIX = re.compile(r"(?:module\.|_orig_mod\.|model\.)+")
"""What data parallelism, compilation and wrappers put before every name."""
_LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library accepts."""
_AVERAGE = re.compile(r"(?:^|[^a-z])ema(?:[^a-z]|$)", re.IGNORECASE)
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
    struct.error,
)
"""What torch.load raises on damaged files."""


def check_file(path: Path) -> None:
    """Refuse what is no file that could be read to its end.

    Raises:
        UserError: one line that begins with the path.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file of weights")
    if not path.is_file():
        raise UserError(f"{path}: {'is no ordinary file' if path.exists() else 'no such file'}")


def load_state(path: Path | str) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors, Python's own containers, and options as argparse keeps them; or
    the tensors of a safetensors file, into which others have converted such files.

    Arguments:
        path: the file.

    Raises:
        UserError: one line that begins with the path, if the file is missing, is none of torch's, is damaged, or wants
            to run code.
    """
    path = Path(path)
    check_file(path)
    try:
        if safetensors_header(path) is not None:
            return load_file(path)
        _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual files; what matters is whether they can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (asked := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            raise UserError(
                f"{path}: refused, since it holds more than tensors and would run code (it asks for {asked[1][:80]})"
            ) from None
        raise UserError(f"{path}: not a file of weights that torch.save wrote, or damaged ({_short(error)})") from None
    except (*_FAULTS, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"{path}: not a file of weights that torch.save wrote, or damaged ({_short(error)})") from None


def safetensors_header(path: Path) -> bytes | None:
    """The JSON with which a safetensors file begins; None if a file begins otherwise.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER or file.read(1) != b"{":
            return None
        return b"{" + file.read(length - 1)


def _check_archive(path: Path) -> None:
    """Refuse archives of other programs, those that are packed (a few bytes can unpack to many gigabytes; torch stores
    its archives as they are), and those whose bytes have changed, which torch does not notice."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"an archive that unpacks to {claimed} bytes")
        if not any(entry.filename.endswith("data.pkl") for entry in entries):
            raise ValueError("a zip archive of another program")
        summed = any(entry.CRC for entry in entries)  # torch can be told to leave the check sums out
        if summed and (changed := archive.testzip()) is not None:
            raise ValueError(f"the check sum of {changed} differs")


def weights_among(loaded: Any, known: Callable[[Iterable[str]], bool]) -> tuple[dict[str, Any], str]:
    """The tensors by their names, wherever a file keeps them.

    Arguments:
        loaded: what the file holds: the weights, or a dictionary with them, perhaps inside another one.
        known: whether names, without prefixes, are those of the model.

    Returns:
        The weights, without the prefixes of their names, and the key under which they were found; empty where the file
        is nothing else. Of several, those whose key names an average (``ema``) are taken: they are the ones that
        the authors evaluate.

    Raises:
        UserError: if there are none, or several without one being the average; or if a name is there twice.
    """
    inside = [("", loaded)] if isinstance(loaded, Mapping) else []
    for key, value in list(inside[0][1].items()) if inside else []:
        inside.append((str(key), value))
        if isinstance(value, Mapping):
            inside += [(f"{key}.{inner}", x) for inner, x in value.items()]
    found = {key: x for key, x in inside if isinstance(x, Mapping) and known(map(_without_prefix, x))}
    average = {key: x for key, x in found.items() if _AVERAGE.search(key)}
    chosen = average if len(average) == 1 else found
    if len(chosen) > 1:
        raise UserError(f"holds several sets of weights ({_listed(list(chosen))}), expected one")
    for key, weights in chosen.items():
        return without_prefix(weights), key
    what = f"a dictionary of {len(loaded)}" if isinstance(loaded, Mapping) else type(loaded).__name__
    raise UserError(f"holds {what} without the names of this model's weights")


def _without_prefix(name: Any) -> str:
    found = _PREFIX.match(str(name))
    return str(name)[found.end() :] if found else str(name)


def without_prefix(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the prefixes of data parallelism and the like removed, where they are.

    Raises:
        UserError: if a name is there with and without one.
    """
    found: dict[str, Any] = {}
    for name, x in weights.items():
        plain = _without_prefix(name)
        if plain in found:
            raise UserError(f"weights: {plain[:100]} is there twice, with a prefix such as 'module.' and without")
        found[plain] = x
    return found


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
        elif isinstance(x, Tensor) and x.is_nested:
            values.append(f"{name} is a nested tensor")
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
