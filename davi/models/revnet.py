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

Beyond the paper: depth-wise attention (:mod:`davi.layers.context_attention`). At every pixel the first unit of each
stage but the first, and what makes the logits, reads from what is kept, the outputs :math:`h_j` of the stem and of the
stages, and

.. math:: \hat h_i = h_i + \gamma_i U_i \sum_{j<i} w_{ij}\, V_j h_j

stands in place of :math:`h_i`. Outputs within a stage are not read: keys and values of each of them would have to be
kept, and memory would grow with the number of units again. So S stages offer S maps to S readers, where a ResNet of U
units offers U maps to U; what training keeps grows by a few maps for each stage. Gates :math:`\gamma` start at 0.

References:
    The Reversible Residual Network: Backpropagation Without Storing Activations, A. N. Gomez, M. Ren, R. Urtasun,
    R. B. Grosse, NeurIPS 2017, https://arxiv.org/abs/1707.04585
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from davi.layers.biased_batch_norm import set_momentum
from davi.layers.checkpointed import Checkpointed
from davi.layers.context_attention import sites
from davi.layers.depth_attention import AttentionSite, DepthAttentive, LayerMemory
from davi.layers.preactivation import LogitsOfMeans, Place, ResidualStages, StemLayer, branch, shortcut
from davi.layers.reversible import AdditiveStep, Reversible
from davi.layers.standardize import Standardize
from davi.model import Classifier, DataInitialized, WithDepths

Halves = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RevNetConfig(ResidualStages):
    """Options of :class:`RevNet`; widths are those of both halves together.

    Arguments:
        units, widths, bottleneck, stem, norm_momentum, mean, std, depth_attention: see
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
        place: of the first one.
        units: how many.
        config: of the network.
    """

    def __init__(self, place: Place, units: int, config: RevNetConfig) -> None:
        super().__init__()
        self.first = FirstUnit(place, config.bottleneck, activated=not place.stage)
        self.first.recompute = config.recompute
        half = place.outputs // 2
        steps = [AdditiveStep(branch(half, half, 1, config.bottleneck)) for _ in range(2 * (units - 1))]
        self.rest = Reversible(steps) if steps else None
        if self.rest is not None:
            self.rest.recompute = config.recompute

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
class RevNet(Classifier, DataInitialized, WithDepths, DepthAttentive):
    """The classifier (module docstring)."""

    name = "revnet"
    Config = RevNetConfig
    config: RevNetConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: RevNetConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.standardize = Standardize(self.shape[0], self.levels, config.mean, config.std)
        self.images_wanted = 0 if config.mean is not None and config.std is not None else 1024
        self.stem = StemLayer(self.shape[0], config.widths[0], config.stem)
        self.stages = nn.ModuleList(
            [Stage(place, count, config) for place, count in zip(config.firsts(), config.units, strict=True)]
        )
        self.head = LogitsOfMeans(config.last_width, self.classes)
        widths = [*(place.inputs for place in config.firsts()), config.last_width]
        self.attention = nn.ModuleList(config.depth_attention.parts(widths))
        set_momentum(self, config.norm_momentum)

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Standardize by the means and standard deviations of these images, where none are given."""
        if "standardize.mean" not in kept:
            self.standardize.fit(images)

    def logits(self, x: Tensor) -> Tensor:
        halves, memory = self._start(x), self.config.depth_attention.memory()
        for i, stage in enumerate(self.stages):
            halves = stage(*self._attended(i, halves, memory))
        logits: Tensor = self.head(torch.cat(self._attended(-1, halves, memory), 1))
        return logits

    def at_depths(self, x: Tensor) -> list[Tensor]:
        memory, depths = self.config.depth_attention.memory(), [self._start(x)]
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, Stage)
            depths += stage.unit_by_unit(*self._attended(i, depths[-1], memory))
        return [torch.cat(halves, 1) for halves in depths]

    def _attended(self, i: int, halves: Halves, memory: LayerMemory) -> Halves:
        """The halves with what the i-th reader reads; these very halves if there is no attention."""
        if not self.attention:
            return halves
        h1, h2 = self.attention[i](torch.cat(halves, 1), memory).chunk(2, 1)
        return h1, h2

    def depth_attentions(self) -> Iterator[AttentionSite]:
        return sites(self.attention, "classifier")

    def _start(self, x: Tensor) -> Halves:
        x1, x2 = self.stem(self.standardize(x)).chunk(2, 1)
        return x1, x2

    def blocks(self) -> Iterable[nn.Module]:
        """The first unit of each stage, and its other units together."""
        for stage in self.stages:
            yield from stage.children()
