"""Options, names and layout of the authors' program of reversible residual networks, in ours.

The program (TensorFlow; renmengye/revnet-public) counts stages from 1 and units from 0, and the parts of a branch,
batch norm, ReLU and convolution, from 1. Kernels lie there as rows, columns, inputs, outputs, maps as images, rows,
columns, channels.

References:
    The Reversible Residual Network: Backpropagation Without Storing Activations, A. N. Gomez, M. Ren, R. Urtasun,
    R. B. Grosse, NeurIPS 2017, https://arxiv.org/abs/1707.04585
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from davi.errors import UserError
from davi.layers.preactivation import Stem
from davi.layers.same_padding import SameConv2d
from davi.models.revnet import RevNet, RevNetConfig, Stage

LEVELS = 256
_STEMS: dict[tuple[int, int, bool], Stem] = {(3, 1, False): "3x3", (7, 2, True): "7x7"}
"""Kernel and stride of the first convolution, and whether a maximum follows -> our name."""


def configuration(facts: Mapping[str, Any]) -> RevNetConfig:
    """The options of our model.

    Arguments:
        facts: content of the fixture's JSON file.

    Raises:
        UserError: if the program was run with options that ours has not.
    """
    config = facts["config"]
    stages = len(config["num_residual_units"])
    fixed = {
        "model_class": "revnet",
        "strides": [1] + [2] * (stages - 1),
        "activate_before_residual": [True] + [False] * (stages - 1),
        "relu_leakiness": 0.0,
    }
    for name, expected in fixed.items():
        if config.get(name, expected) != expected:
            raise UserError(f"config.{name}: got {config[name]}, expected {expected}")
    stem = (int(config["init_filter"]), int(config["init_stride"]), bool(config["init_max_pool"]))
    if stem not in _STEMS:
        known = " or ".join(map(str, _STEMS))
        raise UserError(f"config.init_filter, init_stride, init_max_pool: got {stem}, expected {known}")
    return RevNetConfig(
        units=tuple(map(int, config["num_residual_units"])),
        widths=tuple(map(int, config["filters"])),
        bottleneck=bool(config["use_bottleneck"]),
        stem=_STEMS[stem],
        mean=(0.0,) * int(config["num_channel"]),
        std=(1.0,) * int(config["num_channel"]),
    )


def build(facts: Mapping[str, Any]) -> RevNet:
    """Our model."""
    config = facts["config"]
    shape = (int(config["num_channel"]), int(config["height"]), int(config["width"]))
    return RevNet(shape, LEVELS, configuration(facts), int(config["num_classes"]))


def units(model: RevNet) -> list[str]:
    """Their names of all units, from the bottom."""
    return [f"unit_{stage}_{i}" for stage, count in enumerate(model.config.units, 1) for i in range(count)]


def names(model: RevNet) -> dict[str, str]:
    """Their name -> ours, for all weights and running statistics."""
    ours = {id(part): name for name, part in model.named_modules()}
    found = {
        "init/init_conv/w": "stem.conv.weight",
        **_norm("init/init_bn", "stem.norm"),
        **_norm("unit_last/final_bn", "head.norm"),
        "logit/w": "head.linear.weight",
        "logit/b": "head.linear.bias",
    }
    for name, branches, shortcuts in _parts(model):
        for letter, branch in zip("fg", branches, strict=True):
            found |= _branch(f"{name}/{letter}", ours[id(branch)], branch)
        for number, shortcut in enumerate(shortcuts, 1):
            if isinstance(shortcut, SameConv2d):
                found[f"{name}/x{number}_bottleneck/project/w"] = f"{ours[id(shortcut)]}.weight"
    return found


def _parts(model: RevNet) -> Iterator[tuple[str, list[nn.Module], list[nn.Module]]]:
    """Of each unit their name, our two branches, and the shortcuts, if it has any."""
    for number, stage in enumerate(model.stages, 1):
        assert isinstance(stage, Stage)
        yield f"unit_{number}_0", [stage.first.f, stage.first.g], list(stage.first.shortcuts)
        functions = [] if stage.rest is None else [step.function for step in stage.rest]
        for unit in range(len(functions) // 2):
            yield f"unit_{number}_{unit + 1}", functions[2 * unit : 2 * unit + 2], []


def _branch(theirs: str, ours: str, branch: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    number = 1
    for place, part in branch.named_children():
        if isinstance(part, nn.BatchNorm2d):
            found |= _norm(f"{theirs}/sub{number}/bn{number}", f"{ours}.{place}")
        elif isinstance(part, SameConv2d):
            found[f"{theirs}/sub{number}/conv{number}/w"] = f"{ours}.{place}.weight"
            number += 1
    return found


_NORM = {"beta": "bias", "gamma": "weight", "ema_mean": "running_mean", "ema_var": "running_var"}
"""Their names of what a batch norm has -> ours."""


def _norm(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}/{their}": f"{ours}.{own}" for their, own in _NORM.items()}


def decays(theirs: str) -> bool:
    """Whether weight decay is on the weights of that name: kernels, and the matrix of the last layer."""
    return theirs.endswith("/w")


def weight(x: Tensor) -> Tensor:
    """One of their weights, laid out as ours."""
    if x.ndim == 4:
        return x.permute(3, 2, 0, 1).contiguous()
    return x.T.contiguous() if x.ndim == 2 else x


def maps(x: Tensor) -> Tensor:
    """Their maps ``[B, H, W, C]`` as ours, ``[B, C, H, W]``."""
    return x.permute(0, 3, 1, 2)


def to_maps(x: Tensor) -> Tensor:
    """The reverse of :func:`maps`."""
    return x.permute(0, 2, 3, 1)
