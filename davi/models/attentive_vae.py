r"""The Deep Attentive Variational Autoencoder.

A hierarchy of L latent maps :math:`z_0 \ldots z_{L-1}` (0: the top), drawn one after the other:

.. math:: p(x, z) = p(x \mid z) \prod_i p(z_i \mid z_{<i}), \qquad q(z \mid x) = \prod_i q(z_i \mid z_{<i}, x)

Layer i has a context :math:`c_i = T_i(c_{i-1}, z_{i-1})`. What is new is that prior and posterior do not see
:math:`c_i` alone. *Depth-wise attention* lets every pixel of layer i read from the contexts of **all** layers above
(generative side) and from the encoder features of **all** layers below (inference side):

.. math:: \hat c_i = c_i + \gamma_i \sum_{j<i} w_{ij}\, c_j, \qquad p(z_i \mid z_{<i}) = N(\hat c_i)

.. math:: \hat b_i = b_i + \gamma^q_i \sum_{j \in \{i\} \cup \{j > i\}} w^q_{ij}\, h_j, \qquad
          q(z_i \mid z_{<i}, x) = N(\hat c_i, \hat b_i)

The recurrence uses the local :math:`c_{i-1}`, never the attended one. Gates :math:`\gamma` start at 0. Spatial
attention (non-local blocks) may stand inside the residual cells and after the merges. The bound that is reported is

.. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \sum_i E_q[KL(q(z_i \mid z_{<i}, x) \| p(z_i \mid z_{<i}))]

Beyond the paper: latents at several scales with attention across them, reversible residual blocks, and any image size
(the model pads and crops; the likelihood counts real pixels only).

References:
    Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
    https://openreview.net/forum?id=T4-65DNlDij
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Distribution, Latent, Normal
from davi.layers import ChannelLayerNorm, DepthAttention, LayerMemory, Padding, ResidualBlock, ResidualCell
from davi.layers.convolution import WeightNormConv2d
from davi.layers.depth_attention import AttentionSite, DepthAttentive, DepthWiseAttention, resize_to
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.raw_normal import GaussianOptions, RawNormal
from davi.layers.residual import Merge, NodeOptions, widths_along
from davi.layers.reversible import Reversible
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy


@dataclass(frozen=True)
class SpatialAttention:
    """Key widths of the non-local blocks in each part of the network; 0: none there."""

    preprocess: int = 0
    encoder: int = 0
    decoder: int = 0
    postprocess: int = 0
    inference_merge: int = 0
    generative_merge: int = 0

    def __post_init__(self) -> None:
        for part, keys in vars(self).items():
            if keys < 0:
                raise ValueError(f"{part}: got {keys}, expected at least 0")


@dataclass(frozen=True)
class AttentiveVAEConfig(LatentOptions):
    """Options of :class:`AttentiveVAE`.

    Arguments:
        layers: latent layers per scale, coarsest scale first; each further scale doubles the grid. The paper: (16,).
        latent_channels: channels of every latent map.
        width: channels at full resolution; the latent scales have ``width * 2 ** (number of halvings)``.
        preprocess: what each block of the first cell does to the resolution (-2 halves it and doubles the width).
        postprocess: the same for the last cell (2 doubles the resolution); must undo ``preprocess``.
        encoder_blocks, decoder_blocks: residual blocks per cell and layer.
        nodes: convolutions per residual block.
        squeeze_excite: gate the channels after every convolution of a residual block.
        pad: zeros added on each side of the image; None: as few as the halvings require.
        reversible: residual blocks that keep the resolution work on halves of the channels, in steps that can be taken
            back: a row of them keeps no activations (:mod:`davi.layers.reversible`). The paper has none.
        spatial_attention: where non-local blocks stand.
        generative_attention: depth-wise attention of a layer over the contexts above it.
        inference_attention: depth-wise attention of a layer over the encoder features below it.
        prior_bounds, posterior_bounds: bounds and training noise of the log standard deviations.
        likelihood: family and options of p(x | z).
    """

    layers: tuple[int, ...] = (16,)
    latent_channels: int = 20
    width: int = 128
    preprocess: tuple[int, ...] = (0, -2)
    postprocess: tuple[int, ...] = (2, 0)
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    nodes: int = 2
    squeeze_excite: bool = False
    pad: int | None = None
    reversible: bool = False
    spatial_attention: SpatialAttention = field(default_factory=SpatialAttention)
    generative_attention: DepthWiseAttention = field(default_factory=DepthWiseAttention)
    inference_attention: DepthWiseAttention = field(default_factory=DepthWiseAttention)
    prior_bounds: GaussianOptions = field(default_factory=GaussianOptions)
    posterior_bounds: GaussianOptions = field(default_factory=GaussianOptions)
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("logistic_mixture", 5))

    def __post_init__(self) -> None:
        halvings = self.preprocess.count(-2)
        for name in ("latent_channels", "width", "encoder_blocks", "decoder_blocks", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"layers: got {list(self.layers)}, expected at least one layer at each scale")
        if not self.preprocess or set(self.preprocess) - {-2, 0}:
            raise ValueError(f"preprocess: got {list(self.preprocess)}, expected one or more of 0 and -2")
        if set(self.postprocess) - {2, 0} or self.postprocess.count(2) != halvings:
            raise ValueError(f"postprocess: got {list(self.postprocess)}, expected 0s and {halvings} times 2")
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad: got {self.pad}, expected at least 0")
        if self.inference_attention.key_channels % 2**halvings:
            raise ValueError(
                f"inference_attention.key_channels: got {self.inference_attention.key_channels}, expected a multiple "
                f"of {2**halvings} (the width doubles {halvings} times on the way to the latents)"
            )


class _Widths:
    """Channel counts that several parts must agree on."""

    def __init__(self, config: AttentiveVAEConfig) -> None:
        self.halvings = config.preprocess.count(-2)
        self.value = config.width * 2**self.halvings  # E = D: encoder features and contexts
        self.inference_key = config.inference_attention.key_channels  # d_e
        self.generative_key = config.generative_attention.key_channels  # d_p
        # M: an encoder feature is [value | key]; a context carries the inference side's query as well
        self.feature = self.context = self.value + self.inference_key


class Generated(NamedTuple):
    """The generative state of a layer, ``[B, *, h, w]`` each (batch 1 at the top, where nothing depends on z yet)."""

    context: Tensor
    """c_i, the layer's own context, M channels."""
    key: Tensor
    """k_i, what later layers match their queries against; no channels at the last layer."""
    inference_query: Tensor
    """s^q_i, the first d_e channels of the context."""
    attended: Tensor
    """The context with the depth-wise attention added: the input of prior and posterior."""
    prior: RawNormal | None
    """None at the top: a standard normal."""
    query: Tensor | None = None
    weights: Tensor | None = None
    result: Tensor | None = None


