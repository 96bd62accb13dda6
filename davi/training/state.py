"""Everything that a step changes, in one place, so that a checkpoint can hold all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from davi.data import Augmentation, DataSets, Sampler
from davi.errors import UserError
from davi.evidence import Evidence
from davi.model import Model
from davi.training.config import TrainingConfig
from davi.training.optimizer import Average, make_optimizer
from davi.training.parallel import Processes
from davi.training.sharded import shard, share, shares, whole
from davi.training.step_filter import StepFilter


class BatchLoader:
    """The endless stream of batches, as the model sees them, on its device.

    Arguments:
        sets: the images; training images are drawn and mirrored as the protocol says.
        config: batch size and seed.
        device: where the model is.
    """

    def __init__(self, sets: DataSets, config: TrainingConfig, device: torch.device) -> None:
        images = sets.train.to(device) if _fits(sets.train.pixels, device) else sets.train
        protocol = sets.protocol
        self.augment = Augmentation(images, protocol.get("binarization", "none"), protocol.get("flip", "none"))
        self.sampler = Sampler(len(images), config.batch_size, config.seed)
        self.generator = Generator(images.pixels.device).manual_seed(config.seed)
        self.device = device
        if self.sampler.batch_size < config.accumulate:
            raise UserError(f"accumulate: got {config.accumulate}, expected at most {len(images)}, the training images")

    def __next__(self) -> Tensor:
        """The next batch: integers ``[B, C, H, W]``."""
        return self.augment(next(self.sampler), self.generator).to(self.device, non_blocking=True)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether a device has room for all images: a quarter of its free memory may go to them."""
    return device.type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4


