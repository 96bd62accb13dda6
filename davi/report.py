"""From measured numbers to something to keep or to read: means, standard errors, bits per dimension, the protocol.

:func:`to_json` makes one dictionary that holds the numbers and everything they depend on; :func:`to_terminal` makes a
table of it that fits into 80 columns, and :func:`write_json` a file. Here, at the edge, averages over images and bits
per dimension come into being.

Nats are those of the log-likelihood, thus mostly negative; bits per dimension are those that a code would need, thus
positive: -nats / (dims ln 2). KL divergences are positive in both units; so are the terms of latents drawn on the way
up, where they cost, but such a term is no divergence and may be negative (:mod:`davi.evaluation.activity`).
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from davi import __version__
from davi.evaluation import KL, Array, Evaluation, clusters
from davi.evaluation.activity import ACTIVE_RULE, INACTIVE_NATS, INACTIVE_RULE, inactive_layers
from davi.evaluation.baselines import Baseline
from davi.evaluation.clusters import Groups, standard_error, witnesses
from davi.evidence import Kind, bits_per_dim
from davi.files import replace_text, writing
from davi.formatting import UNITS, from_bits, in_units, size, unit_order

_CLAIMS = {
    Kind.EXACT: "exact: this is log p(x)",
    Kind.LOWER_BOUND: "lower bound: log p(x) is at least this",
    Kind.ESTIMATE: "estimate: log p(x) may be more or less; not to be ranked among bounds",
}

COLUMNS = 80
_NAME, _VALUE = 28, 24
"""Widths of the table: the name of a row, and a value with its error."""


def to_json(
    evaluation: Evaluation, baselines: Sequence[Baseline] = (), protocol: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All numbers, and what they depend on; strict JSON.

    Arguments:
        evaluation: what was measured.
        baselines: what other methods need for the same images.
        protocol: what :func:`protocol_of` returns.

    Returns:
        ``kind``; ``bound`` (with its number of ``samples``), ``elbo`` and ``terms`` (all parts of the ELBO but the KL
        divergences), each with ``nats`` and ``bits_per_dim``, which have a ``mean`` and a ``standard_error`` (null for
        a single image or file; of patches it is clustered by file, :mod:`davi.evaluation.clusters`); ``kl``;
        ``active_units``; ``baselines``; ``protocol``. ``kl`` has the ``total``, which is the KL divergence of all latents together, named
        ``layers``, top first, whether each of them is a ``divergence`` of its own, the names of those that are
        ``inactive``, and the ``rule`` for that. ``active_units`` has ``active`` of ``units``, in all and for each of
        its ``layers``, over how many ``images`` and ``draws``, and their ``rule``.
    """
    dims, kl, groups = evaluation.dims, evaluation.kl, evaluation.groups  # kl: [N, layers]
    units, layers = evaluation.active_units, [name for name in evaluation.terms if name.startswith(KL)]
    return {
        "kind": evaluation.kind.name,
        "bound": {"samples": evaluation.samples, **both_units(evaluation.bound, dims, groups)},
        "elbo": both_units(evaluation.elbo, dims, groups),
        "terms": {
            name: both_units(values, dims, groups)
            for name, values in evaluation.terms.items()
            if not name.startswith(KL)
        },
        "kl": {
            "total": _divergence(kl.sum(1), dims, groups),
            "layers": [
                {"name": name, **_divergence(layer, dims, groups)} for name, layer in zip(layers, kl.T, strict=True)
            ],
            "divergence": [name not in evaluation.no_divergence for name in layers],
            "inactive": inactive_layers(dict(zip(layers, kl.mean(0).tolist(), strict=True)), evaluation.no_divergence),
            "rule": INACTIVE_RULE,
        }
        if layers
        else None,
        "active_units": None
        if units is None
        else {
            "active": sum(units.active),
            "units": sum(units.units),
            "layers": [{"active": a, "units": n} for a, n in zip(units.active, units.units, strict=True)],
            "images": units.images,
            "draws": units.draws,
            "rule": ACTIVE_RULE,
        },
        "baselines": [
            {
                "name": baseline.name,
                "bits_per_dim": baseline.bits_per_dim,
                "standard_error": baseline.standard_error,
                "note": baseline.note,
            }
            for baseline in baselines
        ],
        "protocol": dict(protocol or {}),
    }


def protocol_of(
    evaluation: Evaluation, model: Mapping[str, Any], data: Mapping[str, Any], split: str = "test"
) -> dict[str, Any]:
    """The protocol: everything that the numbers depend on.

    Arguments:
        evaluation: what was measured.
        model: what :func:`davi.runs.load_model` says about the file, or :func:`davi.runs.describe` about a model.
        data: the protocol of the data sets (:class:`davi.data.DataSets`).
        split: which of them was evaluated.
    """
    known = ("name", "parameters", "shape", "levels", "config", "ema", "ema_decay", "step", "rollbacks", "source")
    return {
        "set": evaluation.set,
        "split": split,
        "images": len(evaluation),
        "images_available": evaluation.available,
        "subset": evaluation.subset,
        "files": None if evaluation.groups is None else witnesses(evaluation.elbo, evaluation.groups),
        "images_sha256": evaluation.images_sha256,
        "limit": evaluation.limit,
        "dims": evaluation.dims,
        "importance_samples": evaluation.samples,
        "seed": evaluation.seed,
        "batch_size": evaluation.batch_size,
        "device": evaluation.device,
        "precision": evaluation.precision,
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "model": {
            **{key: model[key] for key in known if key in model},
            "weights_sha256": evaluation.weights_sha256,
            "trained_with": model.get("version"),
            "trained_on": _trained_on(model.get("protocol", {})),
        },
        "data": dict(data),
    }


