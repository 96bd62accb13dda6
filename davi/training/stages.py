"""The stages of a run: which part is trained when, and on what.

Most runs have one stage, which trains the whole network on images. A :class:`davi.model.Staged` network may have
several: each trains one part on what the whole makes of the images (:meth:`davi.model.Staged.view`), with a budget,
an objective and an optimizer of its own. When a stage ends, the weights of its part are replaced by their moving
average, which is what the stages after it see and what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Generator

from davi.batch import Batch
from davi.errors import UserError
from davi.model import Network, Staged
from davi.training.config import TrainingConfig


@dataclass(frozen=True)
class Stage:
    """One stage.

    Arguments:
        config: how the part is trained.
        name: what records and messages call it; empty in a run of one stage.
        part: which part is trained; None: the whole network.
    """

    config: TrainingConfig
    name: str = ""
    part: str | None = None

    def trained(self, model: Network) -> Network:
        """The network that the stage trains.

        Raises:
            UserError: if the model has no parts, or none of that name.
        """
        if self.part is None:
            return model
        if not isinstance(model, Staged):
            raise UserError(f"stages.{self.name}.part: got {self.part} for {model.name}, which has no parts")
        try:
            return model.part(self.part)
        except KeyError as error:
            raise UserError(f"stages.{self.name}.part: {error.args[0]}") from None

    def view(self, model: Network, batch: Batch, generator: Generator | None = None) -> Batch:
        """What the part is shown of a batch of images; no gradient flows through it."""
        if self.part is None:
            return batch
        assert isinstance(model, Staged)
        with torch.no_grad():
            return model.view(self.part, batch, generator)._replace(start=batch.start)


def single(config: TrainingConfig) -> tuple[Stage, ...]:
    """The stages of a run that has only one."""
    return (Stage(config),)


def check_stages(model: Network, stages: Sequence[Stage]) -> None:
    """Refuse stages that cannot be trained one after the other.

    Raises:
        UserError: one line.
    """
    names = [stage.name for stage in stages]
    if len(stages) > 1 and (len({*names}) < len(names) or not all(names)):
        raise UserError(f"stages: got the names {', '.join(map(repr, names))}, expected one for each, no two alike")
    first = stages[0].config
    for stage in stages:
        if stage.trained(model) is not model or len(stages) > 1:
            if stage.config.compute.shard:
                raise UserError(f"stages.{stage.name}.compute.shard: got true, expected false in a run of stages")
            for name in ("threads", "compute.channels_last"):
                value, begun = (attrgetter(name)(config) for config in (stage.config, first))
                if value != begun:
                    told = f"got {value}, expected {begun}".lower()
                    raise UserError(f"stages.{stage.name}.{name}: {told} as in the first stage")
