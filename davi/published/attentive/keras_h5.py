"""Weight files that Keras wrote (``model.save_weights("FILE.h5")``), read without trusting them.

Such a file is HDF5. The attribute ``layer_names`` of its root lists one group per top-level layer, the attribute
``weight_names`` of a group lists that layer's data sets (Keras splits lists above 64 kB into ``weight_names0``,
``weight_names1``, ...). HDF5 can do much more: links into other files, data kept elsewhere, filters that load code,
shapes far larger than the file. None of that occurs in a weight file, so all of it is refused, and nothing is read
before everything has been checked. Needs h5py (the extra ``import``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from davi.errors import UserError
from davi.published.torch_files import check_file

try:
    import h5py
except ImportError:  # an extra; only reading a file needs it
    h5py = None

_MOST_OBJECTS = 200_000
"""Groups and data sets in a file. The largest the authors published has about 17,000."""
_DEEPEST = 64
"""Groups inside one another; scopes of Keras layers nest about ten deep."""
_FAULTS = (OSError, RuntimeError, ValueError, TypeError, LookupError, OverflowError, AttributeError, MemoryError)
"""What h5py raises on damaged files."""


@dataclass(frozen=True)
class Weight:
    """A data set of a layer.

    Arguments:
        name: its path inside the layer's group, as Keras listed it.
        value: float32, or bool for flags; in Keras's layout.
    """

    name: str
    value: Tensor

    @property
    def leaf(self) -> str:
        """The last component of the name, the only one that does not depend on how the model was built."""
        return self.name.rpartition("/")[2]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)


@dataclass(frozen=True)
class Group:
    """A top-level layer: its name and its weights, in the order of the file."""

    name: str
    weights: tuple[Weight, ...]


def read(path: Path | str) -> list[Group]:
    """All weights of a file, in its order; at most as many bytes as the file has.

    Raises:
        UserError: one line that begins with the path, if the file is missing, is no HDF5, is damaged, was not written
            by Keras's ``save_weights``, lists data sets that it lacks or holds others than it lists, contains links,
            or data that are not plain float32 or bool; or if h5py is not installed.
    """
    path = Path(path)
    if h5py is None:
        raise UserError(f"{path}: Keras files need h5py; in DAVI's folder: pip install -e '.[import]'")
    try:
        check_file(path)
        if not h5py.is_hdf5(path):
            raise UserError(f"{path}: not an HDF5 file; expected weights saved by Keras as .h5")
        with h5py.File(path, "r") as file:
            return _read(file, path.stat().st_size)
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from None
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged or truncated HDF5 file ({reason})") from error


def _read(file: Any, size: int) -> list[Group]:
    names = _names(file, "layer_names", size)
    if names is None:
        raise UserError("has no attribute layer_names; expected weights saved by Keras")
    datasets = dict(_walk(file))
    listed = {name: _names(_layer(file, name), "weight_names", size) for name in names}
    if len(listed) != len(names):
        raise UserError("layer_names lists a layer twice")
    paths: list[str] = []
    for group, weights in listed.items():
        if weights is None:
            raise UserError(f"group {group!r} has no attribute weight_names; expected weights saved by Keras")
        paths += [f"{group}/{weight}" for weight in weights]
    _check_lists(paths, datasets)
    # Hard links let many names share the same bytes, so the sum has a limit of its own.
    total = sum(_stored_bytes(path, datasets[path], size) for path in paths)
    if total > size:
        raise UserError(f"lists {total} bytes of weights, more than the {size} bytes of the file")
    return [
        Group(group, tuple(Weight(name, _tensor(datasets[f"{group}/{name}"])) for name in weights or ()))
        for group, weights in listed.items()
    ]


def _check_lists(paths: list[str], datasets: dict[str, Any]) -> None:
    for path in paths:
        if path not in datasets:
            raise UserError(f"lists the data set {path!r}, but does not hold it")
    if len(set(paths)) != len(paths):
        raise UserError("weight_names lists a data set twice")
    unlisted = min(set(datasets) - set(paths), default=None)
    if unlisted is not None:
        raise UserError(f"holds the data set {unlisted!r}, which no layer lists")


def _walk(root: Any) -> Iterator[tuple[str, Any]]:
    """Path and handle of every data set; refuses all but groups, data sets and hard links."""
    waiting: list[tuple[str, Any]] = [("", root)]
    seen = 0
    while waiting:
        path, group = waiting.pop()
        if path.count("/") > _DEEPEST:
            raise UserError(f"nests groups more than {_DEEPEST} deep")
        for name in group:
            seen += 1
            if seen > _MOST_OBJECTS:
                raise UserError(f"holds more than {_MOST_OBJECTS} objects")
            inner = f"{path}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{inner!r} is a link to somewhere else; expected weights in the file itself")
            thing = group[name]
            if isinstance(thing, h5py.Group):
                waiting.append((f"{inner}/", thing))
            elif isinstance(thing, h5py.Dataset):
                yield inner, thing
            else:
                raise UserError(f"{inner!r} is neither a group nor a data set")


def _layer(file: Any, name: str) -> Any:
    # After _walk every link is hard, so a name without a slash can lead to nothing but an object of the root.
    group = file.get(name) if name not in ("", ".") and "/" not in name else None
    if not isinstance(group, h5py.Group):
        raise UserError(f"lists the layer {name!r}, but has no such group")
    return group


def _names(group: Any, attribute: str, size: int) -> list[str] | None:
    """A list of names kept in an attribute, or in several numbered ones; None if there is neither."""
    if attribute in group.attrs:
        return _strings(group, attribute, size)
    if f"{attribute}0" not in group.attrs:
        return None
    names: list[str] = []
    part = 0
    while f"{attribute}{part}" in group.attrs:
        names += _strings(group, f"{attribute}{part}", size)
        part += 1
    return names


def _strings(group: Any, attribute: str, size: int) -> list[str]:
    handle = group.attrs.get_id(attribute)
    shape, dtype = handle.shape, handle.dtype
    if shape == (0,):  # what Keras writes for a layer without weights has no type to speak of
        return []
    text = h5py.check_string_dtype(dtype)
    if shape is None or len(shape) != 1 or text is None or shape[0] * dtype.itemsize > size:
        raise UserError(f"attribute {attribute} is not a list of names")
    values = group.attrs[attribute]
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value) for value in values]


def _stored_bytes(path: str, dataset: Any, size: int) -> int:
    """Size of a data set, after making sure that it is plain data inside this file."""
    shape, dtype = dataset.shape, dataset.dtype
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path!r} is kept in another file; expected weights in the file itself")
    is_float = dtype.kind == "f" and dtype.itemsize == 4
    if shape is None:
        raise UserError(f"{path!r} is empty")
    if dtype.subdtype is not None or not (is_float or dtype == np.bool_):
        raise UserError(f"{path!r} holds {dtype}, expected float32")
    if dataset.id.get_create_plist().get_nfilters():
        raise UserError(f"{path!r} is compressed; expected plain data, as Keras writes them")
    wanted = math.prod(shape) * dtype.itemsize  # not dataset.nbytes, which may overflow
    stored = dataset.id.get_storage_size()
    if wanted > size or stored < wanted:
        raise UserError(f"{path!r} has shape {list(shape)}, but the file holds only {stored} bytes of it")
    return wanted


def _tensor(dataset: Any) -> Tensor:
    values = dataset[()]
    return torch.from_numpy(np.array(values, dtype=np.bool_ if values.dtype == np.bool_ else np.float32))
