r"""A model that predicts every pixel from the pixels before it.

With the pixels in the order in which one reads, row by row from the top left,

.. math:: \log p(x) = \sum_i \log p(x_i \mid x_1, \dots, x_{i-1})

which a network with masked layers computes for all i in one pass. Drawing needs one answer after the other.

References:
    Pixel Recurrent Neural Networks, A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, ICML 2016,
    https://arxiv.org/abs/1601.06759
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions import Distribution
from davi.evidence import About, Evidence
from davi.layers.autoregressive_pixels import Report, listening
from davi.model.base import Model, Temperature, check_draw


class Autoregressive(Model, ABC):
    """A model of all conditionals p(x_i | x_{<i}) (module docstring). Its claims are exact."""

    @abstractmethod
    def conditionals(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x_i | x_{<i}) of all pixels i given the pixels before them in ``x``, in one pass.

        Arguments:
            x: integer images, ``[B, C, H, W]``. What is given for a pixel plays no part in what is said about it and
                about those before it. The channels of one pixel may depend on one another within the distribution.
            y: classes, ``[B]``, of a model that has some.
        """

    @final
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """The sum over the pixels of log p(x_i | x_{<i}); nothing is drawn."""
        self.check_images(x)
        self.check_labels(y, len(x))
        pixels = self.conditionals(x, y)
        about = About.X if y is None else About.X_GIVEN_Y
        return Evidence({"pixels": pixels.log_prob(x)}, pixels.kind, about=about, dims=self.dims)

    @final
    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        given: int | None = None,
        temperature: Temperature = 1.0,
        generator: Generator | None = None,
        y: Tensor | None = None,
        report: Report | None = None,
        *,
        rows: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Keep the first pixels of images and draw the others: exact draws from p(rest | what is kept).

        Arguments:
            x: integer images, ``[B, C, H, W]``; only what is kept is looked at.
            given: how many pixels are kept, 0 to H * W, row by row from the top left.
            temperature: of every draw (:meth:`davi.distributions.Distribution.sample`).
            generator: source of randomness.
            y: classes, ``[B]``, of a model that has some.
            report: told about each row how many pixels are done, and of how many; by default whoever listens
                (:func:`davi.layers.autoregressive_pixels.reporting`).
            rows: how many whole rows are kept, in place of ``given``.
            seed: of a generator of this call's own, in place of ``generator``.

        Raises:
            ValueError: if ``given``, ``rows`` or the temperature is out of range, or not one of the first two is given.
        """
        self.check_images(x)
        self.check_labels(y, len(x))
        kept = self._kept(given, rows)
        generator = self._generator(generator, seed)
        return self._complete(x, kept, check_draw(len(x), temperature), generator, y, report or listening())

    def _kept(self, given: int | None, rows: int | None) -> int:
        """How many pixels are kept."""
        _, height, width = self.shape
        if (given is None) == (rows is None):
            raise ValueError(f"rows: got {rows} and given {given}, expected one of the two")
        if rows is not None and not 0 <= rows <= height:
            raise ValueError(f"rows: got {rows}, expected 0 to {height}")
        kept = rows * width if rows is not None else given
        assert kept is not None
        if not 0 <= kept <= height * width:
            raise ValueError(f"given: got {kept} pixels, expected 0 to {height * width}")
        return kept

    def _complete(
        self,
        x: Tensor,
        given: int,
        temperature: float,
        generator: Generator | None,
        y: Tensor | None,
        report: Report | None,
    ) -> Tensor:
        """What :meth:`complete` asks for, once its arguments are known to be right.

        Here one whole pass for each pixel that is drawn; a model that remembers what it has computed does better and
        draws the same.
        """
        _, height, width = self.shape
        x = x.long().clone()
        x.flatten(2)[..., given:] = 0
        for pixel in range(given, height * width):
            row, column = divmod(pixel, width)
            drawn = self.conditionals(x, y).sample(generator, temperature)
            x[:, :, row, column] = drawn[:, :, row, column].to(x.dtype)
            if report is not None and column == width - 1:
                report(pixel + 1, height * width)
        return x

    @final
    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """Draw images pixel by pixel (:meth:`complete`, with nothing given)."""
        device = next(self.parameters()).device
        return self.complete(torch.zeros(n, *self.shape, dtype=torch.long, device=device), 0, temperature, generator, y)
