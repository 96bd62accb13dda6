"""What the authors' programs of PixelCNN++ and PixelSNAIL have in common: names and layout of weights and feature maps.

Both (TensorFlow; github.com/openai/pixel-cnn, github.com/neocxi/pixelsnail-public) number their layers by kind in the
order in which they make them: ``model/conv2d_0``, ``model/deconv2d_0``, ``model/dense_0``, each with V, g and b, and
``model/conditional_weights_0`` with hw, the embedding of the classes in a gated block. Kernels lie there as rows,
columns, inputs, outputs (of a transposed convolution outputs, inputs), maps as images, rows, columns, channels.

A *place* is the authors' name of a layer or a gated block, with our module there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from davi.layers.pixel_head import PixelHead
from davi.layers.shifted import GatedResnet, ShiftedDeconv2d, WeightNormalized
from davi.published.vdvae.names import head_order

INSIDE = {"conv1": "conv1", "shortcut": "skip", "conv2": "conv2"}
"""A layer within our gated block -> the authors' name of it."""


def parameter_names(network: nn.Module, places: Mapping[str, str]) -> dict[str, str]:
    """The authors' name -> ours, for every parameter of the network, in the order of making.

    Arguments:
        network: ours.
        places: the authors' name of a place -> the name of our module there, in the order of making.
    """
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    for ours in places.values():
        module = network.get_submodule(ours)
        for name, layer in _layers(ours, module):
            kind = _kind(layer)
            found |= {f"model/{kind}_{counts[kind]}/{own}": f"{name}.{own.lower()}" for own in ("V", "g", "b")}
            counts[kind] += 1
        if isinstance(module, GatedResnet) and module.labels is not None:
            found[f"model/conditional_weights_{counts['labels']}/hw"] = f"{ours}.labels"
            counts["labels"] += 1
    return found


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, WeightNormalized]]:
    for own, layer in module.named_modules():
        if isinstance(layer, WeightNormalized):
            yield (f"{name}.{own}" if own else name), layer


def _kind(layer: WeightNormalized) -> str:
    if isinstance(layer, ShiftedDeconv2d):
        return "deconv2d"
    return "dense" if layer.v.shape[2:] == (1, 1) else "conv2d"


def to_ours(name: str, x: Tensor, head: PixelHead) -> Tensor:
    """A parameter of theirs, or its gradient, as ours lies.

    Arguments:
        name: our name, below the network.
        x: in the authors' layout.
        head: says in what order the network's outputs are.
    """
    if name.endswith(".v") and x.ndim == 4:
        x = x.permute(3, 2, 0, 1)
    elif name.endswith(".v") and x.ndim == 2:
        x = x.T[:, :, None, None]
    return x[head_order(head)] if name.startswith("output.") else x


def images(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` -> ``[B, C, H, W]``."""
    return x.permute(0, 3, 1, 2).contiguous()


def outputs_to_theirs(raw: Tensor, head: PixelHead) -> Tensor:
    """Parameters of the likelihood, ``[B, P, H, W]``, in the authors' order and layout, ``[B, H, W, P]``."""
    return raw[:, torch.tensor(head_order(head)).argsort()].permute(0, 2, 3, 1)


def outputs_to_ours(logits: Tensor, head: PixelHead) -> Tensor:
    """The reverse of :func:`outputs_to_theirs`."""
    return images(logits)[:, head_order(head)]


@torch.no_grad()
def activations(network: nn.Module, places: Mapping[str, str], x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
    """What the network computes at the places, in the order of the computation, ``[B, C, H, W]``.

    ``inside/PLACE/conv1``, ``skip`` and ``conv2`` are the layers within a gated block, ``PLACE/a`` what comes over its
    shortcut.

    Arguments:
        network: ours, without dropout.
        places: as of :func:`parameter_names`.
        x: integer images.
        y: classes, of a network that has some.
    """
    caught: dict[str, Tensor] = {}

    def keep(hooks: ExitStack, name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            caught[name] = output
            if isinstance(module, GatedResnet) and module.shortcut is not None:
                caught[f"{name}/a"] = inputs[1]

        hooks.enter_context(module.register_forward_hook(hook))

    with ExitStack() as hooks:
        for place, ours in places.items():
            module = network.get_submodule(ours)
            keep(hooks, place, module)
            for own, theirs in INSIDE.items():
                if isinstance(layer := getattr(module, own, None), WeightNormalized):
                    keep(hooks, f"inside/{place}/{theirs}", layer)
        network(x, y=y)
    return caught
