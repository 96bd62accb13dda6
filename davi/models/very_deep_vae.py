r"""The Very Deep VAE.

A hierarchy of L latent maps :math:`z_0 \ldots z_{L-1}`, a few at each resolution, the coarsest first:

.. math:: p(x, z) = p(x \mid z) \prod_i p(z_i \mid z_{<i}), \qquad q(z \mid x) = \prod_i q(z_i \mid z_{<i}, x)

Everything is made of one bottleneck :math:`f(h) = C_4\,g\,C_3\,g\,C_2\,g\,C_1\,g(h)` of convolutions (1x1, 3x3, 3x3,
1x1) with a GELU g before each, and without any normalization. The encoder is a row of :math:`h \leftarrow h + f(h)`
with average pooling between resolutions; :math:`a_r` is the last map it leaves at resolution r. On the way down layer
i, at resolution r, continues from the map x that the layers before it left there (at first a learned constant), adds a
coarser map enlarged to r where it *mixes in*, and

.. math:: [\mu_p \mid \log \sigma_p \mid d] = f_p(x), \qquad [\mu_q \mid \log \sigma_q] = f_q([x \mid a_r])

.. math:: z_i \sim N(\mu, \sigma^2), \qquad x \leftarrow x + d + P z_i, \qquad x \leftarrow x + f(x)

With N blocks in a row, the last convolution of each residual block, and each P, start scaled by
:math:`1/\sqrt N`, and the last convolution of :math:`f_p` starts at zero; that, and skipping the few steps whose
gradient is far too large, is what makes 78 layers trainable. The bound that is reported, and trained, is

.. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \sum_i E_q[KL(q(z_i \mid z_{<i}, x) \| p(z_i \mid z_{<i}))]

Beyond the paper: any image size and number of channels (the model pads and crops; the likelihood counts real pixels
only), depth-wise attention between the layers (:mod:`davi.layers.context_attention`), and a reversible encoder.

References:
    Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, R. Child, ICLR 2021,
    https://arxiv.org/abs/2011.10650
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Distribution, Latent, Normal
from davi.distributions.base import at_least_float32
from davi.layers import ContextAttention, Padding
from davi.layers.bottleneck import Bottleneck, Residual, ReversibleResiduals, Sizes, plain_conv
from davi.layers.context_attention import ContextAttentionOptions, sites
from davi.layers.depth_attention import AttentionSite, DepthAttentive
from davi.layers.pixel_head import LikelihoodConfig
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy

_ENTRY = re.compile(r"([1-9]\d{0,5})(?:([xdm])([1-9]\d{0,5}))?")
_MOST_BLOCKS = 4096


class Entry(NamedTuple):
    """One block of a row: where it stands, and what it does besides."""

    resolution: int
    pool: int = 1
    """Factor of the average pooling after a block of the encoder."""
    source: int | None = None
    """Resolution from which a block of the decoder mixes in."""


def parse_blocks(name: str, text: str, kinds: str) -> tuple[Entry, ...]:
    """Read a row of blocks, such as ``32x2,32d2,16x2`` or ``16x2,32m16,32x2``.

    Arguments:
        name: of the option, for messages.
        text: entries with commas between them: ``RxN``, N blocks at resolution R; ``R``, one; ``RdK``, one that is
            followed by average pooling by K; ``RmS``, one that mixes in from resolution S.
        kinds: which of the letters x, d and m may occur.

    Raises:
        ValueError: if an entry is none of these, or there are more than 4,096 blocks.
    """
    blocks: list[Entry] = []
    forms = {"x": "RxN", "d": "RdK", "m": "RmS"}
    for entry in text.split(","):
        match = _ENTRY.fullmatch(entry.strip())
        if match is None or (match[2] or "x") not in kinds:
            expected = ", ".join(forms[letter] for letter in kinds)
            raise ValueError(f"{name}: got {entry.strip()!r}, expected {expected} or R with numbers from 1")
        resolution, kind, second = int(match[1]), match[2], int(match[3] or 1)
        if kind == "d":
            blocks.append(Entry(resolution, pool=second))
        elif kind == "m":
            blocks.append(Entry(resolution, source=second))
        else:
            blocks += [Entry(resolution)] * second
        if len(blocks) > _MOST_BLOCKS:
            raise ValueError(f"{name}: got {text[:80]!r}, expected at most {_MOST_BLOCKS} blocks")
    return tuple(blocks)


def parse_widths(name: str, text: str) -> dict[int, int]:
    """Read widths such as ``512:32,256:64``: resolution, colon, channels.

    Raises:
        ValueError: if an entry is something else, or a resolution comes twice.
    """
    widths: dict[int, int] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([1-9]\d{0,5}):([1-9]\d{0,5})", entry)
        if match is None or int(match[1]) in widths:
            raise ValueError(f"{name}: got {entry!r}, expected RESOLUTION:CHANNELS, each resolution once")
        widths[int(match[1])] = int(match[2])
    return widths


@dataclass(frozen=True)
class VeryDeepVAEConfig(LatentOptions):
    """Options of :class:`VeryDeepVAE`. The defaults are the paper's model of CIFAR-10.

    A *resolution* in ``encoder``, ``decoder`` and ``custom_widths`` names a scale. The first one of the encoder, R0,
    stands for the whole (padded) image, a smaller one R for a grid that is R0 / R times coarser in both directions.
    Where the image is R0 x R0 pixels, as in all published models, the grid is R x R.

    Arguments:
        encoder: its row of blocks, ``RxN``, ``R`` or ``RdK`` (:func:`parse_blocks`).
        decoder: its row of blocks, ``RxN``, ``R`` or ``RmS``, each with a latent map.
        width: channels at every resolution but those of ``custom_widths``.
        custom_widths: ``RESOLUTION:CHANNELS`` with commas between; in YAML the text needs quotes.
        latent_channels: channels of every latent map.
        bottleneck: width inside a block as a fraction of that outside.
        bias_up_to: sides of the largest grid that begins with a learned map; larger ones begin with zeros.
        input_mean, input_deviation: the encoder sees (x - mean) / deviation, with pixels x from 0 to 1. The defaults
            bring any images to about -2 to 2; published models have the mean and standard deviation of their set.
        reversible: the encoder's blocks at one resolution work on halves of the channels, in steps that can be taken
            back: a row of them keeps no activations (:mod:`davi.layers.reversible`). The decoder stays as it is: it has
            a single block between two latent maps. The paper has none.
        depth_attention: depth-wise attention between the layers; none in the paper.
        likelihood: family and options of p(x | z).
    """

    encoder: str = "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3"
    decoder: str = "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21"
    width: int = 384
    custom_widths: str = ""
    latent_channels: int = 16
    bottleneck: float = 0.25
    bias_up_to: int = 64
    input_mean: float = 0.5
    input_deviation: float = 0.25
    reversible: bool = False
    depth_attention: ContextAttentionOptions = field(default_factory=ContextAttentionOptions)
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("logistic_mixture", 10))

    def __post_init__(self) -> None:
        for name in ("width", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 < self.bottleneck <= 16:
            raise ValueError(f"bottleneck: got {self.bottleneck}, expected a number above 0, at most 16")
        if self.bias_up_to < 0:
            raise ValueError(f"bias_up_to: got {self.bias_up_to}, expected at least 0")
        if not abs(self.input_mean) < math.inf:
            raise ValueError(f"input_mean: got {self.input_mean}, expected a finite number")
        if not 0 < self.input_deviation < math.inf:
            raise ValueError(f"input_deviation: got {self.input_deviation}, expected a number above 0")
        Rows(self)


@final
class Rows:
    """The parsed and checked strings of a configuration.

    Arguments:
        config: the options.

    Raises:
        ValueError: one line that begins with the option, if a text cannot be read or its parts do not fit together.
    """

    def __init__(self, config: VeryDeepVAEConfig) -> None:
        self.encoder = parse_blocks("encoder", config.encoder, "xd")
        self.decoder = parse_blocks("decoder", config.decoder, "xm")
        self.finest = self.encoder[0].resolution
        self.reached = self._follow_encoder()
        self._follow_decoder()
        self.widths = self._widths(config)

    def _follow_encoder(self) -> list[int]:
        """Resolutions at which the encoder leaves a map, finest first."""
        reached = [self.finest]
        for resolution, pool, _ in self.encoder:
            if resolution != reached[-1]:
                raise ValueError(
                    f"encoder: got a block at resolution {resolution} where the map has {reached[-1]}, expected "
                    f"{reached[-1]} (RdK is followed by resolution R/K)"
                )
            if resolution % pool:
                raise ValueError(f"encoder: got {resolution}d{pool}, expected a factor that divides {resolution}")
            if pool > 1:
                reached.append(resolution // pool)
        return reached

    def _follow_decoder(self) -> None:
        seen: set[int] = set()
        for resolution, _, source in self.decoder:
            if resolution not in self.reached:
                raise ValueError(
                    f"decoder: got a block at resolution {resolution}, expected one that the encoder reaches, "
                    f"{', '.join(map(str, self.reached))}"
                )
            if source is not None and (source not in seen or source >= resolution):
                raise ValueError(
                    f"decoder: got {resolution}m{source}, expected a coarser resolution that has a block before it"
                )
            seen.add(resolution)
        if self.finest not in seen:
            raise ValueError(f"decoder: got no block at resolution {self.finest}, where the image is, expected one")

    def _widths(self, config: VeryDeepVAEConfig) -> dict[int, int]:
        custom = parse_widths("custom_widths", config.custom_widths)
        for resolution, width in custom.items():
            if resolution not in self.reached:
                known = ", ".join(map(str, self.reached))
                raise ValueError(f"custom_widths: got resolution {resolution}, expected one of {known}")
            if resolution == self.finest and width != config.width:
                raise ValueError(f"custom_widths: got {resolution}:{width}, expected {config.width}, which is width")
        widths = {resolution: custom.get(resolution, config.width) for resolution in self.reached}
        pairs = list(zip(self.reached, self.reached[1:], strict=False))
        pairs += [(entry.resolution, entry.source) for entry in self.decoder if entry.source is not None]
        for fine, coarse in pairs:  # channels are appended on the way up and cut off on the way down
            if widths[coarse] < widths[fine]:
                raise ValueError(
                    f"custom_widths: got {widths[coarse]} channels at resolution {coarse}, expected at least the "
                    f"{widths[fine]} of resolution {fine}"
                )
        if int(min(widths.values()) * config.bottleneck) < 1:
            raise ValueError(
                f"bottleneck: got {config.bottleneck}, expected at least one channel inside {min(widths.values())}"
            )
        return widths

    @property
    def unit(self) -> int:
        """What height and width of the padded image are multiples of."""
        return self.finest // min(self.reached)

    def grid(self, resolution: int, padded: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the maps at a resolution."""
        factor = self.finest // resolution
        return padded[0] // factor, padded[1] // factor


