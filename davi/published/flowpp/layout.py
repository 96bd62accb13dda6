"""Options and weights of the authors' program of Flow++ for CIFAR-10, in ours.

The program (TensorFlow; github.com/aravindsrinivas/flowpp) has kernels as rows, columns, inputs, outputs, matrices as
inputs, outputs, maps as images, rows, columns, channels. It numbers layers by kind in the order in which it makes
them, those of the dequantization first: ``Norm``, ``Norm_1``, ... The parameters of one variable stand together in the
outputs of a coupling's network; in ours those of one kind do. The two halves of the columns, which it calls a
checkerboard, have a norm and a matrix each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from davi.errors import UserError
from davi.flows import Coupling, Flip, OnHalves, Pointwise, PositionNorm, Sequential
from davi.flows.base import Bijection
from davi.flows.noise import VariationalConfig
from davi.flows.variational import VariationalNoise
from davi.layers.coupling_network import CouplingNetwork, CouplingNetworkConfig, Mixing
from davi.models import FlowPP
from davi.models.flowpp import FlowPPConfig
from davi.published.torch_files import fitted

LEVELS = 256
COUPLINGS: dict[str, tuple[Mixing, bool]] = {
    "MixLogisticAttnCoupling": ("attention", True),
    "MixLogisticCoupling": ("maxout", True),
    "AffineAttnCoupling": ("attention", False),
}
"""The program's name of a coupling -> what its network mixes by, and whether it has mixtures."""

Rearrange = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where one of the program's weights is in our model.

    Arguments:
        name: of our parameter.
        rearrange: the program's weight -> ours, or that half of it.
        half: which one; None: all of it.
    """

    name: str
    rearrange: Rearrange
    half: int | None = None

    def of(self, ours: Mapping[str, Tensor]) -> Tensor:
        """The part of our parameters, or of what has their names and shapes."""
        whole = ours[self.name]
        return whole if self.half is None else whole.chunk(2)[self.half]


def kind(layer: str) -> str:
    """``04_MixLogisticAttnCoupling`` -> ``MixLogisticAttnCoupling``."""
    return layer.partition("_")[2]


def coupling_kind(layers: Sequence[str]) -> str:
    """The program's name of the couplings among the layers, of which all are of one kind.

    Raises:
        UserError: if there is another one, or none.
    """
    found = {kind(layer) for layer in layers if kind(layer).endswith("Coupling")}
    if len(found) != 1 or not found <= set(COUPLINGS):
        raise UserError(f"layer_order: got the couplings {sorted(found)}, expected one of {', '.join(COUPLINGS)}")
    return found.pop()


def configuration(facts: Mapping[str, Any]) -> FlowPPConfig:
    """Our options for those of a fixture."""
    options, order = facts["config"], facts["layer_order"]
    mixing, mixtures = COUPLINGS[coupling_kind([*order["dequant"], *order["main"]])]
    heads, components = int(options["heads"] or 1), int(options["components"]) if mixtures else 0
    noise = VariationalConfig(
        split="columns",
        steps=_counts(order["dequant"])[0],
        width=int(options["dequant_filters"]),
        blocks=int(options["dequant_blocks"]),
        mixing=mixing,
        heads=heads,
        components=components,
    )
    network = CouplingNetworkConfig(int(options["filters"]), int(options["blocks"]), mixing, heads)
    return FlowPPConfig(_counts(order["main"]), components, network, "columns", dequantization=noise)


def _counts(layers: Sequence[str]) -> tuple[int, ...]:
    """Steps on columns, then after each squeeze on channels and on columns."""
    counts, split = [0], ""
    for layer in map(kind, layers):
        if layer.endswith("Split"):
            split = layer
        elif layer == "SpaceToDepth":
            counts += [0, 0]
        elif layer in COUPLINGS:
            counts[-2 if split == "ChannelSplit" else -1] += 1
    return tuple(counts)


def build(facts: Mapping[str, Any]) -> FlowPP:
    """Our model, of which nothing is in memory yet."""
    options = facts["config"]
    with torch.device("meta"):
        return FlowPP((int(options["C"]), int(options["H"]), int(options["W"])), LEVELS, configuration(facts))


def images(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` -> ``[B, C, H, W]``."""
    return x.permute(0, 3, 1, 2).contiguous()


def noise_of(model: FlowPP) -> VariationalNoise:
    """The learned noise of a model that has some."""
    noise = model.dequantization.noise
    assert isinstance(noise, VariationalNoise)
    return noise


def steps_of(bijection: Sequential) -> Iterator[Bijection]:
    """The parts of a sequence, those of steps on halves one by one."""
    for part in bijection:
        if isinstance(part, OnHalves) and isinstance(part.bijection, Sequential):
            yield from part.bijection
        else:
            yield part


