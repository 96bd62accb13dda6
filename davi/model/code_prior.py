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

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Generator, Tensor, nn

from davi.errors import OptionError
from davi.evidence import About, Evidence, Kind
from davi.layers.autoregressive_codes import AutoregressiveCodes
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.causal import NETWORKS, CausalNetwork, refuse_batch_norm
from davi.layers.causal_options import with_name
from davi.layers.code_vectors import CodeVectors
from davi.layers.pixel_head import NetworkSection
from davi.model.base import DataInitialized, Model, Temperature, temperatures
from davi.model.network import Conditional, check_range


@dataclass(frozen=True)
class CodePriorConfig:
    """The section ``prior`` of a quantized model's options.

    Arguments:
        top: the causal network of the top layer, by its ``name``, with its options.
        below: that of every other layer; None if there is none.
        embedding: length of the vectors by which the networks see codes.
        width: channels of the features that the layers above offer to a layer.
        blocks: residual blocks between two layers.
    """

    top: NetworkSection
    below: NetworkSection | None = None
    embedding: int = 32
    width: int = 64
    blocks: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "top", with_name(self.top))
        if self.below is not None:
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
class Residual(nn.Module):
    r""":math:`h + W_2 \max(0, W_1 * \max(0, h))`, with 3 x 3 kernels :math:`W_1` and a matrix :math:`W_2` for each
    place.

    Arguments:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.last(self.conv(h.relu()).relu())
        return out


@final
class Upsampled(nn.Module):
    """A transposed convolution to a larger grid, in which every place has a patch of its own; what stands out at the
    bottom and on the right is cropped.

    Arguments:
        width: channels.
        small, large: rows and columns of the grids.
    """

    def __init__(self, width: int, small: tuple[int, int], large: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (-(-after // before) for before, after in zip(small, large, strict=True))
        self.large = large
        self.conv = nn.ConvTranspose2d(width, width, (rows, columns), (rows, columns))
        nn.init.normal_(self.conv.weight, std=width**-0.5)  # patches do not overlap: width summands for each number

    def forward(self, h: Tensor) -> Tensor:
        """``[B, width, *small]`` -> ``[B, width, *large]``."""
        return self.conv(h)[:, :, : self.large[0], : self.large[1]]


@final
class FromAbove(nn.Module):
    """Features of each place of a layer from the codes of the layers above (module docstring).

    Arguments:
        above: grids of the layers above, the top first.
        own: that of the layer.
        config: the options.
    """

    def __init__(self, above: Sequence[CodeGrid], own: CodeGrid, config: CodePriorConfig) -> None:
        super().__init__()
        width, grids = config.width, [*above, own]
        self.vectors = nn.ModuleList(CodeVectors(grid.shape[0], grid.size, config.embedding) for grid in above)
        self.enter = nn.ModuleList(nn.Conv2d(grid.shape[0] * config.embedding, width, 1) for grid in above)
        self.blocks = nn.ModuleList(nn.Sequential(*(Residual(width) for _ in range(config.blocks))) for _ in above)
        self.up = nn.ModuleList(
            Upsampled(width, grid.shape[1:], next_one.shape[1:]) for grid, next_one in itertools.pairwise(grids)
        )

    def forward(self, codes: Sequence[Tensor]) -> Tensor:
        """Codes ``[B, C, h, w]`` of each layer above -> ``[B, width, h, w]`` on the layer's grid."""
        h: Tensor | None = None
        for number, layer in enumerate(codes):
            seen = self.enter[number](self.vectors[number](layer))
            h = self.up[number](self.blocks[number](seen if h is None else h + seen))
        assert h is not None
        return h


