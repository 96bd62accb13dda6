r"""Hierarchies whose latents are codes: numbers of vectors in learned lists.

An encoder makes feature maps :math:`f_l`, one for each layer; a quantizer replaces every vector of a map by the nearest
one of its list, whose number is the code :math:`z_l`; a decoder sees the vectors of the codes. The posterior of a layer
is certain of its codes, so that with any prior over codes

.. math:: \log p(x) \ge \log p(x \mid z) + \sum_l \log p(z_l \mid z_{<l}), \qquad z = z(x)

Training has two stages. In that of the ``autoencoder`` the prior is uniform: C codes at each of h w positions, each
with K values, take C h w ln K nats, whatever the image. In that of the ``prior`` the autoencoder stays as it is, and
the codes of the images are what is learned.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937

    Generating Diverse High-Fidelity Images with VQ-VAE-2, A. Razavi, A. van den Oord, O. Vinyals, NeurIPS 2019,
    https://arxiv.org/abs/1906.00446 (several layers)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import final

import torch
from torch import Generator, Tensor, nn

from davi.batch import Batch
from davi.distributions import Codes, Distribution, Latent, Point
from davi.errors import OptionError
from davi.evidence import Evidence, bits_per_dim
from davi.layers.from_data import set_from_data
from davi.layers.pixel_head import Head, PixelLikelihood
from davi.layers.quantizer import Assigned, Quantizer, QuantizerSection, make_quantizer
from davi.model.base import DataInitialized
from davi.model.code_prior import CodeGrid, CodePrior, CodePriorConfig
from davi.model.hierarchy import Choose, Hierarchy
from davi.model.network import Conditional, Network, check_integers, check_range
from davi.model.pixel_likelihood import LikelihoodHierarchy
from davi.model.staged import Staged
from davi.repetition import repeat_images

PriorOf = Callable[[int, Sequence[Tensor]], Latent]
"""The prior of a layer, given its number and the codes of the layers above it."""

Grid = tuple[int, int]
"""Height and width of a layer's codes."""


@dataclass(frozen=True, repr=False)
class QuantizedEvidence(Evidence):
    """Evidence with what the quantizers did, which objectives want to know.

    Arguments:
        assigned: codes of each layer and the features that they stand for, the top first.
    """

    assigned: tuple[Assigned, ...] = ()


@dataclass
class CodeContext:
    """What a walk is told of images, and what it notes.

    Arguments:
        maps: of the encoder, one for each layer, the top first.
        assigned: of each layer, in the latest walk.
    """

    maps: tuple[Tensor, ...]
    assigned: list[Assigned] = field(default_factory=list)

    def repeat_images(self, times: int) -> CodeContext:
        """Every image's maps ``times`` times, side by side."""
        return CodeContext(repeat_images(self.maps, times))


