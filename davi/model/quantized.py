r"""Hierarchies whose latents are integers: the nearest of a list of learned vectors.

An encoder makes feature maps :math:`f_l`, one for each layer; a quantizer replaces every vector of a map by the nearest
one of its list, whose number is the code :math:`z_l`; a decoder sees the vectors of the codes. The posterior of a layer
is certain, so that with any prior over codes

.. math:: \log p(x) \ge \log p(x \mid z) + \sum_l \log p(z_l \mid z_{<l}), \qquad z = z(x)

Training has two stages. In the first, of the ``autoencoder``, the prior is uniform: with K codes at each of h w
positions it takes h w ln K nats, whatever the image, and nothing can be gained there. In the second the ``prior`` is
trained on the codes of the images; the autoencoder stays as it is.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937

    Generating Diverse High-Fidelity Images with VQ-VAE-2, A. Razavi, A. van den Oord, O. Vinyals, NeurIPS 2019,
    https://arxiv.org/abs/1906.00446
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.distributions import Codes, Distribution, Latent
from davi.evidence import Evidence
from davi.layers.quantizer import Assigned, Quantizer
from davi.model.base import DataInitialized
from davi.model.code_prior import CodePrior
from davi.model.hierarchy import Choose, Hierarchy
from davi.model.network import Conditional, Network
from davi.model.pixel_likelihood import LikelihoodHierarchy
from davi.model.staged import Staged
from davi.repetition import repeat_images

PriorOf = Callable[[int, Sequence[Tensor]], Latent]
"""The prior of a layer, given its number and the codes of the layers above it."""


@dataclass(frozen=True, repr=False)
class QuantizedEvidence(Evidence):
    """Evidence that remembers how the images were quantized, for objectives.

    Arguments:
        assigned: of each layer, the top first.
    """

    assigned: tuple[Assigned, ...] = ()


@dataclass
class Encoded:
    """What a walk is given of images, and what it leaves.

    Arguments:
        maps: of the encoder, one for each layer, the top first.
        assigned: what the latest walk has assigned to the features of each layer.
    """

    maps: tuple[Tensor, ...]
    assigned: list[Assigned] = field(default_factory=list)

    def repeat_images(self, times: int) -> Encoded:
        """Every image's maps ``times`` times, side by side."""
        return Encoded(repeat_images(self.maps, times))


class CodeAutoencoder(LikelihoodHierarchy, DataInitialized, ABC):
    """A hierarchy of codes whose priors are uniform (module docstring).

    A subclass calls :meth:`choose_likelihood`, makes ``quantizers`` and ``grids`` and writes :meth:`encode_pixels`,
    :meth:`features` and :meth:`parameters_of_pixels`.
    """

    quantizers: nn.ModuleList
    """One for each layer, the top first."""
    grids: tuple[tuple[int, int], ...]
    """Height and width of each layer's codes."""

    def quantizer(self, layer: int) -> Quantizer:
        """That of a layer, counted from the top."""

    def top_down(self, choose: Choose, context: Encoded | None = None) -> Distribution:
        return self.walk(choose, context, self.uniform)

    @final
    def walk(self, choose: Choose, context: Encoded | None, prior: PriorOf) -> Distribution:
        """:meth:`top_down` with any priors over codes."""

    @final
    def codes(self, x: Tensor) -> list[Tensor]:
        """The codes of images, ``[B, C, h, w]`` for each layer, the top first."""


class Quantized(Hierarchy, Staged, Conditional, DataInitialized, ABC):
    """An autoencoder and the prior of its codes. Its parts are ``autoencoder`` and ``prior`` (module docstring).

    A subclass makes both when it is built.
    """

    autoencoder: CodeAutoencoder
    prior: CodePrior
    prior_begun: Tensor
    """Whether the prior takes part, a bool without dimensions: since its training has begun."""

    def part(self, name: str) -> Network:
        raise KeyError(name)

    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        """Images for the autoencoder; for the prior the codes of all layers, ``[B, 1, 1, N]``."""
        raise KeyError(name)
