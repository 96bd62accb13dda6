"""Options that had other names or values in earlier versions: the one table of them.

What DAVI itself wrote is read through :func:`upgraded`: the ``recipe.yaml`` of a run (:func:`read`), and what its files
of weights say about the model. A user's own recipe and the command line are not: :func:`complaint` names today's word,
so that a file goes on meaning what it says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from davi.config import load_yaml

RECIPE = "recipe.yaml"
"""The name of the recipe that DAVI writes into a run's folder."""

KEYS: dict[str, str] = {
    "model.likelihood": "model.likelihood.family",
    "model.mixture_components": "model.likelihood.components",
    "model.likelihood_form": "model.likelihood.form",
    "training.stages": "training.stairs",
}
"""Old key -> new key, with dots: ``training.clip_norm``."""

VALUES: dict[tuple[str, str], str] = {
    ("training.schedule", "stages"): "staircase",
    ("training.objective.gradient", "reparametrised"): "reparameterized",
    ("training.objective.gradient", "doubly_reparametrised"): "doubly_reparameterized",
}
"""(Today's key, old value) -> new value."""


def upgraded(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe in the words of today; what has none of the old words is returned as it is.

    Arguments:
        sections: nested mappings, as a recipe's file holds them.

    Example:
        >>> upgraded({"training": {"objective": {"gradient": "reparametrised"}}})
        {'training': {'objective': {'gradient': 'reparameterized'}}}
    """
    result = copy.deepcopy(dict(sections))
    for old, new in KEYS.items():
        above, _, name = old.rpartition(".")
        holder = _at(result, above)
        # A mapping under a name that is a section's today is that section, not the option of old.
        if holder is None or name not in holder or (new.startswith(f"{old}.") and isinstance(holder[name], dict)):
            continue
        value = holder.pop(name)
        path, _, last = new.rpartition(".")
        target = result
        for part in path.split("."):
            target = target.setdefault(part, {})
        target[last] = value
    for (key, old_value), value in VALUES.items():
        above, _, name = key.rpartition(".")
        holder = _at(result, above)
        if holder is not None and holder.get(name) == old_value:
            holder[name] = value
    return result


def read(path: str | Path) -> dict[str, Any]:
    """A recipe's file, in the words of today if DAVI wrote it, else as it is.

    Raises:
        UserError: as :func:`davi.config.load_yaml` does.
    """
    sections = load_yaml(path)
    return upgraded(sections) if Path(path).name == RECIPE else sections


def complaint(sections: Mapping[str, Any]) -> str | None:
    """What is wrong with sections in the words of old, in one line; None if there are none in them."""
    return next(_complaints(sections), None)


def _complaints(sections: Mapping[str, Any]) -> Iterator[str]:
    for old, new in KEYS.items():
        above, _, name = old.rpartition(".")
        holder = _at(sections, above)
        if holder is not None and name in holder:
            if new.startswith(f"{old}.") and isinstance(holder[name], dict):
                continue
            yield f"{old} is now called {new}"
    for (key, old_value), value in VALUES.items():
        above, _, name = key.rpartition(".")
        holder = _at(sections, above)
        if holder is not None and holder.get(name) == old_value:
            yield f"{key}: got {old_value!r}, which is now called {value!r}"


def _at(sections: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The mapping under a dotted key, if there is one."""
    found: Any = sections
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else None
