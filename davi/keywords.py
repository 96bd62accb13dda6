"""Keywords of Python functions as options of a recipe."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from davi.data import DataConfig
from davi.errors import UserError, one_line
from davi.models import MODELS
from davi.recipes import Recipe

DATA = tuple(field.name for field in fields(DataConfig) if field.name not in ("set", "root", "labels"))
"""Options of the images that are keywords."""


def model_keywords(recipe: Recipe) -> tuple[str, ...]:
    """The options of a recipe's model that are keywords: sections as one, whose options are a mapping."""
    return tuple(field.name for field in fields(MODELS[recipe.model_name].Config))


def check_known(options: Iterable[str], known: Iterable[str], whose: str) -> None:
    """Refuse a keyword that there is not.

    Arguments:
        options: the keywords that were given.
        known: those that there are.
        whose: in words, what has them.

    Raises:
        UserError: one line that names the nearest.
    """
    known = sorted(known)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise UserError(f"{name}: unknown option of {whose}; {hint}")


def assignments(section: str, options: Mapping[str, Any]) -> list[str]:
    """Options as the assignments that :func:`davi.config.override` takes.

    Arguments:
        section: of the recipe that they are of.
        options: a mapping among them changes some options of a section and leaves the others.

    Raises:
        UserError: if a value is nothing that a recipe could hold.

    Example:
        >>> assignments("model", {"width": 8, "likelihood": {"family": "bernoulli"}})
        ['model.width=8', 'model.likelihood.family="bernoulli"']
    """
    found = []
    for key, value in options.items():
        name = f"{section}.{key}"
        found += assignments(name, value) if isinstance(value, Mapping) else [f"{name}={_text(name, value)}"]
    return found


def _text(name: str, value: Any) -> str:
    """A value as YAML, of which JSON is a part."""

    def plain(x: Any) -> Any:
        if isinstance(x, Path):
            return str(x)
        if isinstance(x, (np.generic, np.ndarray)):
            return x.tolist()
        raise TypeError

    try:
        return json.dumps(value, default=plain, ensure_ascii=False)
    except (TypeError, ValueError):  # a circle has ValueError
        shown = one_line(repr(value))[:80]
        raise UserError(f"{name}: got {shown}, expected a number, a text, a list of these, or a mapping") from None
