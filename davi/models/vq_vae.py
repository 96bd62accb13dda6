r"""VQ-VAE: an autoencoder whose latents are a map of codes, and an autoregressive prior over the map.

Convolutions of stride 2 and a few residual blocks make a map :math:`f(x)` of vectors; each is replaced by the nearest
of K learned ones,

.. math:: z = \arg\min_k \lVert f(x) - e_k \rVert^2,

and the same blocks and transposed convolutions lead from :math:`e_z` to the parameters of the pixels. The minimum has
no gradient: the encoder is given that of the decoder's input. What is minimized in the first stage is

.. math:: -\log p(x \mid e_z) + \beta \lVert f(x) - \mathrm{sg}(e_z) \rVert^2

summed over positions, with vectors that follow the mean of what they stand for (:mod:`davi.objectives`). Then
:math:`p(z)` is learned; what is stated of an image is :math:`\log p(x \mid e_z) + \log p(z)`, a lower bound on
:math:`\log p(x)`.

A position may have several codes, each for a share of the vector (``quantizer.books``): 8x8 positions with 10 codes
each are the configuration of the paper's likelihood on CIFAR-10.

References:
    Neural Discrete Representation Learning, A. van den Oord, O. Vinyals, K. Kavukcuoglu, NeurIPS 2017,
    https://arxiv.org/abs/1711.00937
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from davi.layers import Padding
from davi.layers.checkpointed import Checkpointed
from davi.layers.pixel_head import LikelihoodConfig
from davi.layers.quantizer import QuantizerSection, VectorQuantizerConfig
from davi.model import CodeAutoencoder, CodePriorConfig, Quantized
from davi.models.gated_pixelcnn import GatedPixelCNNConfig


def _prior() -> CodePriorConfig:
    return CodePriorConfig(top=GatedPixelCNNConfig())  # type: ignore[arg-type]  # it adds the name


@dataclass(frozen=True, kw_only=True)
class ConvolutionsConfig:
    """Options of the convolutions of an autoencoder.

    Arguments:
        width: channels; half as many at half the resolution of the image.
        residual_width: channels within a residual block.
        blocks: residual blocks in each place where there are some.
        halvings: how often the resolution is halved on the way from the image to the codes nearest to it.
    """

    width: int = 128
    residual_width: int = 32
    blocks: int = 2
    halvings: int = 2

    def __post_init__(self) -> None:
        for name, least in (("width", 2), ("residual_width", 1), ("blocks", 0), ("halvings", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(ConvolutionsConfig):
    """Options of :class:`VQVAE`.

    Arguments:
        quantizer: makes codes of vectors.
        likelihood: family and options of p(x | z).
        prior: of the codes, which have one layer.
    """

    quantizer: QuantizerSection = field(default_factory=VectorQuantizerConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    prior: CodePriorConfig = field(default_factory=_prior)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.likelihood.check_exact()


@final
class ResidualUnit(Checkpointed):
    """:math:`x + W_1 r(W_3 r(x))` with a 3x3 convolution W_3, a 1x1 convolution W_1 and r the positive part.

    Arguments:
        width: channels.
        inner: channels between the two.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, inner, 3, padding=1)
        self.second = nn.Conv2d(inner, width, 1)

    def compute(self, x: Tensor) -> Tensor:
        """``[B, width, h, w]`` to the same."""
        out: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return out


@final
class Downwards(nn.Module):
    """Convolutions that halve the resolution, then residual blocks.

    Arguments:
        inputs: channels.
        config: the options.
        halvings: how often.
    """

    def __init__(self, inputs: int, config: ConvolutionsConfig, halvings: int) -> None:
        super().__init__()
        widths = [inputs, config.width // 2] + [config.width] * (halvings - 1)
        self.halving = nn.ModuleList(nn.Conv2d(before, after, 4, 2, 1) for before, after in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], config.width, 3, padding=1)
        self.blocks = nn.Sequential(*_blocks(config))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W] -> [B, width, H / 2^halvings, W / 2^halvings]``."""
        for convolution in self.halving:
            x = F.relu(convolution(x))
        return F.relu(self.blocks(self.last(x)))


@final
class Upwards(nn.Module):
    """Residual blocks, then transposed convolutions that double the resolution.

    Arguments:
        inputs: channels.
        config: the options.
        doublings: how often.
        outputs: channels in the end.
    """

    def __init__(self, inputs: int, config: ConvolutionsConfig, doublings: int, outputs: int) -> None:
        super().__init__()
        widths = [config.width] * doublings + [outputs]
        if doublings > 1:
            widths[-2] = config.width // 2
        self.first = nn.Conv2d(inputs, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*_blocks(config))
        self.doubling = nn.ModuleList(nn.ConvTranspose2d(before, after, 4, 2, 1) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w] -> [B, outputs, h 2^doublings, w 2^doublings]``."""
        x = self.blocks(self.first(x))
        for convolution in self.doubling:
            x = convolution(F.relu(x))
        return x


def _blocks(config: ConvolutionsConfig) -> list[ResidualUnit]:
    return [ResidualUnit(config.width, config.residual_width) for _ in range(config.blocks)]


def convolution_blocks(autoencoder: CodeAutoencoder) -> Iterable[nn.Module]:
    """The blocks of an autoencoder made of these parts that may be compiled one by one."""
    own = (module for module in autoencoder.modules() if isinstance(module, ResidualUnit))
    return dict.fromkeys([*own, *autoencoder.head.blocks()])


@final
class VQVAEAutoencoder(CodeAutoencoder):
    """The autoencoder of :class:`VQVAE`.

    Arguments:
        shape, levels, config, classes: as :class:`VQVAE` takes them; without classes.
    """

    name = "vq_vae_autoencoder"
    Config = VQVAEConfig
    config: VQVAEConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VQVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.choose_likelihood(config.likelihood)
        self.padding = Padding.to_multiple(self.shape[1:], 2**config.halvings)
        rows, columns = (side >> config.halvings for side in self.padding.padded)
        self.choose_quantizers(config.quantizer, [(rows, columns)])
        dims = self.quantizer(0).dims
        self.encoder = Downwards(self.shape[0], config, config.halvings)
        self.to_vectors = nn.Conv2d(config.width, dims, 1)
        self.decoder = Upwards(dims, config, config.halvings, self.head.inputs)

    def blocks(self) -> Iterable[nn.Module]:
        return convolution_blocks(self)

    def maps(self, pixels: Tensor) -> Sequence[Tensor]:
        return [self.encoder(self.padding.add(pixels - 0.5))]

    def features(self, layer: int, own: Tensor, above: Sequence[Tensor]) -> Tensor:
        features: Tensor = self.to_vectors(own)
        return features

    def last_map(self, vectors: Sequence[Tensor]) -> Tensor:
        return self.padding.crop(self.decoder(vectors[0]))


@final
class VQVAE(Quantized):
    """VQ-VAE with its prior (module docstring).

    Arguments:
        shape: (C, H, W) of the images.
        levels: values per channel.
        config: the options.
        classes: that the prior is told; 0: none.

    Raises:
        OptionError: a ``ValueError``, if the likelihood cannot describe the images or the prior the codes.
    """

    name = "vq_vae"
    Config = VQVAEConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VQVAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        self.join(VQVAEAutoencoder(shape, levels, config), config.prior)
