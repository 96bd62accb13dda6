"""Options, names and layout of the authors' program of Real NVP, in ours.

The program (TensorFlow; tensorflow/models, research/real_nvp) names couplings by scale and number: 0 to 2 are on
checkerboards, 3 is the fourth one of the last scale, 4 to 6 are on halves of channels. Kernels lie there as rows,
columns, inputs, outputs, maps as images, rows, columns, channels; z lies in the shape of the image, the latents of a
scale at the pixels that they have come from.

References:
    Density estimation using Real NVP, L. Dinh, J. Sohl-Dickstein, S. Bengio, ICLR 2017,
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from davi.errors import UserError
from davi.flows import Coupling, Reorder, Sequential, Squeeze
from davi.flows.base import Bijection
from davi.flows.splits import Checkerboard
from davi.models.real_nvp import RealNVP, RealNVPConfig

LEVELS = 256
_FIXED = {"n_couplings": 2, "dropout_mask": 0, "bottleneck": 0, "use_batch_norm": 1, "use_aff": 1, "skip": 1}
"""Options of the program that must have their defaults here."""
_RECURSION = 2
"""How the program must go from a scale to the next."""


def configuration(facts: Mapping[str, Any]) -> RealNVPConfig:
    """The options of our model.

    Arguments:
        facts: content of the fixture's JSON file.

    Raises:
        UserError: if the program was run with options that ours has not.
    """
    options = _options(facts)
    for name, expected in _FIXED.items():
        if options.get(name, expected) != expected:
            raise UserError(f"config.hparams.{name}: got {options[name]}, expected {expected}")
    if facts.get("recursion_type", _RECURSION) != _RECURSION:
        raise UserError(f"recursion_type: got {facts['recursion_type']}, expected {_RECURSION}")
    return RealNVPConfig(
        scales=int(options["n_scale"]),
        width=int(options["base_dim"]),
        blocks=int(options["residual_blocks"]),
        length_penalty=float(options.get("l2_coeff", 5e-5)),
        moments="original",
    )


def _options(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts.get("defaults", {}), **facts["config"]["hparams"]}


def logit_margin(facts: Mapping[str, Any]) -> float:
    """Alpha of the logit."""
    return (1.0 - float(_options(facts).get("data_constraint", 0.9))) / 2.0


def build(facts: Mapping[str, Any], channels: int) -> RealNVP:
    """Our model, with moments as in the program.

    Raises:
        UserError: if the images would have to be padded.
    """
    shape = (channels, int(facts["config"]["H"]), int(facts["config"]["W"]))
    config = configuration(facts)
    unit = 2 ** (config.scales - 1)
    if shape[1] % unit or shape[2] % unit:
        raise UserError(f"config: got images of {shape[1]} x {shape[2]}, expected multiples of {unit}")
    return RealNVP(shape, LEVELS, config)


def couplings(model: RealNVP) -> Iterator[tuple[str, Coupling]]:
    """Theirs and ours, in the order of the computation: ``scale_0/coupling_0`` and so on."""
    for number, scale in enumerate(model.scales):
        assert isinstance(scale, Sequential)
        for place, part in enumerate(scale):  # squeezing has the number that the fourth checkerboard would have
            if isinstance(part, Coupling):
                yield f"scale_{number}/coupling_{place}", part


def names(model: RealNVP) -> dict[str, str]:
    """Their name -> ours, for all weights and running statistics."""
    ours = {id(part): name for name, part in model.named_modules()}
    found: dict[str, str] = {}
    for name, coupling in couplings(model):
        place = ours[id(coupling)]
        scalar = "rescaling_scale" if isinstance(coupling.split, Checkerboard) else "scale"
        found[f"{name}/{scalar}"] = f"{place}.function.scale"
        found |= _norm(f"{name}/bn_in", f"{place}.network.norm_in")
        found |= _moments(f"{name}/bn_out", f"{place}.function.norm")
        found |= _network(f"{name}/resnet", f"{place}.network.network", model.config.blocks)
    return found


def _network(theirs: str, ours: str, blocks: int) -> dict[str, str]:
    found = {
        **_convolution(f"{theirs}/h_in", f"{ours}.conv_in", "v", "bias"),
        **_convolution(f"{theirs}/skip_in", f"{ours}.skips.0"),
        **_norm(f"{theirs}/bn_pre_out", f"{ours}.norm_out"),
        **_convolution(f"{theirs}/out", f"{ours}.conv_out"),
    }
    for number in range(blocks):
        block = f"{ours}.blocks.{number}"
        found |= _norm(f"{theirs}/block_{number}/bn_in", f"{block}.norm_in")
        found |= _convolution(f"{theirs}/block_{number}/h_0", f"{block}.conv_in", "v")
        found |= _norm(f"{theirs}/block_{number}/bn_0", f"{block}.norm_out")
        found |= _convolution(f"{theirs}/block_{number}/out", f"{block}.conv_out")
        found |= _convolution(f"{theirs}/skip_{number}", f"{ours}.skips.{number + 1}")
    return found


_CONVOLUTION = {"v": "weights", "g": "magnitude", "bias": "biases"}
"""Our names of what a convolution has -> theirs."""


def _convolution(theirs: str, ours: str, *parts: str) -> dict[str, str]:
    """Of a convolution that has these parts; none given: all."""
    return {f"{theirs}/{_CONVOLUTION[part]}": f"{ours}.{part}" for part in parts or _CONVOLUTION}


def _norm(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}/beta": f"{ours}.bias", **_moments(theirs, ours)}


def _moments(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}/{own}": f"{ours}.moments.running_{own}" for own in ("mean", "var")}


def weight(x: Tensor) -> Tensor:
    """One of their weights, laid out as ours."""
    return x.permute(3, 2, 0, 1).contiguous() if x.ndim == 4 else x


def maps(x: Tensor) -> Tensor:
    """Their maps ``[B, H, W, C]`` as ours, ``[B, C, H, W]``, or ours as theirs with the arguments exchanged."""
    return x.permute(0, 3, 1, 2)


def to_maps(x: Tensor) -> Tensor:
    """The reverse of :func:`maps`."""
    return x.permute(0, 2, 3, 1)


def in_place(model: RealNVP, latents: Sequence[Tensor]) -> Tensor:
    """Latents of each scale, finest first, as their z, ``[B, H, W, C]``."""
    *done, h = latents
    scales = list(model.scales)[: len(done)]
    for scale, z in zip(reversed(scales), reversed(done), strict=True):
        h = torch.cat((h, z), 1)
        for part in reversed(moves(scale)):
            h, _ = part.inverse(h)
    return to_maps(h)


def moves(scale: Bijection) -> list[Bijection]:
    """What only moves variables."""
    assert isinstance(scale, Sequential)
    return [part for part in scale if isinstance(part, (Squeeze, Reorder))]
