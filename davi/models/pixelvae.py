r"""PixelVAE: latents say what an image is about, and a PixelCNN says every pixel, given them and the pixels before.

One level, a vector z:

.. math:: p(x, z) = p(z) \prod_i p(x_i \mid x_{<i}, z), \qquad
          \log p(x) \ge E_{q(z \mid x)} \log p(x \mid z) - KL(q(z \mid x) \| p(z))

Two levels, a grid :math:`z_1` below a vector :math:`z_2`:

.. math:: p(x, z) = p(z_2)\, p(z_1 \mid z_2) \prod_i p(x_i \mid x_{<i}, z_1), \qquad
          q(z_1, z_2 \mid x) = q(z_1 \mid x)\, q(z_2 \mid x)

.. math:: \log p(x) \ge E_q \log p(x \mid z_1) - E_{q(z_2 \mid x)} KL(q(z_1 \mid x) \| p(z_1 \mid z_2))
          - KL(q(z_2 \mid x) \| p(z_2))

or with :math:`q(z_2 \mid z_1)` in place of :math:`q(z_2 \mid x)`: then :math:`z_1` is drawn first, and its term is
:math:`\log q(z_1 \mid x) - \log p(z_1 \mid z_2)` at the draw. :math:`p(z_2)` is N(0, I), every other distribution of
latents Normal with diagonal covariance; :math:`p(z_1 \mid z_2)` may be autoregressive over the grid
(:class:`~davi.distributions.AutoregressiveNormal`), with a gated PixelCNN as its network.

The latents reach the PixelCNN as a feature map: made by an upsampling network, or, of a vector, as the same linear
function of it at every pixel, which is a bias of every gate.

References:
    PixelVAE: A Latent Variable Model for Natural Images, I. Gulrajani, K. Kumar, F. Ahmed, A. A. Taiga, F. Visin, D.
    Vazquez, A. Courville, ICLR 2017, https://arxiv.org/abs/1611.05013
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import AutoregressiveNormal, Distribution, Latent, Normal
from davi.distributions.base import at_least_float32
from davi.errors import OptionError
from davi.layers import Padding, ResidualBlock, ResidualCell, WeightNormConv2d
from davi.layers.autoregressive_head import AutoregressiveHead
from davi.layers.causal import Window
from davi.layers.masked import degrees
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.residual import widths_along
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy, ask_early
from davi.models.gated_pixelcnn import CausalConv2d, GatedLayer, GatedPixelCNNConfig
from davi.models.vae import Inferred

_LARGEST_LOG_SCALE = 7.0
"""Logarithms of standard deviations lie between minus this and this, which guards against overflow only."""


@dataclass(frozen=True)
class LatentPixelCNNConfig:
    """Options of the gated PixelCNN over a grid of latents.

    Arguments:
        width: channels of each stack.
        layers: gated layers.
        kernel: of all layers but the first; odd.
        first_kernel: of the first layer; odd, at least 3.
        within_position: whether a channel is given the earlier channels of its position as well. Draws take as many
            passes of the network as there are positions, and with this as many as there are latents.
    """

    width: int = 32
    layers: int = 2
    kernel: int = 3
    first_kernel: int = 5
    within_position: bool = False

    def __post_init__(self) -> None:
        self.gated()  # which refuses impossible numbers

    def gated(self) -> GatedPixelCNNConfig:
        """The same as the options of a gated PixelCNN."""
        return GatedPixelCNNConfig(self.width, self.layers, self.kernel, self.first_kernel)


def _gated_pixelcnn() -> LikelihoodConfig:
    return LikelihoodConfig("autoregressive", network=GatedPixelCNNConfig())  # type: ignore[arg-type]  # it adds the name


@dataclass(frozen=True)
class PixelVAEConfig(LatentOptions):
    """Options of :class:`PixelVAE`. Lists go from the image to the top.

    Arguments:
        latents: of the vector; of two levels, channels of the grid and latents of the vector.
        width: channels of the residual networks at full resolution, which double with each halving.
        depth: residual blocks for each halving.
        hidden: width of the dense layer before the mean and scale of the vector.
        halvings: how often the resolution is halved on the way to the first level.
        top_halvings: how often more on the way to the vector above a grid.
        decoder: how a vector reaches the pixels: through a network that doubles the resolution, or as a ``bias``, the
            same linear function of it at every pixel. A grid is always upsampled.
        top_given: whether the vector above a grid is inferred from the image or from the grid's latents.
        latent_network: of an autoregressive :math:`p(z_1 \\mid z_2)`; None: its latents are independent given
            :math:`z_2`.
        likelihood: family and options of p(x | z).
    """

    latents: tuple[int, ...] = (16,)
    width: int = 16
    depth: int = 1
    hidden: int = 128
    halvings: int = 2
    top_halvings: int = 1
    decoder: Literal["upsample", "bias"] = "upsample"
    top_given: Literal["image", "latents"] = "image"
    latent_network: LatentPixelCNNConfig | None = None
    likelihood: LikelihoodConfig = field(default_factory=_gated_pixelcnn)

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        for name, least in (("width", 2), ("depth", 1), ("hidden", 1), ("halvings", 1), ("top_halvings", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if len(self.latents) not in (1, 2) or min(self.latents) < 1:
            raise ValueError(f"latents: got {list(self.latents)}, expected one or two positive numbers")
        two = len(self.latents) == 2
        if two and self.decoder == "bias":
            raise ValueError("decoder: got bias for two levels, expected upsample: their lower one is a grid")
        if not two and self.top_given == "latents":
            raise ValueError("top_given: got latents for one level, expected image")
        if self.latent_network is None:
            return
        if not two:
            raise ValueError("latent_network: got a network for one level, expected null: its latents are a vector")
        if self.latent_network.within_position and self.latent_network.width < self.latents[0]:
            raise ValueError(
                f"latent_network.width: got {self.latent_network.width}, expected at least {self.latents[0]}, "
                "one for each channel of a position"
            )


def _normal(raw: Tensor) -> Normal:
    """From means and log standard deviations along the channels."""
    mean, log_scale = at_least_float32(raw).chunk(2, 1)
    return Normal(mean, log_scale.clamp(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE).exp())


def _downwards(halvings: int, depth: int) -> list[int]:
    """What the blocks of a way up do to the resolution."""
    return [-2, *[0] * (depth - 1)] * halvings or [0] * depth


@final
class VectorInference(nn.Module):
    """A Normal distribution of a vector given a map: residual blocks, a dense layer, mean and scale.

    Arguments:
        inputs: channels of the map.
        config: the options.
        width: channels at the map's resolution.
        halvings: of its resolution.
        grid: height and width after them.
        latents: of the vector.
    """

    def __init__(
        self, inputs: int, config: PixelVAEConfig, width: int, halvings: int, grid: tuple[int, int], latents: int
    ) -> None:
        super().__init__()
        rescales = _downwards(halvings, config.depth)
        widths = widths_along(width, rescales)
        self.cell = ResidualCell(widths, rescales, stem_channels=inputs)
        self.hidden = nn.Linear(widths[-1] * grid[0] * grid[1], config.hidden)
        self.head = nn.Linear(config.hidden, 2 * latents)

    def forward(self, x: Tensor) -> Inferred:
        """``[B, inputs, h, w]`` -> ``[B, latents, 1, 1]``."""
        hidden = F.silu(self.hidden(F.silu(self.cell(x)).flatten(1)))
        return Inferred(_normal(self.head(hidden)[..., None, None]), hidden[..., None, None])


@final
class GridInference(nn.Module):
    """A Normal distribution of a grid of latents given an image."""

    def __init__(self, inputs: int, config: PixelVAEConfig, latents: int) -> None:
        super().__init__()
        rescales = _downwards(config.halvings, config.depth)
        widths = widths_along(config.width, rescales)
        self.cell = ResidualCell(widths, rescales, stem_channels=inputs)
        self.head = WeightNormConv2d(widths[-1], 2 * latents, 3)

    def forward(self, x: Tensor) -> Inferred:
        """``[B, inputs, H, W]`` -> ``[B, latents, h, w]``."""
        features = F.silu(self.cell(x))
        return Inferred(_normal(self.head(features)), features)


@final
class Upsampling(nn.Module):
    """A map of a higher resolution made of latents: residual blocks and a last convolution.

    Arguments:
        latents: channels of a grid, or the length of a vector.
        config: the options.
        width: channels in the end, which double with each doubling of the resolution before it.
        doublings: of the resolution.
        outputs: channels of the last convolution.
        grid: height and width of what a vector is made into by a dense layer; None: the latents are a grid.
    """

    def __init__(
        self,
        latents: int,
        config: PixelVAEConfig,
        width: int,
        doublings: int,
        outputs: int,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        rescales = [-rescale for rescale in reversed(_downwards(doublings, config.depth))]
        widths = widths_along(width * 2**doublings, rescales)
        self.start = (widths[0], *(grid or ()))
        self.dense = None if grid is None else nn.Linear(latents, widths[0] * grid[0] * grid[1])
        self.cell = ResidualCell(widths, rescales, stem_channels=latents if grid is None else None)
        self.last = WeightNormConv2d(widths[-1], outputs, 3)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, latents, h, w]`` -> ``[B, outputs, h 2^doublings, w 2^doublings]``."""
        if self.dense is not None:
            z = self.dense(z.flatten(1)).unflatten(1, self.start)
        out: Tensor = self.last(F.silu(self.cell(z)))
        return out


