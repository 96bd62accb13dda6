"""Configurations, places and activations of the authors' implementation of PixelSNAIL, in ours.

References:
    PixelSNAIL: An Improved Autoregressive Generative Model, X. Chen, N. Mishra, M. Rohaninejad, P. Abbeel, ICML 2018,
    https://arxiv.org/abs/1712.09763
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from davi.layers.causal_attention import attention_weights
from davi.layers.pixel_head import Form, LikelihoodConfig
from davi.layers.shifted import shift_down, shift_right
from davi.models.pixelsnail import PixelSNAIL, PixelSNAILConfig
from davi.published.pixelcnn import layout


def build(options: Mapping[str, Any], form: Form = "exact") -> PixelSNAIL:
    """Our model for the authors' options.

    Arguments:
        options: ``H``, ``W``, ``attn_rep``, ``nr_resnet``, ``nr_filters``, ``nr_logistic_mix``,
            ``resnet_nonlinearity``, and ``num_labels`` if there are classes.
        form: of the likelihood.
    """
    config = PixelSNAILConfig(
        blocks=int(options["attn_rep"]),
        resnets=int(options["nr_resnet"]),
        width=int(options["nr_filters"]),
        nonlinearity=options["resnet_nonlinearity"],
        dropout=0.0,
        likelihood=LikelihoodConfig("logistic_mixture", int(options["nr_logistic_mix"]), form),
    )
    shape = (3, int(options["H"]), int(options["W"]))
    return PixelSNAIL(shape, 256, config, int(options.get("num_labels") or 0))


def places(model: PixelSNAIL) -> dict[str, str]:
    """The authors' name of a place -> our module there, below the network, in the order of making."""
    found = {"first/ul_conv_a": "above", "first/ul_conv_b": "beside"}
    for i in range(model.config.blocks):
        theirs, ours = f"block/{i}/", f"blocks.{i}."
        found |= {f"{theirs}resnet/{j}": f"{ours}resnets.{j}" for j in range(model.config.resnets)}
        found |= {f"{theirs}content_resnet": f"{ours}content", f"{theirs}content_nin": f"{ours}key_value"}
        found |= {f"{theirs}query_resnet": f"{ours}ask", f"{theirs}query_nin": f"{ours}query"}
        found[f"{theirs}out_resnet"] = f"{ours}out"
    return found | {"output": "output"}


def activations(model: PixelSNAIL, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
    """What the network computes on the way, by the authors' names and in their layout.

    Arguments:
        model: without dropout.
        x: integer images, ``[B, C, H, W]``.
        y: classes, ``[B]``.
    """
    caught = layout.activations(model.causal, places(model), x, y)
    caught["first/ul_a_shifted"] = shift_down(caught["first/ul_conv_a"])
    caught["first/ul_b_shifted"] = shift_right(caught["first/ul_conv_b"])
    caught["ul/0"] = caught["first/ul_a_shifted"] + caught["first/ul_b_shifted"]
    for i in range(model.config.blocks):
        block = f"block/{i}/"
        caught[f"{block}query"] = caught[f"{block}query_nin"]
        parts = caught[f"{block}content_nin"].tensor_split([model.config.key_width], 1)
        caught[f"{block}key"], caught[f"{block}value"] = parts
        caught[f"{block}attention"] = caught[f"{block}out_resnet/a"]
    found = {name: tensor.permute(0, 2, 3, 1) for name, tensor in caught.items() if name != "output"}
    for i in range(model.config.blocks):
        query, key = (found[f"block/{i}/{name}"].flatten(1, 2) for name in ("query", "key"))
        found[f"block/{i}/attention_weights"] = attention_weights(query, key)[:1]  # the fixtures have those of an image
    return found
