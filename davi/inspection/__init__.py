"""Inspection of a trained model: what its page shows, as numbers and tensors.

All that a hierarchy of latents shows is an answer to the one question of its top-down walk
(:meth:`davi.model.Hierarchy.top_down`): reconstructions from the first layers take the posterior there and the prior
below; attention is caught by hooks while a walk passes; maps of bits come from the distributions that it meets.

Example:
    >>> import davi, torch
    >>> from davi.data import Images
    >>> from davi.inspection import inspect
    >>> model = davi.build("attentive_digits_tiny")  # not trained
    >>> images = Images(torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8), 17, "random")
    >>> found = inspect(model, images, samples=2)
    >>> [layer.name for layer in found.layers], [view.side for view in found.depth_attention]
    (['kl/00', 'kl/01', 'kl/02'], ['generative', 'inference'])
"""

from davi.inspection.code_views import Coded, CodeLayer, CodeView, Nearest
from davi.inspection.flow_views import Block, FlowView, Noise, RoundTrip, Scale
from davi.inspection.inspect import inspect
from davi.inspection.inversion_view import Inversions
from davi.inspection.views import (
    BitMaps,
    Chains,
    Chosen,
    Classes,
    DepthAttentionView,
    Filters,
    Inspection,
    Layer,
    Mistake,
    Progressive,
    ReceptiveField,
    SpatialAttentionView,
    Strip,
)

__all__ = [
    "BitMaps",
    "Block",
    "Chains",
    "Chosen",
    "Classes",
    "CodeLayer",
    "CodeView",
    "Coded",
    "DepthAttentionView",
    "Filters",
    "FlowView",
    "Inspection",
    "Inversions",
    "Layer",
    "Mistake",
    "Nearest",
    "Noise",
    "Progressive",
    "ReceptiveField",
    "RoundTrip",
    "Scale",
    "SpatialAttentionView",
    "Strip",
    "inspect",
]
