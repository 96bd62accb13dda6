r"""The residual ladder with inverse autoregressive flow posteriors.

A hierarchy of L latent layers :math:`z_0 \ldots z_{L-1}` (0: the top), drawn one after the other:

.. math:: p(x, z) = p(x \mid z) \prod_i p(z_i \mid z_{<i}), \qquad q(z \mid x) = \prod_i q(z_i \mid z_{<i}, x)

Two chains of residual blocks run through all layers, up from the image and down from a learned constant. Block i of the
way up gives :math:`\mu^\uparrow_i, \log\sigma^\uparrow_i, h^\uparrow_i`, block i of the way down the prior
:math:`N(\mu_i, \sigma_i)` and :math:`\mu^\downarrow_i, \log\sigma^\downarrow_i, h^\downarrow_i`. The posterior begins
as the Normal of their sums and passes through T gated steps of an autoregressive network that sees
:math:`h_i = h^\uparrow_i + h^\downarrow_i` (:mod:`davi.flows.iaf`):

.. math:: z_i^0 \sim N\bigl(\mu^\uparrow_i + \mu^\downarrow_i, \exp(\log\sigma^\uparrow_i + \log\sigma^\downarrow_i)
          \bigr), \qquad z_i^t = \sigma_t \odot z_i^{t-1} + (1 - \sigma_t) \odot m_t, \qquad z_i = z_i^T

.. math:: \log q(z_i \mid z_{<i}, x) = \log N(z_i^0) - \sum_t \sum \log \sigma_t

The density of z_i is known for its draws alone, so the divergence from the prior is estimated by the draw:

.. math:: \log p(x) \ge E_q\Bigl[\log p(x \mid z)
          - \sum_i \bigl(\log q(z_i \mid z_{<i}, x) - \log p(z_i \mid z_{<i})\bigr)\Bigr]

With T = 0 posteriors are Normal and divergences in closed form. Layers may be vectors (no grid, dense networks) at the
top and maps on several grids below.

References:
    Improving Variational Inference with Inverse Autoregressive Flow, D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen,
    I. Sutskever, M. Welling, NeurIPS 2016, https://arxiv.org/abs/1606.04934
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Distribution, Latent, Normal, TransformedNormal
from davi.flows import InverseAutoregressiveFlow
from davi.layers import Padding
from davi.layers.checkpointed import Checkpointed
from davi.layers.convolution import WeightNormConv2d
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.raw_normal import RawNormal
from davi.layers.weight_norm_init import initialize_from_data
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy

_LOG_SCALE = 7.0
"""Log standard deviations are clamped to +- this: a guard against overflow that no trained model comes near."""


@dataclass(frozen=True)
class IAFVAEConfig(LatentOptions):
    """Options of :class:`IAFVAE`.

    Arguments:
        layers: layers of latent maps per scale, coarsest scale first; each further scale doubles the grid. May be empty
            if there are dense layers.
        dense_layers: layers of latent vectors above the maps.
        latent_channels: channels of every latent map, length of every latent vector.
        width: channels of the feature maps, on all grids.
        dense_width: units of the dense layers' networks.
        stem_halvings: how often the image is halved before the finest latent grid.
        residual_blocks: blocks without latents after each halving (or after the stem, if nothing is halved), and as
            many on the way back.
        flow_steps: T, steps of the flow of each posterior; 0: Normal posteriors.
        flow_width: channels of the autoregressive networks and of their contexts.
        flow_hidden_layers: hidden layers of the autoregressive networks.
        gate_bias: initial bias of the flow's gates before the sigmoid; the paper has 1 or 2.
        initial_scale: standard deviation of every convolution's outputs after the data-dependent initialization.
        likelihood: family and options of p(x | z); one component is the paper's logistic.
    """

    layers: tuple[int, ...] = (10,)
    dense_layers: int = 0
    latent_channels: int = 32
    width: int = 160
    dense_width: int = 450
    stem_halvings: int = 1
    residual_blocks: int = 0
    flow_steps: int = 1
    flow_width: int = 160
    flow_hidden_layers: int = 2
    gate_bias: float = 2.0
    initial_scale: float = 0.1
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("logistic_mixture", 1))

    def __post_init__(self) -> None:
        self.likelihood.check_exact()
        if self.flow_steps and self.posterior_flow is not None:
            raise ValueError(
                f"posterior_flow: got {self.posterior_flow.name} beside {self.flow_steps} flow_steps, expected one of "
                "the two"
            )
        positive = ("latent_channels", "width", "dense_width", "flow_width", "flow_hidden_layers")
        for names, least in ((positive, 1), (("dense_layers", "stem_halvings", "residual_blocks", "flow_steps"), 0)):
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if any(count < 1 for count in self.layers):
            raise ValueError(f"layers: got {list(self.layers)}, expected at least one layer at each scale")
        if not self.layers and not self.dense_layers:
            raise ValueError("layers: got none and no dense_layers, expected at least one of either")
        if not math.isfinite(self.gate_bias):
            raise ValueError(f"gate_bias: got {self.gate_bias}, expected a finite number")
        if not 0.0 < self.initial_scale < math.inf:
            raise ValueError(f"initial_scale: got {self.initial_scale}, expected a number above 0")


class _Layer(NamedTuple):
    """What the blocks of a latent layer must know: width and kernel size of its networks, latent channels, channels of
    the flow's context, and whether the layer below it has the double grid."""

    width: int
    kernel_size: int
    latents: int
    context: int
    coarser: bool


