"""What ``davi evaluate`` leaves in the folder of a run, written and read back.

::

    evaluation.json           the numbers and their protocol (davi.report.to_json)
    evaluation.safetensors    the same image by image, float64, nats: elbo [N], bound [N], terms/NAME [N];
                              where images are patches, the file of each: groups [N], int64

Two models are compared image by image, so the second file matters as much as the first. It says of which JSON it is a
part (SHA-256 of its content), it is written first and each appears under its name only when it is whole: a kill between
the two leaves files that do not belong together, and :func:`load` says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from davi.errors import UserError
from davi.evaluation import Array, Evaluation
from davi.evaluation.clusters import Groups
from davi.evidence import Kind
from davi.files import read_tensors, write_tensors, writing
from davi.report import write_json

EVALUATION = "evaluation"
"""The files' name without its suffix."""

LARGEST_FILE = 2**24
"""Bytes. A thousand layers need half a megabyte; anything far larger is the wrong file."""

_TERMS, _GROUPS = "terms/", "groups"
_LARGEST = 1e100
"""No number of nats is larger; sums and squares of such numbers are finite."""


@dataclass(frozen=True, eq=False)
class Measured:
    """An evaluation as it was read back.

    Arguments:
        result: the content of the JSON file, in the form of :func:`davi.report.to_json`, with its protocol.
        elbo: of each image, ``[N]``, nats.
        bound: importance-weighted bound of each image, ``[N]``, nats; with one sample it is ``elbo``.
        terms: the parts that ``elbo`` is the sum of, name -> ``[N]``, nats.
        groups: the file of each image, ``[N]``, where several are cut from one (:mod:`davi.evaluation.clusters`).
    """

    result: dict[str, Any]
    elbo: Array
    bound: Array
    terms: dict[str, Array]
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.elbo)

    @property
    def kind(self) -> Kind:
        """How the numbers relate to log p(x)."""
        return Kind[self.result["kind"]]


def save(folder: Path, result: Mapping[str, Any], evaluation: Evaluation, name: str = EVALUATION) -> Path:
    """Write an evaluation, in place of an earlier one.

    Arguments:
        folder: of the run.
        result: what :func:`davi.report.to_json` made of ``evaluation``, with its protocol.
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
    info = {"result_sha256": _digest(result)}
    with writing(str(beside)):
        write_tensors(beside, tensors, info)
    write_json(path, result)
    return path


def load(folder: Path, name: str = EVALUATION) -> Measured:
    """Read what :func:`save` wrote. Nothing in the files is taken on trust.

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
    result = read_result(path)
    tensors, info = read_tensors(beside)
    if info.get("result_sha256") != _digest(result):
        raise UserError(f"{beside}: got the numbers of another evaluation than {path.name} holds; {remedy}")
    arrays = {}
    want = [result["protocol"]["images"]]
    groups = tensors.pop(_GROUPS, None)
    if groups is not None and (groups.dtype != torch.int64 or list(groups.shape) != want):
        got = f"{groups.dtype} {list(groups.shape)}"
        raise UserError(f"{beside}: {_GROUPS}: got {got}, expected {want[0]} numbers of torch.int64")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float64 or list(tensor.shape) != want or not bool((tensor.abs() < _LARGEST).all()):
            shape = f"{tensor.dtype} {list(tensor.shape)}"
            raise UserError(f"{beside}: {key[:100]}: got {shape}, expected {want[0]} finite numbers of torch.float64")
        arrays[key] = tensor.numpy()
    if not {"elbo", "bound"} <= arrays.keys():
        raise UserError(f"{beside}: got {len(arrays)} arrays, expected elbo and bound among them; {remedy}")
    terms = {key.removeprefix(_TERMS): values for key, values in arrays.items() if key.startswith(_TERMS)}
    return Measured(result, arrays["elbo"], arrays["bound"], terms, None if groups is None else groups.numpy())


