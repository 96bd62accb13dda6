r"""VQ-VAE-2: codes at several resolutions, the coarsest first.

The encoder makes maps at L resolutions, each half of the one before it. From the top, :math:`l = 1`, on,

.. math:: z_l = \arg\min_k \lVert W_l [\, d_l(h_{l-1}),\, f_l(x)] - e_{l,k} \rVert^2, \qquad
          h_l = [\, u_l(h_{l-1}),\, e_{l, z_l}]

with residual decoders :math:`d_l` and transposed convolutions :math:`u_l` that double the resolution, and nothing
above the top, :math:`h_1 = e_{1, z_1}`. A decoder makes the parameters of the pixels of :math:`h_L`, in which the
vectors of all layers have a share. With two layers these are the networks of the paper; a third one is added in the
same way. What is minimized is as in :mod:`davi.models.vq_vae`, with a squared distance for each layer.

The prior is :math:`p(z_1 \mid y) \prod_l p(z_l \mid z_1 \ldots z_{l-1}, y)`, a PixelSNAIL at the top and gated
PixelCNNs below it unless the options say otherwise; y are classes, if the model has some.

References:
    Generating Diverse High-Fidelity Images with VQ-VAE-2, A. Razavi, A. van den Oord, O. Vinyals, NeurIPS 2019,
    https://arxiv.org/abs/1906.00446
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from davi.layers import Padding
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.quantizer import QuantizerSection, VectorQuantizerConfig
from davi.model import CodeAutoencoder, CodePriorConfig, Quantized
from davi.models.gated_pixelcnn import GatedPixelCNNConfig
from davi.models.pixelsnail import PixelSNAILConfig
from davi.models.vq_vae import ConvolutionsConfig, Downwards, Upwards, convolution_blocks


def _prior() -> CodePriorConfig:
    top, below = PixelSNAILConfig(blocks=2, width=64), GatedPixelCNNConfig()
    return CodePriorConfig(top=top, below=below)  # type: ignore[arg-type]  # it adds the names


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(ConvolutionsConfig):
    """Options of :class:`VQVAE2`.

    Arguments:
        layers: L, of codes; each has half the resolution of the next.
        quantizer: makes codes of vectors; of each layer with vectors of its own.
        likelihood: family and options of p(x | z).
        prior: of the codes.
    """

    layers: int = 2
    quantizer: QuantizerSection = field(default_factory=VectorQuantizerConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    prior: CodePriorConfig = field(default_factory=_prior)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.likelihood.check_exact()
        if self.layers < 2:
            raise ValueError(f"layers: got {self.layers}, expected at least 2 (vq_vae has one)")


@final
class VQVAE2Autoencoder(CodeAutoencoder):
    """The autoencoder of :class:`VQVAE2`.

    Arguments:
        shape, levels, config, classes: as :class:`VQVAE2` takes them; without classes.
    """

    name = "vq_vae2_autoencoder"
    Config = VQVAE2Config
    config: VQVAE2Config

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VQVAE2Config, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.choose_likelihood(config.likelihood)
        self.padding = Padding.to_multiple(self.shape[1:], 2 ** (config.halvings + config.layers - 1))
        halvings = [config.halvings + above for above in reversed(range(config.layers))]  # of each layer
        rows, columns = self.padding.padded
        self.choose_quantizers(config.quantizer, [(rows >> h, columns >> h) for h in halvings])
        self._build_layers(self.quantizer(0).dims)

    def _build_layers(self, dims: int) -> None:
        """The networks between the layers, each list from the top."""
        config, layers = self.config, range(self.config.layers)
        known = [dims if layer == 0 else 2 * dims for layer in layers]  # channels of h_l
        self.encoders = nn.ModuleList(Downwards(config.width, config, 1) for _ in layers[1:])
        self.encoders.append(Downwards(self.shape[0], config, config.halvings))
        self.decoders = nn.ModuleList(Upwards(known[layer - 1], config, 1, dims) for layer in layers[1:])
        self.upsampling = nn.ModuleList(nn.ConvTranspose2d(known[layer - 1], dims, 4, 2, 1) for layer in layers[1:])
        self.to_vectors = nn.ModuleList(
            nn.Conv2d(config.width if layer == 0 else dims + config.width, dims, 1) for layer in layers
        )
        self.decoder = Upwards(known[-1], config, config.halvings, self.head.inputs)

    def blocks(self) -> Iterable[nn.Module]:
        return convolution_blocks(self)

    def maps(self, pixels: Tensor) -> Sequence[Tensor]:
        x = self.padding.add(pixels - 0.5)
        maps: list[Tensor] = []
        for encoder in reversed(self.encoders):
            x = encoder(x)
            maps.append(x)
        return maps[::-1]

    def features(self, layer: int, own: Tensor, above: Sequence[Tensor]) -> Tensor:
        seen = torch.cat([self.decoders[layer - 1](self._joined(above)), own], 1) if layer else own
        features: Tensor = self.to_vectors[layer](seen)
        return features

    def last_map(self, vectors: Sequence[Tensor]) -> Tensor:
        return self.padding.crop(self.decoder(self._joined(vectors)))

    def _joined(self, vectors: Sequence[Tensor]) -> Tensor:
        """:math:`h_l` of the vectors of the first l layers."""
        joined = vectors[0]
        for upsampling, own in zip(self.upsampling, vectors[1:], strict=False):
            joined = torch.cat([upsampling(joined), own], 1)
        return joined


@final
class VQVAE2(Quantized):
    """VQ-VAE-2 with its prior (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.
        classes: that the prior is told; 0: none.

    Raises:
        OptionError: a ``ValueError``, if the likelihood cannot describe the images or the prior the codes.
    """

    name = "vq_vae2"
    Config = VQVAE2Config

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VQVAE2Config, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.join(VQVAE2Autoencoder(shape, levels, config), config.prior)