def _trained_on(protocol: Mapping[str, Any]) -> dict[str, str | int | None]:
    """What of the protocol of a model's training can make it differ from another: images, their form, first weights."""
    images = ("set", "train_sha256", "binarization", "binarization_seed", "flip")
    told = (*images, "started_from", "started_from_sha256")
    return {key: protocol[key] for key in told if key in protocol and type(protocol[key]) in (str, int, type(None))}


def commit() -> str | None:
    """The commit of the checkout that this code runs from, ``-dirty`` if files were changed; None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def write_json(path: Path | str, result: Mapping[str, Any]) -> None:
    """Write a result so that its name never stands for half of it.

    Raises:
        UserError: if the file cannot be written.
        ValueError: if a number is not finite: JSON has no word for it.
    """
    path = Path(path)
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    with writing(str(path)):
        replace_text(path, text)


def both_units(nats: Array, dims: int, groups: Groups | None = None) -> dict[str, Any]:
    """Mean and standard error over images of a log-probability, in nats and in bits per dimension.

    Arguments:
        nats: of each image, ``[N]``.
        dims: values in one image.
        groups: the file of each image, where several are cut from one (:mod:`davi.evaluation.clusters`).

    Returns:
        ``nats`` and ``bits_per_dim``, each with ``mean`` and ``standard_error`` (null for a single image or file).
    """
    mean, error = float(nats.mean()), standard_error(nats, groups)
    return {
        "nats": {"mean": mean, "standard_error": error},
        "bits_per_dim": {
            "mean": bits_per_dim(mean, dims),
            "standard_error": None if error is None else -bits_per_dim(error, dims),
        },
    }


def to_terminal(result: Mapping[str, Any]) -> str:
    """A table of what :func:`to_json` made, at most 80 columns wide; nats come first for binary images."""
    protocol = result["protocol"]
    units = unit_order(protocol)
    lines = [*_heading(protocol), " " * _NAME + "".join(f"{UNITS[unit]:>{_VALUE}}" for unit in units)]
    lines += [_row(name, values, units) for name, values in _measured(result)]
    lines += _labeled("kind of claim", _CLAIMS[Kind[result["kind"]]])
    if result["baselines"]:
        lines += ["", "for comparison"]
        dims = protocol.get("dims")
        for baseline in result["baselines"]:
            lines += _baseline_lines(baseline, dims, units)
        notes = [f"{baseline['name']}: {baseline['note']}" for baseline in result["baselines"] if _available(baseline)]
        for note in notes:
            lines += textwrap.wrap(note, COLUMNS, initial_indent="  ", subsequent_indent="    ")
    details = [*_layers(result), *_protocol(protocol)]
    return "\n".join([*lines, *([""] if details else []), *details])


def _divergence(nats: Array, dims: int, groups: Groups | None) -> dict[str, Any]:
    """Like :func:`both_units`, for a quantity that counts positive in bits as well."""
    both = both_units(nats, dims, groups)
    both["bits_per_dim"]["mean"] *= -1
    return both


def _measured(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of the table: the headline, the ELBO and its parts."""
    samples, kind = result["bound"]["samples"], Kind[result["kind"]]
    if kind is not Kind.LOWER_BOUND:
        rows = [("log p(x)" if kind is Kind.EXACT else "log p(x), estimated", result["bound"])]
    elif samples == 1:
        rows = [("log p(x) >= ELBO", result["elbo"])]
    else:
        rows = [(f"log p(x) >= L_{samples}", result["bound"]), ("ELBO", result["elbo"])]
    parts = [(f"  {name}", values) for name, values in result["terms"].items()]
    if result["kl"] is not None:
        parts.append(("  KL divergence", result["kl"]["total"]))
    return rows + parts if len(parts) > 1 else rows


def _row(name: str, values: Mapping[str, Any], units: Sequence[str]) -> str:
    return f"{name:<{_NAME}}" + "".join(f"{cell:>{_VALUE}}" for cell in in_units(values, units))


def _baseline_lines(baseline: Mapping[str, Any], dims: int | None, units: Sequence[str]) -> list[str]:
    if not _available(baseline):
        return _labeled(baseline["name"], f"not available: {baseline['note']}")
    if dims is None:  # nothing to turn bits into nats with
        units = ("bits_per_dim",)
    values = from_bits(baseline["bits_per_dim"], baseline["standard_error"], dims or 1)
    return [_row(baseline["name"], values, units)]


