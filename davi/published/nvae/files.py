"""Checkpoint files of NVAE's authors as everything our model needs.

A file is a dictionary with the weights (``state_dict``) and the options of the program that wrote it (``args``), from
which the configuration follows; names and shapes of all weights must agree with it. Weights alone need a recipe.
Nothing in a file is run.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi.config import parse, to_dict
from davi.data.sources import SETS
from davi.errors import UserError
from davi.model.meta import on_meta
from davi.models.nvae import NVAE, NVAEConfig
from davi.published.nvae.names import BINARY, are_names, configuration, parameter_names, to_our_layout, without_aliases
from davi.published.reader import Given, Imported, differing, merged, other_form
from davi.published.torch_files import fitted, load_state, weights_among

_PAD = 2

_SETS: dict[str, dict[str, Any]] = {
    "mnist": {"set": "mnist", "binarization": "dynamic"},
    "omniglot": {"set": "omniglot28", "binarization": "dynamic"},
    "cifar10": {"set": "cifar10"},
    "celeba_64": {"set": "celeba64"},
    "imagenet_32": {"set": "imagenet32"},
    "celeba_256": {"set": "celeba_hq256"},
    "ffhq": {"set": "ffhq256"},
}
"""The authors' names of sets, and ours."""

_EXACT = "likelihood: the exact one; the authors' counts the value 254 of 8 bits twice, and bits/dim come out lower"


def import_nvae(path: Path, given: Given) -> Imported:
    """A checkpoint as everything a run needs.

    Arguments:
        path: ``checkpoint.pt`` as the authors' program writes it, or the weights alone.
        given: options of the ``model`` section; except for the form of the likelihood they must be those of the file.
            Of weights alone, they are the configuration.

    Raises:
        UserError: one line that begins with the path, if it is no such file or does not fit together.
    """
    loaded = load_state(path)
    try:
        return _read(loaded, given)
    except UserError as error:
        raise UserError(f"{path}: {error}", error.details) from None


def _read(loaded: Any, given: Given) -> Imported:
    weights, place = weights_among(loaded, are_names)
    options = _options(loaded)
    if options is None:
        if given.geometry is None:
            raise UserError("holds weights without args, from which the configuration would follow; give --recipe")
        shape, levels = given.geometry
        config = parse(NVAEConfig, given.options, "model")
    else:
        levels, config = configuration(options)
        config = dataclasses.replace(config, pad=_PAD if options["dataset"] in BINARY else 0)
        config = _with(config, given.options)
        shape = _shape(weights, config, given)
    found = without_aliases(weights, config.single)
    try:
        with on_meta():  # nothing is allocated before the shapes are known to be those of the file
            on_paper = NVAE(shape, levels, config)
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise UserError(f"no model has these options ({' '.join(str(error).split())[:200]})") from error
    state = to_our_layout(fitted(on_paper.state_dict(), found, parameter_names(on_paper)), on_paper.pixel_head)
    notes = [f"groups {list(config.groups)}, width {config.encoder_width}, {config.latent_channels} latent channels"]
    if options is None:
        notes.append("not in the file, and taken from the recipe: all options on which no shape depends")
    if place not in ("", "state_dict"):
        notes.append(f"weights: those under {place!r}")
    if config.likelihood.form != "exact":
        notes.append(other_form(config.likelihood.form))
    elif levels == 256:
        notes.append(_EXACT)
    data = dict(_SETS.get(str(options["dataset"]), {})) if options is not None else {}
    if data and levels not in (2, 256) and data["set"] not in SETS:  # those have the levels that they have
        data["levels"] = levels
    return Imported(shape, levels, config, _completed(shape, levels, config, state), tuple(notes), data)


def _options(loaded: Any) -> Mapping[str, Any] | None:
    """The authors' options, as argparse or a dictionary keeps them."""
    arguments = loaded.get("args") if isinstance(loaded, Mapping) else None
    if isinstance(arguments, argparse.Namespace):
        return vars(arguments)
    return arguments if isinstance(arguments, Mapping) else None


def _with(config: NVAEConfig, options: Mapping[str, Any]) -> NVAEConfig:
    """The file's configuration with the user's form of the likelihood; all else must be as in the file."""
    values = to_dict(config)
    wanted = parse(NVAEConfig, merged(values, options), "model")
    for key, value, expected in differing(to_dict(wanted), values, {"likelihood.form"}):
        raise UserError(f"model.{key}: got {value}, expected {expected} as in the file")
    return wanted


def _shape(weights: Mapping[str, Any], config: NVAEConfig, given: Given) -> tuple[int, int, int]:
    """(C, H, W): the channels of the first convolution, and as many pixels as the constant at the top is for."""
    stem, start = weights.get("stem.weight"), weights.get("prior_ftr0")
    if not isinstance(stem, Tensor) or stem.ndim != 4:
        raise UserError("weights: stem.weight is missing or no kernel")
    if start is None and config.single:
        if given.geometry is None:
            raise UserError("the weights of a single group fit images of any size; give --recipe for theirs")
        return given.geometry[0]
    if not isinstance(start, Tensor) or start.ndim != 3:
        raise UserError("weights: prior_ftr0 is missing or no map")
    unit = 2 ** (config.halvings + len(config.groups) - 1)
    rows, columns = (unit * size - 2 * (config.pad or 0) for size in start.shape[1:])
    return stem.shape[1], rows, columns


def _completed(
    shape: tuple[int, int, int], levels: int, config: NVAEConfig, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """With what the authors do not store: the vectors of the spectral penalty, as they belong to these weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NVAE(shape, levels, config)
    model.load_state_dict({**model.state_dict(), **state})
    model.initialize(torch.empty(0))
    return model.state_dict()
