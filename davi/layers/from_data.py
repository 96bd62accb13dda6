"""Layers whose initial weights follow from what first reaches them.

A network is run once on images. Every such layer on the way sets its weights by its input before it computes anything,
so that each sees what predecessors give that have been set already. (:mod:`davi.layers.weight_norm_init` sets layers by
their output, which is then passed on as it has become.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn


class SetFromData(nn.Module, ABC):
    """A layer that is to be set by its first input."""

    @abstractmethod
    def set_from(self, x: Tensor) -> None:
        """Set the weights, in place, without gradients.

        Arguments:
            x: the input, the first argument of ``forward``.
        """


@torch.no_grad()
def set_from_data(module: nn.Module, run: Callable[[], Any], kept: Container[str] = ()) -> None:
    """Set all such layers of a module (module docstring).

    Arguments:
        module: whose layers.
        run: calls the module on the data; every layer is set the first time that it is reached. It is not called if
            there is no such layer.
        kept: names of weights that stay; a layer with one of them is left alone.
    """
    waiting = {
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, SetFromData)
        if not any(f"{name}.{leaf}" in kept for leaf in _own(layer))
    }

    def set_first(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer in waiting:
            assert isinstance(layer, SetFromData)
            waiting.remove(layer)
            layer.set_from(inputs[0])

    if not waiting:
        return
    handles = [layer.register_forward_pre_hook(set_first) for layer in waiting]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _own(layer: nn.Module) -> list[str]:
    """Names of the weights and buffers that are a layer's own."""
    return [name for find in (layer.named_parameters, layer.named_buffers) for name, _ in find(recurse=False)]
