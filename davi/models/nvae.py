r"""NVAE, the Nouveau VAE.

A hierarchy of G groups of latent maps :math:`z_0 \ldots z_{G-1}` (0: the top) at one or several scales, drawn one after
the other:

.. math:: p(x, z) = p(x \mid z) \prod_i p(z_i \mid z_{<i}), \qquad q(z \mid x) = \prod_i q(z_i \mid z_{<i}, x)

The way down carries features :math:`s_i`, which begin as a learned constant and take in each group as it is drawn. With
:math:`h_i` the encoder's features at the depth of group i,

.. math:: p(z_i \mid z_{<i}) = N(a_i), \quad a_i = P_i(s_i), \qquad
          q(z_i \mid z_{<i}, x) = N(a_i + Q_i(h_i + E_i s_i)), \qquad s_{i+1} = T_i(s_i, z_i)

where :math:`N(m, l)` has mean :math:`5 \tanh(m/5)` and standard deviation :math:`\exp(5 \tanh(l/5)) + 0.01`; the top
prior is :math:`N(0, 0)`, whose standard deviation is 1.01. A posterior may be bent by autoregressive shifts, which
preserve volume. The bound that is reported is

.. math:: \log p(x) \ge E_q[\log p(x \mid z)] - \sum_i E_q[KL(q(z_i \mid z_{<i}, x) \| p(z_i \mid z_{<i}))]

with a single draw of :math:`\log q - \log p` for a posterior with shifts. In training two penalties come to it, the sum
of the largest singular values of all convolutions and the sum of the largest gains of all batch norms, both times a
weight of the objective.

The bodies of the cells, their norms and their activations can be exchanged as in the paper's comparisons. Beyond the
paper: depth-wise attention between the groups, reversible cells, and any image size and number of channels
(the model pads and crops; the likelihood counts real pixels only).

References:
    NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
    https://arxiv.org/abs/2007.03898
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Distribution, Latent, Normal, TransformedNormal
from davi.distributions.base import at_least_float32
from davi.flows.autoregressive_shift import ShiftPairs
from davi.layers import Padding
from davi.layers.context_attention import ContextAttentionOptions, sites
from davi.layers.depth_attention import AttentionSite, DepthAttentive
from davi.layers.nvae_cells import (
    Activation,
    BodyKind,
    Cell,
    CellBody,
    KernelConv2d,
    Normalization,
    decoder_cell,
    decoder_cells,
    encoder_cell,
    encoder_cells,
)
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.reversible import Reversible
from davi.layers.spectral import SpectralNorms
from davi.model import Choose, LatentOptions, LayerSizes, PixelHierarchy

_LATENT_EXPANSION, _PIXEL_EXPANSION = 6, 3
"""How many times a decoder cell widens its features among the latents, and between them and the image."""
_ITERATIONS, _FIRST_ITERATIONS = 4, 40
"""Power iterations per training step, and before the first."""


@dataclass(frozen=True)
class NVAEConfig(LatentOptions):
    """Options of :class:`NVAE`.

    Arguments:
        groups: groups of latents per scale, coarsest scale first; each further scale doubles the grid.
        latent_channels: channels of every group.
        encoder_width, decoder_width: channels at full resolution; they double whenever the resolution is halved.
        halvings: how often the resolution is halved before the finest latents.
        preprocess_cells: cells before each of these halvings, the halving one included.
        postprocess_cells: cells for each doubling on the way back, the doubling one included.
        encoder_cells, decoder_cells: cells per group.
        squeeze_excite: gate the channels of every cell's output.
        encoder_body, decoder_body: convolutions of the cells: regular or separable (:mod:`davi.layers.nvae_cells`).
        normalization: of the cells: batch norms, or weight normalization in their place.
        activation: of the cells.
        residual_posterior: the posterior's parameters are added to the prior's.
        shifts: pairs of autoregressive shifts of every posterior.
        pad: zeros added on each side of the image; None: as few as the halvings require.
        reversible: cells that keep the resolution work on halves of the channels, in steps that can be taken back: a
            row of them keeps no activations (:mod:`davi.layers.reversible`). The paper has none.
        depth_attention: reading across groups, which the paper does not have.
        likelihood: family and options of p(x | z).
    """

    groups: tuple[int, ...] = (5, 10)
    latent_channels: int = 20
    encoder_width: int = 32
    decoder_width: int = 32
    halvings: int = 2
    preprocess_cells: int = 3
    postprocess_cells: int = 3
    encoder_cells: int = 2
    decoder_cells: int = 2
    squeeze_excite: bool = True
    encoder_body: BodyKind = "regular"
    decoder_body: BodyKind = "separable"
    normalization: Normalization = "batch"
    activation: Activation = "swish"
    residual_posterior: bool = True
    shifts: int = 0
    pad: int | None = None
    reversible: bool = False
    depth_attention: ContextAttentionOptions = field(default_factory=ContextAttentionOptions)
    likelihood: LikelihoodConfig = field(default_factory=lambda: LikelihoodConfig("logistic_mixture", 10))

    def __post_init__(self) -> None:
        for name in ("latent_channels", "encoder_width", "decoder_width", "preprocess_cells", "postprocess_cells"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("halvings", "encoder_cells", "decoder_cells", "shifts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 0")
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups: got {list(self.groups)}, expected at least one group at each scale")
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad: got {self.pad}, expected at least 0")
        if self.shifts and self.posterior_flow is not None:
            raise ValueError(
                f"posterior_flow: got {self.posterior_flow.name} beside {self.shifts} shifts, expected one of the two"
            )
        if self.single and self.encoder_width != self.decoder_width:
            raise ValueError(
                f"decoder_width: got {self.decoder_width}, expected {self.encoder_width}, the encoder's, for one group"
            )

    def body(self, kind: BodyKind) -> CellBody:
        """The body of a cell."""
        return CellBody(kind, self.normalization, self.activation)

    @property
    def single(self) -> bool:
        """Whether there is one group alone: then there are no cells among the latents, and no features but z."""
        return sum(self.groups) == 1


def _soft_clamped(raw: Tensor) -> Normal:
    """The Normal (module docstring) of ``[m | l]`` along the channels."""
    mean, log_scale = (5.0 * torch.tanh(part / 5.0) for part in at_least_float32(raw).chunk(2, 1))
    return Normal(mean, log_scale.exp() + 0.01)


@final
class TopGroup(nn.Module):
    """Group 0: its posterior comes from the encoder's last features alone."""

    def __init__(self, config: NVAEConfig, multiple: int) -> None:
        super().__init__()
        width = config.encoder_width * multiple
        self.hidden = KernelConv2d(width, width, 1)
        self.posterior = KernelConv2d(width, 2 * config.latent_channels, 3)

    def infer(self, feature: Tensor) -> Tensor:
        """Raw parameters of the posterior."""
        result: Tensor = self.posterior(F.elu(self.hidden(F.elu(feature))))
        return result


