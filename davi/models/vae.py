r"""The variational autoencoder, with the networks of the importance-weighted autoencoder or with convolutions.

L stochastic layers :math:`z_1` (nearest the image) to :math:`z_L`, all inferred on the way up:

.. math:: p(x, z) = p(x \mid z_1) \prod_{l=1}^{L-1} p(z_l \mid z_{l+1}) \; p(z_L), \qquad
          q(z \mid x) = q(z_1 \mid x) \prod_{l=2}^{L} q(z_l \mid z_{l-1})

with :math:`p(z_L) = N(0, I)`. Every other conditional is a Normal distribution with diagonal covariance whose mean and
log standard deviation are linear in the last of a few hidden layers. The model of the first paper is L = 1; the second
has L = 1 and L = 2.

Whether the model is trained as a variational or as an importance-weighted autoencoder is a matter of the objective
(:mod:`davi.objectives`): the model is the same.

References:
    Auto-Encoding Variational Bayes, D. P. Kingma, M. Welling, ICLR 2014, https://arxiv.org/abs/1312.6114

    Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016, https://arxiv.org/abs/1509.00519

    Sylvester Normalizing Flows for Variational Inference, R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling,
    UAI 2018, https://arxiv.org/abs/1803.05649 (the gated networks)

    Understanding the difficulty of training deep feedforward neural networks, X. Glorot, Y. Bengio, AISTATS 2010,
    https://proceedings.mlr.press/v9/glorot10a.html (the initial weights of the dense networks)
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple, final

from torch import Tensor, nn

from davi.distributions import Distribution, Latent, Normal
from davi.distributions.base import at_least_float32
from davi.errors import OptionError
from davi.layers import Padding, ResidualBlock, ResidualCell, WeightNormConv2d
from davi.layers.gated import FEATURES, HALVINGS, GatedConv2d, GatedDecoder, GatedEncoder
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.residual import widths_along
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy, ask_early

_SMALLEST_MEAN = 0.001
"""Initial pixel probabilities lie between this and one minus this."""
_RAW_VARIANCE = -20.0
"""A guard against a variance of 0 behind the softplus, that no trained model comes near."""


@dataclass(frozen=True)
class VAEConfig(LatentOptions):
    """Options of :class:`VAE`. Lists go from the image to the top, as in the papers.

    Arguments:
        network: ``dense``, tanh layers on all pixels at once; ``convolutional``, residual blocks around one stochastic
            layer whose latents are a map; or ``gated``, gated convolutions around one vector, as published with the
            Sylvester flows. All are for images of any size: those of other sizes than 28x28 change the largest kernels
            of ``gated``, which are 7x7 there, a quarter of the image.
        latents: latent variables of each stochastic layer; channels of the map if convolutional.
        hidden: width of the hidden layers between a stochastic layer and what lies below it; convolutional and gated:
            channels at full resolution, which double with each halving (gated: with the first of its two).
        depth: how many hidden layers there are in each place; convolutional: residual blocks for each halving; not of
            gated.
        halvings: how often the resolution is halved on the way to the latents; convolutional only.
        likelihood: family and options of p(x | z).
    """

    network: Literal["dense", "convolutional", "gated"] = "dense"
    latents: tuple[int, ...] = (50,)
    hidden: tuple[int, ...] = (200,)
    depth: int = 2
    halvings: int = 2
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("bernoulli", 5))

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        for name in ("depth", "halvings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("latents", "hidden"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(
                    f"{name}: got {list(getattr(self, name))}, expected one positive number for each layer"
                )
        if len(self.hidden) != len(self.latents):
            raise ValueError(
                f"hidden: got {len(self.hidden)} widths, expected one for each of {len(self.latents)} stochastic layers"
            )
        if self.network != "dense" and len(self.latents) > 1:
            raise ValueError(f"latents: got {len(self.latents)} stochastic layers, expected 1 if {self.network}")


def tanh_layers(inputs: int, width: int, depth: int) -> nn.Sequential:
    """Hidden layers of the paper: Glorot's uniform weights, biases 0."""
    sizes = [inputs] + [width] * depth
    return nn.Sequential(*[part for pair in pairwise(sizes) for part in (_linear(*pair), nn.Tanh())])


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Inferred(NamedTuple):
    """A Normal distribution, ``[B, latents, h, w]``, and the features that its mean and scale are linear in."""

    normal: Normal
    features: Tensor