class Inferred(NamedTuple):
    """The inference state of a layer, ``[B, *, h, w]`` each."""

    condition: Tensor
    """Input of the posterior's head."""
    delta: RawNormal
    """Output of the head: the change from the prior's raw parameters."""
    weights: Tensor | None = None
    result: Tensor | None = None


def _residual_norm(x: Tensor, norm: ChannelLayerNorm | None) -> Tensor:
    return x if norm is None else x + F.gelu(norm(x), approximate="tanh")


def _norm(channels: int, wanted: bool) -> ChannelLayerNorm | None:
    return ChannelLayerNorm(channels) if wanted else None


def _cell(
    config: AttentiveVAEConfig, widths: Sequence[int], rescales: Sequence[int], keys: int, stem: int | None = None
) -> ResidualCell:
    """A cell with the model's options and non-local blocks with ``keys``."""
    options = NodeOptions(keys, squeeze_excite=config.squeeze_excite)
    return ResidualCell(widths, rescales, config.nodes, options, stem, config.reversible)


@final
class TopContext(nn.Module):
    """Layer 0's context and key: a learned constant. Its prior is the standard normal."""

    def __init__(self, widths: _Widths, grid: tuple[int, int], last: bool) -> None:
        super().__init__()
        self.split = (widths.context, 0 if last else widths.generative_key)
        self.inference_key = widths.inference_key
        bound = 1.0 / math.sqrt(grid[0] * grid[1])
        self.constant = nn.Parameter(torch.empty(1, sum(self.split), *grid).uniform_(-bound, bound))

    def forward(self) -> Generated:
        context, key = self.constant.split(self.split, 1)
        return Generated(context, key, context[:, : self.inference_key], context, None)


