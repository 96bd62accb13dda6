"""Configurations, places and activations of the authors' implementation of PixelCNN++, in ours.

References:
    PixelCNN++, T. Salimans, A. Karpathy, X. Chen, D. P. Kingma, ICLR 2017, https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from davi.layers.pixel_head import Form, LikelihoodConfig
from davi.layers.shifted import shift_down, shift_right
from davi.models.pixelcnn_pp import PixelCNNPP, PixelCNNPPConfig, Scale
from davi.published.pixelcnn import layout


def build(options: Mapping[str, Any], form: Form = "exact") -> PixelCNNPP:
    """Our model for the authors' options.

    Arguments:
        options: ``H``, ``W``, ``nr_resnet``, ``nr_filters``, ``nr_logistic_mix``, ``resnet_nonlinearity``, and
            ``num_labels`` if there are classes.
        form: of the likelihood.
    """
    config = PixelCNNPPConfig(
        width=int(options["nr_filters"]),
        blocks=int(options["nr_resnet"]),
        nonlinearity=options["resnet_nonlinearity"],
        dropout=0.0,
        likelihood=LikelihoodConfig("logistic_mixture", int(options["nr_logistic_mix"]), form),
    )
    shape = (3, int(options["H"]), int(options["W"]))
    return PixelCNNPP(shape, 256, config, int(options.get("num_labels") or 0))


def places(model: PixelCNNPP) -> dict[str, str]:
    """The authors' name of a place -> our module there, below the network, in the order of making."""
    found = {"first/u_conv": "u", "first/ul_conv_a": "above", "first/ul_conv_b": "before"}
    down, up = _pairs(model.causal.scales, "scales")
    for stage, pairs, first in (("up", down, 1), ("down", up, 0)):  # the authors count upwards where maps get smaller
        for number, ours in enumerate(pairs, first):
            found |= {f"{stage}/u/{number}": f"{ours}.u", f"{stage}/ul/{number}": f"{ours}.ul"}
    return found | {"output": "output"}


def _pairs(scale: Scale, name: str) -> tuple[list[str], list[str]]:
    """Our names of the pairs of modules that follow one another, on the way down and on the way up."""
    down, up = _numbered(f"{name}.down", len(scale.down)), _numbered(f"{name}.up", len(scale.up))
    if scale.inner is None:
        return [*down], [*up]
    inner_down, inner_up = _pairs(scale.inner, f"{name}.inner")
    return [*down, f"{name}.reduce", *inner_down], [*inner_up, f"{name}.expand", *up]


def _numbered(name: str, count: int) -> Iterator[str]:
    return (f"{name}.{number}" for number in range(count))


def activations(model: PixelCNNPP, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
    """What the network computes on the way, by the authors' names and in their layout.

    Arguments:
        model: without dropout.
        x: integer images, ``[B, C, H, W]``.
        y: classes, ``[B]``.
    """
    caught = layout.activations(model.causal, places(model), x, y)
    caught["up/u/0"] = shift_down(caught["first/u_conv"])
    caught["first/ul_a_shifted"] = shift_down(caught["first/ul_conv_a"])
    caught["first/ul_b_shifted"] = shift_right(caught["first/ul_conv_b"])
    caught["up/ul/0"] = caught["first/ul_a_shifted"] + caught["first/ul_b_shifted"]
    return {name: tensor.permute(0, 2, 3, 1) for name, tensor in caught.items() if name != "output"}