def read_result(path: Path) -> dict[str, Any]:
    """Read and check the JSON file alone.

    Raises:
        UserError: one line that names the file and the field: no JSON, or not in the form of
            :func:`davi.report.to_json`. Fields that are not known are kept, unchecked.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UserError(f"{path}: got more than {LARGEST_FILE} bytes, expected what davi evaluate writes")
    try:
        result = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, a number of many digits
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: not valid JSON ({reason}), expected what davi evaluate writes") from None
    fault = _fault(result, _RESULT, "")
    if fault is not None:
        raise UserError(f"{path}: {fault}")
    checked: dict[str, Any] = result
    return checked


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.json", folder / f"{name}.safetensors"


def _digest(result: Mapping[str, Any]) -> str:
    """SHA-256 of a result's content: neither spaces nor the order of keys matter."""
    text = json.dumps(result, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


@dataclass(frozen=True)
class _Each:
    """A list of any length whose items all have one form, or a mapping whose values have."""

    kind: type
    form: Any


@dataclass(frozen=True)
class _Perhaps:
    """Null or something of a form."""

    form: Any


@dataclass(frozen=True)
class _Word:
    """One of a few words."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class _Whole:
    """A whole number that 64 bits hold."""

    minimum: int


_COUNT, _SIZE = _Whole(0), _Whole(1)
_STATISTIC = {"mean": float, "standard_error": _Perhaps(float)}
_BOTH = {"nats": _STATISTIC, "bits_per_dim": _STATISTIC}
_DATA = {
    "shape": _Each(list, _SIZE),
    "levels": _SIZE,
    "set?": str,
    "binarization?": str,
    "binarization_seed?": _Perhaps(_COUNT),
    "evaluated?": str,
    "test_order?": str,
    "train_sha256?": str,
    "test_sha256?": str,
    "other_images?": _Perhaps(str),
    "training_images?": _Perhaps(_COUNT),
}
_MODEL = {
    "name": str,
    "parameters?": _COUNT,
    "step?": _COUNT,
    "ema?": bool,
    "rollbacks?": _COUNT,
    "weights_sha256?": _Perhaps(str),
    "trained_with?": _Perhaps(str),
    "trained_on?": _Each(dict, (str, int, type(None))),
}
_PROTOCOL = {
    "set": str,
    "split": str,
    "images": _SIZE,
    "images_available": _SIZE,
    "subset?": _Perhaps(str),
    "files?": _Perhaps(_SIZE),
    "images_sha256?": _Perhaps(str),
    "limit": _Perhaps(_SIZE),
    "dims": _SIZE,
    "importance_samples": _SIZE,
    "seed": _COUNT,
    "batch_size": _SIZE,
    "device": str,
    "precision": str,
    "version": str,
    "commit": _Perhaps(str),
    "torch": str,
    "model": _MODEL,
    "data": _DATA,
}
_TOLD = {"divergence?": _Each(list, bool), "inactive?": _Each(list, str), "rule?": str}
_UNITS = {"active": _COUNT, "units": _COUNT}
_RESULT: dict[str, Any] = {
    "kind": _Word(tuple(kind.name for kind in Kind)),
    "bound": {"samples": _SIZE, **_BOTH},
    "elbo": _BOTH,
    "terms": _Each(dict, _BOTH),
    "kl": _Perhaps({"total": _BOTH, "layers": _Each(list, {"name": str, **_BOTH}), **_TOLD}),
    "active_units": _Perhaps({**_UNITS, "layers": _Each(list, _UNITS), "images?": _SIZE, "draws?": _SIZE, "rule": str}),
    "baselines": _Each(
        list, {"name": str, "bits_per_dim": _Perhaps(float), "standard_error": _Perhaps(float), "note": str}
    ),
    "protocol": _PROTOCOL,
}
"""The form of a result: a key that ends in ``?`` may be missing, further keys may be there."""


def _fault(value: Any, form: Any, where: str) -> str | None:
    """The first thing in nested values that has not the form, in words; None if there is none."""
    if isinstance(form, _Perhaps):
        return None if value is None else _fault(value, form.form, where)
    if isinstance(form, _Each):
        if not isinstance(value, (list, dict)) or type(value) is not form.kind:
            return _words(where, value, "a list" if form.kind is list else "a mapping")
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        return next(filter(None, (_fault(item, form.form, f"{where}.{key}") for key, item in items)), None)
    if isinstance(form, dict):
        return _fault_in_mapping(value, form, where)
    if isinstance(form, _Word):
        return None if value in form.words else _words(where, value, f"one of {', '.join(form.words)}")
    if isinstance(form, _Whole):
        right = type(value) is int and form.minimum <= value < 2**63
        return None if right else _words(where, value, f"a whole number from {form.minimum}")
    if form is float:
        right = type(value) in (int, float) and abs(value) < _LARGEST
        return None if right else _words(where, value, "a finite number")
    kinds = form if isinstance(form, tuple) else (form,)
    names = {str: "text", bool: "true or false", int: "a whole number", type(None): "null"}
    return None if type(value) in kinds else _words(where, value, " or ".join(names[kind] for kind in kinds))


def _fault_in_mapping(value: Any, form: Mapping[str, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return _words(where, value, "a mapping")
    for key, inner in form.items():
        name = key.removesuffix("?")
        if name not in value:
            if key != name:
                continue
            return f"found no {f'{where}.{name}'.lstrip('.')}, expected what davi evaluate writes"
        fault = _fault(value[name], inner, f"{where}.{name}")
        if fault is not None:
            return fault
    return None


def _words(where: str, value: Any, expected: str) -> str:
    shown = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(value)[:50]
    name = f"{' '.join(where.lstrip('.').split())[:100]}: " if where else ""
    return f"{name}got {shown}, expected {expected}"
