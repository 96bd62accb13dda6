"""The bound on the validation images, with the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from davi.data import Images
from davi.model import Model
from davi.training.log import summary
from davi.training.parallel import Processes, noise_seed


@torch.no_grad()
def validate(
    model: Model, images: Images, batch_size: int, seed: int, processes: Processes | None = None
) -> dict[str, Any]:
    """Mean evidence over images, as :func:`davi.training.log.summary` reports it, and their number.

    The same draws are used each time, so that two validations differ by the weights alone; the global random state is
    not touched. The network computes in the precision of its weights.

    Arguments:
        model: in eval mode.
        images: as they are evaluated.
        batch_size: images at once.
        seed: of the model's draws.
        processes: share the batches; the result is the same, to the last bit, for any number of them. None: all batches
            are computed here.
    """
    device = next(model.parameters()).device
    rank, count = (0, 1) if processes is None else (processes.rank, processes.count)
    names: list[str] = []
    no_divergence: frozenset[str] = frozenset()
    own: dict[int, Tensor] = {}
    for number in range(rank, -(-len(images) // batch_size), count):
        x = images.pixels[number * batch_size : (number + 1) * batch_size].to(device)
        # A generator for each batch: its draws must not depend on who computed the batches before.
        evidence = model.evidence(x, Generator(device).manual_seed(noise_seed(seed, number)))
        names, no_divergence = list(evidence.terms), evidence.no_divergence
        # float64 so that the mean over ten thousand images does not depend on how they are cut into batches
        own[number] = torch.stack([term.double().sum() for term in evidence.terms.values()])
    told = names, no_divergence, {number: sums.tolist() for number, sums in own.items()}
    gathered = [told] if processes is None else processes.gather(told)
    batches = {number: sums for *_, shares in gathered for number, sums in shares.items()}
    columns = zip(*(batches[number] for number in sorted(batches)), strict=True)
    names, no_divergence, _ = gathered[0]  # the first process has the first batch
    means = {name: sum(column) / len(images) for name, column in zip(names, columns, strict=True)}
    return {**summary(means, model.dims, no_divergence), "images": len(images)}


def last_validation(records: Sequence[Mapping[str, Any]], step: int) -> tuple[int, dict[str, Any] | None]:
    """The validation that a run has recorded at its present step: that step and the numbers, or -1 and None."""
    for record in reversed(records):
        if record["step"] == step and record["kind"] == "validation":
            return step, {key: value for key, value in record.items() if key not in ("kind", "step")}
    return -1, None
