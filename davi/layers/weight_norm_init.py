r"""Initial lengths and biases of weight-normalized convolutions, from data.

A network is run once. Every convolution on the way, in the order in which they are reached, has its lengths and biases
set so that each of its output channels has mean 0 and a chosen standard deviation :math:`\alpha` over the images and
pixels, and passes *these* outputs on:

.. math:: g_o \leftarrow \frac{\alpha\, g_o}{\mathrm{std}(y_o)}, \qquad
          b_o \leftarrow \frac{\alpha\, (b_o - \mathrm{mean}(y_o))}{\mathrm{std}(y_o)}

so that the network, run again on the same images with the same draws, computes the very numbers it was initialized
with.

References:
    Weight Normalization, T. Salimans, D. P. Kingma, NeurIPS 2016, https://arxiv.org/abs/1602.07868
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from davi.layers.convolution import WeightNormConv2d

_CONSTANT = 1e-6
"""Outputs that vary less than this have no scale that could be normalized."""


@torch.no_grad()
def initialize_from_data(
    module: nn.Module, run: Callable[[], Any], scale: float = 1.0, kept: Container[str] = ()
) -> None:
    """Normalize the outputs of all weight-normalized convolutions of a module (module docstring).

    Channels that are constant, since nothing but a bias has reached them, stay as they are, and so do convolutions
    without a bias.

    Arguments:
        module: whose convolutions.
        run: calls the module on the data; each convolution should be reached once, and is set the first time.
        scale: alpha.
        kept: names of weights that stay; a convolution with one of them is left alone.
    """
    waiting = {
        conv
        for name, conv in module.named_modules()
        if isinstance(conv, WeightNormConv2d) and conv.bias is not None
        if not any(f"{name}.{leaf}" in kept for leaf, _ in conv.named_parameters(recurse=False))
    }
    if not waiting:
        return

    def normalize(conv: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | None:
        if conv not in waiting:
            return None
        assert isinstance(conv, WeightNormConv2d)
        assert conv.bias is not None
        waiting.remove(conv)
        std, mean = torch.std_mean(outputs, dim=(0, 2, 3), correction=0)  # [out]
        varies = std > _CONSTANT
        factor = torch.where(varies, scale / std.clamp_min(_CONSTANT), 1.0)
        shift = torch.where(varies, mean, 0.0)
        conv.log_g.add_(factor.log())
        conv.bias.sub_(shift).mul_(factor)
        return (outputs - shift[:, None, None]) * factor[:, None, None]

    handles = [conv.register_forward_hook(normalize) for conv in waiting]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
