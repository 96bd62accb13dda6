"""The Deep Attentive VAE's published Keras weight files (``final_model.h5``) as our model.

A file has no configuration, only groups of weights, in the order in which the authors' classes keep their parts. The
numbers in their names are counters of the process that wrote the file and mean nothing. So weights are matched by
position, and the last component of the name and the shape are checked. :func:`layout` derives the order from our
model; :func:`infer_configuration` goes the other way and finds the configuration that has these shapes.

What shapes cannot say is assumed, or given by the user: the bounds of the log standard deviations and their training
noise (the authors' CIFAR-10 model with attention: -1 to 5 in the prior, else -5 to 5), the padding (the authors' two
binary sets: 28x28 padded to 32x32), the form of the likelihood (ours, not theirs), and where a residual block ends and
the next begins (the scopes in the names of the data sets tell; else two convolutions per block, as in all of theirs).

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from davi.config import parse, to_dict
from davi.errors import UserError
from davi.model.meta import on_meta
from davi.models.attentive_vae import AttentiveVAE, AttentiveVAEConfig
from davi.published.attentive.keras_h5 import Group, read
from davi.published.attentive.layout import datasets, layout
from davi.published.attentive.names import state_dict
from davi.published.attentive.shapes import Facts, without_counter
from davi.published.reader import differing, merged

_FREE = frozenset({"prior_bounds", "posterior_bounds", "likelihood.form", "pad"})
"""Options on which the shapes do not depend."""


def import_h5(
    path: Path | str, overrides: Mapping[str, Any] | None = None
) -> tuple[tuple[int, int, int], int, AttentiveVAEConfig, dict[str, Tensor], list[str]]:
    """A weight file of the authors as everything our model needs.

    Arguments:
        path: the ``.h5`` file.
        overrides: options as in the ``model`` section of a recipe, for what the file does not determine:
            ``prior_bounds``, ``posterior_bounds``, ``likelihood.form``, ``pad``, ``nodes``. Others may be given, and
            must be what the file says.

    Returns:
        Shape (C, H, W), levels, configuration, a complete state dictionary on the CPU, and lines for the user: what was
        found, and what was assumed because the file cannot say it.

    Raises:
        UserError: one line, if the file is not such a file or does not fit together, or an option contradicts it.
    """
    groups = read(path)
    try:
        shape, levels, config, notes = infer_configuration(groups, overrides)
        with on_meta():
            try:
                model = AttentiveVAE(shape, levels, config)
            except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
                raise UserError(f"no model has these shapes ({' '.join(str(error).split())})") from error
        return shape, levels, config, state_dict(model, match(model, groups)), notes
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def infer_configuration(
    groups: Sequence[Group], overrides: Mapping[str, Any] | None = None
) -> tuple[tuple[int, int, int], int, AttentiveVAEConfig, list[str]]:
    """Shape (C, H, W), levels, configuration, and lines for the user: what was found and what was assumed.

    Arguments:
        groups: of the file, in order.
        overrides: options as in the ``model`` section of a recipe.

    Raises:
        UserError: if the groups are not those of a Deep Attentive VAE, or an option contradicts the shapes.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    name = given.pop("name", AttentiveVAE.name)
    if name != AttentiveVAE.name:
        raise UserError(f"model.name: got {name!r}, expected {AttentiveVAE.name}")
    found = Facts.of(groups, _key_channels(given))
    nodes, reason = _nodes(found, given.get("nodes"))
    inferred = {
        "layers": [found.layers],
        "latent_channels": found.latent,
        "width": found.width,
        "preprocess": found.preprocess.rescales(nodes),
        "postprocess": found.postprocess.rescales(nodes),
        "encoder_blocks": found.encoder // nodes,
        "decoder_blocks": found.decoder // nodes,
        "nodes": nodes,
        "squeeze_excite": False,
        "spatial_attention": found.spatial,
        "generative_attention": {"key_channels": found.generative_key, "layer_norm": found.generative_norm},
        "inference_attention": {"key_channels": found.inference_key, "layer_norm": found.inference_norm},
        "likelihood": {"family": "bernoulli", "components": 1}
        if found.bernoulli
        else {"family": "logistic_mixture", "components": found.head // 10},
        **_assumed(found),
    }
    config = _with_overrides(parse(AttentiveVAEConfig, inferred, "shapes"), given)
    height, width = (size - 2 * (config.pad or 0) for size in found.padded)
    if min(height, width) < 1:
        raise UserError(f"model.pad: got {config.pad}, which leaves no image of {found.padded[0]}x{found.padded[1]}")
    shape, levels = (found.channels, height, width), 2 if found.bernoulli else 256
    return shape, levels, config, _notes(found, shape, levels, config, reason)


def match(model: AttentiveVAE, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Structured name -> tensor in the authors' layout; groups and weights are matched by position.

    Raises:
        UserError: naming the first group or weight that is missing, too many, of another kind or another shape.
    """
    expected, known = layout(model), datasets(model)
    if len(groups) > len(expected):
        raise UserError(f"group {groups[len(expected)].name!r} is one too many, expected {len(expected)} groups")
    weights: dict[str, Tensor] = {}
    for i, (kind, names) in enumerate(expected):
        if i == len(groups) or without_counter(groups[i].name) != kind:
            got = f"group {i} is {groups[i].name!r}" if i < len(groups) else f"there are only {i} groups"
            raise UserError(f"{got}, expected {kind}")
        if len(groups[i].weights) != len(names):
            raise UserError(f"group {groups[i].name!r} has {len(groups[i].weights)} data sets, expected {len(names)}")
        for weight, name in zip(groups[i].weights, names, strict=True):
            leaf, shape = known[name] if name else ("initialized:0", ())
            if (weight.leaf, weight.shape, weight.value.dtype) != (leaf, shape, torch.float32 if name else torch.bool):
                got = str(weight.value.dtype).removeprefix("torch.")
                raise UserError(
                    f"group {groups[i].name!r}: {weight.name!r} is {got} of shape {list(weight.shape)}, "
                    f"expected {leaf}, {'float32' if name else 'bool'} of shape {list(shape)}"
                )
            if name:
                weights[name] = weight.value
    return weights


def _key_channels(given: Mapping[str, Any]) -> int | None:
    section = given.get("inference_attention")
    value = section.get("key_channels") if isinstance(section, Mapping) else None
    return value if isinstance(value, int) else None


def _nodes(found: Facts, given: Any) -> tuple[int, str]:
    """Nodes per residual block and how that is known; whatever it is, it divides every run of nodes."""
    runs = [count for cell in (found.preprocess, found.postprocess) for _, count in cell.runs]
    divisor = math.gcd(found.encoder, found.decoder, *runs)
    if given is not None:
        if not isinstance(given, int) or given < 1 or divisor % given:
            raise UserError(f"model.nodes: got {given!r}, expected a divisor of {divisor}, by the file's shapes")
        return given, "as given"
    scopes = {len(list(run)) for _, run in groupby(found.cell.scopes)}
    named = scopes.pop() if len(scopes) == 1 and "" not in found.cell.scopes else 0
    if named and divisor % named == 0:
        return named, "by the names of the data sets"
    return (2 if divisor % 2 == 0 else divisor), "assumed"


def _assumed(found: Facts) -> dict[str, Any]:
    """What the file does not say: the authors' settings for this kind of model."""
    attentive_color = not found.bernoulli and found.generative_key > 0
    bounds = {"log_scale_low": -5.0, "log_scale_high": 5.0, "noise": 0.001 if attentive_color else 0.0}
    authors_binary = found.bernoulli and found.channels == 1 and found.padded == (32, 32)
    return {
        "prior_bounds": {**bounds, "log_scale_low": -1.0} if attentive_color else bounds,
        "posterior_bounds": bounds,
        "pad": 2 if authors_binary else 0,
    }


def _with_overrides(inferred: AttentiveVAEConfig, given: Mapping[str, Any]) -> AttentiveVAEConfig:
    values = to_dict(inferred)
    config = parse(AttentiveVAEConfig, merged(values, given), "model")
    free = set(_FREE)
    if inferred.likelihood.family == "bernoulli":
        free.add("likelihood.components")
    for name in ("generative_attention", "inference_attention"):
        if getattr(config, name).key_channels == getattr(inferred, name).key_channels == 0:
            free.add(name)  # there is none: its other options say nothing
    for key, wanted, found in differing(to_dict(config), values, free):
        raise UserError(f"model.{key}: got {wanted}, but the file's shapes say {found}")
    return config


def _notes(found: Facts, shape: tuple[int, int, int], levels: int, config: AttentiveVAEConfig, nodes: str) -> list[str]:
    likelihood = "Bernoulli" if found.bernoulli else f"mixture of {config.likelihood.components} logistics"
    prior, posterior = config.prior_bounds, config.posterior_bounds
    return [
        f"found: {found.layers} layers, {found.latent} latent channels, width {found.width}, "
        f"keys {found.generative_key} (generative) and {found.inference_key} (inference), {likelihood}",
        f"images: {' x '.join(map(str, shape))}, {levels} levels, padded by {config.pad} "
        "(padding and levels are not in the file)",
        "not in the file: "
        f"prior log-scales {prior.log_scale_low:g} to {prior.log_scale_high:g} (noise {prior.noise:g}), "
        f"posterior {posterior.log_scale_low:g} to {posterior.log_scale_high:g} (noise {posterior.noise:g}), "
        f"likelihood form {config.likelihood.form}, {config.nodes} convolutions per block ({nodes})",
    ]