class Lifted(NamedTuple):
    """What the way up says to a layer: its share in the posterior, and in the flow's context (no channels without a
    flow), ``[B, *, h, w]``."""

    posterior: RawNormal
    context: Tensor


def _normal(raw: RawNormal) -> Normal:
    log_scale = raw.log_scale if raw.log_scale.dtype == torch.float64 else raw.log_scale.float()
    return Normal(raw.mean, log_scale.clamp(-_LOG_SCALE, _LOG_SCALE).exp())


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


@final
class UpBlock(Checkpointed):
    """Residual block i of the way up: ``x -> (Lifted, x')``. The topmost one has no x' to give, and returns ``x``."""

    def __init__(self, layer: _Layer, top: bool) -> None:
        super().__init__()
        self.split = (layer.latents, layer.latents, layer.context, 0 if top else layer.width)
        self.coarser = layer.coarser
        self.first = WeightNormConv2d(layer.width, sum(self.split), layer.kernel_size, stride=1 + layer.coarser)
        self.second = None if top else WeightNormConv2d(layer.width, layer.width, layer.kernel_size)

    def compute(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, log_scale, context, hidden = self.first(F.elu(x)).split(self.split, 1)
        if self.second is not None:
            shortcut = F.avg_pool2d(x, 2) if self.coarser else x
            x = shortcut + 0.1 * self.second(F.elu(hidden))
        return mean, log_scale, context, x


@final
class DownHeads(Checkpointed):
    """First half of block i of the way down: from the state above to prior, share in the posterior, share in the
    context, and the hidden features of the second half."""

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.split = (2 * layer.latents, 2 * layer.latents, layer.context, layer.width)
        self.first = WeightNormConv2d(layer.width, sum(self.split), layer.kernel_size)

    def compute(self, state: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.first(F.elu(state)).split(self.split, 1))


@final
class DownBlock(Checkpointed):
    """Second half of block i of the way down: the state for the layers below, once z is known."""

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.coarser = layer.coarser
        self.second = WeightNormConv2d(layer.latents + layer.width, layer.width, layer.kernel_size)

    def compute(self, state: Tensor, hidden: Tensor, z: Tensor) -> Tensor:
        inner = F.elu(torch.cat([z.to(hidden.dtype), hidden.expand(len(z), -1, -1, -1)], 1))
        if self.coarser:
            inner, state = _doubled(inner), _doubled(state)
        return state + 0.1 * self.second(inner)


@final
class PlainBlock(Checkpointed):
    """Residual block without latents."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = WeightNormConv2d(width, width)
        self.second = WeightNormConv2d(width, width)

    def compute(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.second(F.elu(self.first(F.elu(x))))


@final
class IAFVAE(PixelHierarchy):
    """The residual ladder with inverse autoregressive flows (module docstring). ``z_0 .. z_{dense_layers - 1}`` are
    vectors ``[B, C, 1, 1]``, the others maps.

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options contradict one another or do not fit the images.
    """

    name = "iaf_vae"
    Config = IAFVAEConfig
    images_wanted = 256

    def __init__(self, shape: tuple[int, int, int], levels: int, config: IAFVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        layers = list(self._layers())
        self.num_layers = len(layers)
        unit = 2 ** (config.stem_halvings + max(len(config.layers) - 1, 0))
        self.padding = Padding.to_multiple(self.shape[1:], unit)
        self.grid = (self.padding.padded[0] // unit, self.padding.padded[1] // unit)
        """The coarsest grid of maps."""
        self.choose_likelihood(config.likelihood)
        self.up = nn.ModuleList(UpBlock(layer, top=i == 0) for i, layer in enumerate(layers))
        self.top = nn.Parameter(torch.zeros(1, layers[0].width, 1, 1))
        self.down_heads = nn.ModuleList(DownHeads(layer) for layer in layers)
        self.flows = nn.ModuleList(self._flow(i, layer) for i, layer in enumerate(layers))
        self.down = nn.ModuleList(DownBlock(layer) for layer in layers)
        if config.dense_layers:
            features = config.width * self.grid[0] * self.grid[1]
            self.to_vector = WeightNormConv2d(features, config.dense_width, 1)
            self.to_map = WeightNormConv2d(config.dense_width, features, 1)
        self._build_ends()
        top = (config.latent_channels, *((1, 1) if config.dense_layers else self.grid))
        self.choose_latents(top, [LayerSizes(layer.latents, layer.context) for layer in layers])

    def _layers(self) -> Iterator[_Layer]:
        config = self.config
        context = config.flow_width if config.flow_steps or config.posterior_flow else 0
        for _ in range(config.dense_layers):
            yield _Layer(config.dense_width, 1, config.latent_channels, context, False)
        for scale, count in enumerate(config.layers):
            for i in range(count):
                coarser = i == count - 1 and scale < len(config.layers) - 1
                yield _Layer(config.width, 3, config.latent_channels, context, coarser)

    def _flow(self, number: int, layer: _Layer) -> InverseAutoregressiveFlow:
        config = self.config
        return InverseAutoregressiveFlow(
            0 if config.has_constant_rate(number) else config.flow_steps,
            layer.latents,
            config.flow_width,
            config.flow_hidden_layers,
            layer.kernel_size,
            config.gate_bias,
        )

    def _build_ends(self) -> None:
        """From the image to the finest latent grid, and back."""
        config = self.config
        strides = [2] * config.stem_halvings or [1]
        widths = [self.shape[0]] + [config.width] * len(strides)
        outputs = [config.width] * (len(strides) - 1) + [self.head.inputs]
        self.stem = nn.ModuleList(
            WeightNormConv2d(width, config.width, 5, stride) for width, stride in zip(widths, strides, strict=False)
        )
        self.output = nn.ModuleList(WeightNormConv2d(config.width, width, 5) for width in outputs)
        self.stem_blocks, self.output_blocks = (
            nn.ModuleList(
                nn.Sequential(*[PlainBlock(config.width) for _ in range(config.residual_blocks)]) for _ in strides
            )
            for _ in range(2)
        )

    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, Checkpointed))
        return dict.fromkeys([*own, *self.head.blocks()])

    def initialize_layers(self, images: Tensor, kept: Container[str]) -> None:
        initialize_from_data(self, lambda: self.evidence(images), self.config.initial_scale, kept)

    def encode_pixels(self, pixels: Tensor) -> list[Lifted]:
        """What every layer is told, the top first."""
        features = self.padding.add(pixels) * 2.0 - 1.0
        for i, (conv, blocks) in enumerate(zip(self.stem, self.stem_blocks, strict=True)):
            features = blocks(conv(F.elu(features) if i else features))
        told: list[Lifted] = []
        for i in reversed(range(self.num_layers)):
            if i == self.config.dense_layers - 1:
                features = self._as_vector(features)
            mean, log_scale, context, features = self.up[i](features)
            told.append(Lifted(RawNormal(mean, log_scale), context))
        return told[::-1]

    def top_down(self, choose: Choose, context: list[Lifted] | None = None) -> Distribution:
        dense = self.config.dense_layers
        state = self._start()
        for i in range(self.num_layers):
            if dense and i == dense:
                state = self._as_map(state)
            prior, own, flow_context, hidden = self.down_heads[i](state)
            posterior = None
            if context is not None:
                told = context[i]
                posterior = self._posterior(i, RawNormal.split(own), flow_context, told)
            own_prior = _normal(RawNormal.split(prior))
            z = choose(i, own_prior if i else self.top_prior(own_prior), posterior)
            state = self.down[i](state, hidden, z)
        if dense == self.num_layers:
            state = self._as_map(state)
        for conv, blocks in zip(self.output, self.output_blocks, strict=True):
            state = F.elu(blocks(state))
            state = conv(_doubled(state) if self.config.stem_halvings else state)
        return self.head(self.padding.crop(state))

    def _posterior(self, layer: int, own: RawNormal, own_context: Tensor, told: Lifted) -> Latent:
        base, context = _normal(own.shifted(told.posterior)), own_context + told.context
        if self.config.flow_steps and not self.config.has_constant_rate(layer):
            flow = self.flows[layer]
            assert isinstance(flow, InverseAutoregressiveFlow)
            return TransformedNormal(base, flow, flow.inverse, context)
        return self.posterior(layer, base, context)

    def why_top_is_not_normal(self) -> str:
        if self.config.flow_steps:
            return "the posterior has a flow, whose density is known at its draws only"
        return super().why_top_is_not_normal()

    def top_posterior(self, context: list[Lifted]) -> Latent:
        _, own, flow_context, _ = self.down_heads[0](self._start())
        return self._posterior(0, RawNormal.split(own), flow_context, context[0])

    def _start(self) -> Tensor:
        """The state above the first layer."""
        return self.top if self.config.dense_layers else self.top.expand(-1, -1, *self.grid)

    def _as_vector(self, features: Tensor) -> Tensor:
        vector: Tensor = self.to_vector(F.elu(features).flatten(1)[:, :, None, None])
        return vector

    def _as_map(self, state: Tensor) -> Tensor:
        flat: Tensor = self.to_map(F.elu(state))
        return flat.reshape(len(flat), self.config.width, *self.grid)
