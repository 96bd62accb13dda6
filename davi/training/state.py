"""Everything that a step changes, in one place, so that a checkpoint can hold all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from davi.batch import Batch
from davi.data import Augmentation, DataSets, Sampler
from davi.errors import UserError
from davi.evidence import Kind
from davi.model import Network
from davi.objectives import Loss, Objective, make_objective
from davi.training.config import TrainingConfig
from davi.training.optimizer import Average, make_optimizer
from davi.training.parallel import Processes, noise_seed
from davi.training.schedule import Schedule
from davi.training.sharded import shard, share, shares, whole
from davi.training.stages import Stage
from davi.training.step_filter import StepFilter

_OBJECTIVE = "objective/"


class BatchLoader:
    """The endless stream of batches, as the model sees them, on its device.

    Arguments:
        sets: the images; training images are moved, mirrored and drawn as the protocol says.
        config: batch size and seed.
        device: where the model is.
    """

    def __init__(self, sets: DataSets, config: TrainingConfig, device: torch.device) -> None:
        images = sets.train.to(device) if _fits(sets.train.pixels, device) else sets.train
        protocol = sets.protocol
        binarization, flip = protocol.get("binarization", "none"), protocol.get("flip", "none")
        self.augment = Augmentation(images, binarization, flip, protocol.get("random_crop", 0))
        self.sampler = Sampler(len(images), config.batch_size, config.seed)
        self.generator = Generator(images.pixels.device).manual_seed(config.seed)
        self.device = device
        if self.sampler.batch_size < config.accumulate:
            raise UserError(f"accumulate: got {config.accumulate}, expected at most {len(images)}, the training images")

    def __next__(self) -> Batch:
        """The next batch, on the device."""
        chosen = next(self.sampler)
        labels = self.augment.labels(chosen)
        x = self.augment(chosen, self.generator).to(self.device, non_blocking=True)
        return Batch(x, None if labels is None else labels.to(self.device, non_blocking=True))


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Whether a device has room for all images: a quarter of its free memory may go to them."""
    return device.type == "cuda" and pixels.nbytes < torch.cuda.mem_get_info(device)[0] / 4


class Meters:
    """Sums of what the log reports. A batch's numbers stay on the device until they are read with the step filter's."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.no_divergence: frozenset[str] = frozenset()
        self.claim: Kind | None = None
        self.batch: Tensor | None = None
        self.totals: list[float] = []
        self.steps = 0

    @torch.no_grad()
    def add(self, loss: Loss, weight: float) -> None:
        """Take in a part of a batch; the weights of a batch's parts sum to 1."""
        self.names, self.no_divergence, self.claim = ["loss", *loss.terms], loss.no_divergence, loss.claim
        values = torch.stack([loss.value, *(term.mean() for term in loss.terms.values())]).float()
        own = values if weight == 1.0 else values * weight
        self.batch = own if self.batch is None else self.batch + own

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


