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
from davi.kept import located

RECIPE = "recipe.yaml"
"""The name of the recipe that DAVI writes into a run's folder."""

KEYS: dict[str, str] = {
    "model.likelihood": "model.likelihood.family",
    "model.prior": "model.prior_bounds",
    "model.posterior": "model.posterior_bounds",
    "model.mixture_components": "model.likelihood.components",
    "model.likelihood_form": "model.likelihood.form",
    "training.optimizer": "training.optimizer.name",
    "training.betas": "training.optimizer.betas",
    "training.eps": "training.optimizer.eps",
    "training.eps_inside_root": "training.optimizer.eps_inside_root",
    "training.momentum": "training.optimizer.momentum",
    "training.weight_decay": "training.optimizer.weight_decay",
    "training.schedule": "training.schedule.name",
    "training.stages": "training.schedule.stairs",
    "training.initial_learning_rate": "training.schedule.initial_learning_rate",
    "training.final_learning_rate": "training.schedule.final_learning_rate",
    "training.warmup_steps": "training.schedule.warmup_steps",
    "training.warmup_epochs": "training.schedule.warmup_epochs",
    "training.warmup_fraction": "training.schedule.warmup_fraction",
    "training.first_period_epochs": "training.schedule.first_period_epochs",
    "training.period_multiplier": "training.schedule.period_multiplier",
    "training.stairs": "training.schedule.stairs",
    "training.clip_norm": "training.step_filter.clip_norm",
    "training.skip_norm": "training.step_filter.skip_norm",
    "training.skip_factor": "training.step_filter.skip_factor",
    "training.skip_quantile": "training.step_filter.skip_quantile",
    "training.skip_window": "training.step_filter.skip_window",
    "training.skip_limit": "training.step_filter.skip_limit",
    "training.nonfinite_limit": "training.step_filter.nonfinite_limit",
    "training.on_nan": "training.step_filter.on_nan",
    "training.precision": "training.compute.precision",
    "training.compile": "training.compute.compile",
    "training.compile_backend": "training.compute.compile_backend",
    "training.recompute": "training.compute.recompute",
    "training.channels_last": "training.compute.channels_last",
    "training.shard": "training.compute.shard",
    "training.checkpoint_minutes": "training.checkpoints.minutes",
    "training.checkpoint_steps": "training.checkpoints.steps",
    "training.keep_checkpoints": "training.checkpoints.keep",
    "training.collapse_nats": "training.monitor.collapse_nats",
    "training.plateau_validations": "training.monitor.plateau_validations",
}
"""Old key -> new key, with dots: ``training.clip_norm``."""

_BOUNDS = frozenset({"log_scale_low", "log_scale_high", "noise"})
"""Options of the sections ``model.prior`` and ``model.posterior`` of old; a section of today has others as well."""

VALUES: dict[tuple[str, str], str] = {
    ("training.schedule.name", "stages"): "staircase",
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
    # All are taken out before any is put back: training.schedule makes room for the section that others go to.
    found = [(new, holder.pop(name)) for _, new, holder, name in _old_keys(result)]
    for new, value in found:
        path, _, last = new.rpartition(".")
        target: Any = result
        for part in path.split("."):
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if isinstance(target, dict):  # else it is wrong, which its reader reports
            target.setdefault(last, value)
    for (key, old_value), value in VALUES.items():
        above, _, name = key.rpartition(".")
        holder = _at(result, above)
        if holder is not None and holder.get(name) == old_value:
            holder[name] = value
    return result


def read(path: str | Path) -> dict[str, Any]:
    """A recipe's file, in the words of today if DAVI wrote it (:func:`davi.kept.located`: with the place of images that
    lie beside it), else as it is.

    Raises:
        UserError: as :func:`davi.config.load_yaml` does.
    """
    sections = load_yaml(path)
    return located(upgraded(sections), Path(path).parent) if Path(path).name == RECIPE else sections


def complaint(sections: Mapping[str, Any]) -> str | None:
    """What is wrong with sections in the words of old, in one line; None if there are none in them."""
    return next(_complaints(sections), None)


def _complaints(sections: Mapping[str, Any]) -> Iterator[str]:
    for old, new, _, _ in _old_keys(sections):
        yield f"{old} is now called {new}"
    for (key, old_value), value in VALUES.items():
        above, _, name = key.rpartition(".")
        holder = _at(sections, above)
        if holder is not None and holder.get(name) == old_value:
            yield f"{key}: got {old_value!r}, which is now called {value!r}"


def _old_keys(sections: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Old and new key, and the mapping and the name in it, of what is called by an old key."""
    for old, new in KEYS.items():
        above, _, name = old.rpartition(".")
        holder = _at(sections, above)
        if holder is None or name not in holder:
            continue
        if new.endswith("_bounds") and not _are_bounds(holder[name]):
            continue
        # A mapping (or nothing) under a name that is a section's today is that section, not the option of old.
        if new.startswith(f"{old}.") and (holder[name] is None or isinstance(holder[name], dict)):
            continue
        yield old, new, holder, name


def _are_bounds(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and value.keys() <= _BOUNDS


def _at(sections: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The mapping under a dotted key, if there is one."""
    found: Any = sections
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else None
