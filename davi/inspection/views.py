"""The results of an inspection: plain records of numbers and tensors, all on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from davi.evaluation import Measure
from davi.evaluation.autocorrelation import Autocorrelation
from davi.evaluation.calibration import Reliability
from davi.inspection.code_views import CodeView
from davi.inspection.flow_views import FlowView
from davi.inspection.inversion_view import Inversions
from davi.layers.depth_attention import Side


@dataclass(frozen=True, eq=False)
class Layer:
    """A latent layer and what it costs.

    Arguments:
        name: of its term of the evidence, such as ``kl/00``; 00 is the top.
        grid: height and width of its latent map; (1, 1) for a vector.
        channels: of its latent map.
        nats: minus its term: mean KL divergence over the inspected images, nats per image (but see ``divergence``).
        standard_error: of that mean (:mod:`davi.evaluation.clusters`); None for a single image or file.
        active: number of active units, by :data:`davi.evaluation.activity.ACTIVE_RULE`.
        units: number of units; 0, like ``active``, where a single image leaves nothing to compare.
        inactive: by :data:`davi.evaluation.activity.INACTIVE_RULE`.
        drawn: whether the term has no closed form, so that ``nats`` comes from one draw for each image and may be below
            zero by chance.
        latent: what the model's paper calls it (:meth:`davi.model.Hierarchy.latent_name`).
        divergence: whether ``nats`` is a KL divergence. Of latents drawn on the way up it is E[log q - log p], which
            may be below zero in truth (``Evidence.no_divergence``).

    References:
        Ladder Variational Autoencoders, C. K. Sonderby, T. Raiko, L. Maaloe, S. K. Sonderby, O. Winther, NeurIPS 2016,
        https://arxiv.org/abs/1602.02282 (KL divergence layer by layer)

        Importance Weighted Autoencoders, Y. Burda, R. Grosse, R. Salakhutdinov, ICLR 2016,
        https://arxiv.org/abs/1509.00519 (active units)
    """

    name: str
    grid: tuple[int, int]
    channels: int
    nats: float
    standard_error: float | None
    active: int
    units: int
    inactive: bool
    drawn: bool = False
    latent: str = ""
    divergence: bool = True


@dataclass(frozen=True, eq=False)
class Chosen:
    """An image picked by what it costs.

    Arguments:
        role: best: the fewest bits per dimension among the inspected images; worst: the most; typical: nearest to the
            median of all.
        index: of the image in the set.
        name: such as ``test image 17``.
        bits_per_dim: by the claim of the model, the ELBO with one draw where that is the ELBO; None where the partition
            function is not known, without which images can be ranked all the same.
        original: integers ``[C, H, W]``.
        reconstruction: p(x | z) at the posterior means, as ``Inspection.pixels`` says, ``[C, H, W]``; None without
            latents.
    """

    role: Literal["best", "typical", "worst"]
    index: int
    name: str
    bits_per_dim: float | None
    original: Tensor
    reconstruction: Tensor | None


@dataclass(frozen=True, eq=False)
class Progressive:
    r"""What the first k layers know of an image, for several k.

    ``nats`` is minus the lower bound of which only the first k latents depend on the image,

    .. math:: -\log p(x) \le E\Big[-\log p(x \mid z) + \sum_{i<k} KL(q(z_i \mid z_{<i}, x) \| p(z_i \mid z_{<i}))\Big],
              \qquad z_{<k} \sim q,\; z_{\ge k} \sim p(z_{\ge k} \mid z_{<k}),

    which is the evidence lower bound with the posterior :math:`q(z_{<k} \mid x)\, p(z_{\ge k} \mid z_{<k})`; latents
    that were drawn on the way up have log q - log p in place of a divergence. Lower is better; at k = L it is minus the
    ELBO. Every k takes the same noise, so that differences between them are those of the layers. The images are drawn
    without noise: posterior means, then prior means.

    Arguments:
        originals: integers ``[n, C, H, W]``.
        depths: the k, from 0 to all layers.
        images: p(x | z), as ``Inspection.pixels`` says, ``[len(depths), n, C, H, W]``.
        nats: minus the bound, mean over all inspected images with one draw each, nats per image.

    References:
        NVAE: A Deep Hierarchical Variational Autoencoder, A. Vahdat, J. Kautz, NeurIPS 2020,
        https://arxiv.org/abs/2007.03898

        Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, R. Child, ICLR 2021,
        https://arxiv.org/abs/2011.10650 (images from the first layers of latents)
    """

    originals: Tensor
    depths: tuple[int, ...]
    images: Tensor
    nats: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Strip:
    """Pictures in a row.

    Arguments:
        kind: interpolation: from one image to another through the latents between them, linearly in each layer, or
            through those of a flow (an arc where the base is Normal), or linearly between representations that can be
            inverted; variations: the latents of the top layers are those of the first picture, all others are drawn
            from the prior; scales: the same of one scale of a flow after the other; completions: pixels after those
            given are drawn; chain: states of one Markov chain that begins at the first picture.
        title: what sets this row apart from others of its kind.
        labels: of the pictures; empty for one that needs none.
        images: ``[len(labels), C, H, W]``, integers, or means in units of levels.
        given: rows of an image that is completed; the others of the picture with that label mean nothing.
    """

    kind: Literal["interpolation", "variations", "scales", "completions", "chain"]
    title: str
    labels: tuple[str, ...]
    images: Tensor
    given: int = 0


@dataclass(frozen=True, eq=False)
class DepthAttentionView:
    """Which layers each layer reads from, by depth-wise attention.

    Latent grids, and with them the maps, cover the image with the zeros that the model pads it with.

    Arguments:
        side: contexts of the layers above (generative), or encoder features from the layer's own down (inference);
            outputs of earlier layers (classifier).
        readers: the layers that read, by number, top first; in a classifier 0 is the stem.
        sources: the layers that are read; ``image`` stands for the features below the last layer.
        matrix: mean weights over pixels and all inspected images, ``[readers, sources]``; NaN where a layer is not
            offered. The rest of a row sums to 1.
        gates: factor of each reader on what it has read; 0: the attention has no influence.
        maps: weights at every pixel, ``[images, readers, sources, h, w]``, on the finest of the readers' grids (nearest
            neighbor); NaN where a layer is not offered. The images are those of :class:`BitMaps`.

    References:
        Deep Attentive Variational Inference, I. Apostolopoulou, I. Char, E. Rosenfeld, A. Dubrawski, ICLR 2022,
        https://openreview.net/forum?id=T4-65DNlDij
    """

    side: Side
    readers: tuple[str, ...]
    sources: tuple[str, ...]
    matrix: Tensor
    gates: tuple[float, ...]
    maps: Tensor


@dataclass(frozen=True, eq=False)
class SpatialAttentionView:
    """Where chosen pixels look, in a non-local block, or in a block whose attention is causal.

    Arguments:
        name: of the block within the model.
        grid: height and width of the block's feature map, which covers the image with its padding.
        key_grid: of the pixels that are looked at; smaller than ``grid`` where keys are subsampled.
        gate: factor of the block on what was read; 0: the attention has no influence. None: it has no gate, and a pixel
            reads only from those before it, row by row.
        queries: (row, column) on ``grid``.
        maps: weights, ``[images, queries, *key_grid]``; each map sums to 1. The images are those of :class:`BitMaps`.
            Weights of pixels that may not be read are NaN.

    References:
        Non-local Neural Networks, X. Wang, R. Girshick, A. Gupta, K. He, CVPR 2018, https://arxiv.org/abs/1711.07971

        PixelSNAIL: An Improved Autoregressive Generative Model, X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel, ICML
        2018, https://arxiv.org/abs/1712.09763 (causal attention)
    """

    name: str
    grid: tuple[int, int]
    key_grid: tuple[int, int]
    gate: float | None
    queries: tuple[tuple[int, int], ...]
    maps: Tensor


@dataclass(frozen=True, eq=False)
class BitMaps:
    """Where in an image the bits go. All maps of an image together sum to the bits of the claim about it.

    Arguments:
        images: integers ``[n, C, H, W]``.
        reconstruction: bits of the pixels, summed over channels, ``[n, H, W]``, float64: given the latents, or given
            the pixels before them.
        layers: bits of the term of each latent layer, ``[n, L, H, W]``, float64: those of a latent pixel are spread
            evenly over the image pixels that it covers, or given to the nearest ones if it covers padding alone.
    """

    images: Tensor
    reconstruction: Tensor
    layers: Tensor


Shown = Literal["means", "modes", "draws"]
"""What a picture of p(x | z) shows."""


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What the parameters of chosen pixels of a causal network depend on.

    Arguments:
        queries: (row, column) of these pixels.
        maps: the size of the gradient of all parameters of a query by each pixel, all its channels together, root mean
            square over images, ``[queries, H, W]``, float64; exactly zero where nothing depends on anything.
        images: over how many.

    References:
        Pixel Recurrent Neural Networks, A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu, ICML 2016,
        https://arxiv.org/abs/1601.06759
    """

    queries: tuple[tuple[int, int], ...]
    maps: Tensor
    images: int

    def later(self) -> Tensor:
        """Of all pixels after each query, one after the other: zero for every causal network."""
        flat, width = self.maps.flatten(1), self.maps.shape[2]
        places = (row * width + column for row, column in self.queries)
        return torch.cat([values[place + 1 :] for values, place in zip(flat, places, strict=True)])


