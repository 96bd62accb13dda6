"""A hierarchy's last feature map, read by a causal network.

References:
    PixelVAE: A Latent Variable Model for Natural Images, I. Gulrajani et al., ICLR 2017,
    https://arxiv.org/abs/1611.05013

    Variational Lossy Autoencoder, X. Chen et al., ICLR 2017, https://arxiv.org/abs/1611.02731
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from torch import Tensor, nn

from davi.errors import OptionError
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.causal import NETWORKS, CausalNetwork
from davi.layers.pixel_head import Head, LikelihoodConfig, PixelHead


@final
class AutoregressiveHead(nn.Module, Head):
    r"""Reads feature maps f as :math:`p(x \mid f) = \prod_i p(x_i \mid x_{<i}, f)`.

    The features need not be causal: all of them are known before the first pixel.

    Arguments:
        likelihood: the family ``autoregressive`` with the options of its network.
        shape: (C, H, W) of the images.
        levels: values per channel.

    Raises:
        OptionError: a ``ValueError``, if the network cannot be built for these images.
    """

    def __init__(self, likelihood: LikelihoodConfig, shape: tuple[int, int, int], levels: int) -> None:
        super().__init__()
        options = likelihood.network
        assert options is not None  # as the section has made sure
        self.likelihood = likelihood
        try:
            self.network: CausalNetwork[Any] = NETWORKS[options.name](
                shape, levels, options, features=likelihood.features
            )
        except OptionError as error:
            raise error.within("likelihood.network") from None

    @property
    def inputs(self) -> int:
        return self.likelihood.features

    @property
    def normalized(self) -> bool:
        return self.network.head.normalized

    def blocks(self) -> Iterable[nn.Module]:
        return self.network.compilable()

    def forward(self, features: Tensor) -> AutoregressivePixels:
        """p(x | f) for f ``[B, inputs, H, W]``."""
        return AutoregressivePixels(self.network, len(features), features, input_dropout=self.likelihood.input_dropout)


def make_head(likelihood: LikelihoodConfig, shape: tuple[int, int, int], levels: int) -> Head:
    """The head for a section ``likelihood`` (:class:`~davi.layers.LikelihoodConfig`).

    Arguments:
        likelihood: the section.
        shape: (C, H, W) of the images.
        levels: values per channel.

    Raises:
        OptionError: a ``ValueError``, if the family cannot describe such images.
    """
    if likelihood.family == "autoregressive":
        return AutoregressiveHead(likelihood, shape, levels)
    return PixelHead(likelihood, shape[0], levels)
