"""A normalized probability over integer images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence

from torch import Generator, Tensor

from davi.evidence import Evidence
from davi.model.network import Network
from davi.repetition import repeat_images

Temperature = float | Sequence[float]
"""One factor on the spread of what is drawn, or one for each layer of a hierarchy."""


class Model(Network, ABC):
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

    @abstractmethod
    def sample(
        self, n: int, temperature: Temperature = 1.0, generator: Generator | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Draw ``n`` images, integers ``[n, C, H, W]``; of the classes ``y``, ``[n]``, if the model has classes."""

    @property
    def saved(self) -> Network:
        """The network that runs save and whose weights a claim is about: the model itself, unless it is an energy's
        (:class:`~davi.model.Normalized`)."""
        return self

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