class CodeAutoencoder(LikelihoodHierarchy, ABC):
    """A hierarchy of codes whose priors are uniform (module docstring).

    A subclass calls ``choose_likelihood`` and :meth:`choose_quantizers` when it is built and writes :meth:`maps`,
    :meth:`features` and :meth:`last_map`.
    """

    grids: tuple[Grid, ...]
    """Height and width of each layer's codes, the top first."""

    @final
    def choose_quantizers(self, options: QuantizerSection, grids: Sequence[Grid]) -> None:
        """Make a quantizer for each layer.

        Arguments:
            options: of all of them.
            grids: height and width of each layer's codes, the top first.
        """
        self.grids = tuple(grids)
        self.num_layers = len(self.grids)
        self.quantizers = nn.ModuleList(make_quantizer(options) for _ in self.grids)
        if any(self.quantizer(layer).initialized_from_data for layer in range(self.num_layers)):
            self.images_wanted = max(self.images_wanted, DataInitialized.images_wanted)

    @final
    def quantizer(self, layer: int) -> Quantizer:
        """That of a layer, counted from the top."""
        quantizer = self.quantizers[layer]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    @abstractmethod
    def maps(self, pixels: Tensor) -> Sequence[Tensor]:
        """What the encoder makes of images ``[B, C, H, W]`` with numbers from 0 to 1: a map for each layer, the top
        first."""

    @abstractmethod
    def features(self, layer: int, own: Tensor, above: Sequence[Tensor]) -> Tensor:
        """What the quantizer of a layer is given, ``[B, D, h, w]``.

        Arguments:
            layer: which, from the top.
            own: the encoder's map for it.
            above: vectors of the codes of the layers above, ``[B, D, h, w]`` each, the top first.
        """

    @abstractmethod
    def last_map(self, vectors: Sequence[Tensor]) -> Tensor:
        """What the decoder makes of the vectors of all layers' codes: a map for the head, ``[B, inputs, H, W]``."""

    @final
    def encode_pixels(self, pixels: Tensor) -> CodeContext:
        """The encoder's maps of images ``[B, C, H, W]`` with numbers from 0 to 1, for a walk."""
        return CodeContext(tuple(self.maps(pixels)))

    @final
    def top_down(self, choose: Choose, context: CodeContext | None = None) -> Distribution:
        return self.walk(choose, context, self.uniform)

    @final
    def walk(self, choose: Choose, context: CodeContext | None, prior: PriorOf) -> Distribution:
        """:meth:`top_down` with other priors."""
        return self.head(self.last_map(self._vectors(choose, context, prior)))

    def _vectors(self, choose: Choose, context: CodeContext | None, prior: PriorOf) -> list[Tensor]:
        """The vectors of the chosen codes of all layers, the top first."""
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        if context is not None:
            context.assigned.clear()
        for layer in range(self.num_layers):
            assigned: Assigned | None = None
            if context is not None:
                assigned = self.quantizer(layer)(self.features(layer, context.maps[layer], vectors))
                context.assigned.append(assigned)
            z = choose(layer, prior(layer, codes), None if assigned is None else Point(assigned.codes))
            codes.append(z)
            # The same numbers either way; of codes that were assigned the encoder gets a gradient.
            if assigned is not None and z is assigned.codes:
                vectors.append(assigned.straight_through())
                continue
            check_integers(f"codes of layer {layer}", z, self.quantizer(layer).size)
            check_range(f"codes of layer {layer}", z, self.quantizer(layer).size)
            vectors.append(self.quantizer(layer).embed(z))
        return vectors

    @final
    def uniform(self, layer: int, above: Sequence[Tensor]) -> Codes:
        """The prior under which all codes of a layer are equally probable."""
        quantizer, weight = self.quantizer(layer), next(self.parameters())
        return Codes(weight.new_zeros(1, quantizer.size, quantizer.books, *self.grids[layer]))

    @final
    def uniform_nats(self) -> float:
        """What the codes of an image take if all are equally probable: the sum of C h w ln K over the layers."""
        return sum(math.prod(grid.shape) * math.log(grid.size) for grid in self.code_grids())

    def _facts(self) -> list[str]:
        nats = self.uniform_nats()
        return [
            *super()._facts(),
            f"  codes of equal probability: {nats:.4g} nats, {bits_per_dim(-nats, self.dims):.4g} bits/dim",
        ]

    @final
    def code_grids(self) -> list[CodeGrid]:
        """Shape and number of values of each layer's codes, the top first."""
        quantizers = (self.quantizer(layer) for layer in range(self.num_layers))
        return [CodeGrid((own.books, *grid), own.size) for own, grid in zip(quantizers, self.grids, strict=True)]

    @final
    def latent_shapes(self) -> list[tuple[int, ...]]:
        return [grid.shape for grid in self.code_grids()]

    @final
    @torch.no_grad()
    def codes(self, x: Tensor) -> list[Tensor]:
        """The codes of images, int64 ``[B, C, h, w]`` for each layer, the top first; nothing is decoded."""
        context = self.encode(x)
        self._vectors(_certain, context, self.uniform)
        return [assigned.codes for assigned in context.assigned]

    def forward(self, x: Tensor, draws: int = 1, y: Tensor | None = None) -> QuantizedEvidence:
        """Evidence for training."""
        self.check_labels(y, len(x))
        context: CodeContext = repeat_images(self.encode(x), draws)
        plain = self.elbo(repeat_images(x, draws), context)
        told = {each.name: getattr(plain, each.name) for each in fields(Evidence)}
        return QuantizedEvidence(**told, assigned=tuple(context.assigned))

    @final
    def initialize_layers(self, images: Tensor, kept: Container[str]) -> None:
        """The vectors of each layer, from the features of images; those first that others depend on."""
        set_from_data(self, lambda: self.codes(images), kept)


