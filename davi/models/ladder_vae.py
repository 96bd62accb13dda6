r"""The Ladder variational autoencoder: the encoder corrects the generative distribution instead of replacing it.

A deterministic way up, :math:`d_l = \mathrm{up}_l(d_{l-1})`, :math:`d_0 = x`, measures every layer l = 1 .. L,

.. math:: \hat\mu_l, \hat\sigma^2_l = \mathrm{head}_l(d_l)

and latents are drawn on the way down only. Their priors are

.. math:: p(z_L) = N(0, I), \qquad p(z_l \mid z_{l+1}) = N(\mu_{p,l}, \sigma^2_{p,l})

and posteriors are the normalized product of measurement and prior, weighted by their precisions:

.. math:: q(z_L \mid x) = N(\hat\mu_L, \hat\sigma^2_L), \qquad
          q(z_l \mid z_{l+1}, x) = N(\mu_{q,l}, \sigma^2_{q,l})

.. math:: \sigma^2_{q,l} = \frac 1{\hat\sigma^{-2}_l + \sigma^{-2}_{p,l}}, \qquad
          \mu_{q,l} = \sigma^2_{q,l} \bigl( \hat\mu_l \hat\sigma^{-2}_l + \mu_{p,l} \sigma^{-2}_{p,l} \bigr)

A measurement that says nothing (:math:`\hat\sigma \to \infty`) leaves the prior, at no cost. In the code layers are
counted as everywhere here, from the top: layer 0 is :math:`z_L`.

References:
    Ladder Variational Autoencoders, C. K. Sonderby, T. Raiko, L. Maaloe, S. K. Sonderby, O. Winther, NeurIPS 2016,
    https://arxiv.org/abs/1602.02282
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Distribution, Latent, Normal
from davi.layers import Padding, ResidualBlock, ResidualCell, WeightNormConv2d
from davi.layers.pixel_head import LikelihoodConfig
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy

_SLOPE = 0.01
"""Of the leaky rectifiers below zero."""

_SMALLEST_VARIANCE = 1e-8
"""Added to every variance, of which sampling and density then both make use."""


@dataclass(frozen=True)
class LadderVAEConfig(LatentOptions):
    """Options of :class:`LadderVAE`. Lists go from the image to the top, as in the paper.

    Arguments:
        network: ``dense``, perceptrons on all pixels at once, or ``convolutional``, residual cells that each halve the
            resolution, for images of any size.
        latents: latent variables of each layer; channels of the map if convolutional.
        hidden: width of the hidden layers around each layer.
        depth: how many hidden layers each perceptron, or residual blocks each cell, has.
        share_top_down: whether posteriors are merged with the priors themselves, as the paper says. If not, a second
            top-down network of its own makes what they are merged with, as in the released program.
        likelihood: family and options of p(x | z).
    """

    network: Literal["dense", "convolutional"] = "dense"
    latents: tuple[int, ...] = (64, 32, 16, 8, 4)
    hidden: tuple[int, ...] = (512, 256, 128, 64, 32)
    depth: int = 2
    share_top_down: bool = True
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("bernoulli", 5))

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        if self.depth < 1:
            raise ValueError(f"depth: got {self.depth}, expected at least 1")
        for name in ("latents", "hidden"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(
                    f"{name}: got {list(getattr(self, name))}, expected one positive number for each layer"
                )
        if len(self.hidden) != len(self.latents):
            raise ValueError(
                f"hidden: got {len(self.hidden)} widths, expected one for each of {len(self.latents)} layers"
            )


def merged(measured: Normal, prior: Normal) -> Normal:
    """The normalized product of two Normal densities (module docstring).

    It is computed from ratios of standard deviations that are at most 1, so no precision overflows. If one of them is
    infinite the other comes out unchanged; a batch of one is repeated.
    """
    narrow = torch.minimum(measured.scale, prior.scale)
    wide = torch.maximum(measured.scale, prior.scale)
    share = torch.sigmoid(2.0 * (prior.scale.log() - measured.scale.log()))  # of the measurement in the mean
    mean = torch.lerp(prior.mean.expand_as(share), measured.mean.expand_as(share), share)
    return Normal(mean, narrow / (1.0 + (narrow / wide).square()).sqrt())


def _normal(raw: Tensor) -> Normal:
    """From a head's outputs, mean and variance before the softplus along the channels."""
    mean, variance = raw.chunk(2, 1)
    return Normal(mean, (F.softplus(variance) + _SMALLEST_VARIANCE).sqrt())


class Measured(NamedTuple):
    """What the way up says about a layer's latents, ``[B, latents, h, w]``, and the features that say it."""

    normal: Normal
    features: Tensor


