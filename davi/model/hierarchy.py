"""A model with several layers of latents, whose top-down pass is written once.

The pass is a walk that asks for each latent in turn; training, sampling, reconstruction, decoding and importance
sampling are different answers to that question.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from davi.distributions import Distribution, Drawn, Latent, Point
from davi.distributions.base import sum_per_image
from davi.evidence import About, Evidence, Kind
from davi.model.base import Temperature, temperatures
from davi.model.latent import LatentModel
from davi.repetition import repeat_images

Choose = Callable[[int, Latent | None, Latent | None], Tensor]
"""Answers the walk's question: ``choose(layer, prior, posterior) -> z``.

``posterior`` is None without a context. ``prior`` is None when the question comes too early for it: a model that draws
latents on its way up as well asks for them while it climbs, and once more in their place, with the prior and with a
posterior that is :class:`~davi.distributions.Drawn` (:func:`ask_early`). Only the second question is a layer's turn."""


@dataclass(frozen=True)
class Step:
    """What happened at one layer of a walk."""

    prior: Latent
    posterior: Latent
    z: Tensor

    @classmethod
    def of(cls, prior: Latent, posterior: Latent, z: Tensor) -> Step:
        """The step at which z was chosen; a prior that is the same for all images is expanded to their number."""
        return cls(prior.expand(len(z)), posterior, z)

    @property
    def is_divergence(self) -> bool:
        """Whether :meth:`kl` is, or estimates, a KL divergence; of latents drawn on the way up it is log q - log p,
        whose expectation may be negative (:class:`~davi.distributions.Drawn`)."""
        return not isinstance(self.posterior, Drawn)

    def kl_map(self) -> Tensor:
        """KL divergence of the posterior from the prior, of every latent variable, ``[B, ...]``, nats; log q - log p at
        the draw where it has no closed form."""
        return self.posterior.kl_map(self.prior, self.z)[0]

    def kl(self) -> Tensor:
        """The same, summed over the layer, ``[B]``."""
        return sum_per_image(self.kl_map())


def ask_early(choose: Choose, layer: int, posterior: Latent) -> Drawn:
    """Draw a latent before its prior is known; offer the result as its posterior when its turn comes."""
    return Drawn(posterior, choose(layer, None, posterior))