def _kinds(tensors: Mapping[str, Tensor]) -> str:
    """Names, types and shapes in words."""
    kinds = (f"{name} {str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in sorted(tensors.items()))
    return ", ".join(kinds) or "no state"


class State:
    """A run at one instant, between two steps.

    Arguments:
        model: the whole network; its initial weights are the caller's.
        sets: the images.
        stages: of the run.
        device: where the model is.
        sharers: processes that cut the weights up between them; None: each has all of them.
        started_from: what the protocol says of the weights with which the run began; nothing if they were drawn.
    """

    place: int
    """Number of the stage."""
    optimizer: torch.optim.Optimizer
    """With its moments."""
    average: Average
    """The moving average of all weights; those that the stage does not train stay as they are."""
    loader: BatchLoader
    """Position in the data."""
    step_filter: StepFilter
    """Recent gradient norms."""
    objective: Objective
    """With its state."""
    meters: Meters
    """Sums since the last line of the log."""
    skipped: int
    """Steps whose update was skipped since the last line of the log."""
    accumulate: int
    """Parts into which the recipe cuts a batch."""
    parts: int
    """Parts into which batches are cut; more where several processes share the work."""

    def __init__(
        self,
        model: Network,
        sets: DataSets,
        stages: Sequence[Stage],
        device: torch.device,
        sharers: Processes | None = None,
        started_from: Mapping[str, str] | None = None,
    ) -> None:
        self.model, self.sets, self.stages, self.device, self.sharers = model, sets, tuple(stages), device, sharers
        self.started_from = dict(started_from or {})
        self.rollbacks: list[dict[str, Any]] = []
        """What has been recorded of each time the run went back to a checkpoint."""
        self.step = 0
        """Steps done."""
        self.seconds = 0.0
        """Time used, over all resumptions."""
        self.begun = [(0, 0.0)]
        """Steps done and time used when each stage began, up to the present one."""
        self.enter(0)

    @property
    def stage(self) -> Stage:
        """What is trained now."""
        return self.stages[self.place]

    @property
    def first_step(self) -> int:
        """Steps done when the stage began."""
        return self.begun[-1][0]

    @property
    def config(self) -> TrainingConfig:
        """How it is trained."""
        return self.stage.config

    @property
    def trained(self) -> Network:
        """The part of the model that the optimizer moves: in a run of one stage the whole."""
        return self.stage.trained(self.model)

    def schedule(self) -> Schedule:
        """Of the stage."""
        return Schedule(self.config, self.loader.sampler.batches_per_epoch)

    def within(self, step: int, seconds: float) -> tuple[int, float]:
        """The same counted from where the stage began, as its schedule counts."""
        first_step, first_second = self.begun[-1]
        return step - first_step, seconds - first_second

    def enter(self, place: int) -> None:
        """Make everything that a stage begins with; the model's weights stay as they are."""
        self.place = place
        config = self.config
        self.model.eval()  # parts that are not trained show the others what they will show them for ever
        self.trained.train()
        self.average = Average(self.model, config.ema_decay)
        if self.sharers is not None:
            shard(self.model, self.average.model, self.sharers)
        self.loader = BatchLoader(self.sets, config, self.device)
        self.optimizer = make_optimizer(self.trained, config.optimizer, config.learning_rate)
        self.step_filter = StepFilter(config.step_filter)
        self.objective = make_objective(config.objective)
        torch.manual_seed(noise_seed(config.seed, place, 0, 0, 0))  # its draws are the same, whatever went before
        self.objective.begin(self.trained, self.loader.sampler.batch_size)
        self.meters, self.skipped = Meters(), 0
        self.accumulate = self.parts = config.accumulate

    @torch.no_grad()
    def leave(self) -> None:
        """End a stage: its part gets the averaged weights. The next one can be entered then."""
        self.model.load_state_dict(self.average.model.state_dict())
        self.begun.append((self.step, self.seconds))

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
            **({} if len(self.stages) == 1 else {"begun": self.begun}),
        }

    def load_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Undo :meth:`numbers`.

        Raises:
            UserError: if they are of a run with another optimizer, batch size or seed, or of other images, or if a
                stage that has ended should be longer; no weights have been changed then.
        """
        begun = [(int(step), float(seconds)) for step, seconds in numbers.get("begun", self.begun[:1])]
        self._check_ended(begun)
        if len(begun) - 1 != self.place:
            self.enter(len(begun) - 1)
        self.begun = begun
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

    def _check_ended(self, begun: Sequence[tuple[int, float]]) -> None:
        """Refuse a larger budget for a stage that has ended: others have been trained on what it has become."""
        for stage, (first, since), (last, until) in zip(self.stages, begun, begun[1:], strict=False):
            per_epoch = Sampler(len(self.sets.train), stage.config.batch_size, 0).batches_per_epoch
            if Schedule(stage.config, per_epoch).exhausted(last - first, until - since) is None:
                raise UserError(
                    f"stages.{stage.name}: got a larger budget, expected that with which it ended after "
                    f"{last - first} steps: only the stage that a run is in can be prolonged"
                )

    def others(self) -> dict[str, Tensor]:
        """Tensors besides weights and optimizer. The model's own draws need none: their seeds follow from the step."""
        own = {f"{_OBJECTIVE}{name}": tensor for name, tensor in self.objective.state().items()}
        return {"random/feed": self.loader.generator.get_state(), **own}

    def load_others(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`others`.

        Raises:
            UserError: if they are of another objective; nothing has been changed then.
        """
        own = {name.removeprefix(_OBJECTIVE): x for name, x in tensors.items() if name.startswith(_OBJECTIVE)}
        wanted = self.objective.state()
        if (kept := _kinds(own)) != (expected := _kinds(wanted)):
            raise UserError(
                f"training.objective: got {self.objective.name} with {expected} for a checkpoint with {kept}; "
                "a run goes on with the objective that it was begun with"
            )
        self.loader.generator.set_state(tensors["random/feed"])
        if own:
            self.objective.load_state({name: tensor.to(wanted[name].device) for name, tensor in own.items()})

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
