r"""Batch-norm statistics for drawing at a temperature.

The running statistics of batch norms are those of features that posteriors have led to. What a model makes of its own
draws, at a temperature below 1 above all, has other statistics, and samples get better when the batch norms know them.
:func:`recalibrate` finds them once; :func:`recalibrated` keeps them in the folder of a run. Reported likelihoods never
use them.

References:
    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from davi import derived
from davi.errors import UserError
from davi.files import digest
from davi.model import Model, Temperature

PASSES = 100
"""How many batches are drawn, unless told otherwise."""
BATCH = 16
"""Images of each."""


@torch.no_grad()
def recalibrate(
    model: Model, temperature: Temperature = 1.0, passes: int = PASSES, seed: int = 0, batch_size: int = BATCH
) -> dict[str, Tensor]:
    """Replace the running statistics of all batch norms by the means over batches that the model draws.

    Arguments:
        model: changed in place; nothing but these statistics.
        temperature: of the draws, one for all layers or one for each.
        passes: how many batches are drawn.
        seed: of the draws.
        batch_size: images of each.

    Returns:
        The new statistics by their names in the state dictionary; none if no draw passes a batch norm.

    Raises:
        ValueError: if there is nothing to draw.
    """
    if passes < 1 or batch_size < 2:
        raise ValueError(f"passes: got {passes} of {batch_size} images, expected at least 1 of 2 images")
    norms = _norms(model)
    if not norms:
        return {}
    generator = Generator(next(model.parameters()).device).manual_seed(seed)
    modes = {norm: (norm.training, norm.momentum) for norm in norms.values()}
    before = {norm: {name: x.clone() for name, x in norm.named_buffers()} for norm in norms.values()}
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # every batch counts alike
        for _ in range(passes):
            model.sample(batch_size, temperature, generator, model.classes_in_turn(batch_size))
    finally:
        for norm, (training, momentum) in modes.items():
            norm.train(training)
            norm.momentum = momentum
    found: dict[str, Tensor] = {}
    for name, norm in norms.items():
        if norm.num_batches_tracked:
            found |= {f"{name}.{kind}": getattr(norm, kind).clone() for kind in ("running_mean", "running_var")}
        else:  # on the way up from an image, which no draw takes
            norm.load_state_dict(before[norm], strict=False)
    return found


def recalibrated(
    model: Model, folder: Path, temperature: Temperature, passes: int = PASSES, seed: int = 0
) -> tuple[Path | None, bool]:
    """Give a run's model the statistics for a temperature: those in the folder (:mod:`davi.derived`), or new ones,
    which are left there.

    Of temperatures for each layer the folder keeps the last ones alone.

    Arguments:
        model: changed in place.
        folder: of the run.
        temperature: of the draws to come.
        passes, seed: see :func:`recalibrate`.

    Returns:
        The file; None if the model has no batch norms. And whether it was there before.

    Raises:
        UserError: if the file is damaged or cannot be written.
    """
    if not _norms(model):
        return None, False
    single = temperature if isinstance(temperature, (int, float)) else None
    name = f"sampling-{'by-layer' if single is None else f'{single:g}'}"
    options = {
        "temperature": list(temperature) if isinstance(temperature, Sequence) else temperature,
        "passes": passes,
        "seed": seed,
        "batch_size": BATCH,
    }
    weights = digest(model.state_dict())
    known = derived.read(folder, name, weights, options)
    if known is not None:
        path = derived.path_of(folder, name)
        _take(model, known, path)
        return path, True
    statistics = recalibrate(model, temperature, passes, seed)
    return derived.write(folder, name, weights, options, statistics), False


def _norms(model: Model) -> dict[str, nn.BatchNorm1d | nn.BatchNorm2d]:
    kinds = nn.BatchNorm1d, nn.BatchNorm2d
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _take(model: Model, tensors: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    if any(name not in own or own[name].shape != x.shape for name, x in tensors.items()):
        raise UserError(f"{path}: got statistics of another model, expected those of the run; delete the file")
    model.load_state_dict({**own, **tensors})