def places(model: FlowPP, coupling: str) -> dict[str, Place]:
    """The program's name of each weight -> its place in our model.

    Arguments:
        model: ours.
        coupling: the program's name of its couplings.
    """
    names = {module: name for name, module in model.named_modules()}
    noise = noise_of(model)
    found = dict(_context(noise, names))
    numbers = {Coupling: 0, PositionNorm: 0, Pointwise: 0}
    for part in [*steps_of(noise.flow), *steps_of(model.bijection)]:
        if isinstance(part, Flip) or type(part) not in numbers:
            continue
        number = numbers[type(part)]
        numbers[type(part)] += 1
        end = f"_{number}" if number else ""
        if isinstance(part, PositionNorm):
            for half in (0, 1):
                found[f"Norm{end}/norm{half}/g"] = Place(f"{names[part]}.gain", _maps, half)
                found[f"Norm{end}/norm{half}/b"] = Place(f"{names[part]}.offset", _maps, half)
        elif isinstance(part, Pointwise):
            for half in (0, 1):
                found[f"Pointwise{end}/W{half}"] = Place(f"{names[part]}.matrices", _matrix, half)
        elif isinstance(part, Coupling):
            found |= dict(_coupling(f"{coupling}{end}", part, names))
    return found


def _context(noise: VariationalNoise, names: Mapping[nn.Module, str]) -> Iterator[tuple[str, Place]]:
    context = noise.context
    yield from _layer("context_proc/proj", f"{names[context]}.first")
    for i in range(len(context.blocks)):
        yield from _layer(f"context_proc/c{i}/c1", f"{names[context]}.blocks.{i}.first")
        yield from _layer(f"context_proc/c{i}/c2", f"{names[context]}.blocks.{i}.second")


def _coupling(theirs: str, part: Coupling, names: Mapping[nn.Module, str]) -> Iterator[tuple[str, Place]]:
    network, ours = part.network, names[part.network]
    assert isinstance(network, CouplingNetwork)
    if network.embedding is not None:
        yield f"{theirs}/pos_emb", Place(f"{ours}.embedding", lambda weight: weight.permute(2, 0, 1))
    yield from _layer(f"{theirs}/proj_in", f"{ours}.first")
    for i in range(len(network.blocks)):
        here, there = f"{ours}.blocks.{i}", f"{theirs}/block{i}"
        yield from _layer(f"{there}/conv/c1", f"{here}.conv.first")
        if f"{here}.conv.context" in names.values():
            yield from _layer(f"{there}/conv/a_proj", f"{here}.conv.context")
        yield from _layer(f"{there}/conv/c2", f"{here}.conv.second")
        yield from _norm(f"{there}/ln1", f"{here}.norm")
        yield from _layer(f"{there}/attn/proj1", f"{here}.mixing.first")
        yield from _layer(f"{there}/attn/proj2", f"{here}.mixing.second")
        yield from _norm(f"{there}/ln2", f"{here}.mixing_norm")
    numbers = part.function.numbers

    def by_kind(outputs: Tensor) -> Tensor:
        """From all numbers of the first variable, then of the second, to the first number of all variables, then ..."""
        return outputs.unflatten(0, (-1, numbers)).transpose(0, 1).flatten(0, 1)

    yield from _layer(f"{theirs}/proj_out", f"{ours}.last", by_kind)


def _layer(theirs: str, ours: str, order: Rearrange = lambda outputs: outputs) -> Iterator[tuple[str, Place]]:
    yield f"{theirs}/W", Place(f"{ours}.weight", lambda weight: order(_kernel(weight)))
    yield f"{theirs}/b", Place(f"{ours}.bias", order)


def _norm(theirs: str, ours: str) -> Iterator[tuple[str, Place]]:
    yield f"{theirs}/g", Place(f"{ours}.gamma", torch.flatten)
    yield f"{theirs}/b", Place(f"{ours}.beta", torch.flatten)


def _kernel(weight: Tensor) -> Tensor:
    return weight.T[:, :, None, None] if weight.ndim == 2 else weight.permute(3, 2, 0, 1)


def _maps(weight: Tensor) -> Tensor:
    """``[h, w, C]`` -> ``[C, h, w]``."""
    return weight.permute(2, 0, 1)


def _matrix(weight: Tensor) -> Tensor:
    """The program multiplies rows by matrices, ours are multiplied by columns."""
    return weight.permute(1, 0)[None]


def state(model: FlowPP, weights: Mapping[str, Tensor], found: Mapping[str, Place]) -> dict[str, Tensor]:
    """The program's weights as our state dictionary.

    Arguments:
        model: ours, of which only the shapes matter.
        weights: by the program's names.
        found: their places.

    Raises:
        UserError: if some are missing, have no place, have another shape than ours, or are not finite.
    """
    shapes = model.state_dict()
    expected = {name: place.of(shapes) for name, place in found.items()}
    ours = {name: found[name].rearrange(x) if name in found else x for name, x in weights.items()}
    parts: dict[str, list[Tensor]] = {}
    for name, x in fitted(expected, ours, {name: name for name in found}).items():
        parts.setdefault(found[name].name, []).append(x)
    return {name: torch.cat(halves) for name, halves in parts.items()}
