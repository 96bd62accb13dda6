"""Options and weights of the authors' program of Sylvester flows, in ours.

The program (PyTorch; github.com/riannevdberg/sylvester-flows) computes the parameters of all flows with linear layers
named ``amor_...``. Of most of their outputs the number of the flow is the last axis, of those of Q, u and w it is the
first. Its inverse autoregressive flow has matrices of inputs by outputs, in one list, and turns the latents round
before every second flow, so that it holds the latents of some flows in the opposite order of ours. To its gates' logits
it adds one, which is in the biases of ours.

References:
    Sylvester Normalizing Flows for Variational Inference, R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling,
    UAI 2018, https://arxiv.org/abs/1803.05649
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from davi.errors import UserError
from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.iaf import IAFConfig, is_reversed
from davi.flows.planar import PlanarConfig
from davi.flows.sylvester import SylvesterHouseholderConfig, SylvesterOrthogonalConfig, SylvesterTriangularConfig

HEADS = {
    "planar": {"amor_u": "u", "amor_w": "w", "amor_b": "b"},
    "orthogonal": {"amor_d": "triangles", "amor_diag1.0": "diagonal1", "amor_diag2.0": "diagonal2", "amor_q": "q"},
    "householder": {"amor_d": "triangles", "amor_diag1.0": "diagonal1", "amor_diag2.0": "diagonal2", "amor_q": "q"},
    "triangular": {"amor_d": "triangles", "amor_diag1.0": "diagonal1", "amor_diag2.0": "diagonal2"},
    "iaf": {},
}
"""The option ``flow`` -> the authors' name of a layer -> ours."""
_FLOW_LAST = ("triangles", "diagonal1", "diagonal2", "b")
"""Our layers whose outputs the authors have with the number of the flow last; in planar flows none."""
_FORGET = 1.0
"""What the program adds to the logits of gates."""
_CONSTANTS = ("triu_mask", "diag_idx", "_eye", "flip_idx")
"""Ends of the names of what is no parameter."""

Rearrange = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where one of the authors' weights is in our network.

    Arguments:
        name: of our parameter.
        rows: which of its outputs: from one to before another, None: to the end.
        rearrange: the authors' weight -> those outputs of ours.
    """

    name: str
    rows: tuple[int, int | None] = (0, None)
    rearrange: Rearrange = lambda weight: weight

    def of(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The outputs of ours."""
        return parameters[self.name][slice(*self.rows)]


def configuration(options: Mapping[str, Any], parameters: Iterable[str]) -> PosteriorFlowConfig:
    """The options of our flow.

    Arguments:
        options: the authors': ``flow``, ``num_flows``, and what the flow needs of ``num_ortho_vecs``,
            ``num_householder`` and ``made_h_size``.
        parameters: names of the authors' weights.

    Raises:
        UserError: if there is no such flow.
    """
    kind, steps = options["flow"], int(options["num_flows"])
    if kind == "planar":
        return PlanarConfig(steps=steps)
    if kind == "orthogonal":
        return SylvesterOrthogonalConfig(steps=steps, vectors=int(options["num_ortho_vecs"]), stopping="published")
    if kind == "householder":
        return SylvesterHouseholderConfig(steps=steps, reflections=int(options["num_householder"]))
    if kind == "triangular":
        return SylvesterTriangularConfig(steps=steps)
    if kind == "iaf":
        listed = sum(name.startswith("flow.param_list.") for name in parameters)
        hidden = listed // (2 * steps) - 2  # of the weights and biases of a flow, those of the heads are the others
        return IAFConfig(
            steps=steps, width=int(options["made_h_size"]), hidden_layers=hidden, gate_bias=_FORGET, form="sylvester"
        )
    raise UserError(f"config.flow: got {kind!r}, expected one of {', '.join(HEADS)}")


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that a fixture holds, by the authors' names, without masks and indices."""
    prefix = "state_dict/"
    found = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return {name: x for name, x in found.items() if name.rsplit(".", 1)[-1] not in _CONSTANTS}


