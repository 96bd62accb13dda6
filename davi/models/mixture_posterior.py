r"""The VAE whose posterior is a mixture of S Normal distributions, each from an encoder or a head of its own,

.. math:: q(z \mid x) = \frac 1S \sum_{s=1}^S q_s(z \mid x), \qquad
          L(x) = \frac 1S \sum_{s=1}^S E_{q_s} \left[ \log \frac{p(x, z)}{\frac 1S \sum_j q_j(z \mid x)} \right]
          \le \log p(x).

L is the evidence lower bound of the mixture, written with one expectation for each component: the multiple importance
sampling bound. A component is told where the others are and can look for what they leave out.

**Draws.** The draws of a batch go through the components in turn, beginning with one chosen at random: draw i is of the
component (r + i) mod S. Every draw by itself is one of the mixture, so each claim is a bound and each weight has
expectation p(x). And draws of one image that lie side by side are stratified: a multiple of S of them has equally many
of every component. ``training.objective.draws: S`` is therefore the bound above, one draw from every component.

**Importance sampling.** The weight of every draw is :math:`p(x, z) / q(z \mid x)` with the density of the whole
mixture, whichever component it is of (the balance heuristic). K of them make :math:`L_K` for every K, and a
multiple of S of them made together is stratified.

With S = 1 this is the VAE, number by number.

References:
    Multiple Importance Sampling ELBO and Deep Ensembles of Variational Approximations, O. Kviman, H. Melin,
    H. Koptagel, V. Elvira, J. Lagergren, AISTATS 2022, https://arxiv.org/abs/2202.10951

    Cooperation in the Latent Space: The Benefits of Adding Mixture Components in Variational Autoencoders, O. Kviman,
    R. Molén, A. Hotti, S. Kurt, V. Elvira, J. Lagergren, ICML 2023, https://arxiv.org/abs/2209.15514
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Generator, Tensor, nn

from davi.distributions import Distribution, Latent, Normal, Pairwise
from davi.distributions.base import Noise
from davi.flows.base import spread
from davi.model import Choose
from davi.models.vae import VAE, Inferred, VAEConfig, VAENetworks


@final
@dataclass(frozen=True)
class MixturePosteriorConfig(VAEConfig):
    """Options of :class:`MixturePosteriorVAE`: those of the VAE with one stochastic layer, and these. A flow
    (``posterior_flow``) is not among them: each component has to know the density of the others' draws.

    Arguments:
        components: S.
        encoders: ``own``, a network for each component; ``shared``, one network with a linear head for each component,
            convolutional where the latents are a map.
    """

    components: int = 4
    encoders: Literal["shared", "own"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.latents) > 1:
            raise ValueError(f"latents: got {len(self.latents)} stochastic layers, expected 1")
        if self.components < 1:
            raise ValueError(f"components: got {self.components}, expected at least 1")
        if self.posterior_flow is not None:
            raise ValueError(f"posterior_flow: got {self.posterior_flow.name}, expected null for a mixture")
        if self.constant_rate is not None:
            raise ValueError(f"constant_rate: got {self.constant_rate.name}, expected null for a mixture")


@final
class PosteriorMixture(Latent, Pairwise):
    """A mixture of Normal distributions with equal weights (module docstring). Its log-density has equal shares in all
    variables.

    Arguments:
        mean: of the components, ``[S, B, ...]``.
        scale: their standard deviations, the same shape.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.components = Normal(mean, scale)

    @classmethod
    def of(cls, components: Sequence[Normal]) -> PosteriorMixture:
        """The mixture of these."""
        return cls(torch.stack([part.mean for part in components]), torch.stack([part.scale for part in components]))

    def __repr__(self) -> str:
        return f"PosteriorMixture(components={len(self.components.mean)}, shape={tuple(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.components.shape[1:]

    def center(self) -> Tensor:
        """The mean of the mixture, which may lie where its density is low."""
        return self.components.mean.mean(0)

    def mode(self) -> Tensor:
        """Of the means of the components the one where the density of the mixture is largest."""
        means = self.components.mean
        best = torch.stack([self.log_prob(mean) for mean in means]).argmax(0)  # [B]
        return means[best, torch.arange(len(best), device=best.device)]

    def expand(self, n: int) -> PosteriorMixture:
        shape = (len(self.components.mean), n, *self.shape[1:])
        return PosteriorMixture(self.components.mean.expand(shape), self.components.scale.expand(shape))

    def repeat_images(self, times: int) -> PosteriorMixture:
        """The mixture of each image ``times`` times, side by side."""
        mean, scale = self.components.mean, self.components.scale
        return PosteriorMixture(mean.repeat_interleave(times, 1), scale.repeat_interleave(times, 1))

    def log_prob_map(self, x: Tensor) -> Tensor:
        """Log-density anywhere, in equal shares."""
        each = self.components.log_prob_map(x).flatten(2).sum(2)  # [S, B]
        return spread(each.logsumexp(0) - math.log(len(each)), x)

    def log_prob_pairs(self, x: Tensor) -> Tensor:
        parts = zip(self.components.mean, self.components.scale, strict=True)
        each = torch.stack([Normal(mean, scale).log_prob_pairs(x) for mean, scale in parts])  # [S, M, B]
        return each.logsumexp(0) - math.log(len(each))

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw from one component each, in turn; ``temperature`` scales their noise."""
        mean = self.components.mean
        first = torch.randint(len(mean), (1,), generator=generator, device=mean.device)
        return self._in_turn(first).sample(generator, temperature)

    def sample_with(self, noise: Noise) -> Tensor:
        """The same, the first component being chosen by noise as well."""
        mean = self.components.mean
        u = torch.special.ndtr(noise(mean[0, :, :1].flatten(1)[:, :1]))[:1, 0]  # even from 0 to 1
        first = (len(mean) * u).long().clamp_max(len(mean) - 1)
        return self._in_turn(first).sample_with(noise)

    def _in_turn(self, first: Tensor) -> Normal:
        """The components of the draws, one for each image."""
        count, images = self.components.shape[:2]
        rows = torch.arange(images, device=first.device)
        chosen = (first + rows) % count
        return Normal(self.components.mean[chosen, rows], self.components.scale[chosen, rows])


@final
class Head(nn.Module):
    """A Normal distribution whose mean and log standard deviation are linear in an encoder's features.

    Arguments:
        features: channels that are read.
        latents: channels of the distribution.
        kernel: of the convolutions; 1 if there is one position.
    """

    def __init__(self, features: int, latents: int, kernel: int) -> None:
        super().__init__()
        self.mean = nn.Conv2d(features, latents, kernel, padding=kernel // 2)
        self.log_scale = nn.Conv2d(features, latents, kernel, padding=kernel // 2)
        for layer in (self.mean, self.log_scale):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None  # a convolution has one unless it is told otherwise
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Normal:
        """``[B, F, h, w]`` -> ``[B, C, h, w]``."""
        return Normal(self.mean(features), self.log_scale(features).exp())


@final
class MixturePosteriorVAE(VAENetworks):
    """The VAE of one stochastic layer with a mixture of posteriors (module docstring). Its arguments are those of the
    VAE."""

    name = "mixture_posterior"
    Config = MixturePosteriorConfig

    def __init__(
        self, shape: tuple[int, int, int], levels: int, config: MixturePosteriorConfig, classes: int = 0
    ) -> None:
        super().__init__(shape, levels, config, classes)
        others = range(config.components - 1)
        self.heads, self.encoders = nn.ModuleList(), nn.ModuleList()
        if config.encoders == "own":
            # A VAE for the sake of its encoder: every network is built, and begins, as it does there.
            self.encoders.extend(VAE(shape, levels, config).inference[0] for _ in others)
        else:
            latents, features = self.layer_sizes[0]
            kernel = 1 if self.grid == (1, 1) else 3
            self.heads.extend(Head(features, latents, kernel) for _ in others)

    def encode_components(self, pixels: Tensor) -> list[Normal]:
        """The components, for images as numbers from 0 to 1; of a shared encoder the VAE's own head is the first."""
        padded = self.padding.add(pixels)
        inferred: list[Inferred] = [encoder(padded) for encoder in (self.inference[0], *self.encoders)]
        return [*(part.normal for part in inferred), *(head(inferred[0].features) for head in self.heads)]

    def encode_pixels(self, pixels: Tensor) -> Normal | PosteriorMixture:  # type: ignore[override]  # of more heads
        components = self.encode_components(pixels)
        return PosteriorMixture.of(components) if len(components) > 1 else components[0]

    def why_top_is_not_normal(self) -> str:
        if self.config.components > 1:
            return f"the posterior is a mixture of {self.config.components} Normal distributions, and no Normal one"
        return super().why_top_is_not_normal()

    def top_posterior(self, context: Normal | PosteriorMixture) -> Latent:
        return context

    def top_down(self, choose: Choose, context: Normal | PosteriorMixture | None = None) -> Distribution:
        return self.pixels(choose(0, self.top_prior(self.own_prior()), context))