@final
class LatentPixelCNN(nn.Module):
    """The conditionals of :math:`p(z_1 | z_2)`: Normal distributions read off the features of :math:`z_2`, to whose
    means and log standard deviations a gated PixelCNN over :math:`z_1` adds. It adds nothing at first.

    Arguments:
        channels: of :math:`z_1`.
        features: channels of the map that :math:`z_2` has been made into.
        config: the options.
    """

    def __init__(self, channels: int, features: int, config: LatentPixelCNNConfig) -> None:
        super().__init__()
        self.parts = channels if config.within_position else 1
        variables, hidden = degrees(channels, self.parts), degrees(config.width, self.parts)
        self.layers = nn.ModuleList(
            GatedLayer(config.gated(), hidden if i else variables, hidden, i == 0, i == config.layers - 1, 0, features)
            for i in range(config.layers)
        )
        self.direct = WeightNormConv2d(features, 2 * channels, 1)
        self.last = CausalConv2d(hidden, variables.repeat(2), mask_type="B")
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, features: Tensor) -> Normal:
        """``[B, channels, h, w]``, ``[B, features, h, w]`` -> the Normal of every latent given those before it."""
        v, h = F.pad(z, (0, 0, 1, -1)), z  # moved down by a row
        for layer in self.layers:
            v, h, _ = layer(v, h, features, None)
        return _normal(self.direct(F.silu(features)) + self.last(F.elu(h)))