@final
class DenseNormal(nn.Module):
    """A Normal distribution given vectors: hidden layers, then mean and log standard deviation, linear.

    Arguments:
        inputs: values that are conditioned on.
        width, depth: of the hidden layers.
        latents: variables of the distribution.
    """

    def __init__(self, inputs: int, width: int, depth: int, latents: int) -> None:
        super().__init__()
        self.hidden = tanh_layers(inputs, width, depth)
        self.mean = _linear(width, latents)
        self.log_scale = _linear(width, latents)

    def forward(self, below: Tensor) -> Inferred:
        """``[B, ...]``, anything with ``inputs`` values -> ``[B, latents, 1, 1]``."""
        hidden = self.hidden(below.flatten(1))
        normal = Normal(self.mean(hidden)[..., None, None], self.log_scale(hidden).exp()[..., None, None])
        return Inferred(normal, hidden[..., None, None])


@final
class DenseOutput(nn.Module):
    """The pixels' parameters given a vector.

    Arguments:
        latents: values that are conditioned on.
        width, depth: of the hidden layers.
        shape: ``[P, H, W]``, parameters for each pixel.
    """

    def __init__(self, latents: int, width: int, depth: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.hidden = tanh_layers(latents, width, depth)
        self.last = _linear(width, shape[0] * shape[1] * shape[2])

    def forward(self, z: Tensor) -> Tensor:
        """``[B, latents, 1, 1]`` -> ``[B, P, H, W]``."""
        raw: Tensor = self.last(self.hidden(z.flatten(1)))
        return raw.unflatten(1, self.shape)


@final
class ConvolutionalNormal(nn.Module):
    """A Normal distribution of a latent map given an image."""

    def __init__(self, channels: int, config: VAEConfig, rescales: list[int]) -> None:
        super().__init__()
        widths = widths_along(config.hidden[0], rescales)
        self.cell = ResidualCell(widths, rescales, stem_channels=channels)
        self.head = WeightNormConv2d(widths[-1], 2 * config.latents[0], 3)

    def forward(self, x: Tensor) -> Inferred:
        """``[B, C, H, W]`` -> ``[B, latents, h, w]``."""
        features = nn.functional.silu(self.cell(x))
        mean, log_scale = self.head(features).chunk(2, 1)
        return Inferred(Normal(mean, log_scale.exp()), features)


@final
class ConvolutionalOutput(nn.Module):
    """The pixels' parameters given a latent map."""

    def __init__(self, parameters: int, config: VAEConfig, rescales: list[int]) -> None:
        super().__init__()
        widths = widths_along(config.hidden[0] * 2**config.halvings, rescales)
        self.cell = ResidualCell(widths, rescales, stem_channels=config.latents[0])
        self.last = WeightNormConv2d(widths[-1], parameters, 3)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, latents, h, w]`` -> ``[B, P, H, W]``."""
        raw: Tensor = self.last(nn.functional.silu(self.cell(z)))
        return raw


@final
class GatedNormal(nn.Module):
    """A Normal distribution of a vector given an image, by gated convolutions; its variance is a softplus."""

    def __init__(self, channels: int, config: VAEConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = GatedEncoder(channels, config.hidden[0], grid)
        features = FEATURES * config.hidden[0]
        self.mean = nn.Conv2d(features, config.latents[0], 1)
        self.raw_variance = nn.Conv2d(features, config.latents[0], 1)

    def forward(self, x: Tensor) -> Inferred:
        """``[B, C, H, W]`` -> ``[B, latents, 1, 1]``."""
        features = self.encoder(x)
        raw = at_least_float32(self.raw_variance(features)).clamp_min(_RAW_VARIANCE)
        return Inferred(Normal(self.mean(features), nn.functional.softplus(raw).sqrt()), features)


Output = DenseOutput | ConvolutionalOutput | GatedDecoder


class VAENetworks(PixelHierarchy, ABC):
    """The encoder and the decoder of the variational autoencoder; a subclass says what the posterior is.

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options contradict one another or do not fit the images.
    """

    images_wanted = 10_000  # a pixel's mean over these has a standard error of at most 0.005

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.num_layers = len(config.latents)
        if config.likelihood.family != "bernoulli":
            self.images_wanted = 0
        self.choose_likelihood(config.likelihood)
        unit = {"dense": 1, "convolutional": 2**config.halvings, "gated": 2**HALVINGS}[config.network]
        self.padding = Padding.to_multiple(self.shape[1:], unit)
        coarsest = (self.padding.padded[0] // unit, self.padding.padded[1] // unit)
        self.grid = coarsest if config.network == "convolutional" else (1, 1)
        """Of the top layer's latents."""
        if config.network == "dense":
            self._build_dense()
        elif config.network == "convolutional":
            self._build_convolutional()
        else:
            self._build_gated(coarsest)
        self._choose_latents()

    def _choose_latents(self) -> None:
        config = self.config
        factor = {"dense": 1, "convolutional": 2**config.halvings, "gated": FEATURES}[config.network]
        features = [factor * width for width in config.hidden]
        sizes = [LayerSizes(*pair) for pair in zip(config.latents, features, strict=True)]
        self.layer_sizes = sizes[::-1]
        """Of the layers, the top first."""
        self.choose_latents((config.latents[-1], *self.grid), self.layer_sizes)

    def _build_dense(self) -> None:
        config, depth = self.config, self.config.depth
        latents, widths = config.latents, config.hidden
        inputs = (self.dims, *latents[:-1])
        levels = range(self.num_layers)  # from the image up
        self.inference = nn.ModuleList(DenseNormal(inputs[i], widths[i], depth, latents[i]) for i in levels)
        self.generative = nn.ModuleList(
            DenseNormal(latents[i], widths[i], depth, latents[i - 1]) for i in reversed(levels[1:])
        )
        pixels = (self.head.inputs, *self.shape[1:])
        self.output: DenseOutput | ConvolutionalOutput | GatedDecoder = DenseOutput(
            latents[0], widths[0], depth, pixels
        )

    def _build_convolutional(self) -> None:
        rest = [0] * (self.config.depth - 1)
        self.inference = nn.ModuleList(
            [ConvolutionalNormal(self.shape[0], self.config, [-2, *rest] * self.config.halvings)]
        )
        self.generative = nn.ModuleList()
        self.output = ConvolutionalOutput(self.head.inputs, self.config, [*rest, 2] * self.config.halvings)

    def _build_gated(self, coarsest: tuple[int, int]) -> None:
        (latents,), (width,) = self.config.latents, self.config.hidden
        self.inference = nn.ModuleList([GatedNormal(self.shape[0], self.config, coarsest)])
        self.generative = nn.ModuleList()
        self.output = GatedDecoder(latents, self.head.inputs, width, coarsest)

    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, (ResidualBlock, GatedConv2d)))
        return dict.fromkeys([*own, *self.head.blocks()])

    def initialize_layers(self, images: Tensor, kept: Container[str]) -> None:
        """Let binary pixels be as probable from the start as they are in the images: the last layer's biases become the
        logits of the means. A convolution has one bias for all pixels of a channel."""
        if self.config.likelihood.family != "bernoulli" or "output.last.bias" in kept:
            return
        bias = self.output.last.bias
        assert bias is not None
        over = (0,) if self.config.network == "dense" else (0, 2, 3)
        mean = images.to(bias.dtype).mean(over).flatten().clamp(_SMALLEST_MEAN, 1.0 - _SMALLEST_MEAN)
        bias.copy_(mean.logit())

    def encode_pixels(self, pixels: Tensor) -> Inferred:
        """q(z_1 | x), before a flow."""
        inferred: Inferred = self.inference[0](self.padding.add(pixels))
        return inferred

    def pixels(self, z: Tensor) -> Distribution:
        """p(x | z_1)."""
        return self.head(self.padding.crop(self.output(z)))

    def own_prior(self) -> Normal:
        """p(z_L), unless the options ask for another one, for a batch of one."""
        weight, shape = next(self.parameters()), (1, self.config.latents[-1], *self.grid)
        return Normal(weight.new_zeros(shape), weight.new_ones(shape))


