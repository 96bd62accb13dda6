r"""Residual networks that say which class an image is of.

Units are added up from the bottom. In unit l, with activations in front of convolutions,

.. math:: h_l = s_l(h_{l-1}) + F_l(h_{l-1}), \qquad F_l = \text{two or three times batch norm, ReLU, convolution}

where the shortcut :math:`s_l` is the identity, but for the first unit of a stage: there it takes means over squares of
pixels and adds channels of zeros, or is a 1x1 convolution past a bottleneck. Logits are linear in the means of the last
h over all pixels, behind batch norm and ReLU.

The network is the one that reversible residual networks (:mod:`davi.models.revnet`) were published beside.

References:
    Deep Residual Learning for Image Recognition, K. He, X. Zhang, S. Ren, J. Sun, CVPR 2016,
    https://arxiv.org/abs/1512.03385

    Identity Mappings in Deep Residual Networks, K. He, X. Zhang, S. Ren, J. Sun, ECCV 2016,
    https://arxiv.org/abs/1603.05027 (activations in front of convolutions)

    The Reversible Residual Network: Backpropagation Without Storing Activations, A. N. Gomez, M. Ren, R. Urtasun,
    R. B. Grosse, NeurIPS 2017, https://arxiv.org/abs/1707.04585 (this form: sizes, shortcuts, batch norms)
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from davi.layers.biased_batch_norm import set_momentum
from davi.layers.checkpointed import Checkpointed
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

    def compute(self, x: Tensor) -> Tensor:
        h: Tensor = self.shortcut(x) + self.branch(x)
        return h


@final
class ResNet(Classifier, DataInitialized, WithDepths):
    """The classifier (module docstring)."""

    name = "resnet"
    Config = ResNetConfig
    config: ResNetConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: ResNetConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.standardize = Standardize(self.shape[0], self.levels, config.mean, config.std)
        self.images_wanted = 0 if config.mean is not None and config.std is not None else 1024
        self.stem = StemLayer(self.shape[0], config.widths[0], config.stem)
        places = list(config.each())
        self.units = nn.ModuleList([ResidualUnit(place, config.bottleneck, not i) for i, place in enumerate(places)])
        self.head = LogitsOfMeans(config.last_width, self.classes)
        set_momentum(self, config.norm_momentum)

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Standardize by the means and standard deviations of these images, where none are given."""
        if "standardize.mean" not in kept:
            self.standardize.fit(images)

    def logits(self, x: Tensor) -> Tensor:
        h = self.stem(self.standardize(x))
        for unit in self.units:
            h = unit(h)
        logits: Tensor = self.head(h)
        return logits

    def at_depths(self, x: Tensor) -> list[Tensor]:
        depths = [self.stem(self.standardize(x))]
        for unit in self.units:
            depths.append(unit(depths[-1]))
        return depths

    def blocks(self) -> Iterable[nn.Module]:
        """The units."""
        return self.units