def _certain(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
    """The codes that were assigned."""
    assert posterior is not None
    return posterior.center()


class Quantized(Hierarchy, PixelLikelihood, Staged, Conditional, ABC):
    """An autoencoder and a prior over its codes (module docstring). Its parts are ``autoencoder`` and ``prior``; only
    the prior is told classes.

    A subclass calls :meth:`join` when it is built.
    """

    autoencoder: CodeAutoencoder
    prior: CodePrior
    prior_begun: Tensor
    """Whether the training of the prior has begun, a bool without dimensions: until then all codes are equally
    probable."""

    @final
    def join(self, autoencoder: CodeAutoencoder, prior: CodePriorConfig) -> None:
        """Take over an autoencoder and make the prior of its codes.

        Arguments:
            autoencoder: for images like this model's.
            prior: its options.

        Raises:
            OptionError: a ``ValueError``, if they do not fit the codes.
        """
        self.autoencoder = autoencoder
        self.num_layers = autoencoder.num_layers
        try:
            self.prior = CodePrior(autoencoder.code_grids(), prior, self.classes)
        except OptionError as error:
            raise error.within("prior") from None
        self.register_buffer("prior_begun", torch.tensor(False))

    @property
    def head(self) -> Head:  # type: ignore[override]  # read only: the autoencoder has set it
        return self.autoencoder.head

    def _facts(self) -> list[str]:
        return self.autoencoder._facts()

    @final
    def blocks(self) -> Iterable[nn.Module]:
        return [*self.autoencoder.blocks(), *self.prior.blocks()]

    @final
    def latent_shapes(self) -> list[tuple[int, ...]]:
        return self.autoencoder.latent_shapes()

    @final
    def encode(self, x: Tensor) -> CodeContext:
        context: CodeContext = self.autoencoder.encode(x)
        return context

    @final
    def top_down(self, choose: Choose, context: CodeContext | None = None) -> Distribution:
        return self.top_down_given(None, choose, context)

    @final
    def top_down_given(self, y: Tensor | None, choose: Choose, context: CodeContext | None = None) -> Distribution:
        """:meth:`top_down` with a prior that is told the classes ``[B]`` of the images."""

        def trained(layer: int, above: Sequence[Tensor]) -> Latent:
            n = len(above[0]) if above else 1 if y is None else len(y)
            return self.prior.latent(layer, above, n, y)

        return self.autoencoder.walk(choose, context, trained if self.prior_begun else self.autoencoder.uniform)

    @final
    def part(self, name: str) -> Network:
        parts: dict[str, Network] = {"autoencoder": self.autoencoder, "prior": self.prior}
        if name not in parts:
            raise KeyError(f"got {name}, expected {' or '.join(parts)}")
        return parts[name]

    @final
    def view(self, name: str, batch: Batch, generator: Generator | None = None) -> Batch:
        """Images for the autoencoder; for the prior the codes of all layers, ``[B, 1, 1, N]``."""
        if self.part(name) is self.autoencoder:
            return batch._replace(y=None)
        codes = self.prior.flatten(self.autoencoder.codes(batch.x))
        return batch._replace(x=codes, y=batch.y if self.classes else None)

    @final
    @torch.no_grad()
    def begin_part(self, name: str, kept: Container[str] = ()) -> frozenset[str]:
        """From the first step of its stage on the prior takes part."""
        if self.part(name) is self.autoencoder:
            return frozenset()
        self.prior_begun.fill_(True)
        return frozenset({"prior_begun"})
