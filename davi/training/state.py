"""Everything that a step changes, in one place, so that a checkpoint can hold all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from davi.data import DataSets, Order, Presentation
from davi.errors import UserError
from davi.evidence import Evidence
from davi.model import Model
from davi.training.config import TrainingConfig
from davi.training.guard import Guard
from davi.training.optimizer import Average, make_optimizer


class Feed:
    """The endless stream of batches, as the model sees them, on its device.

    Arguments:
        sets: the images; training images are drawn and mirrored as the protocol says.
        config: batch size and seed.
        device: where the model is.
    """

    def __init__(self, sets: DataSets, config: TrainingConfig, device: torch.device) -> None:
        images = sets.train.to(device) if _fits(sets.train.pixels, device) else sets.train
        protocol = sets.protocol
        self.present = Presentation(images, protocol.get("binarization", "none"), protocol.get("flip", "none"))
        self.order = Order(len(images), config.batch_size, config.seed)
        self.generator = Generator(images.pixels.device).manual_seed(config.seed)
        self.device = device
        if self.order.batch_size < config.accumulate:
            raise UserError(f"accumulate: got {config.accumulate}, expected at most {len(images)}, the training images")

    def __next__(self) -> Tensor:
        """The next batch: integers ``[B, C, H, W]``."""
        return self.present(next(self.order), self.generator).to(self.device, non_blocking=True)


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether a device has room for all images: a quarter of its free memory may go to them."""
    return device.type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4


class Meters:
    """Sums of what the log reports, kept on the device: reading them is a stall, so it happens at log points only."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batch: Tensor | None = None
        self.total: Tensor | None = None
        self.steps = 0

    @torch.no_grad()
    def add(self, evidence: Evidence, loss: Tensor, weight: float) -> None:
        """Take in a part of a batch; the weights of a batch's parts sum to 1."""
        self.names = ["loss", *evidence.terms]
        values = torch.stack([loss.detach(), *(term.detach().mean() for term in evidence.terms.values())]).float()
        self.batch = values * weight if self.batch is None else self.batch + values * weight

    def loss(self) -> Tensor:
        """The objective of the batch taken in so far."""
        assert self.batch is not None
        return self.batch[0]

    def end_batch(self, counted: bool) -> None:
        """Add the batch to the sums, unless its numbers are not finite."""
        if counted and self.batch is not None:
            self.total = self.batch if self.total is None else self.total + self.batch
            self.steps += 1
        self.batch = None

    def read(self) -> dict[str, float]:
        """Means over the steps since the last reading."""
        values = [] if self.total is None else (self.total / max(self.steps, 1)).tolist()
        self.total, self.steps = None, 0
        return dict(zip(self.names, values, strict=True)) if values else {}


@dataclass
class State:
    """A run at one instant, between two steps.

    Arguments:
        model: the weights that the optimiser moves.
        optimizer: with its moments.
        average: the moving average of the weights.
        feed: position in the data.
        guard: recent gradient norms.
        meters: sums since the last line of the log.
        step: steps done.
        seconds: time used, over all resumptions.
        skipped: steps whose update was skipped since the last line of the log.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    average: Average
    feed: Feed
    guard: Guard
    meters: Meters = dataclasses.field(default_factory=Meters)
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0

    @classmethod
    def fresh(cls, model: Model, sets: DataSets, config: TrainingConfig, device: torch.device) -> State:
        """The state before the first step. The model's initial weights are the caller's."""
        torch.manual_seed(config.seed)  # the model's own draws
        feed = Feed(sets, config, device)
        return cls(model, make_optimizer(model, config), Average(model, config.ema_decay), feed, Guard(config))

    def numbers(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "step": self.step,
            "optimizer": type(self.optimizer).__name__.lower(),
            "seconds": self.seconds,
            "skipped": self.skipped,
            "updates": self.average.updates,
            "order": self.feed.order.state_dict(),
            "guard": self.guard.state_dict(),
            "meters": {"names": self.meters.names, "steps": self.meters.steps},
        }

    def load_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Undo :meth:`numbers`.

        Raises:
            UserError: if they are of a run with another optimiser, batch size or seed, or of other images; nothing has
                been changed then.
        """
        own = type(self.optimizer).__name__.lower()
        begun = numbers.get("optimizer", own)
        if begun != own:
            raise UserError(f"optimizer: got {own} for a run begun with {begun}, expected {begun}")
        self.feed.order.load_state_dict(numbers["order"])
        self.guard.load_state_dict(numbers["guard"])
        self.meters.names, self.meters.steps = list(numbers["meters"]["names"]), int(numbers["meters"]["steps"])
        self.step, self.seconds = int(numbers["step"]), float(numbers["seconds"])
        self.skipped, self.average.updates = int(numbers["skipped"]), int(numbers["updates"])

    def others(self) -> dict[str, Tensor]:
        """Tensors besides weights and optimiser: states of the random generators, the log's sums."""
        tensors = {"random/cpu": torch.get_rng_state(), "random/feed": self.feed.generator.get_state()}
        if self.feed.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.feed.device)
        if self.meters.total is not None:
            tensors["meters"] = self.meters.total
        return tensors

    def load_others(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`others`."""
        torch.set_rng_state(tensors["random/cpu"])
        self.feed.generator.set_state(tensors["random/feed"])
        if self.feed.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.feed.device)
        self.meters.total = tensors["meters"].to(self.feed.device) if "meters" in tensors else None

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's tensors, named ``parameter number/name``; numbers as tensors without dimensions."""
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
                tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
            state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
