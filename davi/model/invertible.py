r"""A model that takes images to noise by an invertible function: a normalizing flow.

Integers are dequantized to y (:mod:`davi.flows.dequantization`), which the bijection f takes to z. Together,

.. math:: \log P(x) \ge E_{q(y \mid x)}\bigl[\log p(f(y)) + \log |\det \partial f / \partial y|
          - \log q(y \mid x)\bigr]

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from typing import final

import torch
from torch import Generator, Tensor

from davi.distributions import Latent
from davi.distributions.base import sum_per_image
from davi.errors import UserError
from davi.evidence import About, Evidence, Kind
from davi.flows import Bijection, Dequantization
from davi.flows.batch_norm import running_statistics
from davi.flows.multiscale import parts
from davi.layers.from_data import set_from_data
from davi.model.base import DataInitialized, Model, Temperature, check_draw


class Invertible(Model, DataInitialized, ABC):
    """A flow on dequantized images (module docstring). A subclass sets the two parts and says what z follows.

    The initial weights of layers that are set from data (:class:`davi.layers.from_data.SetFromData`), those of learned
    noise among them, follow from the first images.
    """

    images_wanted = 128

    dequantization: Dequantization
    """From integers to continuous images y, and back."""
    bijection: Bijection
    """f, from y to z."""

    @abstractmethod
    def base(self, n: int) -> Latent:
        """The distribution of z for ``n`` images."""

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shapes of the latents of one image, finest scale first: z has them one after the other."""
        return (tuple(self.base(1).shape[1:]),)

    def penalties(self) -> dict[str, Tensor]:
        """Scalars that training adds to the loss, no part of the evidence; by name."""
        return {}

    def context(self, y: Tensor | None) -> Tensor | None:
        """What the bijection is told of the classes ``y``; a model without classes tells it nothing."""
        return None

    @final
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """The lower bound with one draw of the noise. Its log-weight is the bound itself."""
        self.check_images(x)
        self.check_labels(y, len(x))
        drawn = self.dequantization(x, generator, next(self.parameters()).dtype)
        z, log_det = self.bijection(drawn.y, self.context(y))
        base = self.base(len(x))
        terms = {
            "base": base.log_prob(z),
            "log_det": sum_per_image(log_det),
            "dequantization": -sum_per_image(drawn.log_q),
        }

        def log_weight_fn(joint: bool = False) -> Tensor:
            density = terms["base"] + terms["log_det"]
            return density if joint else density + terms["dequantization"]

        about = About.X if y is None else About.X_GIVEN_Y
        kind = Kind.weakest(Kind.LOWER_BOUND, base.kind, drawn.kind)
        penalties = self.penalties() if self.training else {}
        return Evidence(terms, kind, log_weight_fn, penalties, about=about, dims=self.dims)

    @final
    @torch.no_grad()
    def initialize(self, images: Tensor, kept: Container[str] = ()) -> None:
        y = self.classes_in_turn(len(images))
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]  # running statistics see none of it
        set_from_data(self, lambda: self.evidence(images, y=y), kept)
        for buffer, value in before:
            buffer.copy_(value)

    @final
    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None) -> list[Tensor]:
        """The latents of images: where f takes the middle of every pixel's interval. Nothing is drawn.

        :meth:`decode` gives the very integers back, as long as rounding stays below half of an interval.

        Arguments:
            x: integer images, ``[B, C, H, W]``.
            y: class of each image, for a model with classes.

        Returns:
            Latents of each scale, ``[B, *shape]`` for each of :attr:`latent_shapes`.
        """
        self.check_images(x)
        self.check_labels(y, len(x))
        middle = self.dequantization.middle(x, next(self.parameters()).dtype)
        with running_statistics(self.bijection):
            z, _ = self.bijection(middle, self.context(y))
        return parts(z, self.latent_shapes)

    @final
    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor], y: Tensor | None = None) -> Tensor:
        """Integer images of latents, ``[B, C, H, W]``.

        Arguments:
            latents: of each scale, as :meth:`encode` gives them.
            y: class of each image, for a model with classes.

        Raises:
            ValueError: if the shapes are not :attr:`latent_shapes`.
            UserError: if rounding has taken an image out of all bounds.
        """
        shapes = [tuple(part.shape[1:]) for part in latents]
        if shapes != list(self.latent_shapes):
            raise ValueError(f"latents: got shapes {shapes}, expected {list(self.latent_shapes)} for one image")
        z = torch.cat([part.flatten(1) for part in latents], 1)
        return self._images(z.view(self.base(len(z)).shape), y)

    @final
    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """Draw z, whose spread is multiplied by the temperature, and take it back to an image."""
        factor = check_draw(n, temperature)
        return self._images(self.base(n).sample(generator, factor), y)

    def _images(self, z: Tensor, y: Tensor | None) -> Tensor:
        with running_statistics(self.bijection):
            continuous, _ = self.bijection.inverse(z, self.context(y))
        finite = continuous.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise UserError(
                f"inverse of the flow: got infinite pixels in {int((~finite).sum())} of {len(finite)} images, expected "
                "finite ones: their latents lie too far out for this type; lower the temperature"
            )
        return self.dequantization.quantize(continuous)
