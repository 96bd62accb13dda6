"""Configurations, weights and activations of the authors' implementation of PixelSNAIL, in ours.

The authors' code (TensorFlow, github.com/neocxi/pixelsnail-public) numbers its layers by kind in the order in which it
makes them: ``model/conv2d_0``, ``model/conv2d_1``, ..., ``model/dense_0``, .... Each has V, g and b. Kernels lie there
as rows, columns, inputs, outputs, maps as images, rows, columns, channels.

References:
    PixelSNAIL: An Improved Autoregressive Generative Model, X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel, ICML 2018,
    https://arxiv.org/abs/1712.09763
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from davi.layers.causal_attention import attention_weights
from davi.layers.pixel_head import Form, LikelihoodConfig
from davi.layers.shifted import shift_down, shift_right
from davi.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from davi.published.vdvae.names import head_order

_INSIDE = {"conv1": "conv1", "shortcut": "skip", "conv2": "conv2"}
"""A layer within our gated residual block -> the authors' name of it."""


def configuration(options: Mapping[str, Any], form: Form = "exact") -> tuple[tuple[int, int, int], PixelSNAILConfig]:
    """Shape (C, H, W) and options of our model for those of the authors.

    Arguments:
        options: ``H``, ``W``, ``attn_rep``, ``nr_resnet``, ``nr_filters``, ``nr_logistic_mix`` and
            ``resnet_nonlinearity``.
        form: of the likelihood.
    """
    config = PixelSNAILConfig(
        blocks=int(options["attn_rep"]),
        resnets=int(options["nr_resnet"]),
        width=int(options["nr_filters"]),
        nonlinearity=options["resnet_nonlinearity"],
        likelihood=LikelihoodConfig("logistic_mixture", int(options["nr_logistic_mix"]), form),
    )
    return (3, int(options["H"]), int(options["W"])), config


def modules(config: PixelSNAILConfig) -> dict[str, str]:
    """The authors' name of a place in the network -> our module there, below the network, in the order of making."""
    found = {"first/ul_conv_a": "above", "first/ul_conv_b": "beside"}
    for i in range(config.blocks):
        theirs, ours = f"block/{i}/", f"blocks.{i}."
        found |= {f"{theirs}resnet/{j}": f"{ours}resnets.{j}" for j in range(config.resnets)}
        found |= {f"{theirs}content_resnet": f"{ours}content", f"{theirs}content_nin": f"{ours}key_value"}
        found |= {f"{theirs}query_resnet": f"{ours}ask", f"{theirs}query_nin": f"{ours}query"}
        found[f"{theirs}out_resnet"] = f"{ours}out"
    return found | {"output": "output"}


def layers(config: PixelSNAILConfig) -> dict[str, str]:
    """The authors' name of a layer -> our module, below the network, in the order of making."""
    counts: Counter[str] = Counter()
    found = {}
    for place, module in modules(config).items():
        for layer in _layers_at(place, module):
            kind = "conv2d" if place.startswith("first/") or "/resnet/" in place else "dense"
            found[f"model/{kind}_{counts[kind]}"] = layer
            counts[kind] += 1
    return found


def _layers_at(place: str, module: str) -> Iterator[str]:
    if "resnet" not in place:
        yield module
        return
    yield f"{module}.conv1"
    if place.endswith("out_resnet"):
        yield f"{module}.shortcut"
    yield f"{module}.conv2"


def parameter_names(model: PixelSNAIL) -> dict[str, str]:
    """The authors' name -> our name, for every parameter, in the order of making."""
    return {
        f"{theirs}/{own}": f"causal.{ours}.{own.lower()}"
        for theirs, ours in layers(model.config).items()
        for own in ("V", "g", "b")
    }


def to_our_layout(name: str, tensor: Tensor, model: PixelSNAIL) -> Tensor:
    """A parameter of the authors, or a gradient of one, as ours lies.

    Arguments:
        name: our name.
        tensor: in the authors' layout.
        model: ours, which says in what order the parameters of its likelihood are.
    """
    if name.endswith(".v"):
        tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T[:, :, None, None]
    return tensor[head_order(model.head)] if name.startswith("causal.output.") else tensor


@torch.no_grad()
def activations(model: PixelSNAIL, x: Tensor) -> dict[str, Tensor]:
    """What the network computes on the way, by the authors' names and in their layout.

    Arguments:
        model: without dropout.
        x: integer images, ``[B, C, H, W]``.
    """
    network = model.causal
    caught: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for place, ours in modules(model.config).items():
            _catch(hooks, caught, place, network.get_submodule(ours))
        network(x)
    caught["first/ul_a_shifted"] = shift_down(caught["first/ul_conv_a"])
    caught["first/ul_b_shifted"] = shift_right(caught["first/ul_conv_b"])
    caught["ul/0"] = caught["first/ul_a_shifted"] + caught["first/ul_b_shifted"]
    for i in range(model.config.blocks):
        block = f"block/{i}/"
        caught[f"{block}query"] = caught[f"{block}query_nin"]
        parts = caught[f"{block}content_nin"].tensor_split([model.config.key_width], 1)
        caught[f"{block}key"], caught[f"{block}value"] = parts
    logits = caught.pop("output")
    theirs = torch.argsort(torch.tensor(head_order(model.head)))
    caught["logits"] = logits[:, theirs]
    found = {name: tensor.permute(0, 2, 3, 1) for name, tensor in caught.items()}
    for i in range(model.config.blocks):
        query, key = (found[f"block/{i}/{name}"].flatten(1, 2) for name in ("query", "key"))
        found[f"block/{i}/attention_weights"] = attention_weights(query, key)
    return found


def _catch(hooks: ExitStack, caught: dict[str, Tensor], place: str, module: nn.Module) -> None:
    """Keep the output of a module, and those of the layers within it."""

    def keep(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            caught[name] = output
            if name.endswith("/out_resnet"):
                caught[name.replace("out_resnet", "attention")] = inputs[1]

        hooks.enter_context(layer.register_forward_hook(hook))

    keep(place, module)
    for ours, theirs in _INSIDE.items():
        layer = getattr(module, ours, None)
        if layer is not None:
            keep(f"inside/{place}/{theirs}", layer)