def places(kind: str, config: PosteriorFlowConfig, channels: int) -> dict[str, Place]:
    """The authors' name -> the place, for every parameter of a network with the layers ``mean``, ``variance`` and
    ``posterior.flow``.

    Arguments:
        kind: the authors' option ``flow``.
        config: of our flow.
        channels: of the latents.
    """
    heads = dict(HEADS[kind]) if kind == "iaf" else {**HEADS[kind], "amor_b": "b"}
    found: dict[str, Place] = {}
    for theirs, ours in {"q_z_mean": "mean", "q_z_var.0": "variance"}.items():
        found |= {f"{theirs}.{own}": Place(f"{ours}.{own}") for own in ("weight", "bias")}
    for theirs, ours in heads.items():
        turned = kind != "planar" and ours in _FLOW_LAST
        rearrange: Rearrange = _flow_first(config.steps) if turned else lambda weight: weight
        found |= {f"{theirs}.{own}": Place(f"posterior.flow.{ours}.{own}", rearrange=rearrange) for own in _OWN}
    return found | _autoregressive(config, channels) if isinstance(config, IAFConfig) else found


_OWN = ("weight", "bias")


def _flow_first(steps: int) -> Rearrange:
    return lambda weight: weight.unflatten(0, (-1, steps)).transpose(0, 1).flatten(0, 1)


def _autoregressive(config: IAFConfig, channels: int) -> dict[str, Place]:
    """The context, and of each flow the layers in the order of the authors' list."""
    found = {
        "h_context.weight": Place("posterior.flow.context.weight", rearrange=_kernel),
        "h_context.bias": Place("posterior.flow.context.bias"),
    }
    numbers = iter(range(2 * config.steps * (config.hidden_layers + 2)))
    for step in range(config.steps):
        flipped = is_reversed(step, config.form)
        inputs, outputs = _matrix(flip_inputs=flipped), _matrix(flip_outputs=flipped)
        ours = f"posterior.flow.flow.steps.{step}"
        middle = [(f"{ours}.middle.{i}", (0, None), _matrix(), _vector()) for i in range(config.hidden_layers - 1)]
        layers = [
            (f"{ours}.first", (0, None), inputs, _vector()),
            *middle,
            (f"{ours}.last", (0, channels), outputs, _vector(flipped)),
            (f"{ours}.last", (channels, None), outputs, _gate_bias(flipped)),
        ]
        for name, rows, weight, shift in layers:
            found[f"flow.param_list.{next(numbers)}"] = Place(f"{name}.conv.weight", rows, weight)
            found[f"flow.param_list.{next(numbers)}"] = Place(f"{name}.conv.bias", rows, shift)
    return found


def _kernel(weight: Tensor) -> Tensor:
    return weight[:, :, None, None]


def _matrix(flip_inputs: bool = False, flip_outputs: bool = False) -> Rearrange:
    flipped = [axis for axis, flip in ((0, flip_inputs), (1, flip_outputs)) if flip]
    return lambda weight: _kernel(weight.flip(flipped).T)


def _vector(flip: bool = False) -> Rearrange:
    return lambda bias: bias.flip(0) if flip else bias


def _gate_bias(flip: bool) -> Rearrange:
    return lambda bias: _vector(flip)(bias) + _FORGET


@torch.no_grad()
def load(network: nn.Module, weights: Mapping[str, Tensor], found: Mapping[str, Place]) -> None:
    """Copy the authors' weights to their places.

    Raises:
        UserError: if one is missing, is unexpected, or has another shape.
    """
    parameters = dict(network.named_parameters())
    if missing := [name for name in found if name not in weights]:
        raise UserError(f"weights: {missing[0]} is missing")
    if unexpected := [name for name in weights if name not in found]:
        raise UserError(f"weights: {unexpected[0]} is unexpected")
    for name, place in found.items():
        ours = place.of(parameters)
        theirs = place.rearrange(weights[name].to(ours.dtype))
        if theirs.shape != ours.shape:
            raise UserError(f"weights: {name} has shape {list(weights[name].shape)}, which config does not lead to")
        ours.copy_(theirs)