@dataclass(frozen=True, eq=False)
class Filters:
    """What units of a layer look for (:class:`davi.model.WithFilters`).

    Arguments:
        layer: 1 is next to the image.
        units: of the layer.
        fields: of those with the largest norms, largest first, ``[n, C, H, W]``.

    References:
        Sparse deep belief net model for visual area V2, H. Lee, C. Ekanadham, A. Ng, NeurIPS 2007,
        https://papers.nips.cc/paper/2007/hash/4daa3db355ef2b0e64b472968cb70f0d-Abstract.html
    """

    layer: int
    units: int
    fields: Tensor


@dataclass(frozen=True, eq=False)
class Chains:
    """Markov chains that were followed together (:class:`davi.model.WithChain`), each from an image of its own.

    Arguments:
        discarded: steps before anything was measured.
        free_energy: its autocorrelation in the steps after these.
        ends: images of some of the last states, integers ``[n, C, H, W]``.
        training, images, samples: free energies, float64, nats: of training images (None without any), of the inspected
            images, and of the last states of all chains.
    """

    discarded: int
    free_energy: Autocorrelation
    ends: Tensor
    training: Tensor | None
    images: Tensor
    samples: Tensor


@dataclass(frozen=True, eq=False)
class Mistake:
    """An image that is put into a class other than its own.

    Arguments:
        name: such as ``test image 17``.
        image: integers ``[C, H, W]``.
        own: its class.
        named: the class that is found most probable.
        probability: of that one.
        own_probability: of its own.
    """

    name: str
    image: Tensor
    own: str
    named: str
    probability: float
    own_probability: float


