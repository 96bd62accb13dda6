r"""Reversible residual networks: classifiers whose activations need not be kept for the backward pass.

The channels behind the stem are divided into two halves. In each unit both change, one by a function of the other,

.. math:: y_1 = x_1 + F(x_2), \qquad y_2 = x_2 + G(y_1)

so that its inputs follow from its outputs, :math:`x_2 = y_2 - G(y_1)` and :math:`x_1 = y_1 - F(x_2)`, where F and G are
branches of a residual network (:mod:`davi.models.resnet`) of half the width. The first unit of a stage changes the
resolution and the width, and has shortcuts in place of the identity:

.. math:: y_1 = s(x_1) + F(x_2), \qquad y_2 = s'(x_2) + G(y_1)

It has no inverse, so that its inputs are kept, which are the stem's output or that of the stage below. What training
keeps therefore does not grow with the number of units in a stage. Logits are linear in the means of both halves over
all pixels, behind batch norm and ReLU.

References:
    The Reversible Residual Network: Backpropagation Without Storing Activations, A. N. Gomez, M. Ren, R. Urtasun,
    R. B. Grosse, NeurIPS 2017, https://arxiv.org/abs/1707.04585
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from davi.layers.biased_batch_norm import set_momentum
from davi.layers.checkpointed import Checkpointed
from davi.layers.preactivation import LogitsOfMeans, Place, ResidualStages, StemLayer, branch, shortcut
from davi.layers.reversible import AdditiveStep, Reversible
from davi.layers.standardize import Standardize
from davi.model import Classifier, DataInitialized, WithDepths

Halves = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RevNetConfig(ResidualStages):
    """Options of :class:`RevNet`; widths are those of both halves together.

    Arguments:
        units, widths, bottleneck, stem, norm_momentum, mean, std: see
            :class:`~davi.layers.preactivation.ResidualStages`.
        recompute: re-create activations in the backward pass instead of keeping them; the numbers are the same up to
            rounding.
    """

    units: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (32, 32, 64, 112)
    recompute: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % 2 for width in self.widths):
            raise ValueError(f"widths: got {list(self.widths)}, expected even numbers: channels of two halves")


@final
class FirstUnit(Checkpointed):
    """The first unit of a stage, which is not inverted (module docstring).

    Arguments:
        place: where it stands; its widths are those of both halves together.
        bottleneck: whether its branches are.
        activated: whether its input has been activated already, as the stem's output.
    """

    def __init__(self, place: Place, bottleneck: bool, activated: bool) -> None:
        super().__init__()
        inputs, outputs = place.inputs // 2, place.outputs // 2
        self.f = branch(inputs, outputs, place.stride, bottleneck, activated)
        self.g = branch(outputs, outputs, 1, bottleneck)
        self.shortcuts = nn.ModuleList([shortcut(inputs, outputs, place.stride, bottleneck) for _ in range(2)])

    def compute(self, x1: Tensor, x2: Tensor) -> Halves:
        y1: Tensor = self.shortcuts[0](x1) + self.f(x2)
        y2: Tensor = self.shortcuts[1](x2) + self.g(y1)
        return y1, y2


@final
class Stage(nn.Module):
    """Units at one resolution.

    Arguments:
        places: of all of them.
        bottleneck: whether their branches are.
        activated: as for :class:`FirstUnit`.
        recompute: whether activations are re-created in the backward pass.
    """

    def __init__(self, places: Sequence[Place], bottleneck: bool, activated: bool, recompute: bool) -> None:
        super().__init__()
        self.first = FirstUnit(places[0], bottleneck, activated)
        self.first.recompute = recompute
        half = places[0].outputs // 2
        steps = [AdditiveStep(branch(half, half, 1, bottleneck)) for _ in range(2 * (len(places) - 1))]
        self.rest = Reversible(steps) if steps else None
        if self.rest is not None:
            self.rest.recompute = recompute

    def forward(self, x1: Tensor, x2: Tensor) -> Halves:
        halves: Halves = self.first(x1, x2)
        return halves if self.rest is None else self.rest(*halves)

    def unit_by_unit(self, x1: Tensor, x2: Tensor) -> Iterator[Halves]:
        """The halves after each unit."""
        halves: Halves = self.first(x1, x2)
        yield halves
        if self.rest is not None:
            for number, step in enumerate(self.rest):
                halves = step(*halves)
                if number % 2:
                    yield halves


@final
class RevNet(Classifier, DataInitialized, WithDepths):
    """The classifier (module docstring)."""

    name = "revnet"
    Config = RevNetConfig
    config: RevNetConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: RevNetConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.standardize = Standardize(self.shape[0], self.levels, config.mean, config.std)
        self.images_wanted = 0 if config.mean is not None and config.std is not None else 1024
        self.stem = StemLayer(self.shape[0], config.widths[0], config.stem)
        stages: list[list[Place]] = [[] for _ in config.units]
        for place in config.each():
            stages[place.stage].append(place)
        self.stages = nn.ModuleList(
            [Stage(places, config.bottleneck, not i, config.recompute) for i, places in enumerate(stages)]
        )
        self.head = LogitsOfMeans(config.last_width, self.classes)
        set_momentum(self, config.norm_momentum)

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Standardize by the means and standard deviations of these images, where none are given."""
        if "standardize.mean" not in kept:
            self.standardize.fit(images)

    def logits(self, x: Tensor) -> Tensor:
        halves = self._start(x)
        for stage in self.stages:
            halves = stage(*halves)
        logits: Tensor = self.head(torch.cat(halves, 1))
        return logits

    def at_depths(self, x: Tensor) -> list[Tensor]:
        halves = self._start(x)
        depths = [halves]
        for stage in self.stages:
            assert isinstance(stage, Stage)
            depths += stage.unit_by_unit(*depths[-1])
        return [torch.cat(halves, 1) for halves in depths]

    def _start(self, x: Tensor) -> Halves:
        x1, x2 = self.stem(self.standardize(x)).chunk(2, 1)
        return x1, x2

    def blocks(self) -> Iterable[nn.Module]:
        """The first unit of each stage, and its other units together."""
        for stage in self.stages:
            yield from stage.children()
