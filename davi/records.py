"""Records that are kept as JSON: frozen dataclasses, written as nested mappings and read back.

Nothing that is read is taken on trust. Where :mod:`davi.config` is lenient with what a person writes, JSON has types of
its own and must have the right ones: a number is no text, ``true`` is no number, numbers are finite and whole numbers
fit into 64 bits. Keys that a class does not know are ignored, since a later version may have written them. The fields
of a record are

* ``int`` (from 0), ``float``, ``bool``, ``str``, unions of these and null,
* enumerations, by value if they are text and else by name,
* other records, tuples of anything and mappings from text to anything; ``object`` stands for whatever JSON can hold.

A dataclass may refuse values in its ``__post_init__``, with a ``ValueError`` that begins with the field's name.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Any, TypeVar, get_args, get_origin

from davi.config import Reader, one_line, shown
from davi.errors import UserError

T = TypeVar("T")

LARGEST = 1e100
"""No number is larger; sums and squares of such numbers are finite."""

LEFT_OUT = {"left out": True}
"""Metadata of a field that is not written where it has its default."""

_WHOLE = "whole"
_WORDS = {
    int: "a whole number from 0",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def left_out() -> Any:
    """A field that is not written where it is None."""
    return dataclasses.field(default=None, metadata=LEFT_OUT)


def whole() -> Any:
    """A field that holds all that the mapping says from which the record was read, and is what is written for it."""
    return dataclasses.field(default_factory=dict, metadata={_WHOLE: True})


def to_json(value: Any) -> Any:
    """A record, or what one may hold, as JSON can hold it.

    Raises:
        TypeError: for anything else.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        for field in fields:
            if _WHOLE in field.metadata:
                return to_json(getattr(value, field.name))
        kept = [field for field in fields if not _is_left_out(field, getattr(value, field.name))]
        return {field.name: to_json(getattr(value, field.name)) for field in kept}
    if isinstance(value, Enum):
        return value.value if isinstance(value, StrEnum) else value.name
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"record: got a value of type {type(value).__name__}, expected what JSON can hold")


def read(cls: type[T], values: object, where: str) -> T:
    """The record that :func:`to_json` has written.

    Arguments:
        cls: of the record.
        values: as JSON gives them.
        where: what messages begin with: the path of the file.

    Raises:
        UserError: one line that names the field: it is missing, of another type or out of range.
    """
    record: T = _Reader(where, ()).value(cls, dataclasses.MISSING, values, "")
    return record


def at_least_one(record: Any, *names: str) -> None:
    """For ``__post_init__``: refuse fields that are below 1.

    Raises:
        ValueError: names the first.
    """
    for name in names:
        value = getattr(record, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected a whole number from 1")


class _Reader(Reader):
    """Reads records instead of what people write."""

    def section(self, cls: type[Any], default: Any, values: Mapping[str, Any], prefix: str) -> Any:
        for field in dataclasses.fields(cls):
            if _WHOLE in field.metadata:
                values = {**values, field.name: values}
        return super().section(cls, default, values, prefix)

    def unknown(self, prefix: str, name: Any) -> None:
        return

    def missing(self, key: str, hint: Any) -> UserError:
        return UserError(f"{self.where}: found no {key}, expected {_expected(hint)}")

    def value(self, hint: Any, default: Any, value: Any, key: str) -> Any:
        kinds = _kinds(hint)
        if hint is object or (value is None and type(None) in kinds):
            return value
        kind = next(kind for kind in kinds if kind is not type(None))
        arguments = get_args(kind)
        below = f"{key}." if key else ""
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            return self.section(kind, default, value, below)
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            return tuple(self.value(arguments[0], default, item, f"{below}{i}") for i, item in enumerate(value))
        if get_origin(kind) is Mapping and isinstance(value, Mapping):
            named = ((str(name), item) for name, item in value.items())
            return {name: self.value(arguments[1], default, item, below + one_line(name, 100)) for name, item in named}
        if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str) and value in _words(kind):
            return kind(value) if issubclass(kind, StrEnum) else kind[value]
        if any(_fits(kind, value) for kind in kinds):
            return float(value) if kinds[0] is float else value
        place = f"{self.where}: {key}: " if key else f"{self.where}: "
        raise UserError(f"{place}got {_shown(value)}, expected {_expected(hint)}")


def _is_left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    return "left out" in field.metadata and bool(value == field.default)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is types.UnionType else (hint,)


def _words(kind: type[Enum]) -> list[str]:
    return [member.value if issubclass(kind, StrEnum) else member.name for member in kind]


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value is a scalar of the kind."""
    if kind is float:
        return type(value) in (int, float) and abs(value) < LARGEST  # a comparison with NaN is false
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    return type(value) is kind


def _expected(hint: Any) -> str:
    """What a field holds, in words."""
    words = []
    for kind in _kinds(hint):
        if get_origin(kind) is tuple:
            words.append("a list")
        elif isinstance(kind, type) and issubclass(kind, Enum):
            words.append(f"one of {', '.join(_words(kind))}")
        else:
            words.append(_WORDS.get(kind, "a mapping"))
    return " or ".join(words)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, (dict, list)) else shown(value)
