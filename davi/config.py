"""Typed configuration: from YAML and command-line overrides to frozen dataclasses, and back.

A configuration is a frozen dataclass whose fields are ``int``, ``float``, ``bool``, ``str``, ``Literal``, tuples of
those, ``Optional`` of those, or further dataclasses ("sections"). ``Annotated[TYPE, READ]`` with a function READ lets
it bring a value into its form first; a ``ValueError`` of it says what was expected. jsonargparse judges every value;
this module walks the sections, so that a mistake is reported under its full dotted key in one line:

    attentive_mnist.yaml: unknown key model.layrs; did you mean model.layers?
    attentive_mnist.yaml: model.width: got 'wide', expected int

It needs no torch, so the program can read and refuse a recipe at once.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import math
import types
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from davi.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Named:
    """Marks a section that is one of several dataclasses, told apart by a key: ``Annotated[Base, Named(...)]``, or the
    optional of that.

    Arguments:
        kinds: gives the dataclasses by the value of the key.
        key: the key; each of the dataclasses has a field of that name.
    """

    kinds: Callable[[], Mapping[str, type]]
    key: str = "name"


LARGEST_FILE = 1_000_000
"""Bytes. A recipe has a few thousand; anything far larger is the wrong file."""

_YAML_FAULTS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""PyYAML raises more than ``YAMLError``: its converters stumble over tagged scalars (``!!int ''``, ``!!bool x``), over
impossible dates and very long integers, and its composer over thousands of nested brackets."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which moreover refuses repeated keys (the last would silently win) and aliases.

    No recipe needs aliases, and a few lines of nested ones expand to gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # types-PyYAML leaves it bare
            raise yaml.MarkedYAMLError(None, None, "aliases are not accepted", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key.value} appears twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Arguments:
        path: the file; UTF-8, at most ``LARGEST_FILE`` bytes, without aliases and repeated keys.

    Raises:
        UserError: one line that begins with the path, if the file is missing or is anything else than that.
    """
    where = one_line(str(path))
    try:
        # Not only missing files: a folder, a device or a pipe could be read for ever.
        if not Path(path).is_file():
            raise UserError(f"{where}: no such file")
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: got bytes that are not UTF-8, expected a YAML text file") from None
    if len(content) > LARGEST_FILE:
        raise UserError(f"{where}: got more than {LARGEST_FILE} bytes, expected a YAML file of at most that")
    values = _load_text(text, where)
    if not isinstance(values, dict):
        raise UserError(f"{where}: got {shown(values)}, expected a mapping of keys to values")
    return values


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Lays assignments over nested values and returns the result; ``values`` stays as it was.

    Arguments:
        values: nested mappings, as ``load_yaml`` gives them.
        assignments: any mixture of ``model.layers=8``, ``--model.layers=8`` and the pair ``--model.layers``, ``8``.
            A value is read as YAML (``[3, 4]``, ``true``, ``null``, ``1e-3``); a mapping replaces the whole section.

    Raises:
        UserError: an assignment has no key or no value, is no YAML, or goes through something that is no section.

    Example:
        >>> override({"model": {"layers": 4}}, ["--model.layers", "8", "steps=100"])
        {'model': {'layers': 8}, 'steps': 100}
    """
    result = copy.deepcopy(dict(values))
    rest = iter(assignments)
    for assignment in rest:
        name, equals, text = assignment.partition("=")
        key = name.removeprefix("--")
        if not all(part.strip() for part in key.split(".")):
            raise UserError(f"{shown(assignment)}: got no key, expected KEY=VALUE or --KEY VALUE")
        if not equals:
            following = next(rest, None) if name.startswith("--") else None
            if following is None or following.startswith("--"):
                raise UserError(f"{one_line(assignment)}: got no value, expected KEY=VALUE or --KEY VALUE")
            text = following
        _assign(result, key, _load_text(text, key))
    return result


def parse(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds the configuration ``cls`` from nested values; keys not given keep their defaults, at every depth.

    Values are checked, not bent: ``3`` becomes a float where a float is expected and a list becomes a tuple, but
    ``3.5`` or ``true`` never becomes an int, and NaN is refused. Text is read as YAML would read it (``'1e-3'`` is a
    float, because YAML itself takes it for text).

    Arguments:
        cls: a dataclass as the module's docstring describes.
        values: nested mappings, as ``load_yaml`` or ``override`` gives them.
        where: what the messages begin with: the file's path, or ``command line``.

    Raises:
        UserError: an unknown, missing or repeated key, a value of another type, or a ``ValueError`` of the dataclass's
            own ``__post_init__``; one line that gives ``where``, the dotted key, the value and what was expected.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: got {shown(values)}, expected a mapping of keys to values")
    config: T = Reader(one_line(where), keys(cls)).section(cls, dataclasses.MISSING, values, "")
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested dicts, lists and scalars: what JSON and YAML can hold, and ``parse`` reads back.

    Every list is a new object, since YAML would write a shared one as an alias, which ``load_yaml`` refuses.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config: got {shown(config)}, expected an instance of a dataclass")
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def keys(cls: type, prefix: str = "", above: tuple[type, ...] = ()) -> tuple[str, ...]:
    """All dotted keys of a dataclass, sections and their contents, in the order of their definition.

    Arguments:
        cls: the dataclass.
        prefix: what the keys begin with.
        above: the dataclasses that it is a section of. If it is one of them again, so it could go on for ever: the
            contents of its sections are left out.
    """
    found: list[str] = []
    for name, hint in _hints(cls).items():
        found.append(prefix + name)
        for section in () if cls in above else _section_types(hint):
            found.extend(keys(section, f"{prefix}{name}.", (*above, cls)))
    return tuple(dict.fromkeys(found))


class Reader:
    """One call of ``parse``: remembers for its messages where the values came from and which keys exist."""

    def __init__(self, where: str, keys: tuple[str, ...]) -> None:
        self.where, self.keys = where, keys

    def section(self, cls: type[Any], default: Any, values: Mapping[str, Any], prefix: str) -> Any:
        """The dataclass ``cls`` with ``values`` over ``default``'s; ``prefix`` is its dotted key with a final dot."""
        known: type = cls  # to mypy, type[Any] cannot be a key of a cache
        hints = _hints(known)
        given = {}
        for name, value in values.items():
            if name not in hints:
                self.unknown(prefix, name)
                continue
            given[name] = self.value(hints[name], _default(cls, default, name), value, prefix + name)
        if not isinstance(default, cls):
            for field in dataclasses.fields(cls):
                if field.name not in given and _default(cls, default, field.name) is dataclasses.MISSING:
                    raise self.missing(prefix + field.name, hints[field.name])
        try:
            return dataclasses.replace(default, **given) if isinstance(default, cls) else cls(**given)
        except ValueError as error:
            message = one_line(str(error))
            # A dataclass's own message may begin with the name of its field, or of one of its sections' with a dot;
            # elsewhere the section is named.
            named = message.partition(":")[0].partition(".")[0] in hints
            raise UserError(f"{self.where}: {prefix if named else _after(prefix[:-1])}{message}") from None

    def value(self, hint: Any, default: Any, value: Any, key: str) -> Any:
        """One value, of the type ``hint``; a section if ``hint`` is a dataclass or an optional one."""
        if (read := _reader(hint)) is not None:
            try:
                return self.value(get_args(hint)[0], default, read(value), key)
            except ValueError as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"{self.where}: {key}: got {shown(value)}, expected {error}") from None
        optional = type(None) in get_args(hint)
        if value is None and optional:
            return None
        choice, cls = _choice(hint), _section_type(hint)
        if choice or cls:
            if not isinstance(value, Mapping):
                or_null = " or null" if optional else ""
                raise UserError(f"{self.where}: {key}: got {shown(value)}, expected a section of keys{or_null}")
            kind: Any = cls if choice is None else self.named(choice, default, value, key)
            return self.section(kind, default, value, key + ".")
        wrong = UserError(f"{self.where}: {key}: got {shown(value)}, expected {_words(hint)}")
        if value is None or isinstance(value, Mapping):
            raise wrong
        if _is_already(hint, value):
            return value
        try:
            result = _parser(hint).parse_object({"value": value}).value
        except (ArgumentError, ValueError, OverflowError):  # an int too large for a float overflows
            raise wrong from None
        if any(isinstance(x, float) and math.isnan(x) for x in (result if isinstance(result, tuple) else (result,))):
            raise wrong
        return result

    def named(self, named: Named, default: Any, value: Mapping[str, Any], key: str) -> type:
        """Which of the dataclasses of a :class:`Named` section a value is about: the default's unless it says."""
        kinds = named.kinds()
        given = value.get(named.key)
        chosen = getattr(default, named.key, None) if given is None else given
        if not isinstance(chosen, str) or chosen not in kinds:
            raise UserError(f"{self.where}: {key}.{named.key}: got {shown(chosen)}, expected one of {', '.join(kinds)}")
        return kinds[chosen]

    def missing(self, key: str, hint: Any) -> UserError:
        """The error for a key that must be given and is not."""
        return UserError(f"{self.where}: missing key {key}")

    def unknown(self, prefix: str, name: Any) -> None:
        """Refuse a key that does not exist; the message names the nearest one that does."""
        key = prefix + one_line(str(name), 100)
        if key in self.keys and "." not in str(name):
            section = prefix.removesuffix(".")
            raise UserError(f"{self.where}: unknown key {key}; it is an option of another {section}.name")
        if key in self.keys:
            raise UserError(f"{self.where}: key {key!r} contains a dot; expected its sections one inside the other")

        def likeness(candidate: str) -> float:
            # The last part decides, since a right name in the wrong section is a common mistake; the rest breaks ties.
            given, last = key.rpartition(".")[2], candidate.rpartition(".")[2]
            # The beginning of a name is nearly the name.
            same = 0.9 if last.startswith(given) else difflib.SequenceMatcher(None, given, last).ratio()
            return same + 0.2 * difflib.SequenceMatcher(None, key, candidate).ratio()

        nearest = max(self.keys, key=likeness, default=None)
        hint = f"; did you mean {nearest}?" if nearest is not None else ""
        raise UserError(f"{self.where}: unknown key {key}{hint}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields; not to be changed by the caller."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _is_already(hint: Any, value: Any) -> bool:
    """Whether a value is beyond doubt of a plain type or one of some literals, so that nothing has to be read."""
    if get_origin(hint) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    return hint in (bool, int, float) and type(value) is hint and value == value  # NaN is not


@functools.cache
def _parser(hint: Any) -> ArgumentParser:
    """A parser of the one option ``value``: jsonargparse's check of a type, for one value at a time."""
    if _is_union(hint) and {int, float} <= set(get_args(hint)):
        # The first kind that takes a value wins, and ``float | int`` would turn a given 64 into 64.0.
        hint = Union[tuple(sorted(get_args(hint), key=lambda kind: kind is not int))]  # noqa: UP007  # made at run time
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _section_type(hint: Any) -> type | None:
    """The dataclass that ``hint`` is, or is the optional of; None if it is neither."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and dataclasses.is_dataclass(kinds[0]) else None


def _section_types(hint: Any) -> tuple[type, ...]:
    """All dataclasses that a section can be; none if ``hint`` is no section."""
    if (choice := _choice(hint)) is not None:
        return tuple(choice.kinds().values())
    section = _section_type(hint)
    return () if section is None else (section,)


def _reader(hint: Any) -> Callable[[Any], Any] | None:
    """The function that normalizes a value of an annotated type."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if callable(mark)), None)


def _choice(hint: Any) -> Named | None:
    """The mark of a section that is one of several dataclasses, or of the optional of one; None for anything else."""
    kinds = get_args(hint) if _is_union(hint) else (hint,)
    marks = [mark for kind in kinds if get_origin(kind) is Annotated for mark in get_args(kind)[1:]]
    return next((mark for mark in marks if isinstance(mark, Named)), None)


def _default(cls: type, instance: Any, name: str) -> Any:
    """The value a field has when nothing is given: that of ``instance`` if there is one, else its declared default."""
    if isinstance(instance, cls):
        return getattr(instance, name)
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _words(hint: Any) -> str:
    """A type in words: ``int``, ``one of a, b``, ``list of int``, ``list of 2 (float, float)``, ``int or null``."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_union(hint):
        return " or ".join("null" if kind is type(None) else _words(kind) for kind in arguments)
    if get_origin(hint) is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {_words(arguments[0])}"
        return f"list of {len(arguments)} ({', '.join(map(_words, arguments))})"
    names = {str: "text", bool: "true or false"}
    return names[hint] if hint in names else str(getattr(hint, "__name__", hint))


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the dotted ``key`` in nested dicts, making the sections that are missing or null. An item of a list of
    sections goes by its ``name``."""
    *sections, last = key.split(".")
    inner: Any = values
    for depth, section in enumerate(sections, start=1):
        if isinstance(inner, list):
            inner = next((item for item in inner if isinstance(item, dict) and item.get("name") == section), None)
        else:
            if inner.get(section) is None:
                inner[section] = {}
            inner = inner[section]
        if not isinstance(inner, dict) and not (isinstance(inner, list) and depth < len(sections)):
            path = ".".join(sections[:depth])
            raise UserError(f"{one_line(key)}: {path} is {shown(inner)}, expected a section of keys")
    inner[last] = value


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> Any:
    """What a text says; not to be changed. PyYAML takes ten milliseconds for a recipe, which commands read often."""
    return yaml.load(text, _Loader)  # a SafeLoader


def _load_text(text: str, where: str) -> Any:
    try:
        return copy.deepcopy(_parsed(text))
    except _YAML_FAULTS as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None and "\n" in text else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "a value cannot be read"
        raise UserError(f"{one_line(where)}: {line}not valid YAML: {one_line(str(problem))}") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"config: got a value of type {type(value).__name__}, expected what JSON and YAML can hold")


def _after(prefix: str) -> str:
    return f"{prefix}: " if prefix else ""


def shown(value: Any) -> str:
    """A value as messages quote it, on one line and not too long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return one_line(repr(value), 80)
    except (ValueError, RecursionError):  # an int of more than 4300 digits has no decimal form
        return f"a very long {type(value).__name__}"


def one_line(text: str, limit: int = 300) -> str:
    """Text without line breaks, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
