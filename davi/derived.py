"""Values that follow from a model's weights and take long to compute: cached beside them, keyed by their digest.

::

    RUN/derived/NAME.safetensors     tensors, and in the metadata the digest of the weights they follow from

Batch-norm statistics for drawing at a temperature and partition functions are such values. A value of other weights
than the run holds now is as good as missing; so is one that was made with other options.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from davi.errors import UserError
from davi.files import read_tensors, write_tensors, writing

FOLDER = "derived"


def path_of(run: Path, name: str) -> Path:
    """The file of a derived value."""
    return run / FOLDER / f"{name}.safetensors"


def read(run: Path, name: str, weights: str, options: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """A derived value; None if there is none of these weights and options.

    Arguments:
        run: the run's folder.
        name: of the value.
        weights: digest of the weights (:func:`davi.files.digest`) of the model at hand.
        options: with which it is made, as JSON can hold them.

    Raises:
        UserError: if the file is damaged.
    """
    path = path_of(run, name)
    if not path.exists():
        return None
    try:
        tensors, info = read_tensors(path)
    except UserError as error:
        raise UserError(f"{error}; delete it, it will be made again") from None
    return tensors if info == {"weights": weights, "options": dict(options)} else None


def write(run: Path, name: str, weights: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Keep a derived value, in place of an earlier one of that name; its file.

    Raises:
        UserError: if it cannot be written.
    """
    path = path_of(run, name)
    with writing(str(path)):
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, dict(tensors), {"weights": weights, "options": dict(options)})
    return path