@final
class Layer(nn.Module):
    """A layer of the way down: prior, posterior, and what becomes of its latent map.

    Arguments:
        sizes: of its blocks.
        latent_channels: of its latent map.
        depth: number of layers.
        attention: its share in the depth-wise attention, if there is one.
    """

    def __init__(self, sizes: Sizes, latent_channels: int, depth: int, attention: ContextAttention | None) -> None:
        super().__init__()
        self.split = (latent_channels, latent_channels, sizes.width)
        self.posterior = Bottleneck(2 * sizes.width, sizes, 2 * latent_channels)
        self.prior = Bottleneck(sizes.width, sizes, sum(self.split))
        self.project = plain_conv(latent_channels, sizes.width, 1)
        self.residual = Residual(sizes, depth)
        self.attention = attention
        with torch.no_grad():
            self.prior.c4.weight.zero_()
            self.project.weight.mul_(math.sqrt(1.0 / depth))

    def generate(self, activated: Tensor) -> tuple[Normal, Tensor]:
        """The prior, and what is added to the map whatever the latents are."""
        mean, log_scale, change = self.prior(activated).split(self.split, 1)
        return _normal(mean, log_scale), change

    def infer(self, activated: Tensor, feature: Tensor) -> Normal:
        """The posterior; ``feature``: the activated map of the encoder."""
        return _normal(*self.posterior(activated, feature).chunk(2, 1))

    def forward(self, x: Tensor, change: Tensor, z: Tensor) -> Tensor:
        """The map that the layer leaves."""
        out: Tensor = self.residual(x + change + self.project(z.to(self.project.weight.dtype)))
        return out