@final
class Group(nn.Module):
    """Group i > 0.

    Arguments:
        config: the model's.
        multiple: of the widths at its scale.
        finer: whether its scale is finer than that of the group above.
    """

    def __init__(self, config: NVAEConfig, multiple: int, finer: bool) -> None:
        super().__init__()
        channels, excite = config.decoder_width * multiple, config.squeeze_excite
        count, wider, body = config.decoder_cells, _LATENT_EXPANSION, config.body(config.decoder_body)
        cells: list[nn.Module] = [decoder_cell(2 * channels, wider, excite, "double", body)] if finer else []
        cells += decoder_cells(channels, count, wider, excite, config.reversible, body)
        self.cells = nn.Sequential(*cells)
        self.prior = KernelConv2d(channels, 2 * config.latent_channels, 1)
        self.from_context = KernelConv2d(channels, config.encoder_width * multiple, 1)
        self.posterior = KernelConv2d(config.encoder_width * multiple, 2 * config.latent_channels, 3)

    def generate(self, context: Tensor | None) -> Tensor:
        """Raw parameters of the prior."""
        assert context is not None  # a group above means features
        result: Tensor = self.prior(F.elu(context))
        return result

    def infer(self, context: Tensor | None, feature: Tensor) -> Tensor:
        """Raw parameters of the posterior, or what is added to the prior's."""
        result: Tensor = self.posterior(feature + self.from_context(context))
        return result