@final
class VAE(VAENetworks):
    """The variational autoencoder (module docstring). Its arguments are those of its networks."""

    name = "vae"
    Config = VAEConfig

    def why_top_is_not_normal(self) -> str:
        if self.num_layers > 1:
            return f"the posterior of the top one of {self.num_layers} stochastic layers depends on draws of the others"
        return super().why_top_is_not_normal()

    def top_posterior(self, context: Inferred) -> Latent:
        if self.num_layers > 1:
            raise OptionError("latents", f"got {self.num_layers} layers, expected one: {self.why_top_is_not_normal()}")
        return self.posterior(0, *context)

    def top_down(self, choose: Choose, context: Inferred | None = None) -> Distribution:
        top = self.num_layers - 1
        posteriors: list[Latent | None] = [None] * self.num_layers  # top first
        if context is not None:
            posterior = self.posterior(top, *context)
            for layer in range(top, 0, -1):  # from the image up: each latent is drawn before the one above it
                drawn = ask_early(choose, layer, posterior)
                posteriors[layer] = drawn
                posterior = self.posterior(layer - 1, *self.inference[self.num_layers - layer](drawn.z))
            posteriors[0] = posterior
        z = choose(0, self.top_prior(self.own_prior()), posteriors[0])
        for layer in range(1, self.num_layers):
            z = choose(layer, self.generative[layer - 1](z).normal, posteriors[layer])
        return self.pixels(z)
