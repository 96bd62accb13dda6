r"""Residual networks that say which class an image is of.

Units are added up from the bottom. In unit l, with activations in front of convolutions,

.. math:: h_l = s_l(h_{l-1}) + F_l(h_{l-1}), \qquad F_l = \text{two or three times batch norm, ReLU, convolution}

where the shortcut :math:`s_l` is the identity, but for the first unit of a stage: there it takes means over squares of
pixels and adds channels of zeros, or is a 1x1 convolution past a bottleneck. Logits are linear in the means of the last
h over all pixels, behind batch norm and ReLU.

The network is the one that reversible residual networks (:mod:`davi.models.revnet`) were published beside.

Beyond the papers: depth-wise attention (:mod:`davi.layers.context_attention`). At every pixel each unit but the first,
and what makes the logits, reads from all earlier outputs, whatever their resolution; :math:`h_0` is the stem's:

.. math:: h_l = s_l(h_{l-1}) + F_l(\hat h_{l-1}), \qquad
          \hat h_l = h_l + \gamma_l U_l \sum_{j<l} w_{lj}\, V_j h_j

All outputs are offered, and not the last of each stage alone: units add to one map, in which what one of them has found
cannot be told any more from what the others have. Shortcuts keep h, as the recurrence of a hierarchy does. Gates
:math:`\gamma` start at 0.

References:
    Deep Residual Learning for Image Recognition, K. He, X. Zhang, S. Ren, J. Sun, CVPR 2016,
    https://arxiv.org/abs/1512.03385

    Identity Mappings in Deep Residual Networks, K. He, X. Zhang, S. Ren, J. Sun, ECCV 2016,
    https://arxiv.org/abs/1603.05027 (activations in front of convolutions)

    The Reversible Residual Network: Backpropagation Without Storing Activations, A. N. Gomez, M. Ren, R. Urtasun,
    R. B. Grosse, NeurIPS 2017, https://arxiv.org/abs/1707.04585 (this form: sizes, shortcuts, batch norms)
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
from davi.layers.standardize import Standardize
from davi.model import Classifier, DataInitialized, WithDepths


@dataclass(frozen=True)
class ResNetConfig(ResidualStages):
    """Options of :class:`ResNet`."""


@final
class ResidualUnit(Checkpointed):
    """A unit (module docstring).

    Arguments:
        place: where it stands.
        bottleneck: whether its branch is one.
        activated: whether its input has been activated already, as the first unit's by the stem.
    """

    def __init__(self, place: Place, bottleneck: bool, activated: bool) -> None:
        super().__init__()
        self.branch = branch(place.inputs, place.outputs, place.stride, bottleneck, activated)
        self.shortcut = shortcut(place.inputs, place.outputs, place.stride, bottleneck)

    def compute(self, x: Tensor, attended: Tensor | None = None) -> Tensor:
        """The output, given that of the unit before: alone, or with what was read, which the branch sees."""
        h: Tensor = self.shortcut(x) + self.branch(x if attended is None else attended)
        return h


@final
class ResNet(Classifier, DataInitialized, WithDepths, DepthAttentive):
    """The classifier (module docstring)."""

    name = "resnet"
    Config = ResNetConfig
    config: ResNetConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: ResNetConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.standardize = Standardize(self.shape[0], self.levels, config.mean, config.std)
        self.images_wanted = 0 if config.mean is not None and config.std is not None else 1024
        self.stem = StemLayer(self.shape[0], config.widths[0], config.stem)
        # Counted as they are built, before anything lists them all: a file may ask for any number of units.
        self.units = nn.ModuleList(
            [ResidualUnit(place, config.bottleneck, not i) for i, place in enumerate(config.each())]
        )
        self.head = LogitsOfMeans(config.last_width, self.classes)
        widths = [*(place.inputs for place in config.each()), config.last_width]
        self.attention = nn.ModuleList(config.depth_attention.parts(widths))
        set_momentum(self, config.norm_momentum)

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Standardize by the means and standard deviations of these images, where none are given."""
        if "standardize.mean" not in kept:
            self.standardize.fit(images)

    def logits(self, x: Tensor) -> Tensor:
        memory = self.config.depth_attention.memory()
        *_, h = self._outputs(x, memory)
        logits: Tensor = self.head(self.attention[-1](h, memory) if self.attention else h)
        return logits

    def at_depths(self, x: Tensor) -> list[Tensor]:
        return list(self._outputs(x, self.config.depth_attention.memory()))

    def _outputs(self, x: Tensor, memory: LayerMemory) -> Iterator[Tensor]:
        """h of the stem and of each unit."""
        h = self.stem(self.standardize(x))
        yield h
        for i, unit in enumerate(self.units):
            h = unit(h, self.attention[i](h, memory)) if self.attention else unit(h)
            yield h

    def depth_attentions(self) -> Iterator[AttentionSite]:
        return sites(self.attention, "classifier")

    def blocks(self) -> Iterable[nn.Module]:
        """The units."""
        return self.units