@final
class NVAE(PixelHierarchy, DepthAttentive):
    """NVAE (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.

    Raises:
        ValueError: if the options contradict one another or do not fit the images.
    """

    name = "nvae"
    Config = NVAEConfig
    images_wanted = 1

    def __init__(self, shape: tuple[int, int, int], levels: int, config: NVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.num_layers = sum(config.groups)
        unit = 2 ** (config.halvings + len(config.groups) - 1)  # what all the halvings together divide by
        self.padding = Padding.to_multiple(self.shape[1:], unit, config.pad)
        rows, columns = self.padding.padded
        self.top_grid = (rows // unit, columns // unit)
        self.choose_likelihood(config.likelihood)
        # Of the widths at full resolution, one for each group, the top first.
        multiples = [unit >> scale for scale, count in enumerate(config.groups) for _ in range(count)]
        self._build_encoder(multiples)
        self._build_decoder(multiples)
        widths = [config.decoder_width * multiple for multiple in multiples]
        self.attention = nn.ModuleList(config.depth_attention.parts(widths))
        layers = [LayerSizes(config.latent_channels, config.encoder_width * multiple) for multiple in multiples]
        self.choose_latents((config.latent_channels, *self.top_grid), layers)
        # As tuples, so that they are no second home of the same modules.
        self._convolutions = tuple(module for module in self.modules() if isinstance(module, KernelConv2d))
        self._batch_norms = tuple(module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        self.spectral = SpectralNorms([(conv.v.shape[0], conv.v[0].numel()) for conv in self._convolutions])

    def _build_encoder(self, multiples: Sequence[int]) -> None:
        config, excite = self.config, self.config.squeeze_excite
        body = config.body(config.encoder_body)
        self.stem = KernelConv2d(self.shape[0], config.encoder_width, 3)
        cells: list[nn.Module] = []
        for halving in range(config.halvings):
            width = config.encoder_width * 2**halving
            cells += encoder_cells(width, config.preprocess_cells - 1, excite, config.reversible, body)
            cells.append(encoder_cell(width, excite, "halve", body))
        self.preprocess = nn.Sequential(*cells)
        towers = []
        for i, multiple in enumerate(multiples):  # the way up goes through them from the last to the first
            width, below = config.encoder_width * multiple, multiples[min(i + 1, len(multiples) - 1)]
            cells = [encoder_cell(width // 2, excite, "halve", body)] if multiple > below else []
            if not config.single:
                cells += encoder_cells(width, config.encoder_cells, excite, config.reversible, body)
            towers.append(nn.Sequential(*cells))
        self.encoder = nn.ModuleList(towers)

    def _build_decoder(self, multiples: Sequence[int]) -> None:
        config, z = self.config, self.config.latent_channels
        width = config.decoder_width
        self.start = None if config.single else nn.Parameter(torch.rand(1, width * multiples[0], *self.top_grid))
        self.top = TopGroup(config, multiples[0])
        self.groups = nn.ModuleList(Group(config, own, finer=own < above) for above, own in pairwise(multiples))
        features = 0 if config.single else 1
        self.merge = nn.ModuleList(KernelConv2d(features * width * m + z, width * m, 1) for m in multiples)
        pairs = [0 if config.has_constant_rate(i) else config.shifts for i in range(len(multiples))]
        self.shifts = nn.ModuleList(ShiftPairs(z, count) for count in pairs if config.shifts)
        cells: list[nn.Module] = []
        excite, body = config.squeeze_excite, config.body(config.decoder_body)
        for halving in reversed(range(config.halvings)):
            wide, fine, rest = width * 2 ** (halving + 1), width * 2**halving, config.postprocess_cells - 1
            cells.append(decoder_cell(wide, _PIXEL_EXPANSION, excite, "double", body))
            cells += decoder_cells(fine, rest, _PIXEL_EXPANSION, excite, config.reversible, body)
        self.postprocess = nn.Sequential(*cells)
        self.output = KernelConv2d(width, self.head.inputs, 3)

    def blocks(self) -> Iterable[nn.Module]:
        own = (module for module in self.modules() if isinstance(module, (Cell, Reversible)))
        return dict.fromkeys([*own, *self.head.blocks()])

    def depth_attentions(self) -> Iterator[AttentionSite]:
        return sites(self.attention)

    def encode_pixels(self, pixels: Tensor) -> list[Tensor]:
        """The features h, those of the top group first."""
        scaled = self.padding.add(pixels) * 2.0 - 1.0
        feature = self.preprocess(self.stem(scaled))
        features: list[Tensor] = []
        for tower in reversed(self.encoder):
            feature = tower(feature)
            features.append(feature)
        return features[::-1]

    def top_down(self, choose: Choose, context: Sequence[Tensor] | None = None) -> Distribution:
        memory = self.config.depth_attention.memory()
        state: Tensor | None = self.start
        for i in range(self.num_layers):
            if i:
                state = self._group(i).cells(state)
            attended = self.attention[i](state, memory) if self.attention else state
            prior = self._raw_prior(i, attended)
            posterior = None if context is None else self._posterior(i, attended, prior, context[i])
            own = _soft_clamped(prior)
            state = self._merged(i, state, choose(i, own if i else self.top_prior(own), posterior))
        return self.head(self.padding.crop(self.output(F.elu(self.postprocess(state)))))

    def _group(self, layer: int) -> Group:
        group = self.groups[layer - 1]
        assert isinstance(group, Group)
        return group

    def _raw_prior(self, layer: int, attended: Tensor | None) -> Tensor:
        if layer == 0:
            return self.stem.v.new_zeros(1, 2 * self.config.latent_channels, *self.top_grid)
        return self._group(layer).generate(attended)

    def _posterior(self, layer: int, attended: Tensor | None, prior: Tensor, feature: Tensor) -> Latent:
        raw = self.top.infer(feature) if layer == 0 else self._group(layer).infer(attended, feature)
        posterior = _soft_clamped(prior + raw if self.config.residual_posterior else raw)
        if self.config.shifts and not self.config.has_constant_rate(layer):
            shifts = self.shifts[layer]
            assert isinstance(shifts, ShiftPairs)
            return TransformedNormal(posterior, shifts, shifts.inverse)
        return self.posterior(layer, posterior, feature)

    def why_top_is_not_normal(self) -> str:
        if self.config.shifts:
            return "the posterior has autoregressive shifts, whose density is known at its draws only"
        return super().why_top_is_not_normal()

    def top_posterior(self, context: Sequence[Tensor]) -> Latent:
        return self._posterior(0, None, self._raw_prior(0, None), context[0])

    def _merged(self, layer: int, state: Tensor | None, z: Tensor) -> Tensor:
        """The features of the way down with those of a group that has been drawn."""
        if state is not None:
            z = torch.cat([state.expand(z.shape[0], -1, -1, -1), z.to(state.dtype)], 1)
        result: Tensor = self.merge[layer](z)
        return result

    def penalties(self) -> dict[str, Tensor]:
        """The sum of the largest singular values of all convolutions, and that of the largest gains of all batch norms;
        unweighted. Depth-wise attention is left out: closed, it changes nothing."""
        with torch.autocast(self.stem.v.device.type, enabled=False):
            gains: dict[int, list[Tensor]] = {}
            for norm in self._batch_norms:
                gains.setdefault(norm.num_features, []).append(norm.weight)
            largest = self.stem.v.new_zeros(())
            for same in gains.values():
                largest = largest + torch.stack(same).abs().amax(1).sum()
            return {"spectral_norm": self.spectral.total(self._matrices(), _ITERATIONS), "batch_norm_gain": largest}

    def initialize_layers(self, images: Tensor, kept: Container[str]) -> None:
        """Bring the vectors of the spectral penalty near the singular vectors of the initial weights."""
        self.spectral.iterate(self._matrices(), _FIRST_ITERATIONS)

    def _matrices(self) -> list[Tensor]:
        return [conv.kernels().flatten(1) for conv in self._convolutions]