@final
class CodePrior(Model, Conditional, DataInitialized):
    """The prior of all layers (module docstring).

    Arguments:
        grids: of the layers, the top first.
        config: the options.
        classes: number of classes that the codes are given; 0: labels play no part.

    Raises:
        OptionError: a ``ValueError``, if the options of a network do not fit, or there is none for a layer, or one for
            layers that there are not.
    """

    name = "code_prior"
    Config = CodePriorConfig
    config: CodePriorConfig

    def __init__(self, grids: Sequence[CodeGrid], config: CodePriorConfig, classes: int = 0) -> None:
        if len(grids) == 1 and config.below is not None:
            raise OptionError("below", f"got {config.below.name}, expected null: the codes have one layer")
        codes = sum(math.prod(grid.shape) for grid in grids)
        super().__init__((1, 1, codes), max(grid.size for grid in grids), config, classes)
        self.grids = tuple(grids)
        self.above = nn.ModuleList(
            FromAbove(grids[:layer], grid, config) for layer, grid in enumerate(grids) if layer > 0
        )
        self.networks = nn.ModuleList(self._network(layer) for layer in range(len(grids)))
        self.images_wanted = max(network.images_wanted for network in self._causal())

    def _network(self, layer: int) -> CausalNetwork[Any]:
        section = "below" if layer else "top"
        options, (shape, size) = getattr(self.config, section), self.grids[layer]
        if options is None:
            raise OptionError(section, f"got nothing, expected a causal network, by its name, for layer {layer}")
        features = self.config.width if layer else 0
        try:
            network = NETWORKS[options.name](shape, size, options, self.classes, features, self.config.embedding)
        except OptionError as error:
            raise error.within(section) from None
        refuse_batch_norm(network)
        return network

    def _causal(self) -> Iterator[CausalNetwork[Any]]:
        for network in self.networks:
            assert isinstance(network, CausalNetwork)
            yield network

    def _facts(self) -> list[str]:
        told = ", ".join(f"{list(grid.shape)} of {grid.size}" for grid in self.grids)
        return [*super()._facts(), f"  codes, top first: {told}"]

    def blocks(self) -> Iterable[nn.Module]:
        return itertools.chain.from_iterable(network.compilable() for network in self._causal())

    # Codes as images

    def flatten(self, codes: Sequence[Tensor]) -> Tensor:
        """The codes of all layers, ``[B, C, h, w]`` each, the top first, as images ``[B, 1, 1, N]``."""
        return torch.cat([layer.flatten(1) for layer in codes], 1)[:, None, None]

    def unflatten(self, x: Tensor) -> list[Tensor]:
        """The reverse of :meth:`flatten`."""
        parts = x[:, 0, 0].split([math.prod(grid.shape) for grid in self.grids], 1)
        return [part.unflatten(1, grid.shape) for part, grid in zip(parts, self.grids, strict=True)]

    def check_images(self, x: Tensor) -> None:
        """As every network; and the codes of each layer are compared with their own number."""
        super().check_images(x)
        for layer, (codes, grid) in enumerate(zip(self.unflatten(x), self.grids, strict=True)):
            check_range(f"codes of layer {layer}", codes, grid.size)

    # Layers

    def latent(self, layer: int, above: Sequence[Tensor], n: int, y: Tensor | None = None) -> AutoregressiveCodes:
        """The distribution of a layer's codes given those of the layers above.

        Arguments:
            layer: which, from the top.
            above: codes of the layers above, ``[n, C, h, w]`` each, the top first.
            n: images.
            y: classes, ``[n]``, of a prior with classes. Without them only the shape of the result can be asked for.
        """
        network, features = self.networks[layer], self.above[layer - 1](above[:layer]) if layer else None
        assert isinstance(network, CausalNetwork)
        return AutoregressiveCodes(AutoregressivePixels(network, n, features, y))

    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """log p of the codes, a term for each layer, ``codes/00`` at the top; nothing is drawn."""
        self.check_images(x)
        self.check_labels(y, len(x))
        codes = self.unflatten(x)
        laws = [self.latent(layer, codes, len(x), y) for layer in range(len(codes))]
        terms = {f"codes/{layer:02d}": law.log_prob(codes[layer]) for layer, law in enumerate(laws)}
        kind = Kind.weakest(*(law.kind for law in laws))
        return Evidence(terms, kind, about=About.X if y is None else About.X_GIVEN_Y, dims=self.dims)

    @torch.no_grad()
    def draw(
        self,
        n: int,
        temperature: Temperature = 1.0,
        generator: Generator | None = None,
        y: Tensor | None = None,
        above: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """The codes of all layers, ``[n, C, h, w]`` each, one layer after the other.

        Arguments:
            n: how many.
            temperature: divides the logits, one number or one for each layer.
            generator: source of randomness.
            y: classes, ``[n]``, of a prior with classes.
            above: codes of the first layers that are kept, ``[n, C, h, w]`` each; the others are drawn given them.
        """
        factors, codes = temperatures(temperature, len(self.grids)), list(above)
        for layer in range(len(codes), len(self.grids)):
            codes.append(self.latent(layer, codes, n, y).sample(generator, factors[layer]))
        return codes

    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        return self.flatten(self.draw(n, temperature, generator, y))

    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """The weights of the networks that follow from codes, if there are some. Classes are drawn at random."""
        codes, n = self.unflatten(images), len(images)
        y = torch.randint(self.classes, (n,), device=images.device) if self.classes else None
        for layer, network in enumerate(self._causal()):
            own = {name for name, _ in network.named_parameters() if f"networks.{layer}.{name}" in kept}
            network.initialize(codes[layer], self.latent(layer, codes, n).grid.features, y, own)
