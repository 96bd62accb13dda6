"""The files of ``davi evaluate`` in the folder of a run, written and read back.

::

    evaluation.json           the numbers and their protocol (davi.evaluation.result)
    evaluation.safetensors    the same image by image, float64, nats: elbo [N], bound [N], terms/NAME [N];
                              where images are patches, the file of each: groups [N], int64

Two models are compared image by image, so the second file matters as much as the first. It says of which JSON it is a
part (SHA-256 of its content), it is written first and each appears under its name only when it is whole: a kill between
the two leaves files that do not belong together, and :func:`load` says so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from davi import records
from davi.errors import UserError
from davi.evaluation import Array, Evaluation
from davi.evaluation.clusters import Groups
from davi.evaluation.result import Result
from davi.evidence import Kind
from davi.files import read_tensors, write_tensors, writing
from davi.report import to_terminal, write_json

EVALUATION = "evaluation"
"""The files' name without its suffix."""

LARGEST_FILE = 2**24
"""Bytes. A thousand layers need half a megabyte; anything far larger is the wrong file."""

_TERMS, _GROUPS = "terms/", "groups"


@dataclass(frozen=True, eq=False, repr=False)
class Measured:
    """An evaluation as it was read back.

    Arguments:
        result: the content of the JSON file.
        elbo: of each image, ``[N]``, nats.
        bound: importance-weighted bound of each image, ``[N]``, nats; with one sample it is ``elbo``.
        terms: the parts that ``elbo`` is the sum of, name -> ``[N]``, nats.
        groups: the file of each image, ``[N]``, where several are cut from one (:mod:`davi.evaluation.clusters`).
    """

    result: Result
    elbo: Array
    bound: Array
    terms: dict[str, Array]
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.elbo)

    def __repr__(self) -> str:
        """The table that ``davi evaluate`` prints."""
        return to_terminal(self.result)

    @property
    def kind(self) -> Kind:
        """How the numbers relate to log p(x)."""
        return self.result.kind


def save(folder: Path, result: Result, evaluation: Evaluation, name: str = EVALUATION) -> Path:
    """Write an evaluation, in place of an earlier one.

    Arguments:
        folder: of the run.
        result: what :func:`davi.report.result_of` made of ``evaluation``.
        evaluation: what was measured.
        name: of the files, without suffix.

    Returns:
        The path of the JSON file.

    Raises:
        UserError: if a file cannot be written.
        ValueError: if a number is not finite.
    """
    path, beside = _paths(folder, name)
    arrays = {"elbo": evaluation.elbo, "bound": evaluation.bound}
    arrays |= {_TERMS + term: values for term, values in evaluation.terms.items()}
    tensors = {key: torch.from_numpy(np.array(values, dtype=np.float64)) for key, values in arrays.items()}
    if evaluation.groups is not None:
        tensors[_GROUPS] = torch.from_numpy(np.array(evaluation.groups, dtype=np.int64))
    info = {"result_sha256": _digest(records.to_json(result))}
    with writing(str(beside)):
        write_tensors(beside, tensors, info)
    write_json(path, result)
    return path


def load(folder: Path, name: str = EVALUATION) -> Measured:
    """Read what :func:`save` wrote, and check all of it.

    Arguments:
        folder: of the run.
        name: of the files, without suffix.

    Raises:
        UserError: one line, if a file is missing, damaged or of another program, or the two do not belong together.
    """
    path, beside = _paths(folder, name)
    remedy = f"davi evaluate {folder} writes it"
    for file in (path, beside):
        if not file.is_file():
            raise UserError(f"{folder}: found no {file.name}, expected a run that was evaluated; {remedy}")
    content = read_json(path)
    result = records.read(Result, content, str(path))
    tensors, info = read_tensors(beside)
    if info.get("result_sha256") != _digest(content):
        raise UserError(f"{beside}: got the numbers of another evaluation than {path.name} holds; {remedy}")
    arrays = {}
    want = [result.protocol.images]
    groups = tensors.pop(_GROUPS, None)
    if groups is not None and (groups.dtype != torch.int64 or list(groups.shape) != want):
        got = f"{groups.dtype} {list(groups.shape)}"
        raise UserError(f"{beside}: {_GROUPS}: got {got}, expected {want[0]} numbers of torch.int64")
    for key, tensor in tensors.items():
        finite = tensor.dtype == torch.float64 and bool((tensor.abs() < records.LARGEST).all())
        if not finite or list(tensor.shape) != want:
            shape = f"{tensor.dtype} {list(tensor.shape)}"
            raise UserError(f"{beside}: {key[:100]}: got {shape}, expected {want[0]} finite numbers of torch.float64")
        arrays[key] = tensor.numpy()
    if not {"elbo", "bound"} <= arrays.keys():
        raise UserError(f"{beside}: got {len(arrays)} arrays, expected elbo and bound among them; {remedy}")
    terms = {key.removeprefix(_TERMS): values for key, values in arrays.items() if key.startswith(_TERMS)}
    return Measured(result, arrays["elbo"], arrays["bound"], terms, None if groups is None else groups.numpy())


def read_result(path: Path) -> Result:
    """Read and check the JSON file alone.

    Raises:
        UserError: one line that names the file and the field: no JSON, or not in the form of
            :class:`~davi.evaluation.result.Result`.
    """
    return records.read(Result, read_json(path), str(path))


def read_json(path: Path) -> Any:
    """The content of a file that ``davi evaluate`` has written, as yet unchecked.

    Raises:
        UserError: one line, if it is no JSON or far too large.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: got more than {LARGEST_FILE} bytes, expected what davi evaluate writes")
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, a number of many digits
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not valid JSON ({reason}), expected what davi evaluate writes") from None


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.json", folder / f"{name}.safetensors"


def _digest(result: Any) -> str:
    """SHA-256 of the content of a result in JSON: neither spaces nor the order of keys matter."""
    text = json.dumps(result, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")