@final
class GenerativeLayer(nn.Module):
    """Layer i > 0 on the way down: context, depth-wise attention over the layers above, prior."""

    def __init__(self, config: AttentiveVAEConfig, widths: _Widths, last: bool, finer: bool, reads: int) -> None:
        super().__init__()
        context, key = widths.context, widths.generative_key
        self.split = (context, 0 if last else key, key)  # [context | own key | own query]
        self.inference_key = widths.inference_key
        self.noise = config.prior_bounds.noise
        spatial, width = config.spatial_attention, sum(self.split)
        merge = NodeOptions(spatial.generative_merge)
        self.merge = Merge(context + config.latent_channels, width, merge)
        rescales = [2 if finer else 0] + [0] * (config.decoder_blocks - 1)
        self.cell = _cell(config, [width] * (len(rescales) + 1), rescales, spatial.decoder)
        self.prior = WeightNormConv2d(context, 2 * config.latent_channels, 1)
        norms = bool(key) and config.generative_attention.layer_norm
        approximation = config.generative_attention.approximation
        self.attention = DepthAttention(approximation, key) if key else None
        self.project_key = approximation.projection(key)
        self.gate = nn.Parameter(torch.zeros(())) if key else None
        self.norm_context = _norm(context, norms)
        self.norm_last_value = _norm(context, norms)
        self.norm_attended = _norm(context, norms)
        self.norm_stack = _norm(context + key, bool(key) and reads > 1)

    def forward(self, above: Generated, z: Tensor, memory: LayerMemory, waiting: list[Generated]) -> Generated:
        """One step down.

        Arguments:
            above: state of layer i - 1.
            z: latent of layer i - 1.
            memory: what the layers before i - 2 offer, normalized; this layer adds i - 2.
            waiting: states that have not entered the memory yet, oldest first; consumed here.
        """
        context, key, query = self.cell(self.merge(above.context, z)).split(self.split, 1)
        inference_query = context[:, : self.inference_key]
        context = _residual_norm(context, self.norm_context)
        weights = result = None
        attended = context
        if self.attention is not None and self.gate is not None:
            grid = (context.shape[2], context.shape[3])
            self._remember(memory, waiting)
            keys, values = memory.read(grid, self.attention.span(len(memory) + 1).start)
            last = above.context if self.norm_last_value is None else self.norm_last_value(above.context)
            last_key = resize_to(self.project_key(above.key), grid)
            keys, values = [*keys, last_key], [*values, resize_to(last, grid)]
            result, weights = self.attention(query, keys, values)
            attended = context + self.gate * _residual_norm(result, self.norm_attended)
        prior = RawNormal.split(self.prior(F.elu(attended)), self.noise if self.training else 0.0)
        return Generated(context, key, inference_query, attended, prior, query, weights, result)

    def _remember(self, memory: LayerMemory, waiting: list[Generated]) -> None:
        """Layer i - 2 enters the memory: value and key normalized together, once, for all layers from here on."""
        if self.norm_stack is not None:
            old = waiting.pop(0)
            normed = self.norm_stack(torch.cat([old.context, old.key], 1))
            value, key = normed.split([old.context.shape[1], old.key.shape[1]], 1)
            memory.offer(self.project_key(key), value)