def _available(baseline: Mapping[str, Any]) -> bool:
    return baseline["bits_per_dim"] is not None


def _layers(result: Mapping[str, Any]) -> list[str]:
    """The layers one by one: KL divergences or terms, inactive ones by name, and active units."""
    lines = []
    kl, units = result["kl"], result["active_units"]
    if kl is not None:
        terms = [layer["name"] for layer in kl["layers"] if not _is_divergence(kl, layer["name"])]
        each = "  ".join(f"{layer['nats']['mean']:.2f}" for layer in kl["layers"])
        lines += _labeled(f"{'term' if terms else 'KL'} by layer, top first", f"{each} nats")
        if terms:
            lines += _labeled("no KL divergence", f"{', '.join(terms)}: {NO_DIVERGENCE}")
        if kl.get("inactive"):
            lines += _labeled("inactive layers", f"{', '.join(kl['inactive'])} ({_why_inactive(kl)})")
    if units is not None:
        each = "  ".join(f"{layer['active']}/{layer['units']}" for layer in units["layers"])
        lines += _labeled("active units", f"{units['active']} of {units['units']}: {each}")
        if "draws" in units:
            lines += _labeled("", f"({units['images']} images, {units['draws']} draws of the latents each)")
    return lines


NO_DIVERGENCE = "E[log q - log p] of latents drawn on the way up, which may be below zero"
"""What the terms are that are no KL divergences."""


def _is_divergence(kl: Mapping[str, Any], name: str) -> bool:
    """Results of older versions do not tell, and count all as divergences."""
    names = [layer["name"] for layer in kl["layers"]]
    return bool(kl.get("divergence", [True] * len(names))[names.index(name)])


def _why_inactive(kl: Mapping[str, Any]) -> str:
    if all(_is_divergence(kl, name) for name in kl["inactive"]):
        return f"KL divergence below {INACTIVE_NATS:g} nats; kl/00 is the top"
    return f"all layers together below {INACTIVE_NATS:g} nats"


def which_images(protocol: Mapping[str, Any]) -> str:
    """The measured images in words; a result of an older version, without ``subset``, is about the first of a set."""
    some, all_ = protocol["images"], protocol["images_available"]
    patches = clusters.in_words(some, protocol.get("files"))
    if some == all_:
        return patches or f"{some} images"
    subset = protocol.get("subset") or f"the first {some} of {all_} images"
    return subset if patches is None else f"{subset} ({patches})"


def _heading(protocol: Mapping[str, Any]) -> list[str]:
    if not protocol:
        return []
    model, data = protocol["model"], protocol["data"]
    shape = size(data.get("shape", ()))
    images = which_images(protocol)
    parts = [model.get("name", "model")]
    if "parameters" in model:
        parts.append(f"{model['parameters']:,} parameters")
    if "step" in model:
        parts.append(f"step {model['step']}")
    if "ema" in model:
        parts.append("averaged weights" if model["ema"] else "last weights")
    return [
        *textwrap.wrap(f"{protocol['set']}: {images}, {shape}, {data.get('levels')} levels", COLUMNS),
        *textwrap.wrap(", ".join(parts), COLUMNS),
        "",
    ]


def _protocol(protocol: Mapping[str, Any]) -> list[str]:
    """What must be known to compare the numbers with others."""
    if not protocol:
        return []
    data = protocol["data"]
    lines = []
    if other := data.get("other_images"):
        lines += _labeled("images", f"{other}, not the run's own" + _among(data.get("training_images")))
    if data.get("binarization", "none") != "none":
        lines += _labeled("binarization", f"{data['binarization']}: {data.get('evaluated', '')}")
    first = protocol["images"] < protocol["images_available"] and protocol.get("subset") is None
    if first and "test_order" in data and protocol["split"] == "test":
        lines += _labeled("order of the images", data["test_order"])
    if protocol.get("files") is not None:
        few = f"; {clusters.FEW}" if protocol["files"] < clusters.FEWEST else ""
        lines += _labeled("standard errors", f"clustered by file{few}")
    if rollbacks := protocol["model"].get("rollbacks"):
        lines += _labeled("rollbacks in training", f"{rollbacks}, each of which halved the learning rate")
    code = f"davi {protocol['version']}" + (f" ({protocol['commit']})" if protocol["commit"] else "")
    how = (
        f"K = {protocol['importance_samples']}, seed {protocol['seed']}, batch size {protocol['batch_size']}, "
        f"{protocol['precision']} on {protocol['device']}, {code}, torch {protocol['torch']}"
    )
    return [*lines, *_labeled("measured with", how)]


def _among(trained: int | None) -> str:
    """How many images the model was trained on, in words; nothing where it was on none."""
    if trained is None:
        return "; it is not known how many of them the model was trained on"
    return f"; the model was trained on {trained} of them" if trained else ""


def _labeled(label: str, text: str) -> list[str]:
    """A label in the column of the names, and a text wrapped beside it."""
    wrapped = textwrap.wrap(text, COLUMNS - _NAME) or [""]
    return [f"{label if i == 0 else '':<{_NAME}}{line}" for i, line in enumerate(wrapped)]
