"""The bound on the validation images, with the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator

from davi.data import Images
from davi.model import Model
from davi.training.log import summary


@torch.no_grad()
def validate(model: Model, images: Images, batch_size: int, seed: int) -> dict[str, Any]:
    """Mean evidence over images, as :func:`davi.training.log.summary` reports it, and their number.

    The same draws are used each time, so that two validations differ by the weights alone; the global random state,
    on which the training depends, is not touched. The network computes in the precision of its weights.

    Arguments:
        model: in eval mode.
        images: as they are evaluated.
        batch_size: images at once.
        seed: of the model's draws.
    """
    device = next(model.parameters()).device
    generator = Generator(device).manual_seed(seed)
    sums: Mapping[str, torch.Tensor] = {}
    for start in range(0, len(images), batch_size):
        x = images.pixels[start : start + batch_size].to(device)
        terms = model.evidence(x, generator).terms
        # float64 so that the mean over ten thousand images does not depend on how they are cut into batches
        batch = {name: term.double().sum() for name, term in terms.items()}
        sums = {name: sums[name] + value for name, value in batch.items()} if sums else batch
    means = {name: float(value) / len(images) for name, value in sums.items()}
    return {**summary(means, model.dims), "images": len(images)}
