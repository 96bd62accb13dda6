"""What every objective of training promises.

An objective turns what a model says about a batch into one scalar to be minimized. It may keep a state of its own
(persistent chains, a phase), it says which parameters a step moves, and it never decides what is reported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.evidence import Kind
from davi.model import Network


@dataclass(frozen=True)
class ObjectiveConfig:
    """The ``training.objective:`` section; each objective has its own options beside ``name``."""

    name: str


class Progress(NamedTuple):
    """Where training stands, within its stage.

    Arguments:
        step: steps done so far.
        epoch: whole passes over the training images done so far.
        fraction: share of the budget that is used up, 0 to 1.
    """

    step: int
    epoch: int
    fraction: float


class Outcome(NamedTuple):
    """What the loop tells an objective about a step that has been made.

    Arguments:
        loss: of the whole batch, the same number in all processes.
        batches_per_epoch: batches in a pass over the training images.
        validation: the validation images in batches, on the device, as they are evaluated; none where there are none.
    """

    loss: float
    batches_per_epoch: int
    validation: Callable[[], Iterator[Batch]]


class Role(Enum):
    """Which parameters a step moves (:mod:`davi.training.roles` finds out which is which)."""

    ALL = "all"
    INFERENCE = "inference"
    GENERATIVE = "generative"


class Loss(NamedTuple):
    """What an objective makes of a batch.

    Arguments:
        value: the scalar to be minimized.
        terms: what the log reports beside it, each ``[B]`` or a scalar, whose mean over the images is taken.
        claim: how the sum of the terms relates to log p(x), if they are nats of it; None: they are something else, and
            no bits per dimension are made of them.
        no_divergence: as in :class:`davi.evidence.Evidence`.
        gradient: adds the gradient of the value, times a number, to those of the parameters, where the objective knows
            it in closed form; None: autograd does.
    """

    value: Tensor
    terms: Mapping[str, Tensor]
    claim: Kind | None
    no_divergence: frozenset[str] = frozenset()
    gradient: Callable[[float], None] | None = None

    def backward(self, factor: float = 1.0) -> None:
        """Add the gradient of the value, times a number, to those of the parameters."""
        if self.gradient is None:
            (self.value * factor).backward()
        else:
            self.gradient(factor)


class Objective(ABC):
    """What is minimized.

    Arguments:
        config: the options.
    """

    name: ClassVar[str]
    """The name recipes use, as ``training.objective.name``."""
    Config: ClassVar[type[ObjectiveConfig]]
    """The dataclass of the options; its ``name`` is a literal."""
    wants: ClassVar[type]
    """What a network must be to be trained with it; it defines what calling the network gives."""
    unit: ClassVar[str] = ""
    """Of its loss, for the log, where the loss is no claim about log p(x) but has a unit."""
    compares_training_images: ClassVar[bool] = False
    """Whether a validation also measures equally many training images, so that the loss of one set can be compared with
    that of the other where it cannot be over time."""

    config: ObjectiveConfig
    """The options, an instance of :attr:`Config`."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def check(self, model: Network) -> None:
        """Refuse a model that lacks what the options need, before the first step. That it is what the objective
        :attr:`wants` has been seen to.

        Raises:
            UserError: one line.
        """

    def wants_validation(self) -> bool:
        """Whether it cannot do without validation images."""
        return False

    def begin(self, model: Network, batch_size: int) -> None:
        """Make the state with which training begins. Draws are made from torch's default generator, which is seeded
        for it.

        Arguments:
            model: with its initial weights, on its device.
            batch_size: images per step.
        """

    def moves(self, at: Progress) -> Role:
        """What the step after ``at`` updates. An objective with an answer of its own trains hierarchies alone
        (:class:`davi.model.Hierarchy`)."""
        return Role.ALL

    @abstractmethod
    def loss(self, network: nn.Module, model: Network, batch: Batch, at: Progress) -> Loss:
        """The loss of one part of a batch.

        Arguments:
            network: the model as it has to be called: wrapped where several processes share the work.
            model: the same, for all that is not its call.
            batch: the part. Draws are made from torch's default generator, which is seeded for each part.
            at: where training stands.
        """

    def after_backward(self, model: Network, at: Progress) -> None:
        """Change the gradients of a whole batch, which all processes hold alike, before their norm is judged."""

    @abstractmethod
    def validate(self, model: Network, batch: Batch, generator: Generator) -> Loss:
        """What is reported of validation images, with terms ``[B]``; nothing of it is minimized, and no state moves."""

    @property
    def ends_steps(self) -> bool:
        """Whether :meth:`end_step` does anything."""
        return type(self).end_step is not Objective.end_step

    def end_step(self, model: Network, at: Progress, outcome: Outcome) -> None:
        """Updates that are not gradients, after each step that was not skipped. Draws are made from torch's default
        generator, which is seeded for it: all processes do the same, and go on with the state of the main one.

        Arguments:
            model: with the weights after the step.
            at: where training stood before it.
            outcome: what else is known of it.
        """

    def reports(self, model: Network, at: Progress) -> Mapping[str, float]:
        """Numbers of the objective itself for the log, such as a weight that changes."""
        return {}

    def settled(self, at: Progress) -> bool:
        """Whether the objective has reached its final form, so that its values can be compared over time."""
        return True

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; names, shapes and types are those of the beginning. It is put back when a
        step is refused. What parts of a batch change must add up: where processes share the work, their changes are
        summed."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`."""


def options_of(config: ObjectiveConfig, *names: str) -> dict[str, Any]:
    """Those of the named options that differ from their defaults."""
    plain = type(config)(config.name)
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
