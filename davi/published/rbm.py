"""Arrays of a restricted Boltzmann machine that another program trained: couplings W and fields b and c.

A ``.npz`` file, as ``numpy.savez`` writes it, with V visible and H hidden units:

========= ============= =================================================================================
array     shape         content
========= ============= =================================================================================
``W``     [V, H]        couplings, floating point
``b``     [V]           fields of the visible units
``c``     [H]           fields of the hidden units
``shape`` [3]           channels, height and width of the images, whole numbers; it may be left out
========= ============= =================================================================================

Units are 0 or 1, and E(v, h) = -b . v - c . h - v . W h. Visible units are pixels in the order of [C, H, W].
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davi.config import parse
from davi.data.arrays import FLOATS, INTEGERS, array_names, read_beside
from davi.errors import UserError
from davi.models.rbm import RBMConfig
from davi.published.reader import Given, Imported, Shape

REQUIRED = ("W", "b", "c")
LARGEST = 2**28
"""Numbers in an array; W with 65,536 visible and 4,096 hidden units."""
_LARGEST_SIDE = 65536
"""Channels, height or width of the images of a run."""
_FITTED = {"W": "components_", "b": "intercept_visible_", "c": "intercept_hidden_"}


def are_names(names: Iterable[str]) -> bool:
    """Whether the arrays of a file are those of a restricted Boltzmann machine."""
    return set(REQUIRED) <= set(names)


def import_rbm(path: Path, given: Given) -> Imported:
    """A ``.npz`` file as everything a run needs.

    Arguments:
        path: the file.
        given: the user's shape, and options of the model.

    Raises:
        UserError: one line that begins with the path, if it is no such file or its arrays do not fit each other.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: is no .npz file, or damaged, expected one with arrays W, b and c")
    names = array_names(path)
    if missing := [name for name in REQUIRED if name not in names]:
        found = ", ".join(name[:50] for name in names[:10]) or "nothing"
        raise UserError(f"{path}: holds {found}, expected arrays W, b and c ({', '.join(missing)} missing)")
    arrays = {name: _read(path, name, FLOATS) for name in REQUIRED}
    if "shape" in names:
        arrays["shape"] = _read(path, "shape", INTEGERS)
    try:
        found_all = imported(arrays, given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    unused = [name[:50] for name in names if name not in arrays]
    notes = [f"not used: {', '.join(unused[:10])}"] if unused else []
    return Imported(found_all.shape, 2, found_all.config, found_all.state, (*found_all.notes, *notes))


def _read(path: Path, name: str, kinds: str) -> NDArray[Any]:
    found = read_beside(path, (name,), kinds, LARGEST)
    assert found is not None  # its name is there
    return found


def imported(arrays: Mapping[str, NDArray[Any]], given: Given) -> Imported:
    """Arrays as everything a run needs.

    Arguments:
        arrays: ``W``, ``b``, ``c`` and perhaps ``shape`` (module docstring).
        given: the user's shape, which goes before that of the arrays, or else the geometry of the images; and options
            of the model.

    Raises:
        UserError: one line, if they do not fit each other, or are not finite.
    """
    couplings, visible, hidden = (arrays[name] for name in REQUIRED)
    for name, array in (("b", visible), ("c", hidden)):
        if array.ndim != 1:
            raise UserError(f"{name}: got shape {list(array.shape)}, expected one dimension")
    _check_couplings(list(couplings.shape), [len(visible), len(hidden)])
    shape = _shape(arrays.get("shape"), given, len(visible))
    asked = given.options.get("hidden", len(hidden))
    if asked != len(hidden):
        raise UserError(f"model.hidden: got {asked}, expected {len(hidden)} as in the file")
    units = given.options.get("visible", "auto")
    if units not in ("auto", "binary"):
        raise UserError(f"model.visible: got {units}, expected binary: the units of such arrays are 0 or 1")
    config = parse(RBMConfig, {**given.options, "hidden": len(hidden)}, "model")
    tensors = {name: torch.from_numpy(_finite(name, arrays[name])) for name in REQUIRED}
    state = {"weight": tensors["W"], "b": tensors["b"].view(shape), "c": tensors["c"]}
    size = "x".join(map(str, shape))
    note = f"{len(visible)} visible units, read as the pixels of {size} (channels, rows, columns), {len(hidden)} hidden"
    return Imported(shape, 2, config, state, (note,))


def _check_couplings(got: list[int], expected: list[int]) -> None:
    """Refuse couplings of another shape than [V, H]."""
    if got == expected:
        return
    if got == expected[::-1]:
        raise UserError(
            f"W: got shape {got}, which is transposed, expected {expected}, the lengths of b and c; save W.T"
        )
    raise UserError(f"W: got shape {got}, expected {expected}, the lengths of b and c")


def _shape(array: NDArray[Any] | None, given: Given, units: int) -> Shape:
    """The shape of images of so many pixels."""
    if given.shape is not None:
        return _checked("shape", given.shape, units)
    if array is not None:
        if array.shape != (3,):
            raise UserError(f"shape: got an array of shape {list(array.shape)}, expected three numbers, C, H and W")
        return _checked("shape", tuple(array.tolist()), units)
    if given.geometry is not None and math.prod(given.geometry[0]) == units:
        return given.geometry[0]
    if units > _LARGEST_SIDE:
        raise UserError(
            f"b: got {units} units, expected --shape C,H,W, or an array shape, for more than {_LARGEST_SIDE}"
        )
    return 1, 1, units


def _checked(name: str, shape: tuple[int, ...], units: int) -> Shape:
    text = ",".join(map(str, shape))
    if len(shape) != 3 or not all(1 <= side <= _LARGEST_SIDE for side in shape):
        raise UserError(f"{name}: got {text}, expected three numbers from 1 to {_LARGEST_SIDE}")
    if math.prod(shape) != units:
        raise UserError(f"{name}: got {text}, {math.prod(shape)} pixels, expected {units}, the length of b")
    channels, height, width = shape
    return channels, height, width


def _finite(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers of an array in the precision of a run."""
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(array, dtype=np.float32)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        place = ", ".join(map(str, wrong[0]))
        raise UserError(f"{name}: got {array[tuple(wrong[0])]} at [{place}], expected finite numbers (float32)")
    return numbers


def arrays_of(source: Any) -> dict[str, NDArray[Any]]:
    """The arrays of a restricted Boltzmann machine in memory.

    Arguments:
        source: a fitted ``sklearn.neural_network.BernoulliRBM``, whose couplings are ``components_``, ``[H, V]``; or a
            mapping with ``W``, ``b``, ``c`` and perhaps ``shape``, arrays or tensors.

    Raises:
        UserError: one line, if it is neither, or its arrays hold no floating-point numbers.
    """
    if isinstance(source, Mapping):
        found = dict(source)
    elif all(hasattr(source, attribute) for attribute in _FITTED.values()):
        found = {name: np.asarray(getattr(source, attribute)) for name, attribute in _FITTED.items()}
        found["W"] = found["W"].T
    else:
        kind = type(source).__name__
        raise UserError(f"rbm: got {kind}, expected a fitted BernoulliRBM or a mapping with arrays W, b and c")
    if missing := [name for name in REQUIRED if name not in found]:
        raise UserError(f"rbm: got no {', '.join(missing)}, expected arrays W, b and c")
    known = {name: found[name] for name in (*REQUIRED, "shape") if found.get(name) is not None}
    arrays = {
        name: x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for name, x in known.items()
    }
    for name, array in arrays.items():
        if array.dtype.kind not in (INTEGERS if name == "shape" else FLOATS):
            expected = "whole numbers" if name == "shape" else "floating-point numbers"
            raise UserError(f"{name}: got {array.dtype.name}, expected {expected}")
    return arrays