class Meters:
    """Sums of what the log reports. A batch's numbers stay on the device until they are read with the step filter's."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.no_divergence: frozenset[str] = frozenset()
        self.batch: Tensor | None = None
        self.totals: list[float] = []
        self.steps = 0

    @torch.no_grad()
    def add(self, evidence: Evidence, loss: Tensor, weight: float) -> None:
        """Take in a part of a batch; the weights of a batch's parts sum to 1."""
        self.names, self.no_divergence = ["loss", *evidence.terms], evidence.no_divergence
        values = torch.stack([loss.detach(), *(term.detach().mean() for term in evidence.terms.values())]).float()
        self.batch = values * weight if self.batch is None else self.batch + values * weight

    def take(self) -> Tensor:
        """The numbers of the batch taken in so far, in the order of ``names``; the next batch begins."""
        assert self.batch is not None
        batch, self.batch = self.batch, None
        return batch

    def count(self, values: Sequence[float]) -> None:
        """Add the numbers of a batch to the sums."""
        self.totals = [total + value for total, value in zip(self.totals or [0.0] * len(values), values, strict=True)]
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means over the steps since the last reading."""
        means = {name: total / self.steps for name, total in zip(self.names, self.totals, strict=True)}
        self.totals, self.steps = [], 0
        return means


class Tensors(NamedTuple):
    """The tensors of a :class:`State` that can be large, as one process would hold them.

    Arguments:
        model: weights and buffers.
        average: those of the averaged model.
        optimizer: its moments.
    """

    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass
class State:
    """A run at one instant, between two steps.

    Arguments:
        model: the weights that the optimizer moves.
        optimizer: with its moments.
        average: the moving average of the weights.
        loader: position in the data.
        step_filter: recent gradient norms.
        meters: sums since the last line of the log.
        step: steps done.
        seconds: time used, over all resumptions.
        skipped: steps whose update was skipped since the last line of the log.
        accumulate: parts into which the recipe cuts a batch.
        parts: parts into which batches are cut; more where several processes share the work.
        rollbacks: what has been recorded of each time the run went back to a checkpoint.
        started_from: what the protocol says of the weights with which the run began; nothing if they were drawn.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    average: Average
    loader: BatchLoader
    step_filter: StepFilter
    meters: Meters = dataclasses.field(default_factory=Meters)
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    accumulate: int = 1
    parts: int = 1
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    started_from: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def fresh(
        cls,
        model: Model,
        sets: DataSets,
        config: TrainingConfig,
        device: torch.device,
        sharers: Processes | None = None,
        started_from: Mapping[str, str] | None = None,
    ) -> State:
        """The state before the first step. The model's initial weights are the caller's; ``sharers`` cut them up."""
        average = Average(model, config.ema_decay)
        if sharers is not None:
            shard(model, average.model, sharers)
        loader = BatchLoader(sets, config, device)
        optimizer = make_optimizer(model, config.optimizer, config.learning_rate)
        state = cls(model, optimizer, average, loader, StepFilter(config.step_filter))
        state.accumulate = state.parts = config.accumulate
        state.started_from = dict(started_from or {})
        return state

    def numbers(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "step": self.step,
            "optimizer": type(self.optimizer).__name__.lower(),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "updates": self.average.updates,
            "order": self.loader.sampler.state_dict(),
            "guard": self.step_filter.state_dict(),
            "meters": {"names": self.meters.names, "totals": self.meters.totals, "steps": self.meters.steps},
            "accumulate": self.accumulate,
            "parts": self.parts,
            "rollbacks": self.rollbacks,
            "started_from": self.started_from,
        }

    def load_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Undo :meth:`numbers`.

        Raises:
            UserError: if they are of a run with another optimizer, batch size or seed, or of other images; nothing has
                been changed then.
        """
        own = type(self.optimizer).__name__.lower()
        if numbers["optimizer"] != own:
            begun = numbers["optimizer"]
            raise UserError(f"training.optimizer.name: got {own} for a run begun with {begun}, expected {begun}")
        self.loader.sampler.load_state_dict(numbers["order"])
        self.step_filter.load_state_dict(numbers["guard"])
        meters = numbers["meters"]
        self.meters.names, self.meters.totals = list(meters["names"]), list(meters["totals"])
        self.meters.steps, self.meters.batch = int(meters["steps"]), None
        self.step, self.seconds = int(numbers["step"]), float(numbers["seconds"])
        self.skipped, self.average.updates = int(numbers["skipped"]), int(numbers["updates"])
        self.rollbacks = [dict(record) for record in numbers["rollbacks"]]
        self.started_from = dict(numbers.get("started_from", {}))
        if numbers["accumulate"] == self.accumulate:  # else another cut is asked for knowingly
            self.parts = int(numbers["parts"])

    def others(self) -> dict[str, Tensor]:
        """Tensors besides weights and optimizer. The model's own draws need none: their seeds follow from the step."""
        return {"random/feed": self.loader.generator.get_state()}

    def load_others(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`others`."""
        self.loader.generator.set_state(tensors["random/feed"])

    def tensors(self) -> Tensors:
        """The large tensors. All processes have to call it."""
        return Tensors(whole(self.model.state_dict()), whole(self.average.model.state_dict()), whole(self.moments()))

    def load_tensors(self, tensors: Tensors) -> None:
        """Undo :meth:`tensors`. No process waits for another."""
        for model, own in ((self.model, tensors.model), (self.average.model, tensors.average)):
            model.load_state_dict(shares(own, model.state_dict()))
        self.load_moments(tensors.optimizer)

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's tensors, named ``parameter number/name``; numbers as tensors without dimensions."""
        state = self.optimizer.state_dict()["state"]
        return {f"{i}/{name}": torch.as_tensor(value) for i, own in state.items() for name, value in own.items()}

    def load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`moments`. Learning rates and the like are not state: the recipe and the step give them."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            number, _, key = name.partition("/")
            parameter = parameters[int(number)]
            if tensor.shape == parameter.shape and tensor.ndim:
                # In the memory layout of the parameter, without which the fast fused updates are not possible.
                tensor = torch.empty_like(parameter, requires_grad=False).copy_(share(tensor, parameter))
            state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