class PixelVAEBase(PixelHierarchy, ABC):
    """What PixelVAE and the models that are special cases of it have in common.

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        OptionError: a ``ValueError``, if the likelihood cannot describe the images.
    """

    config: PixelVAEConfig
    """The options."""

    def __init__(self, shape: tuple[int, int, int], levels: int, config: PixelVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.num_layers = len(config.latents)
        self.choose_likelihood(config.likelihood)
        two = self.num_layers == 2
        halvings = config.halvings + (config.top_halvings if two else 0)
        self.padding = Padding.to_multiple(self.shape[1:], 2**halvings)
        rows, columns = (side >> halvings for side in self.padding.padded)
        if two:
            self._build_two_levels((rows, columns))
        else:
            self._build_one_level((rows, columns))
        sizes = [LayerSizes(config.latents[-1], config.hidden)]
        if two:
            sizes.append(LayerSizes(config.latents[0], self.grid_width))
        self.choose_latents((config.latents[-1], 1, 1), sizes)

    def _build_one_level(self, top: tuple[int, int]) -> None:
        config, (latents,) = self.config, self.config.latents
        self.infer_top = VectorInference(self.shape[0], config, config.width, config.halvings, top, latents)
        self.upsampling: nn.Module
        if config.decoder == "bias":
            self.upsampling = nn.Conv2d(latents, self.head.inputs, 1)
        else:
            self.upsampling = Upsampling(latents, config, config.width, config.halvings, self.head.inputs, top)

    def _build_two_levels(self, top: tuple[int, int]) -> None:
        config, (below, above) = self.config, self.config.latents
        self.grid_width = width = config.width * 2**config.halvings
        self.infer_grid = GridInference(self.shape[0], config, below)
        seen = width if config.top_given == "image" else below
        self.infer_top = VectorInference(seen, config, width, config.top_halvings, top, above)
        network = config.latent_network
        outputs = 2 * below if network is None else width
        self.prior_features = Upsampling(above, config, width, config.top_halvings, outputs, top)
        self.latent_network = None if network is None else LatentPixelCNN(below, width, network)
        self.upsampling = Upsampling(below, config, config.width, config.halvings, self.head.inputs)

    @property
    @final
    def window(self) -> Window | None:
        """What a pixel sees of the pixels before it; None: no bound, or a likelihood that sees none of them."""
        return self.head.network.window if isinstance(self.head, AutoregressiveHead) else None

    @final
    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, ResidualBlock))
        return dict.fromkeys([*own, *self.head.blocks()])

    @final
    def encode_pixels(self, pixels: Tensor) -> list[Inferred]:
        """What is inferred from the image alone, the lowest level first."""
        x = self.padding.add(pixels)
        if self.num_layers == 1:
            return [self.infer_top(x)]
        grid: Inferred = self.infer_grid(x)
        return [grid, self.infer_top(grid.features)] if self.config.top_given == "image" else [grid]

    @final
    def why_top_is_not_normal(self) -> str:
        return self._why_top_is_drawn_late() or super().why_top_is_not_normal()

    def _why_top_is_drawn_late(self) -> str:
        return "the posterior of the vector depends on a draw of the grid" if self.config.top_given == "latents" else ""

    @final
    def top_posterior(self, context: list[Inferred]) -> Latent:
        if reason := self._why_top_is_drawn_late():
            raise OptionError("top_given", f"got latents, expected image: {reason}")
        return self.posterior(0, *context[-1])

    @final
    def top_down(self, choose: Choose, context: list[Inferred] | None = None) -> Distribution:
        posteriors = [None] * self.num_layers if context is None else self._posteriors(choose, context)
        weight, shape = next(self.parameters()), (1, self.config.latents[-1], 1, 1)
        z = choose(0, self.top_prior(Normal(weight.new_zeros(shape), weight.new_ones(shape))), posteriors[0])
        if self.num_layers == 2:
            z = choose(1, self._prior_of_grid(z), posteriors[1])
        features = self.upsampling(z)
        if self.config.decoder == "bias":
            return self.head(features.expand(-1, -1, *self.shape[1:]))
        return self.head(self.padding.crop(features))

    def _posteriors(self, choose: Choose, context: list[Inferred]) -> list[Latent | None]:
        """Of all levels, the top first."""
        if len(context) == self.num_layers:
            return [self.posterior(layer, *inferred) for layer, inferred in enumerate(reversed(context))]
        drawn = ask_early(choose, 1, self.posterior(1, *context[0]))
        return [self.posterior(0, *self.infer_top(drawn.z)), drawn]

    def _prior_of_grid(self, z: Tensor) -> Latent:
        r""":math:`p(z_1 \mid z_2)`."""
        features = self.prior_features(z)
        network = self.latent_network
        if network is None:
            return _normal(features)
        return AutoregressiveNormal(network, features, self.config.latents[0], network.parts)


@final
class PixelVAE(PixelVAEBase):
    """PixelVAE (module docstring).

    Arguments:
        shape, levels, config: as :class:`PixelVAEBase` takes them.
    """

    name = "pixelvae"
    Config = PixelVAEConfig