@final
class DenseRung(nn.Module):
    """A perceptron: linear, batch norm, leaky rectifier, as often as it is deep; vectors as maps of one pixel."""

    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for wide, narrow in pairwise([inputs] + [width] * depth):
            # A bias would be taken away by the mean of the batch.
            parts += [nn.Linear(wide, narrow, bias=False), nn.BatchNorm1d(narrow), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...]``, anything with ``inputs`` values -> ``[B, width, 1, 1]``."""
        out: Tensor = self.layers(x.flatten(1))
        return out[..., None, None]


@final
class ConvolutionalRung(nn.Module):
    """A residual cell that halves (-2) or doubles (2) the resolution."""

    def __init__(self, inputs: int, width: int, depth: int, rescale: int) -> None:
        super().__init__()
        rest = [0] * (depth - 1)
        rescales = [rescale, *rest] if rescale < 0 else [*rest, rescale]
        self.cell = ResidualCell([width] * (depth + 1), rescales, stem_channels=inputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` -> ``[B, width, ...]``."""
        return F.leaky_relu(self.cell(x), _SLOPE)


def _head(width: int, latents: int) -> nn.Conv2d:
    """Mean and variance before the softplus of ``latents`` variables, whose bias starts at 1."""
    head = nn.Conv2d(width, 2 * latents, 1)
    bias = head.bias
    assert bias is not None
    with torch.no_grad():
        bias[:latents].zero_()
        bias[latents:].fill_(1.0)
    return head


@final
class Conditional(nn.Module):
    """p(z_l | z_{l+1}): a rung down and a head."""

    def __init__(self, rung: nn.Module, width: int, latents: int) -> None:
        super().__init__()
        self.rung = rung
        self.head = _head(width, latents)

    def forward(self, z: Tensor) -> Normal:
        return _normal(self.head(self.rung(z)))


@final
class DensePixels(nn.Module):
    """The pixels' parameters from a vector: a linear layer."""

    def __init__(self, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(width, shape[0] * shape[1] * shape[2])

    def forward(self, x: Tensor) -> Tensor:
        raw: Tensor = self.linear(x.flatten(1))
        return raw.unflatten(1, self.shape)


@final
class LadderVAE(PixelHierarchy):
    """The Ladder VAE (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options contradict one another or do not fit the images.
    """

    name = "ladder_vae"
    Config = LadderVAEConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: LadderVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.num_layers = layers = len(config.latents)
        self.choose_likelihood(config.likelihood)
        dense = config.network == "dense"
        unit = 1 if dense else 2**layers
        self.padding = Padding.to_multiple(self.shape[1:], unit)
        rows, columns = self.padding.padded
        self.top_shape = (config.latents[-1], *((1, 1) if dense else (rows // unit, columns // unit)))
        widths, latents = config.hidden, config.latents
        inputs = (self.dims if dense else self.shape[0], *widths[:-1])
        self.up = nn.ModuleList(self._rung(inputs[i], widths[i], -2) for i in range(layers))
        self.measure = nn.ModuleList(_head(widths[i], latents[i]) for i in range(layers))
        self.down = self._conditionals()
        self.down_of_posterior = None if config.share_top_down else self._conditionals()
        self.last = self._rung(latents[0], widths[0], 2)
        pixels = self.head.inputs
        self.output = (
            DensePixels(widths[0], (pixels, *self.shape[1:])) if dense else WeightNormConv2d(widths[0], pixels, 3)
        )
        sizes = [LayerSizes(*pair) for pair in zip(latents, widths, strict=True)]
        self.choose_latents(self.top_shape, sizes[::-1])

    def _rung(self, inputs: int, width: int, rescale: int) -> nn.Module:
        if self.config.network == "dense":
            return DenseRung(inputs, width, self.config.depth)
        return ConvolutionalRung(inputs, width, self.config.depth, rescale)

    def _conditionals(self) -> nn.ModuleList:
        """p(z_l | z_{l+1}) for all layers but the top, which is where the list begins."""
        latents, widths = self.config.latents, self.config.hidden
        return nn.ModuleList(
            Conditional(self._rung(latents[i], widths[i], 2), widths[i], latents[i - 1])
            for i in range(self.num_layers - 1, 0, -1)
        )

    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, ResidualBlock))
        return dict.fromkeys([*own, *self.head.blocks()])

    def encode_pixels(self, pixels: Tensor) -> list[Measured]:
        """What the way up measures, the top layer first."""
        features = self.padding.add(pixels)
        found = []
        for up, measure in zip(self.up, self.measure, strict=True):
            features = up(features)
            found.append(Measured(_normal(measure(features)), features))
        return found[::-1]

    def top_posterior(self, context: list[Measured]) -> Latent:
        return self.posterior(0, *context[0])

    def top_down(self, choose: Choose, context: list[Measured] | None = None) -> Distribution:
        weight, shape = next(self.parameters()), (1, *self.top_shape)
        own_prior = Normal(weight.new_zeros(shape), weight.new_ones(shape))
        z = choose(0, self.top_prior(own_prior), None if context is None else self.top_posterior(context))
        for layer in range(1, self.num_layers):
            prior = self.down[layer - 1](z)
            posterior = None
            if context is not None:
                own = self.down_of_posterior
                measured, features = context[layer]
                both = merged(measured, prior if own is None else own[layer - 1](z))
                posterior = self.posterior(layer, both, features)
            z = choose(layer, prior, posterior)
        return self.head(self.padding.crop(self.output(self.last(z))))
