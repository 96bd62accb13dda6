"""Readers of published weights: their arguments, their results, and the comparison of options with a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Known:
    """A recipe for the model that a file may hold.

    Arguments:
        name: of the recipe.
        options: its ``model`` section, without the name.
        geometry: shape (C, H, W) and levels of its images.
        data: its ``data`` section.
    """

    name: str
    options: Mapping[str, Any]
    geometry: tuple[Shape, int]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Given:
    """What is known about a file before it is read.

    Arguments:
        options: of the ``model`` section, without its name: the recipe's with the user's own laid over them, or the
            user's own alone.
        geometry: shape (C, H, W) and levels of the recipe's images; None without a recipe.
        known: without a recipe, all that come with the program for this model.
        shape: (C, H, W) of the images, as the user gives it.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    geometry: tuple[Shape, int] | None = None
    known: Callable[[], Iterable[Known]] = tuple
    shape: Shape | None = None


@dataclass(frozen=True)
class Imported:
    """Everything that a run needs.

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: options of the model, an instance of its ``Config``.
        state: a complete state dictionary on the CPU.
        notes: lines for the user: what was found, and what was assumed because the file cannot say it.
        data: options of the ``data`` section for the set the weights are for; none where it is not known.
    """

    shape: Shape
    levels: int
    config: Any
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def other_form(form: str) -> str:
    """The note about a form of the likelihood that is not the exact one."""
    return f"likelihood: the form {form}, which gives no probabilities; --model.likelihood.form exact does"


def merged(options: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options with others laid over them; of a section, those that ``over`` does not give stay.

    Example:
        >>> merged({"width": 4, "likelihood": {"components": 2}}, {"likelihood": {"form": "nvae"}})
        {'width': 4, 'likelihood': {'components': 2, 'form': 'nvae'}}
    """
    result = dict(options)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def differing(
    wanted: Mapping[str, Any], found: Mapping[str, Any], free: Collection[str] = (), prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key and both values of each option of one model that differs.

    Arguments:
        wanted, found: nested options with the same keys.
        free: dotted keys of options and sections that may differ.
        prefix: of the keys, with a dot at its end.
    """
    for name, value in wanted.items():
        key, other = prefix + name, found[name]
        if key in free:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from differing(value, other, free, f"{key}.")
        elif value != other:
            yield key, value, other
