"""What the program of Sylvester flows computes, written down anew from its description, for fixtures of any size.

Everything has the layout that is the program's own: vectors as rows, the number of the flow where the program has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

FEATURES = 7
Weights = dict[str, Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]


def shapes(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights."""
    kind, z, steps = options["flow"], options["z_size"], options["num_flows"]
    size = options["num_ortho_vecs"] if kind == "orthogonal" else z
    wide = options["made_h_size"]
    sylvester = {"amor_d": size * size, "amor_diag1.0": size, "amor_diag2.0": size, "amor_b": size}
    heads = {
        "planar": {"amor_u": z, "amor_w": z, "amor_b": 1},
        "orthogonal": sylvester | {"amor_q": z * size},
        "householder": sylvester | {"amor_q": z * options["num_householder"]},
        "triangular": sylvester,
        "iaf": {},
    }[kind]
    linear = {"q_z_mean": z, "q_z_var.0": z} | {name: steps * count for name, count in heads.items()}
    if kind == "iaf":
        linear["h_context"] = wide
    found: dict[str, tuple[int, ...]] = {}
    for name, count in linear.items():
        found |= {f"{name}.weight": (count, FEATURES), f"{name}.bias": (count,)}
    if kind == "iaf":
        matrices = [(z, wide), (wide, wide), (wide, z), (wide, z)] * steps
        for number, matrix in enumerate(matrices):
            found |= {f"flow.param_list.{2 * number}": matrix, f"flow.param_list.{2 * number + 1}": matrix[1:]}
    return found


def linear(weights: Weights, name: str, h: Tensor) -> Tensor:
    return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def planar(options: dict[str, Any], weights: Weights, h: Tensor, z: Tensor) -> Steps:
    steps = options["num_flows"]
    u, w = (linear(weights, f"amor_{name}", h).view(len(h), steps, -1) for name in "uw")
    b = linear(weights, "amor_b", h)
    for k in range(steps):
        wu = (w[:, k] * u[:, k]).sum(1, keepdim=True)
        u_hat = u[:, k] + (F.softplus(wu) - 1 - wu) * w[:, k] / w[:, k].square().sum(1, keepdim=True)
        inner = (w[:, k] * z).sum(1) + b[:, k]
        z = z + u_hat * inner.tanh()[:, None]
        yield z, (1 + (u_hat * w[:, k]).sum(1) / inner.cosh().square()).abs().log()


def orthogonal_matrices(options: dict[str, Any], weights: Weights, h: Tensor) -> Tensor:
    """``[K, B, z, M]``."""
    kind, z, steps = options["flow"], options["z_size"], options["num_flows"]
    identity = torch.eye(z, dtype=h.dtype)
    if kind == "triangular":
        return torch.stack([identity.flip(0) if k % 2 else identity for k in range(steps)])[:, None]
    q = linear(weights, "amor_q", h)
    if kind == "householder":
        matrix = identity.expand(steps, len(h), z, z)
        for v in q.view(len(h), steps, -1, z).permute(2, 1, 0, 3):
            matrix = (identity - 2 * v[..., None] * v[..., None, :] / v.square().sum(-1)[..., None, None]) @ matrix
        return matrix
    left, _, right = torch.linalg.svd(q.view(len(h), steps, z, -1).transpose(0, 1), full_matrices=False)
    return left @ right  # what the iteration converges to


def sylvester(options: dict[str, Any], weights: Weights, h: Tensor, z: Tensor) -> Steps:
    steps = options["num_flows"]
    q = orthogonal_matrices(options, weights, h)
    first, second = triangles(options, weights, h)
    b = linear(weights, "amor_b", h).view(len(h), -1, steps)
    for k in range(steps):
        r1, r2 = first[..., k], second[..., k]
        inner = (r2 @ q[k].transpose(1, 2) @ z[..., None])[..., 0] + b[..., k]
        z = z + (q[k] @ r1 @ inner.tanh()[..., None])[..., 0]
        whole = torch.eye(z.shape[1]) + q[k] @ r1 @ torch.diag_embed(inner.cosh() ** -2) @ r2 @ q[k].transpose(1, 2)
        yield z, torch.linalg.slogdet(whole).logabsdet


