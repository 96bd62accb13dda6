r"""A prior over the codes of a quantized model: a grid of integers in each layer, the top layer first.

.. math:: p(k_0, \dots, k_{n-1} \mid y) = \prod_l p(k_l \mid k_0, \dots, k_{l-1}, y)

Each factor is a causal network's, over the codes of one layer in the order in which one reads. It sees codes as learned
vectors, and what the layers above say of every code: from the top on, the vectors of a layer are added to the features
that have come down to it; a few residual blocks follow, and a transposed convolution to the grid of the next layer.

The prior is a model of images with one row: all codes of a pyramid, one layer behind the other. So it is trained,
measured and drawn from like any other model, and its claims are exact.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937

    Generating Diverse High-Fidelity Images with VQ-VAE-2, A. Razavi, A. van den Oord, O. Vinyals, NeurIPS 2019,
    https://arxiv.org/abs/1906.00446 (several layers)
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from davi.distributions import Latent
from davi.errors import OptionError
from davi.evidence import About, Evidence, Kind
from davi.layers.autoregressive_codes import AutoregressiveCodes
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.causal import NETWORKS, CausalNetwork
from davi.layers.causal_options import with_name
from davi.layers.code_vectors import CodeVectors
from davi.layers.pixel_head import NetworkSection
from davi.model.base import DataInitialized, Model, Temperature
from davi.model.network import Conditional


@dataclass(frozen=True)
class CodePriorConfig:
    """The section ``prior`` of a quantized model's options.

    Arguments:
        top: the causal network of the top layer, by its ``name``, with its options.
        below: that of every other layer.
        embedding: length of the vectors by which the networks see codes.
        width: channels of the features that the layers above offer to a layer.
        blocks: residual blocks between two layers.
    """

    top: NetworkSection
    below: NetworkSection
    embedding: int = 32
    width: int = 64
    blocks: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "top", with_name(self.top))
        object.__setattr__(self, "below", with_name(self.below))
        for name, least in (("embedding", 1), ("width", 1), ("blocks", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")


class CodeGrid(NamedTuple):
    """The codes of a layer.

    Arguments:
        shape: (C, h, w): C codes at each place.
        size: K; they are integers in ``{0 .. K - 1}``.
    """

    shape: tuple[int, int, int]
    size: int


@final
class CodePrior(Model, Conditional, DataInitialized):
    """The prior of all layers (module docstring).

    Arguments:
        grids: of the layers, the top first.
        config: the options.
        classes: number of classes that the codes are given; 0: labels play no part.

    Raises:
        OptionError: a ``ValueError``, if the options of a network do not fit.
    """

    name = "code_prior"
    Config = CodePriorConfig
    config: CodePriorConfig

    def __init__(self, grids: Sequence[CodeGrid], config: CodePriorConfig, classes: int = 0) -> None:
        self.grids = tuple(grids)
        numbers = [math.prod(grid.shape) for grid in self.grids]
        super().__init__((1, 1, sum(numbers)), max(grid.size for grid in self.grids), config, classes)

    def flatten(self, codes: Sequence[Tensor]) -> Tensor:
        """The codes of all layers, ``[B, C, h, w]`` each, the top first, as images ``[B, 1, 1, N]``."""
        return torch.cat([layer.flatten(1) for layer in codes], 1)[:, None, None]

    def unflatten(self, x: Tensor) -> list[Tensor]:
        """The reverse of :meth:`flatten`."""
        parts = x[:, 0, 0].split([math.prod(grid.shape) for grid in self.grids], 1)
        return [part.unflatten(1, grid.shape) for part, grid in zip(parts, self.grids, strict=True)]

    def latent(self, layer: int, above: Sequence[Tensor], n: int, y: Tensor | None = None) -> Latent:
        """The distribution of a layer's codes given those of the layers above.

        Arguments:
            layer: which, from the top.
            above: codes of the layers above, ``[n, C, h, w]`` each, the top first.
            n: images.
            y: classes, ``[n]``, of a prior with classes. Without them only the shape of the result can be asked for.
        """
        raise NotImplementedError