class Hierarchy(LatentModel, ABC):
    """A model with a sequence of latent layers 0 (top) .. ``num_layers`` - 1 (nearest the image).

    A subclass writes :meth:`encode` and :meth:`top_down`; everything else is an answer to the walk's question. One
    whose priors or whose pixels depend on the class of an image writes :meth:`top_down_given` as well.
    """

    num_layers: int

    @abstractmethod
    def encode(self, x: Tensor) -> Any:
        """Bottom-up pass: whatever :meth:`top_down` needs to form posteriors for these images."""

    @abstractmethod
    def top_down(self, choose: Choose, context: Any = None) -> Distribution:
        """Walk from the top latent to the image, asking ``choose(layer, prior, posterior)`` for each latent.

        Arguments:
            choose: called once per layer, in order, and before that for latents that are drawn on the way up.
                ``posterior`` is None when ``context`` is None. The top prior is the same for all images and has batch
                size 1; the batch size of the walk is that of the latents chosen.
            context: the result of :meth:`~davi.model.Hierarchy.encode`, or None for the generative model alone.

        Returns:
            p(x | z).
        """

    def top_down_given(self, y: Tensor | None, choose: Choose, context: Any = None) -> Distribution:
        """:meth:`top_down` for images of known classes, of which most hierarchies make no use.

        Arguments:
            y: classes of the images, ``[B]``; None without classes, and where a model with classes is asked for
                latents, for shapes or for p(x | z), but no prior for its probabilities.
            choose, context: as :meth:`top_down` takes them. With classes the top prior has their batch size.
        """
        return self.top_down(choose, context)

    def latent_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each layer's latents for one image, the top first; nothing is computed for it.

        Example:
            >>> import davi
            >>> davi.build("attentive_digits_tiny").latent_shapes()
            [(2, 2, 2), (2, 2, 2), (2, 4, 4)]
        """
        tensors = [*self.parameters(), *self.buffers()]
        dtype = next(self.parameters()).dtype
        on_paper = {id(x): x.detach().to("meta").as_subclass(type(x)) for x in tensors}
        shapes = {}

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert prior is not None
            shapes[layer] = tuple(prior.shape[1:])
            return torch.zeros(1, *shapes[layer], dtype=dtype, device="meta")

        with torch.no_grad():
            copy.deepcopy(self, on_paper).eval().top_down(choose)  # the layers, with tensors that hold no numbers
        return [shapes[layer] for layer in range(self.num_layers)]

    def _facts(self) -> list[str]:
        """The latents, layers of one shape together."""
        shapes = self.latent_shapes()
        runs = [(len(list(group)), list(shape)) for shape, group in itertools.groupby(shapes)]
        told = [f"{count} of {shape}" if count > 1 else f"{shape}" for count, shape in runs]
        total, layers = sum(map(math.prod, shapes)), f"{len(shapes)} layer{'s' * (len(shapes) != 1)}"
        return [f"  latents, {layers}, {total:,} numbers, top first: {', '.join(told)}"]

    def latent_name(self, layer: int) -> str:
        """What a layer's latents are called in the model's paper, if that says more than the number; else nothing."""
        return ""

    def penalties(self) -> dict[str, Tensor]:
        """Scalars that the model's paper adds to the objective in training; they are no part of any claim."""
        return {}

    @final
    def evidence(self, x: Tensor, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        r"""The evidence lower bound with one draw of the latents and KL divergences in closed form where there is one.

        .. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \sum_i E_q[KL(q(z_i \mid z_{<i}, x) \| p(z_i \mid z_{<i}))]

        The term of latents drawn on the way up is minus :math:`E_q[\log q(z_i) - \log p(z_i)]`, no KL divergence
        (``Evidence.no_divergence``).
        """
        self.check_labels(y, len(x))
        return self.elbo(x, self.encode(x), generator, y)

    def forward(self, x: Tensor, draws: int = 1, y: Tensor | None = None) -> Evidence:
        """As in every model, but the images are encoded once, however many draws are made."""
        self.check_labels(y, len(x))
        labels = None if y is None else repeat_images(y, draws)
        return self.elbo(repeat_images(x, draws), repeat_images(self.encode(x), draws), y=labels)

    @final
    def elbo(self, x: Tensor, context: Any, generator: Generator | None = None, y: Tensor | None = None) -> Evidence:
        """:meth:`evidence` for images that are already encoded: many draws need the bottom-up pass only once."""
        steps: list[Step] = []
        drawn: list[Tensor] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert posterior is not None
            z = posterior.sample(generator)
            if not isinstance(posterior, Drawn):
                drawn.append(z)
            if prior is not None:
                steps.append(Step.of(prior, posterior, z))
            return z

        pixels = self.top_down_given(y, choose, context)
        reconstruction = pixels.log_prob(x)  # [B]
        terms = {"reconstruction": reconstruction}
        maps = {}
        for layer, step in enumerate(steps):
            name = f"kl/{layer:02d}"
            maps[name] = step.kl_map()
            terms[name] = -sum_per_image(maps[name])

        def log_weight_fn(joint: bool = False) -> Tensor:
            total = reconstruction
            for step in steps:
                if joint:
                    total = total + step.prior.log_prob(step.z)
                else:
                    total = total + step.prior.log_prob(step.z) - step.posterior.log_prob(step.z)
            return total

        penalties = self.penalties() if self.training else {}
        parts = [pixels.kind, *(latent.kind for step in steps for latent in (step.prior, step.posterior))]
        kind = Kind.weakest(Kind.LOWER_BOUND, *parts)
        early = frozenset(name for name, step in zip(maps, steps, strict=True) if not step.is_divergence)
        about = About.X if y is None else About.X_GIVEN_Y
        certain = not self.training and all(isinstance(step.posterior, Point) for step in steps)
        return Evidence(
            *(terms, kind, log_weight_fn, penalties, maps, tuple(drawn), early, about, self.dims), deterministic=certain
        )

    @final
    def _sample(self, n: int, temperature: Temperature, generator: Generator | None, y: Tensor | None) -> Tensor:
        """Draw the latents from their priors, whose standard deviations are multiplied by the temperature (one number
        for all layers or one for each, the top first), and the pixels from p(x | z) unchanged."""
        factors = temperatures(temperature, self.num_layers)

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert prior is not None
            return prior.expand(n).sample(generator, factors[layer])

        return self.top_down_given(y, choose).sample(generator)

    @final
    @torch.no_grad()
    def latents(self, x: Tensor, sample: bool = False, generator: Generator | None = None) -> list[Tensor]:
        found: list[Tensor] = []

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert posterior is not None
            z = posterior.sample(generator) if sample else posterior.center()
            if prior is not None:
                found.append(z)
            return z

        self.top_down(choose, self.encode(x))
        return found

    @final
    def decode(self, latents: Sequence[Tensor]) -> Distribution:
        if len(latents) != self.num_layers:
            raise ValueError(f"latents: got {len(latents)} tensors, expected one for each of {self.num_layers} layers")

        def choose(layer: int, prior: Latent | None, posterior: Latent | None) -> Tensor:
            assert prior is not None
            z, shape = latents[layer], tuple(prior.shape[1:])
            if tuple(z.shape[1:]) != shape:
                expected = ", ".join(map(str, shape))
                raise ValueError(f"latents: got {list(z.shape)} for layer {layer}, expected [B, {expected}]")
            return z

        return self.top_down(choose)