@final
class InferenceLayer(nn.Module):
    """Layer i on the way down, seen from the data: depth-wise attention over encoder features, posterior."""

    def __init__(self, config: AttentiveVAEConfig, widths: _Widths, top: bool) -> None:
        super().__init__()
        value, feature, parameters = widths.value, widths.feature, 2 * config.latent_channels
        self.split = (value, widths.inference_key)
        self.noise = config.posterior_bounds.noise
        self.from_context = None if top else WeightNormConv2d(widths.context, feature, 1)
        # Without keys the feature has the right width already and is added as it is.
        self.from_feature = None if top or not widths.inference_key else WeightNormConv2d(value, feature, 1)
        options = NodeOptions(config.spatial_attention.inference_merge)
        self.merge_attention = None if top else options.nonlocal_block(feature)
        norms = bool(widths.inference_key) and config.inference_attention.layer_norm
        approximation, keys = config.inference_attention.approximation, widths.inference_key
        self.attention = DepthAttention(approximation, keys, nearest_first=True) if keys else None
        self.project_key = approximation.projection(keys)
        self.gate = nn.Parameter(torch.zeros(())) if keys else None
        self.norm_local = _norm(value, norms)
        self.norm_attended = _norm(value, norms)
        self.hidden = WeightNormConv2d(feature, feature, 1) if top else None
        self.head = WeightNormConv2d(feature, parameters, 3)

    def forward(self, state: Generated, own: tuple[Tensor, Tensor], memory: LayerMemory, start: int) -> Inferred:
        """The posterior's raw residual.

        Arguments:
            state: generative state of this layer.
            own: value and key of the encoder's feature of this layer.
            memory: what the encoder's features offer, top layer first.
            start: the first entry of the memory that lies below this layer.
        """
        local, key = own if self.from_context is None else self._merged(self.from_context(state.attended), own[0])
        weights = result = None
        combined = local
        if self.attention is not None and self.gate is not None:
            stop = start - 1 + self.attention.span(len(memory) - start + 1).stop
            keys, values = memory.read((local.shape[2], local.shape[3]), start, stop)
            query = state.inference_query.expand(local.shape[0], -1, -1, -1)
            result, weights = self.attention(query, [self.project_key(key), *keys], [local, *values])
            combined = _residual_norm(local, self.norm_local)
            combined = combined + self.gate * _residual_norm(result, self.norm_attended)
        condition = torch.cat([combined, key], 1)
        hidden = condition if self.hidden is None else F.elu(self.hidden(F.elu(condition)))
        delta = RawNormal.split(self.head(hidden), self.noise if self.training else 0.0)
        return Inferred(condition, delta, weights, result)

    def _merged(self, context: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        x: Tensor = context + (value if self.from_feature is None else self.from_feature(value))
        return (x if self.merge_attention is None else self.merge_attention(x)).split(self.split, 1)


class Encoded(NamedTuple):
    """What the bottom-up pass found: value and key of every layer, top first, and their memory for attention."""

    features: list[tuple[Tensor, Tensor]]
    memory: LayerMemory


@final
class AttentiveVAE(PixelHierarchy, DepthAttentive):
    """The Deep Attentive VAE (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options contradict one another or do not fit the images.
    """

    name = "attentive_vae"
    Config = AttentiveVAEConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: AttentiveVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.num_layers = sum(config.layers)
        widths = _Widths(config)
        unit = 2 ** (widths.halvings + len(config.layers) - 1)  # what all the halvings together divide by
        self.padding = Padding.to_multiple(self.shape[1:], unit, config.pad)
        self.scale_of_layer = [scale for scale, count in enumerate(config.layers) for _ in range(count)]
        self.choose_likelihood(config.likelihood)
        self._build_encoder(widths)
        self._build_decoder(widths, unit)
        self.output = WeightNormConv2d(widths.context // 2**widths.halvings, self.head.inputs, 3)
        layers = [LayerSizes(config.latent_channels, widths.feature)] * self.num_layers
        padded = self.padding.padded
        self.choose_latents((config.latent_channels, padded[0] // unit, padded[1] // unit), layers)

    def _build_encoder(self, widths: _Widths) -> None:
        config, spatial = self.config, self.config.spatial_attention
        grown = widths_along(config.width + widths.inference_key // 2**widths.halvings, config.preprocess)
        self.preprocess = _cell(config, grown, config.preprocess, spatial.preprocess, self.shape[0])
        self.feature_split = (widths.value, widths.inference_key)
        self.project_features = config.inference_attention.approximation.projection(widths.inference_key)
        cells = []
        for layer, scale in enumerate(self.scale_of_layer):
            coarser = layer + 1 < self.num_layers and self.scale_of_layer[layer + 1] > scale
            rescales = [-2 if coarser else 0] + [0] * (config.encoder_blocks - 1)
            cells.append(_cell(config, [widths.feature] * (len(rescales) + 1), rescales, spatial.encoder))
        self.encoder = nn.ModuleList(cells)
        self.inference = nn.ModuleList(InferenceLayer(config, widths, i == 0) for i in range(self.num_layers))

    def _build_decoder(self, widths: _Widths, unit: int) -> None:
        config, spatial, last = self.config, self.config.spatial_attention, self.num_layers - 1
        padded = self.padding.padded
        self.top = TopContext(widths, (padded[0] // unit, padded[1] // unit), last == 0)
        self.generative = nn.ModuleList(
            GenerativeLayer(config, widths, i == last, self.scale_of_layer[i] > self.scale_of_layer[i - 1], i)
            for i in range(1, self.num_layers)
        )
        self.merge = Merge(
            widths.context + config.latent_channels, widths.context, NodeOptions(spatial.generative_merge)
        )
        narrowed = widths_along(widths.context, config.postprocess)
        self.postprocess = _cell(config, narrowed, config.postprocess, spatial.postprocess)

    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, (ResidualBlock, Reversible)))
        return dict.fromkeys([*own, *self.head.blocks()])

    def depth_attentions(self) -> Iterator[AttentionSite]:
        for i, layer in enumerate(self.generative, start=1):
            if isinstance(layer.attention, DepthAttention) and isinstance(layer.gate, Tensor):
                above = tuple(range(i))[layer.attention.span(i)]
                yield AttentionSite("generative", i, above, layer.attention, layer.gate)
        for i, layer in enumerate(self.inference):  # its own feature, then those below it
            if isinstance(layer.attention, DepthAttention) and isinstance(layer.gate, Tensor):
                below = tuple(range(i, self.num_layers + 1))[layer.attention.span(self.num_layers + 1 - i)]
                yield AttentionSite("inference", i, below, layer.attention, layer.gate)

    def encode_pixels(self, pixels: Tensor) -> Encoded:
        """The features of all layers."""
        scaled = self.padding.add(pixels) * 2.0 - 1.0
        feature = self.preprocess(scaled)
        features = [feature]  # e_L; grows towards the top
        for cell in reversed(self.encoder):
            features.append(cell(features[-1]))
        features.reverse()  # e_0 .. e_L
        parts: list[tuple[Tensor, Tensor]] = [feature.split(self.feature_split, 1) for feature in features]
        memory = LayerMemory(self.config.inference_attention.approximation)
        for value, key in parts:
            memory.offer(self.project_features(key), value)
        return Encoded(parts[:-1], memory)

    def top_down(self, choose: Choose, context: Encoded | None = None) -> Distribution:
        state: Generated = self.top()
        memory, waiting, z = LayerMemory(self.config.generative_attention.approximation), [state], None
        for i in range(self.num_layers):
            if z is not None:
                state = self.generative[i - 1](state, z, memory, waiting)
                if self.config.generative_attention.key_channels:
                    waiting.append(state)
            posterior = None if context is None else self._posterior(i, state, context)
            prior = self._prior(state)
            z = choose(i, prior if i else self.top_prior(prior), posterior)
        assert z is not None
        features = self.postprocess(self.merge(state.context, z))
        return self.head(self.padding.crop(self.output(F.elu(features))))

    def _prior(self, state: Generated) -> Normal:
        if state.prior is None:
            grid = (1, self.config.latent_channels, *state.context.shape[2:])
            return Normal(state.context.new_zeros(grid), state.context.new_ones(grid))
        return state.prior.bounded(self.config.prior_bounds)

    def top_posterior(self, context: Encoded) -> Latent:
        return self._posterior(0, self.top(), context)

    def _posterior(self, layer: int, state: Generated, context: Encoded) -> Latent:
        # memory entry j + 1 is the feature below layer j: entry 0 is layer 0's own
        inferred = self.inference[layer](state, context.features[layer], context.memory, layer + 1)
        delta = inferred.delta
        raw = delta if state.prior is None else state.prior.shifted(delta)
        return self.posterior(layer, raw.bounded(self.config.posterior_bounds), inferred.condition)
