r"""BIVA: a hierarchy with latents drawn on the way up as well as on the way down.

Layers are numbered from the image, 1 .. L, as in the paper. The top layer has one latent :math:`z_L`, every other layer
two, :math:`z_i = (z_i^{BU}, z_i^{TD})`: 2L - 1 latents altogether.

.. math:: p(x, z) = p(x \mid z)\, N(z_L; 0, 1) \prod_{i<L} p(z_i^{BU} \mid z_{>i})\, p(z_i^{TD} \mid z_{>i})

.. math:: q(z \mid x) = q(z_L \mid x, z^{BU}) \prod_{i<L} q(z_i^{BU} \mid x, z_{<i}^{BU})\,
          q(z_i^{TD} \mid x, z^{BU}, z_{>i})

*Generative model.* One chain of gated residual blocks runs from a learned constant :math:`d_L` down to the image,

.. math:: d_{i-1} = D_i(d_i, z_i), \qquad p(z_i^{BU}, z_i^{TD} \mid z_{>i}) = N(\text{prior head}(d_i))

and since the blocks keep what they are given, every latent has a direct way to all layers below (skip connections).

*Inference.* A stochastic chain climbs from the image, :math:`u_i = U_i(u_{i-1}, z_{i-1}^{BU})`, and draws
:math:`z_i^{BU} \sim N(\text{head}(u_i))` at each stage; :math:`q(z_L) = N(\text{head}(u_L))`. A deterministic chain
descends, :math:`t_{i-1} = T_i(t_i, u_{i-1})` from :math:`t_L = u_L`, and meets the generative one:
:math:`q(z_i^{TD}) = N(\text{head}(t_i, d_i))`.

*The bound.* All bottom-up latents are drawn before their priors are known, and later draws depend on them. Their part
of the bound is therefore that of the draw,

.. math:: \log p(x) \ge E_q\Bigl[\log p(x \mid z) - KL(q(z_L) \| N(0, 1))
          - \sum_{i<L} KL(q(z_i^{TD}) \| p(z_i^{TD}))
          - \sum_{i<L} \bigl(\log q(z_i^{BU}) - \log p(z_i^{BU})\bigr)\Bigr]

whereas a divergence in closed form would treat :math:`z_i^{BU}` and its prior, which depends on it through
:math:`z_{>i}`, as independent; the sum can then exceed :math:`\log p(x)`.

*The walk* (and every table of layers) has the order top, then for each layer from above its top-down and its bottom-up
latent: 0 is :math:`z_L`, 1 and 2 are :math:`z_{L-1}^{TD}` and :math:`z_{L-1}^{BU}`, ..., the last two are
:math:`z_1^{TD}` and :math:`z_1^{BU}`.

References:
    BIVA: A Very Deep Hierarchy of Latent Variables for Generative Modeling, L. Maaloe, M. Fraccaro, V. Lievin,
    O. Winther, NeurIPS 2019, https://arxiv.org/abs/1902.02102
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Distribution, Drawn, Latent, Normal
from davi.errors import OptionError
from davi.layers import Padding
from davi.layers.checkpointed import Checkpointed
from davi.layers.convolution import WeightNormConv2d
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.weight_norm_init import initialize_from_data
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy, ask_early

_LOG_VARIANCE = 14.0
"""Log-variances are clamped to +- this: a guard against overflow that no trained model comes near."""

Variance = Literal["raw", "softplus_log_variance"]


@dataclass(frozen=True)
class BIVAConfig(LatentOptions):
    """Options of :class:`BIVA`. Lists begin with layer 1, the nearest to the image.

    Arguments:
        latents: variables of each latent of layer 1 .. L: lengths of vectors, or channels of maps.
        strides: 1, or 2 where the stage below that layer halves the grid.
        dense: latents are vectors, not maps.
        width: channels of all feature maps.
        blocks: gated residual blocks per stage, of each of the three chains.
        first_kernel: kernel size of the stage next to the image.
        kernel: kernel size of the other stages.
        inference_dropout, generative_dropout: share of hidden channels' values set to zero in training.
        variance: what the heads' second output is. ``raw``, the log-variance. ``softplus_log_variance``: its softplus
            is, as in the published programs, whose variances (but that of the top prior) are at least 1 for that
            reason.
        initial_scale: standard deviation of every convolution's outputs after the data-dependent initialization.
        likelihood: family and options of p(x | z).
    """

    latents: tuple[int, ...] = (48, 40, 32, 24, 16, 8)
    strides: tuple[int, ...] = (2, 1, 1, 1, 1, 2)
    dense: bool = True
    width: int = 64
    blocks: int = 3
    first_kernel: int = 5
    kernel: int = 3
    inference_dropout: float = 0.0
    generative_dropout: float = 0.0
    variance: Variance = "raw"
    initial_scale: float = 0.1
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("bernoulli", 10))

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        if not self.latents or min(self.latents) < 1:
            raise ValueError(f"latents: got {list(self.latents)}, expected one or more positive numbers")
        if len(self.strides) != len(self.latents) or set(self.strides) - {1, 2}:
            raise ValueError(
                f"strides: got {list(self.strides)}, expected 1 or 2 for each of {len(self.latents)} layers"
            )
        for name in ("width", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("first_kernel", "kernel"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected an odd number")
        for name in ("inference_dropout", "generative_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 to below 1")
        if not 0.0 < self.initial_scale < math.inf:
            raise ValueError(f"initial_scale: got {self.initial_scale}, expected a number above 0")


@final
class GatedBlock(Checkpointed):
    """Gated residual block: ``shortcut(x) + a * sigmoid(b)`` with [a | b] computed from x and something extra.

    Arguments:
        width: channels, kept.
        kernel_size: of both convolutions.
        extra: channels of the extra input, on the grid of x.
        rescale: 2 doubles, -2 halves the grid.
        dropout: before the second convolution.
    """

    def __init__(self, width: int, kernel_size: int, extra: int = 0, rescale: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.rescale = rescale
        self.first = WeightNormConv2d(width + extra, width, kernel_size, stride=2 if rescale == -2 else 1)
        self.dropout = nn.Dropout(dropout)
        self.second = WeightNormConv2d(width, 2 * width, kernel_size)

    def compute(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        inner = F.elu(x if extra is None else torch.cat([x, extra.to(x.dtype)], 1))
        if self.rescale == -2:
            x = F.avg_pool2d(x, 2)
        elif self.rescale == 2:
            x, inner = (F.interpolate(y, scale_factor=2.0, mode="nearest") for y in (x, inner))
        value, gate = self.second(self.dropout(F.elu(self.first(inner)))).chunk(2, 1)
        return x + value * gate.sigmoid()


@final
class Stage(nn.Module):
    """A row of gated blocks. The first one takes the extra input; the one next to the finer grid rescales."""

    def __init__(
        self, blocks: int, width: int, kernel_size: int, extra: int = 0, rescale: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        at = 0 if rescale == 2 else blocks - 1
        self.blocks = nn.ModuleList(
            GatedBlock(width, kernel_size, 0 if i else extra, rescale if i == at else 0, dropout) for i in range(blocks)
        )

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x) if i else block(x, extra)
        return x


@final
class Head(nn.Module):
    """From features to Normal latents, one for each entry of ``latents``: maps, or vectors if there is a grid."""

    def __init__(self, width: int, latents: Sequence[int], grid: tuple[int, int] | None, variance: Variance) -> None:
        super().__init__()
        self.split = [count for size in latents for count in (size, size)]
        self.grid = grid
        self.variance = variance
        if grid is None:
            self.conv = WeightNormConv2d(width, sum(self.split), 3)
        else:
            self.conv = WeightNormConv2d(width * grid[0] * grid[1], sum(self.split), 1)

    def forward(self, features: Tensor) -> list[Normal]:
        return self.read(self.seen(features))

    def seen(self, features: Tensor) -> Tensor:
        """What the convolution sees, a map or a vector."""
        features = F.elu(features)
        return features if self.grid is None else features.flatten(1)[:, :, None, None]

    def read(self, seen: Tensor) -> list[Normal]:
        """The latents, of what :meth:`seen` has made of the features."""
        outputs: Tensor = self.conv(seen)
        if outputs.dtype != torch.float64:
            outputs = outputs.float()
        parts = outputs.split(self.split, 1)
        return [Normal(mean, self._scale(raw)) for mean, raw in zip(parts[::2], parts[1::2], strict=True)]

    def _scale(self, raw: Tensor) -> Tensor:
        log_variance = F.softplus(raw) if self.variance == "softplus_log_variance" else raw
        return (0.5 * log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE)).exp()


@final
class Spread(nn.Module):
    """Latents as a map: maps as they are, vectors through a dense layer. :attr:`channels` is what it has."""

    def __init__(self, latents: int, width: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.grid = grid
        self.channels = latents if grid is None else width
        self.conv = None if grid is None else WeightNormConv2d(latents, width * grid[0] * grid[1], 1)

    def forward(self, z: Tensor) -> Tensor:
        if self.conv is None or self.grid is None:
            return z
        return self.conv(z).reshape(len(z), self.channels, *self.grid)


class Climbed(NamedTuple):
    """What inference knows before the walk down begins; lists begin with layer 1."""

    drawn: list[Drawn]
    """The bottom-up latents of layers 1 .. L - 1."""
    top: Latent
    """q(z_L)."""
    features: list[Tensor]
    """t_1 .. t_{L-1}, ``[B, width, h, w]``."""


@final
class BIVA(PixelHierarchy):
    """The bidirectional-inference hierarchy (module docstring, which also gives the order of its 2L - 1 latents).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options contradict one another or do not fit the images.
    """

    name = "biva"
    Config = BIVAConfig
    images_wanted = 256

    def __init__(self, shape: tuple[int, int, int], levels: int, config: BIVAConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.depth = len(config.latents)
        """L."""
        self.num_layers = 2 * self.depth - 1
        unit = math.prod(config.strides)
        self.padding = Padding.to_multiple(self.shape[1:], unit)
        halved = [math.prod(config.strides[: i + 1]) for i in range(self.depth)]
        self.grids = [(self.padding.padded[0] // factor, self.padding.padded[1] // factor) for factor in halved]
        """Grids of layers 1 .. L."""
        self.choose_likelihood(config.likelihood)
        self._build_inference()
        self._build_generative()
        self.choose_latents((config.latents[-1], *((1, 1) if config.dense else self.grids[-1])), self._layer_sizes())

    def _layer_sizes(self) -> list[LayerSizes]:
        """Of all latents in the order of the walk."""
        sizes = []
        for i in reversed(range(self.depth)):
            grid = self._flat(i)
            own = LayerSizes(self.config.latents[i], self.config.width * (grid[0] * grid[1] if grid else 1))
            sizes += [own] if i == self.depth - 1 else [own, own]
        return sizes

    def _flat(self, i: int) -> tuple[int, int] | None:
        """The grid that latents of layer i + 1 are to be made from and spread over, if they have none themselves."""
        return self.grids[i] if self.config.dense else None

    def _kernel(self, i: int) -> int:
        return self.config.kernel if i else self.config.first_kernel

    def _build_inference(self) -> None:
        config, last = self.config, self.depth - 1
        options = {"dropout": config.inference_dropout}
        self.stem = WeightNormConv2d(self.shape[0], config.width, config.first_kernel)
        spreads = [Spread(config.latents[i], config.width, self._flat(i)) for i in range(last)]
        self.up_spread = nn.ModuleList(spreads)
        extras = [0] + [spread.channels for spread in spreads]
        rescales = [-2 if stride == 2 else 0 for stride in config.strides]
        self.up = nn.ModuleList(
            Stage(config.blocks, config.width, self._kernel(i), extras[i], rescales[i], **options)
            for i in range(self.depth)
        )
        self.up_head = nn.ModuleList(
            Head(config.width, [config.latents[i]], self._flat(i), config.variance) for i in range(self.depth)
        )
        # T_i reads the climbing chain's features of the layer below, after it has reached that layer's grid.
        self.across = nn.ModuleList(
            Stage(config.blocks, config.width, config.kernel, rescale=-rescales[i + 1], **options) for i in range(last)
        )
        self.across_read = nn.ModuleList(WeightNormConv2d(config.width, config.width, 1) for _ in range(last))
        self.merge = nn.ModuleList(WeightNormConv2d(2 * config.width, config.width) for _ in range(last))
        self.down_head = nn.ModuleList(
            Head(config.width, [config.latents[i]], self._flat(i), config.variance) for i in range(last)
        )

    def _build_generative(self) -> None:
        config, last = self.config, self.depth - 1
        self.top = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        sizes = [size * (1 if i == last else 2) for i, size in enumerate(config.latents)]
        spreads = [Spread(size, config.width, self._flat(i)) for i, size in enumerate(sizes)]
        self.spread = nn.ModuleList(spreads)
        self.down = nn.ModuleList(
            Stage(
                config.blocks,
                config.width,
                self._kernel(i),
                spread.channels,
                2 if config.strides[i] == 2 else 0,
                config.generative_dropout,
            )
            for i, spread in enumerate(spreads)
        )
        self.prior = nn.ModuleList(
            Head(config.width, [config.latents[i]] * 2, self._flat(i), config.variance) for i in range(last)
        )
        self.output = WeightNormConv2d(config.width, self.head.inputs, config.first_kernel)

    def layer(self, i: int, bottom_up: bool = False) -> int:
        """The place in the walk of :math:`z_i^{TD}` (of :math:`z_L` for i = L) or :math:`z_i^{BU}`."""
        return 2 * (self.depth - i) - (0 if bottom_up or i == self.depth else 1)

    def latent_name(self, layer: int) -> str:
        i = self.depth - (layer + 1) // 2
        return f"z{i}" + (f" {'top-down' if layer % 2 else 'bottom-up'}" if layer else "")

    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, Checkpointed))
        return dict.fromkeys([*own, *self.head.blocks()])

    def initialize_layers(self, images: Tensor, kept: Container[str]) -> None:
        initialize_from_data(self, lambda: self.evidence(images), self.config.initial_scale, kept)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """u_1, ``[B, width, h, w]``: as far as inference comes without a draw."""
        scaled = self.padding.add(pixels) * 2.0 - 1.0
        features: Tensor = self.up[0](self.stem(scaled))
        return features

    def top_down(self, choose: Choose, context: Tensor | None = None) -> Distribution:
        climbed = None if context is None else self._climb(choose, context)
        z = choose(0, self.top_prior(self._own_top_prior()), None if climbed is None else climbed.top)
        state = self._descend(self.depth - 1, self.top.expand(len(z), -1, *self.grids[-1]), z)
        for i in reversed(range(self.depth - 1)):  # layer i + 1
            down, up = self.prior[i](state)
            posterior = drawn = None
            if climbed is not None:
                both = self.merge[i](F.elu(torch.cat([climbed.features[i], state], 1)))
                posterior = self._posterior(self.layer(i + 1), self.down_head[i], both)
                drawn = climbed.drawn[i]
            from_above = choose(self.layer(i + 1), down, posterior)
            from_below = choose(self.layer(i + 1, bottom_up=True), up, drawn)
            state = self._descend(i, state, torch.cat([from_above, from_below], 1))
        return self.head(self.padding.crop(self.output(F.elu(state))))

    def _own_top_prior(self) -> Normal:
        grid = (1, 1) if self.config.dense else self.grids[-1]
        mean = self.top.new_zeros(1, self.config.latents[-1], *grid)
        return Normal(mean, torch.ones_like(mean))

    def _posterior(self, layer: int, head: nn.Module, features: Tensor) -> Latent:
        assert isinstance(head, Head)
        seen = head.seen(features)
        (normal,) = head.read(seen)
        return self.posterior(layer, normal, seen)

    def why_top_is_not_normal(self) -> str:
        if self.depth > 1:
            return f"the posterior of the top one of BIVA's {self.depth} layers depends on draws of the others"
        return super().why_top_is_not_normal()

    def top_posterior(self, context: Tensor) -> Latent:
        if self.depth > 1:
            raise OptionError("latents", f"got {self.depth} layers, expected one: {self.why_top_is_not_normal()}")
        return self._posterior(0, self.up_head[-1], context)

    def _descend(self, i: int, state: Tensor, z: Tensor) -> Tensor:
        below: Tensor = self.down[i](state, self.spread[i](z.to(state.dtype)))
        return below

    def _climb(self, choose: Choose, features: Tensor) -> Climbed:
        climbing, drawn = [features], []
        for i in range(self.depth - 1):
            posterior = self._posterior(self.layer(i + 1, bottom_up=True), self.up_head[i], climbing[-1])
            drawn.append(ask_early(choose, self.layer(i + 1, bottom_up=True), posterior))
            climbing.append(self.up[i + 1](climbing[-1], self.up_spread[i](drawn[-1].z.to(features.dtype))))
        top = self._posterior(0, self.up_head[-1], climbing[-1])
        crossing = climbing[-1]
        found: list[Tensor] = []
        for i in reversed(range(self.depth - 1)):
            crossing = self.across[i](crossing) + self.across_read[i](F.elu(climbing[i]))
            found.append(crossing)
        return Climbed(drawn, top, found[::-1])