def masks(z: int, wide: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the first layer, of a hidden one, and of a head, inputs by outputs."""
    block = torch.arange(wide) // (wide // z)
    first = torch.arange(z)[:, None] <= block
    hidden = torch.arange(wide)[:, None] <= torch.arange(wide)
    return first, hidden, block[:, None] < torch.arange(z)


def autoregressive(options: dict[str, Any], weights: Weights, h: Tensor, z: Tensor) -> Steps:
    first, hidden, head = (mask.to(h.dtype) for mask in masks(options["z_size"], options["made_h_size"]))
    context = linear(weights, "h_context", h)
    for k in range(options["num_flows"]):
        own = [weights[f"flow.param_list.{8 * k + i}"] for i in range(8)]
        z = z.flip(1) if k % 2 else z
        x = F.elu(z @ (own[0] * first) + own[1]) + context
        x = F.elu(x @ (own[2] * hidden) + own[3])
        mean, gate = x @ (own[4] * head) + own[5], torch.sigmoid(x @ (own[6] * head) + own[7] + 1)
        z = gate * z + (1 - gate) * mean
        yield z, gate.log().sum(1)


def parameters(options: dict[str, Any], weights: Weights, h: Tensor) -> Weights:
    """Of the flows, as the program holds them."""
    kind, steps, n = options["flow"], options["num_flows"], len(h)
    if kind == "iaf":
        return {"params/h_context": linear(weights, "h_context", h)}
    b = linear(weights, "amor_b", h)
    if kind == "planar":
        u, w = (linear(weights, f"amor_{name}", h).view(n, steps, -1, 1) for name in "uw")
        return {"params/u": u, "params/w": w.transpose(2, 3), "params/b": b.view(n, steps, 1, 1)}
    r1, r2 = triangles(options, weights, h)
    found = {"params/r1": r1, "params/r2": r2, "params/b": b.view(n, 1, -1, steps)}
    if kind == "triangular":
        return found
    q = {"params/q": linear(weights, "amor_q", h), "q_ortho": orthogonal_matrices(options, weights, h)}
    return found | q


def triangles(options: dict[str, Any], weights: Weights, h: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, M, M, K]``, twice."""
    steps, n = options["num_flows"], len(h)
    own = [linear(weights, f"amor_diag{i}.0", h).tanh().view(n, -1, steps) for i in (1, 2)]
    d = linear(weights, "amor_d", h).view(n, own[0].shape[1], -1, steps)
    above = [d.movedim(3, 1).triu(1), d.movedim(3, 1).transpose(2, 3).triu(1)]
    r1, r2 = (x + torch.diag_embed(y.movedim(2, 1)) for x, y in zip(above, own, strict=True))
    return r1.movedim(1, 3), r2.movedim(1, 3)


def expected(options: dict[str, Any], weights: Weights, h: Tensor, eps: Tensor) -> Weights:
    """What a fixture holds of the computation."""
    flow = {"planar": planar, "iaf": autoregressive}.get(options["flow"], sylvester)
    mean, variance = linear(weights, "q_z_mean", h), F.softplus(linear(weights, "q_z_var.0", h))
    z0 = mean + variance.sqrt() * eps
    found = parameters(options, weights, h) | {"z_mu": mean, "z_var": variance, "z0": z0}
    z, total = z0, torch.zeros(len(h), dtype=h.dtype)
    for k, (z, log_det) in enumerate(flow(options, weights, h, z0), 1):
        total = total + log_det
        found[f"z/{k}"] = z
        found[f"cumulative_log_det/{k}" if options["flow"] == "iaf" else f"log_det/{k}"] = (
            total if options["flow"] == "iaf" else log_det
        )
    log_q = -0.5 * (variance.log() + eps.square()).sum(1)
    log_p = -0.5 * z.square().sum(1)
    found |= {"zk": z, "log_det_sum": total, "log_q_z0_without_2pi": log_q, "log_p_zk_without_2pi": log_p}
    return found | {"kl_per_sample": log_q - log_p - total}


def write_fixture(path: Path, options: dict[str, Any], batch: int = 3) -> None:
    """A fixture in double precision of random weights."""
    weights = {
        name: (torch.randn(shape) / math.sqrt(FEATURES)).double().requires_grad_()
        for name, shape in shapes(options).items()
    }
    h, eps = torch.randn(batch, FEATURES), torch.randn(batch, options["z_size"])
    features = h.double().requires_grad_()
    found = expected(options, weights, features, eps.double())
    found["kl_per_sample"].mean().backward()
    assert features.grad is not None
    found["grad_h_of_mean_kl"] = features.grad
    tensors = {f"state_dict/{name}": x.detach().float() for name, x in weights.items()}
    tensors |= {"input/h": h, "input/eps": eps}
    tensors |= {
        f"expected/float64/{name}": x.detach().clone(memory_format=torch.contiguous_format) for name, x in found.items()
    }
    if options["flow"] == "iaf":
        first, hidden, head = masks(options["z_size"], options["made_h_size"])
        for k in range(options["num_flows"]):
            own = {"z": first, "zh0": hidden, "mean": head, "std": head}
            tensors |= {f"masks/{k}/{name}": mask.float() for name, mask in own.items()}
    save_file(tensors, path)
    norms = {name: float(torch.zeros(()) if x.grad is None else x.grad.norm()) for name, x in weights.items()}
    facts = {
        "model": "sylvester",
        "config": options,
        "results": {"float64": {"grad_l2_of_mean_kl": norms}},
    }
    path.with_suffix(".json").write_text(json.dumps(facts))
