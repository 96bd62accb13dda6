"""A normalized probability over integer images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from typing import final

import torch
from torch import Generator, Tensor

from davi.evidence import Evidence
from davi.model.claiming import Claiming
from davi.repetition import repeat_images

Temperature = float | Sequence[float]
"""One factor on the spread of what is drawn, or one for each layer of a hierarchy."""


class Model(Claiming, ABC):
    """A normalized probability over integer images (:class:`~davi.model.Network` has the arguments)."""

    @abstractmethod
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """What the model claims about log p(x), or about log p(x | y) or log p(x, y): ``Evidence.about`` says which.

        Arguments:
            x: integer images, ``[B, C, H, W]``, in ``{0 .. levels - 1}``.
            generator: source of the model's own randomness; torch's default when None.
            y: class of each image, ``[B]``, for a model with classes; refused by one without.

        Example:
            >>> import davi, torch
            >>> model = davi.build("attentive_digits_tiny")  # not trained
            >>> evidence = model.evidence(torch.zeros(2, *model.shape, dtype=torch.uint8))
            >>> list(evidence.terms), evidence.log_px.shape
            (['reconstruction', 'kl/00', 'kl/01', 'kl/02'], torch.Size([2]))
        """

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None, seed: int | None = None
    ) -> Tensor:
        """Bits per dimension of each image, ``[B]``, without gradients: one draw of what :meth:`evidence` claims.

        Many draws make a tighter bound: :func:`davi.evaluation.importance_bound`.

        Arguments:
            x: integer images, ``[B, C, H, W]``, in ``{0 .. levels - 1}``.
            generator: source of the model's own randomness; torch's default when None.
            y: class of each image, ``[B]``, for a model with classes.
            seed: of a generator of this call's own, in place of ``generator``.

        Example:
            >>> import davi, torch
            >>> model = davi.build("attentive_digits_tiny")  # not trained
            >>> model.bits_per_dim(torch.zeros(2, *model.shape, dtype=torch.uint8), seed=0).shape
            torch.Size([2])
        """
        claim = self.evidence(x, self._generator(generator, seed), y).log_px
        return claim / (-self.dims * math.log(2.0))

    @final
    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: Temperature = 1.0,
        generator: Generator | None = None,
        y: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw images from the model, integers ``[n, C, H, W]``.

        Arguments:
            n: how many.
            temperature: multiplies the spread of what is drawn, one number, or one for each layer of a hierarchy.
            generator: source of randomness; torch's default when None.
            y: class of each image, ``[n]``, for a model with classes; refused by one without.
            seed: of a generator of this call's own, in place of ``generator``: the same images each time.

        Raises:
            ValueError: if ``n`` is not positive, a temperature is negative or not finite, their number is neither 1 nor
                that of the layers, the labels do not fit, or both a generator and a seed are given.

        Example:
            >>> import davi
            >>> model = davi.build("attentive_digits_tiny")  # not trained
            >>> bool((model.sample(4, seed=1) == model.sample(4, seed=1)).all())
            True
        """
        if n < 1:
            raise ValueError(f"n: got {n}, expected at least 1 image")
        self.check_labels(y, n)
        return self._sample(n, temperature, self._generator(generator, seed), y)

    @abstractmethod
    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """What :meth:`sample` asks for, once ``n`` and the labels are known to be right; without gradients."""

    def _generator(self, generator: Generator | None, seed: int | None) -> Generator | None:
        """The source of randomness of a call."""
        if seed is None:
            return generator
        if generator is not None:
            raise ValueError(f"seed: got {seed} beside a generator, expected one of the two")
        parameter = next(self.parameters(), None)
        return Generator("cpu" if parameter is None else parameter.device).manual_seed(seed)

    def forward(self, x: Tensor, draws: int = 1, y: Tensor | None = None) -> Evidence:
        """:meth:`evidence` of every image ``draws`` times, side by side, ``[draws * B]`` numbers. Training calls it, so
        that wrappers which intercept calls (data parallelism, hooks) work."""
        return self.evidence(repeat_images(x, draws), y=None if y is None else repeat_images(y, draws))


def check_draw(n: int, temperature: Temperature) -> float:
    """The temperature of a model that has a single one.

    Raises:
        ValueError: if ``n`` is not positive, or the temperature is not one finite number from 0.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1 image")
    if isinstance(temperature, Sequence):
        if len(temperature) != 1:
            raise ValueError(f"temperature: got {len(temperature)} numbers, expected one")
        (temperature,) = temperature
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, expected a finite number >= 0")
    return temperature


def temperatures(temperature: Temperature, layers: int) -> list[float]:
    """One factor for each layer.

    Arguments:
        temperature: one number for all layers, or one for each.
        layers: how many there are.

    Raises:
        ValueError: if there are not as many, or one is no finite number from 0.
    """
    factors = list(temperature) if isinstance(temperature, Sequence) else [temperature] * layers
    if len(factors) != layers:
        raise ValueError(f"temperature: got {len(factors)} numbers, expected one for each of {layers} layers")
    for factor in factors:
        if not 0 <= factor < math.inf:
            raise ValueError(f"temperature: got {factor}, expected a finite number >= 0")
    return factors


class DataInitialized(ABC):
    """A network some of whose initial weights follow from training images. Training calls :meth:`initialize` once,
    before the first step of a new run; a resumed run has its weights already."""

    images_wanted: int = 256
    """How many images are enough (of fewer, all are given); 0 if the network needs none with its options."""

    @abstractmethod
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        """Set those weights, in place.

        Called on the network's device, in training mode and without gradients; torch's default generator is seeded, so
        that draws made here can be repeated. Running statistics and the like are the network's own care.

        Arguments:
            images: training images as the network sees them, drawn at random, integers ``[N, C, H, W]``.
            kept: names of weights that stay as they are: those that another model has lent.
        """
