"""One paper, one file. A model is registered here by its name."""

from __future__ import annotations

from davi.layers.causal import register
from davi.model import CausalModel, Network
from davi.models.attentive_vae import AttentiveVAE
from davi.models.biva import BIVA
from davi.models.conv_dbn import ConvDBN
from davi.models.dbn import DBN
from davi.models.flowpp import FlowPP
from davi.models.gated_pixelcnn import GatedPixelCNN
from davi.models.glow import Glow
from davi.models.hvi import HVI
from davi.models.i_revnet import IRevNet
from davi.models.iaf_vae import IAFVAE
from davi.models.ladder_vae import LadderVAE
from davi.models.mixture_posterior import MixturePosteriorVAE
from davi.models.nice import NICE
from davi.models.nvae import NVAE
from davi.models.pixelcnn import PixelCNN
from davi.models.pixelcnn_pp import PixelCNNPP
from davi.models.pixelsnail import PixelSNAIL
from davi.models.pixelvae import PixelVAE
from davi.models.rbm import RBM
from davi.models.real_nvp import RealNVP
from davi.models.resnet import ResNet
from davi.models.revnet import RevNet
from davi.models.vae import VAE
from davi.models.very_deep_vae import VeryDeepVAE
from davi.models.vlae import VLAE
from davi.models.vq_vae import VQVAE
from davi.models.vq_vae2 import VQVAE2

_ALL: tuple[type[Network], ...] = (
    AttentiveVAE,
    BIVA,
    ConvDBN,
    DBN,
    FlowPP,
    GatedPixelCNN,
    Glow,
    HVI,
    IAFVAE,
    IRevNet,
    LadderVAE,
    MixturePosteriorVAE,
    NICE,
    NVAE,
    PixelCNN,
    PixelCNNPP,
    PixelSNAIL,
    PixelVAE,
    RBM,
    RealNVP,
    ResNet,
    RevNet,
    VAE,
    VLAE,
    VQVAE,
    VQVAE2,
    VeryDeepVAE,
)

MODELS: dict[str, type[Network]] = {model.name: model for model in _ALL}
"""Every model by the name that recipes use."""

for _model in _ALL:
    if issubclass(_model, CausalModel):
        register(_model.Causal)

__all__ = [
    "BIVA",
    "DBN",
    "HVI",
    "IAFVAE",
    "MODELS",
    "NICE",
    "NVAE",
    "RBM",
    "VAE",
    "VLAE",
    "VQVAE",
    "VQVAE2",
    "AttentiveVAE",
    "ConvDBN",
    "FlowPP",
    "GatedPixelCNN",
    "Glow",
    "IRevNet",
    "LadderVAE",
    "MixturePosteriorVAE",
    "PixelCNN",
    "PixelCNNPP",
    "PixelSNAIL",
    "PixelVAE",
    "RealNVP",
    "ResNet",
    "RevNet",
    "VeryDeepVAE",
]
