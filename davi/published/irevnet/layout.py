"""Options and names of the authors' program of i-RevNet, in ours.

The program (PyTorch; jhjacobsen/pytorch-i-revnet) numbers blocks through all stages, ``stack.0`` and so on. Layers
within a block have the numbers that they have here.

References:
    i-RevNet: Deep Invertible Networks, J.-H. Jacobsen, A. Smeulders, E. Oyallon, ICLR 2018,
    https://arxiv.org/abs/1802.07088
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from davi.errors import UserError
from davi.layers.reversible import AdditiveStep
from davi.models.i_revnet import IRevNet, IRevNetConfig

LEVELS = 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""By which the program standardizes CIFAR-10."""
_SQUEEZES = {0: 1, 2: 2, 4: 4}
"""``init_ds`` -> side of the squares of pixels. The program takes 2 ** init_ds for the factor of the channels, which is
right for these alone."""


def configuration(options: Mapping[str, Any]) -> IRevNetConfig:
    """The options of our model.

    Arguments:
        options: arguments of the program's class, by their names.

    Raises:
        UserError: if they are arguments that ours has not.
    """
    if options["init_ds"] not in _SQUEEZES:
        raise UserError(f"config.init_ds: got {options['init_ds']}, expected 0, 2 or 4")
    if not options.get("affineBN", True):
        raise UserError(f"config.affineBN: got {options['affineBN']}, expected true")
    squeeze = _SQUEEZES[options["init_ds"]]
    return IRevNetConfig(
        blocks=_numbers(options["nBlocks"]),
        strides=_numbers(options["nStrides"]),
        channels=_numbers(options.get("nChannels") or _channels(options, squeeze)),
        squeeze=squeeze,
        bottleneck=int(options.get("mult", 4)),
        dropout=float(options.get("dropout_rate", 0.0)),
        mean=MEAN,
        std=STD,
    )


def _channels(options: Mapping[str, Any], squeeze: int) -> list[int]:
    """The program's default."""
    half = options["in_shape"][0] * squeeze**2 // 2
    return [half * 4**stage for stage in range(len(options["nBlocks"]))]


def _numbers(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def build(options: Mapping[str, Any]) -> IRevNet:
    """Our model."""
    channels, height, width = _numbers(options["in_shape"])
    return IRevNet((channels, height, width), LEVELS, configuration(options), int(options["nClasses"]))


def names(model: IRevNet) -> dict[str, str]:
    """Their name -> ours, for all weights and running statistics."""
    places = [f"{name}.function." for name, part in model.named_modules() if isinstance(part, AdditiveStep)]
    found: dict[str, str] = {}
    for name in model.state_dict():
        for number, place in enumerate(places):
            if name.startswith(place):
                found[f"stack.{number}.bottleneck_block.{name.removeprefix(place)}"] = name
        for theirs, ours in (("bn1.", "norm."), ("linear.", "linear.")):
            if name.startswith(ours):
                found[theirs + name.removeprefix(ours)] = name
    return found