@dataclass(frozen=True, eq=False)
class Classes:
    """What a network makes of the classes of images (:class:`davi.model.Classifying`).

    Arguments:
        names: of the classes.
        confusion: images of each class that are put into each class, ``[own, named]``.
        by_confidence: calibration over bins of equal width.
        by_rank: the same over bins of equally many images.
        mistakes: those that it is surest of, surest first.
    """

    names: tuple[str, ...]
    confusion: Tensor
    by_confidence: Reliability
    by_rank: Reliability
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, eq=False)
class Inspection:
    """A look into a model. What it cannot have is empty or None.

    Arguments:
        images: how many were inspected, spread evenly over the set (:mod:`davi.data.subsets`).
        seed: of all draws.
        set: name of the set.
        samples: temperature -> integers ``[n, C, H, W]``; all temperatures start from the same seed. A temperature at
            which nothing finite was drawn is left out.
        expected: temperature -> means of p(x | z) for the latents of these samples, in units of levels, floats of the
            same shape; empty where latents or means are not known.
        pixels: what pictures of p(x | z) show, here and in strips: its means in units of levels (floats), modes
            (integers) where means are not known, or one draw each (integers) of an autoregressive likelihood.
        shown: names of the images of ``progressive``, ``bits`` and the maps of attention.
        chosen: up to four each of the best, the typical and the worst images, no image twice from three images on.
        layers: the latent layers, top first.
        progressive: reconstructions from the first layers.
        depth_attention: one view for each side that has any.
        spatial_attention: one view for each of some blocks.
        bits: maps of at most four images: the best, two typical, the worst.
        active_units: how they were counted; the numbers of each layer stand with it.
        examples: inspected images to set beside the samples, at most as many, integers ``[n, C, H, W]``; of a
            classifier those that are shown.
        receptive: what pixels depend on, of a model that has a causal network.
        strips: interpolations, variations, completions, chains: those that a model of this kind has.
        filters: of every layer of hidden units, of a network that has filters.
        chains: of a network that is drawn from by a Markov chain.
        flow: of a flow.
        classes: what is made of the classes of images, of a network that knows of some.
        inversions: of a network from whose depths images come back.
        codes: of a quantized model.
        not_finite: temperature -> draws that are not among the samples, since the inverse of a flow takes them to
            numbers that are not finite.
    """

    images: int
    seed: int
    set: str
    samples: dict[float, Tensor]
    chosen: tuple[Chosen, ...]
    layers: tuple[Layer, ...]
    progressive: Progressive | None
    depth_attention: tuple[DepthAttentionView, ...]
    spatial_attention: tuple[SpatialAttentionView, ...]
    bits: BitMaps | None
    active_units: Measure | None = None
    expected: Mapping[float, Tensor] = field(default_factory=dict)
    pixels: Shown = "modes"
    shown: tuple[str, ...] = ()
    strips: tuple[Strip, ...] = ()
    examples: Tensor | None = None
    receptive: ReceptiveField | None = None
    filters: tuple[Filters, ...] = ()
    chains: Chains | None = None
    flow: FlowView | None = None
    classes: Classes | None = None
    inversions: Inversions | None = None
    codes: CodeView | None = None
    not_finite: Mapping[float, int] = field(default_factory=dict)
