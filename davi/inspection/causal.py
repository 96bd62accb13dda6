"""What a pixel of an autoregressive model is told by those before it: gradients, and weights of attention."""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor

from davi.inspection.attention import MOST_BLOCKS, queries_on
from davi.inspection.views import ReceptiveField, SpatialAttentionView
from davi.layers.causal_attention import SpatialAttentive
from davi.model import CausalModel

_SIGNS = 2
"""Random combinations of the parameters of a pixel whose gradients are taken, for each image."""


def receptive_field(model: CausalModel, x: Tensor, y: Tensor | None, generator: Generator) -> ReceptiveField:
    r"""How strongly the parameters of chosen pixels depend on every pixel.

    With the parameters :math:`\theta` of a pixel and signs s drawn evenly from -1 and 1,

    .. math:: E_s \left(\frac{\partial\, s \cdot \theta}{\partial x_j}\right)^2
              = \sum_p \left(\frac{\partial \theta_p}{\partial x_j}\right)^2

    so that a few backward passes estimate what would take one for each parameter; where nothing depends on anything
    the estimate is exactly zero. In float64, since some kernels of lower precision add up terms that should cancel.

    Arguments:
        model: in eval mode.
        x: integer images, ``[n, C, H, W]``.
        y: their classes, ``[n]``, for a model that has some.
        generator: source of the signs, on the model's device.
    """
    _, height, width = model.shape
    queries = queries_on((height, width))
    with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
        squares = torch.zeros(len(queries), height, width, dtype=torch.float64)
        network = copy.deepcopy(model.causal).double().requires_grad_(False)
        labels = [None] * len(x) if y is None else y.clone().split(1)
        for image, label in zip(x.clone().double().split(1), labels, strict=True):
            image = image.requires_grad_()
            parameters = network(image, None, label)  # [1, P, H, W]
            for q, (row, column) in enumerate(queries):
                asked = parameters[0, :, row, column]
                for _ in range(_SIGNS):
                    signs = torch.randint(2, asked.shape, generator=generator, device=asked.device) * 2 - 1
                    (slope,) = torch.autograd.grad(asked @ signs.to(asked), image, retain_graph=True)
                    squares[q] += slope[0].square().sum(0).cpu()
    return ReceptiveField(queries, (squares / (_SIGNS * len(x))).sqrt(), len(x))


def attention_of_pixels(model: SpatialAttentive, x: Tensor, y: Tensor | None) -> tuple[SpatialAttentionView, ...]:
    """Where chosen pixels look, in every block of a model whose attention is causal, or in some.

    Arguments:
        model: in eval mode.
        x: integer images, ``[n, C, H, W]``.
        y: their classes, ``[n]``, for a model that has some.
    """
    grid = (x.shape[2], x.shape[3])
    queries = queries_on(grid)
    maps = torch.stack([model.attention_maps(x, query, y) for query in queries], 2).cpu()  # [n, blocks, queries, H, W]
    for q, (row, column) in enumerate(queries):
        later = maps[:, :, q].flatten(2)[..., row * grid[1] + column :]
        later[later == 0] = torch.nan
    blocks = maps.shape[1]
    shown = sorted({round(float(place)) for place in torch.linspace(0, blocks - 1, min(blocks, MOST_BLOCKS))})
    return tuple(
        SpatialAttentionView(f"block {block + 1} of {blocks}", grid, grid, None, queries, maps[:, block])
        for block in shown
    )
