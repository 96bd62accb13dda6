r"""The variational lossy autoencoder: a decoder that sees little of an image leaves the rest to the latents.

.. math:: p(x, z) = p(z) \prod_i p(x_i \mid x_{\mathrm{window}(i)}, z)

It is a :mod:`~davi.models.pixelvae` of one level with two choices. The PixelCNN of its likelihood has a small receptive
field, which is stated (:attr:`~davi.models.pixelvae.PixelVAEBase.window`): strokes and texture are explained by
neighboring pixels, at no cost in z; what spans more than the window must pass through z. And the prior of z is an
autoregressive flow (:mod:`davi.priors.autoregressive_flow`): z is an invertible function of Normal noise. That is as
much as an inverse autoregressive flow on the posterior together with a decoder that begins with the flow's inverse.

References:
    Variational Lossy Autoencoder, X. Chen, D. P. Kingma, T. Salimans, Y. Duan, P. Dhariwal, J. Schulman, I. Sutskever,
    P. Abbeel, ICLR 2017, https://arxiv.org/abs/1611.02731
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from davi.errors import OptionError
from davi.layers.pixel_head import LikelihoodConfig
from davi.models.gated_pixelcnn import GatedPixelCNNConfig
from davi.models.pixelvae import PixelVAEBase, PixelVAEConfig
from davi.priors import PriorSection
from davi.priors.autoregressive_flow import AutoregressiveFlowConfig


def _small_window() -> LikelihoodConfig:
    network = GatedPixelCNNConfig(layers=3, kernel=3, first_kernel=3)
    return LikelihoodConfig("autoregressive", network=network)  # type: ignore[arg-type]


@dataclass(frozen=True)
class VLAEConfig(PixelVAEConfig):
    """Options of :class:`VLAE`: those of :class:`~davi.models.pixelvae.PixelVAEConfig`, with other defaults.

    Arguments:
        latents: of the vector.
        likelihood: a gated PixelCNN that sees three rows above a pixel and three columns beside it.
        prior: an autoregressive flow.
    """

    latents: tuple[int, ...] = (32,)
    likelihood: LikelihoodConfig = field(default_factory=_small_window)
    prior: PriorSection | None = field(default_factory=AutoregressiveFlowConfig, kw_only=True)


@final
class VLAE(PixelVAEBase):
    """The variational lossy autoencoder (module docstring).

    Arguments:
        shape, levels, config: as :class:`~davi.models.pixelvae.PixelVAEBase` takes them.

    Raises:
        OptionError: a ``ValueError``, if the likelihood's network has no limited receptive field.
    """

    name = "vlae"
    Config = VLAEConfig
    config: VLAEConfig

    def __init__(self, shape: tuple[int, int, int], levels: int, config: VLAEConfig, classes: int = 0) -> None:
        super().__init__(shape, levels, config, classes)
        if self.window is None:
            network = config.likelihood.network
            got = config.likelihood.family if network is None else network.name
            raise OptionError(
                "likelihood.network", f"got {got}, expected a causal network with a limited receptive field"
            )
