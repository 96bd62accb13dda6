r"""Images, or grids of integers, whose pixels are predicted one after the other by a causal network.

.. math:: p(x \mid f, y) = \prod_i p(x_i \mid x_1, \dots, x_{i-1}, f, y)

with features f of every pixel, which a hierarchy makes from its latents, and classes y, or without either. All factors
are computed in one pass; draws go pixel by pixel (:mod:`davi.layers.causal`).

*Input dropout* makes f more important in training: with a mask m whose entries are 1 with the probability d,
independently for every image and pixel, the network computes

.. math:: \prod_i p(x_i \mid \tilde x_1, \dots, \tilde x_{i-1}, f, y), \qquad
          \tilde x_j = (1 - m_j)\, x_j + m_j \, \tfrac{L - 1}2

Of L levels the middle is what networks, which see pixels scaled to -1 .. 1, see as 0. The pixels that are predicted are
the true ones. It is a matter of training alone: what is reported is computed from whole images.

References:
    Generating Sentences from a Continuous Space, S. R. Bowman et al., CoNLL 2016, https://arxiv.org/abs/1511.06349
    (there of words, in the input of a recurrent decoder)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, final

import torch
from torch import Generator, Tensor

from davi.distributions import Distribution
from davi.layers.causal import CausalNetwork

Report = Callable[[int, int], None]
"""Told how many pixels are drawn, and of how many."""

_LISTENING: ContextVar[Report | None] = ContextVar("listening", default=None)


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """A block in which all that is drawn pixel by pixel tells how far it is, however deep inside of a model.

    Arguments:
        report: begins anew with each call that draws.
    """
    before = _LISTENING.set(report)
    try:
        yield
    finally:
        _LISTENING.reset(before)


def listening() -> Report | None:
    """Who is told in this block (:func:`reporting`)."""
    return _LISTENING.get()


@final
class AutoregressivePixels(Distribution):
    """Integer images under a causal network (module docstring).

    Arguments:
        network: what computes the conditionals.
        n: images.
        features: ``[n, F, H, W]`` of a network with features.
        y: classes, ``[n]``, of a network with classes.
        input_dropout: d, the probability with which a pixel is hidden while the network is in training mode; from
            torch's default generator.
    """

    def __init__(
        self,
        network: CausalNetwork[Any],
        n: int,
        features: Tensor | None = None,
        y: Tensor | None = None,
        input_dropout: float = 0.0,
    ) -> None:
        self.network, self.n, self.features, self.y = network, n, features, y
        self.input_dropout = input_dropout

    def __repr__(self) -> str:
        return f"AutoregressivePixels({self.network.name}, shape={(self.n, *self.network.shape)})"

    @property
    def normalized(self) -> bool:
        return self.network.head.normalized

    def conditionals(self, x: Tensor) -> Distribution:
        """p(x_i | x_{<i}) of all pixels given the images x, ``[B, C, H, W]``, in one pass."""
        self._check_classes()
        return self.network.head(self.network(self._seen(x), self.features, self.y))

    def _check_classes(self) -> None:
        if self.network.classes and self.y is None:
            raise ValueError(f"labels: got None, expected {self.n} class numbers from 0 to {self.network.classes - 1}")

    def _seen(self, x: Tensor) -> Tensor:
        """What the network is shown of the images, integers or, where pixels are hidden, as many numbers."""
        if not self.input_dropout or not self.network.training:
            return x
        hidden = torch.rand(len(x), 1, *x.shape[2:], device=x.device) < self.input_dropout
        return x.to(next(self.network.parameters()).dtype).masked_fill(hidden, (self.network.levels - 1) / 2)

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Of every pixel given those before it, ``[B, C, H, W]`` or ``[B, H, W]``, nats."""
        return self.conditionals(x).log_prob_map(x)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Integers ``[n, C, H, W]``, drawn pixel by pixel, all images side by side."""
        return self.complete(self._blank(), 0, temperature, generator)

    def mode(self) -> Tensor:
        """Each pixel's most probable value given those chosen before it; the most probable image is not known."""
        return self.complete(self._blank(), 0, 0.0)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

    def _blank(self) -> Tensor:
        return torch.zeros(self.n, *self.network.shape, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        given: int,
        temperature: float = 1.0,
        generator: Generator | None = None,
        *,
        cached: bool = True,
        report: Report | None = None,
    ) -> Tensor:
        """Keep the first pixels of images and draw the others, ``[B, C, H, W]``.

        Arguments:
            x: integer images, of which the first ``given`` pixels are looked at.
            given: 0 to H * W, row by row from the top left.
            temperature: of every draw.
            generator: source of randomness. The same draws make the same image, cached or not, as long as no two values
                are equally probable to the last digits.
            cached: compute what is new with each pixel only; else a whole pass for each part of each pixel.
            report: told about each row; by default whoever listens
                (:func:`~davi.layers.autoregressive_pixels.reporting`).
        """
        self._check_classes()
        report = report or listening()
        network = self.network
        channels, height, width = network.shape
        x = x.long().clone()
        x.flatten(2)[..., given:] = 0
        state = network.start(self.n, self.features, self.y) if cached else None
        for pixel in range(height * width):
            row, column = divmod(pixel, width)
            for part in range(network.parts):
                if pixel < given and state is None:
                    continue
                raw = self._raw(x, row, column) if state is None else network.advance(state, x)
                if pixel < given:
                    continue
                drawn = network.head.part(raw, part, network.parts).sample(generator, temperature)
                x[:, part : part + channels // network.parts, row, column] = drawn[..., 0, 0]
            if report is not None and column == width - 1:
                report(pixel + 1, height * width)
        return x

    def _raw(self, x: Tensor, row: int, column: int) -> Tensor:
        """The parameters of a pixel by a whole pass, ``[B, P, 1, 1]``."""
        raw: Tensor = self.network(x, self.features, self.y)
        return raw[:, :, row : row + 1, column : column + 1]
