"""Parts that models are built from."""

from davi.layers.autoregressive_codes import AutoregressiveCodes
from davi.layers.autoregressive_pixels import AutoregressivePixels
from davi.layers.context_attention import ContextAttention
from davi.layers.convolution import ChannelLayerNorm, SqueezeExcite, WeightNormConv2d
from davi.layers.depth_approximation import DepthApproximation
from davi.layers.depth_attention import DepthAttention, LayerMemory, resize_to
from davi.layers.masked import MaskedConv2d, causal_mask, degrees
from davi.layers.nonlocal_block import NonLocalBlock
from davi.layers.padding import Padding
from davi.layers.pixel_head import LikelihoodConfig, PixelHead, PixelLikelihood
from davi.layers.residual import ResidualBlock, ResidualCell
from davi.layers.reversible import AdditiveStep, Reversible, ReversibleStack

__all__ = [
    "AdditiveStep",
    "AutoregressiveCodes",
    "AutoregressivePixels",
    "ChannelLayerNorm",
    "ContextAttention",
    "DepthApproximation",
    "DepthAttention",
    "LayerMemory",
    "LikelihoodConfig",
    "MaskedConv2d",
    "NonLocalBlock",
    "Padding",
    "PixelHead",
    "PixelLikelihood",
    "ResidualBlock",
    "ResidualCell",
    "Reversible",
    "ReversibleStack",
    "SqueezeExcite",
    "WeightNormConv2d",
    "causal_mask",
    "degrees",
    "resize_to",
]
