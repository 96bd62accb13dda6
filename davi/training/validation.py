"""What the objective says of the validation images, with the averaged weights: for most, the bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.data import Images
from davi.model import Network
from davi.objectives import EvidenceConfig, EvidenceObjective, Loss, make_objective
from davi.training.log import summary
from davi.training.parallel import Processes, noise_seed
from davi.training.stages import Stage


@torch.no_grad()
def validate(
    model: Network,
    images: Images,
    batch_size: int,
    seed: int,
    processes: Processes | None = None,
    stage: Stage | None = None,
) -> dict[str, Any]:
    """Means over images, as :func:`davi.training.log.summary` reports them, and their number.

    The same draws are used each time, so that two validations differ by the weights alone; the global random state is
    not touched. The network computes in the precision of its weights.

    Arguments:
        model: in eval mode.
        images: as they are evaluated.
        batch_size: images at once.
        seed: of the model's draws.
        processes: share the batches; the result is the same, to the last bit, for any number of them. None: all batches
            are computed here.
        stage: whose objective and part; None: the evidence of the whole model.
    """
    objective = EvidenceObjective(EvidenceConfig()) if stage is None else make_objective(stage.config.objective)
    part = model if stage is None else stage.trained(model)
    rank, count = (0, 1) if processes is None else (processes.rank, processes.count)
    names: list[str] = []
    loss: Loss | None = None
    own: dict[int, Tensor] = {}
    for number in range(rank, -(-len(images) // batch_size), count):
        batch, generator = validation_batch(model, images, number, batch_size, seed, stage)
        loss = objective.validate(part, batch, generator)
        names = ["loss", *loss.terms]
        # float64 so that the mean over ten thousand images does not depend on how they are cut into batches
        values = [loss.value.double() * len(batch.x), *(term.double().sum() for term in loss.terms.values())]
        own[number] = torch.stack(values)
    claim, no_divergence = (None, frozenset[str]()) if loss is None else (loss.claim, loss.no_divergence)
    told = names, claim, no_divergence, {number: sums.tolist() for number, sums in own.items()}
    gathered = [told] if processes is None else processes.gather(told)
    batches = {number: sums for *_, shares in gathered for number, sums in shares.items()}
    columns = zip(*(batches[number] for number in sorted(batches)), strict=True)
    names, claim, no_divergence, _ = gathered[0]  # the first process has the first batch
    means = {name: sum(column) / len(images) for name, column in zip(names, columns, strict=True)}
    mean_loss = means.pop("loss")
    told_loss = {"loss": mean_loss} if claim is None else {}
    return {**told_loss, **summary(means, model.dims, no_divergence, claim), "images": len(images)}


def validation_batch(
    model: Network, images: Images, number: int, batch_size: int, seed: int, stage: Stage | None
) -> tuple[Batch, Generator]:
    """A batch of the images as the trained part sees it, and the generator of its draws, which must not depend on who
    computed the batches before: see :func:`validate`, of which ``number`` is one."""
    device = next(model.parameters()).device
    some = slice(number * batch_size, (number + 1) * batch_size)
    y = None if images.labels is None else images.labels[some].to(device)
    batch = Batch(images.pixels[some].to(device), y)
    generator = Generator(device).manual_seed(noise_seed(seed, number))
    return (batch if stage is None else stage.view(model, batch, generator)), generator


def last_validation(
    records: Sequence[Mapping[str, Any]], step: int, stage: str = ""
) -> tuple[int, dict[str, Any] | None]:
    """The validation that a stage has recorded at its present step: that step and the numbers, or -1 and None."""
    for record in reversed(records):
        if record["step"] == step and record["kind"] == "validation" and record.get("stage", "") == stage:
            return step, {key: value for key, value in record.items() if key not in ("kind", "step")}
    return -1, None