def _normal(mean: Tensor, log_scale: Tensor) -> Normal:
    return Normal(mean, at_least_float32(log_scale).exp())


@final
class VeryDeepVAE(PixelHierarchy, DepthAttentive):
    """The Very Deep VAE (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options do not fit the images.
    """

    name = "very_deep_vae"
    Config = VeryDeepVAEConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VeryDeepVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.rows = Rows(config)
        self.num_layers = len(self.rows.decoder)
        self.padding = Padding.to_multiple(self.shape[1:], self.rows.unit)
        self.choose_likelihood(config.likelihood)
        self.stem = plain_conv(shape[0], config.width, 3)
        self.encoder, self.leaving = self._encoder()
        sizes = [self._sizes(entry.resolution) for entry in self.rows.decoder]
        parts = config.depth_attention.parts([size.width for size in sizes])
        self.decoder = nn.ModuleList(
            Layer(size, config.latent_channels, self.num_layers, parts[i] if parts else None)
            for i, size in enumerate(sizes)
        )
        self.starting = [r for r in sorted({e.resolution for e in self.rows.decoder}) if self._starts(r)]
        self.start = nn.ParameterList(torch.zeros(1, self.rows.widths[r], *self._grid(r)) for r in self.starting)
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.output = plain_conv(config.width, self.head.inputs, 1)
        layers = [LayerSizes(config.latent_channels, size.width) for size in sizes]
        self.choose_latents((config.latent_channels, *self._grid(self.rows.decoder[0].resolution)), layers)

    def _encoder(self) -> tuple[nn.ModuleList, Sequence[Entry]]:
        """The parts of the encoder, and the block that each of them ends with."""
        row, depth = self.rows.encoder, len(self.rows.encoder)
        if not self.config.reversible:
            return nn.ModuleList(Residual(self._sizes(entry.resolution), depth, entry.pool) for entry in row), row
        rows = [list(blocks) for _, blocks in groupby(row, lambda entry: entry.resolution)]
        last = [blocks[-1] for blocks in rows]
        parts = [
            ReversibleResiduals(self._sizes(entry.resolution), len(blocks), depth, entry.pool)
            for entry, blocks in zip(last, rows, strict=True)
        ]
        return nn.ModuleList(parts), last

    def _grid(self, resolution: int) -> tuple[int, int]:
        return self.rows.grid(resolution, self.padding.padded)

    def _starts(self, resolution: int) -> bool:
        return max(self._grid(resolution)) <= self.config.bias_up_to

    def _sizes(self, resolution: int) -> Sizes:
        width = self.rows.widths[resolution]
        return Sizes(width, int(width * self.config.bottleneck), 3 if max(self._grid(resolution)) > 2 else 1)

    def blocks(self) -> Iterator[nn.Module]:
        yield from (part.stack.row if isinstance(part, ReversibleResiduals) else part for part in self.encoder)
        for layer in self.decoder:
            yield from (layer.posterior, layer.prior, layer.residual)  # type: ignore[misc]  # ModuleList has no element type
        yield from self.head.blocks()

    def depth_attentions(self) -> Iterator[AttentionSite]:
        return sites(layer.attention for layer in self.decoder)  # type: ignore[misc]  # as above

    def encode_pixels(self, pixels: Tensor) -> dict[int, Tensor]:
        """Resolution -> map of the encoder, activated."""
        scaled = (pixels - self.config.input_mean) / self.config.input_deviation
        h = self.stem(self.padding.add(scaled))
        maps = {self.rows.finest: h}
        for block, (resolution, pool, _) in zip(self.encoder, self.leaving, strict=True):
            h, resolution = block(h), resolution // pool
            missing = self.rows.widths[resolution] - h.shape[1]
            h = F.pad(h, (0, 0, 0, 0, 0, missing)) if missing else h
            maps[resolution] = h
        # Every layer of a resolution reads the same map through a GELU: it is applied once.
        return {r: F.gelu(maps[r]) for r in {entry.resolution for entry in self.rows.decoder}}

    def top_down(self, choose: Choose, context: dict[int, Tensor] | None = None) -> Distribution:
        maps: dict[int, Tensor] = dict(zip(self.starting, self.start, strict=True))
        memory, z = self.config.depth_attention.memory(), None
        for i, (layer, entry) in enumerate(zip(self.decoder, self.rows.decoder, strict=True)):
            assert isinstance(layer, Layer)
            x = self._entering(maps, entry)
            x = x if z is None else x.expand(z.shape[0], -1, -1, -1)
            attended = x if layer.attention is None else layer.attention(x, memory)
            activated = F.gelu(attended)
            prior, change = layer.generate(activated)
            posterior = None if context is None else self._posterior(i, activated, context)
            z = choose(i, prior if i else self.top_prior(prior), posterior)
            maps[entry.resolution] = layer(x, change, z)
        features = maps[self.rows.finest] * self.gain + self.bias
        return self.head(self.padding.crop(self.output(features)))

    def _posterior(self, i: int, activated: Tensor, context: dict[int, Tensor]) -> Latent:
        layer, feature = self.decoder[i], context[self.rows.decoder[i].resolution]
        assert isinstance(layer, Layer)
        return self.posterior(i, layer.infer(activated, feature), feature)

    def top_posterior(self, context: dict[int, Tensor]) -> Latent:
        first = self.rows.decoder[0]
        x = self._entering(dict(zip(self.starting, self.start, strict=True)), first)
        layer = self.decoder[0]
        assert isinstance(layer, Layer)
        attended = x if layer.attention is None else layer.attention(x, self.config.depth_attention.memory())
        return self._posterior(0, F.gelu(attended), context)

    def _entering(self, maps: dict[int, Tensor], entry: Entry) -> Tensor:
        """What a layer starts from, ``[B or 1, C, h, w]``."""
        resolution, _, source = entry
        x, width = maps.get(resolution), self.rows.widths[resolution]
        if source is not None:
            mixed = F.interpolate(maps[source][:, :width], scale_factor=resolution // source, mode="nearest")
            return mixed if x is None else x + mixed
        return self.gain.new_zeros(1, width, *self._grid(resolution)) if x is None else x
