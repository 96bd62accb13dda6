"""Our posterior flows beside activations of the program of the paper on Sylvester flows.

A fixture holds random weights, features of four images in place of an encoder's, the noise, and what the program
computed from them in both precisions: the parameters of the flows, the latents and log-determinants after each, the KL
divergence from the standard normal of one draw, and gradients of its mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davi.distributions import Latent, Normal
from davi.distributions.base import sum_per_image
from davi.flows.amortized import PosteriorFlowConfig
from davi.flows.iaf import AmortizedIAF, InverseAutoregressiveStep, is_reversed
from davi.flows.planar import PlanarFlow
from davi.flows.sylvester import SylvesterFlow, SylvesterOrthogonalConfig
from davi.flows.vectors import VectorFlow, positions
from davi.layers.masked import MaskedConv2d
from davi.posteriors import FlowPosterior
from davi.published.agreement import Comparison
from davi.published.sylvester import layout

TENSOR = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference of a tensor: in float32 in units of its largest value and beyond the authors' own error."""
STOPPED_EARLY = 1e-5
"""That of an orthogonal flow as wide as the latents, and of any that is iterated to the end."""
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest relative difference of a gradient's norm, or in units of the largest value of a gradient."""


@final
class Network(nn.Module):
    """The heads of the program, and a flow.

    Arguments:
        channels: of the latents.
        features: of the encoder.
        config: of the flow.
    """

    def __init__(self, channels: int, features: int, config: PosteriorFlowConfig) -> None:
        super().__init__()
        self.mean = nn.Linear(features, channels)
        self.variance = nn.Linear(features, channels)
        self.posterior = FlowPosterior(channels, features, config)

    def base(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, ``[B, C]``."""
        return self.mean(h), F.softplus(self.variance(h))

    def forward(self, h: Tensor) -> Latent:
        mean, variance = self.base(h)
        posterior: Latent = self.posterior(Normal(_map(mean), _map(variance.sqrt())), _map(h))
        return posterior


class SylvesterParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.tensors, self.dtype = tensors, dtype
        options, weights = facts["config"], layout.weights_of(tensors)
        self.channels, kind = int(options["z_size"]), options["flow"]
        self.config = layout.configuration(options, weights)
        self.h, self.noise = tensors["input/h"].to(dtype), tensors["input/eps"].to(dtype)
        self.places = layout.places(kind, self.config, self.channels)
        self.network = Network(self.channels, self.h.shape[1], self.config).to(dtype)
        layout.load(self.network, weights, self.places)
        double = dtype == torch.float64
        self.prefix = "expected/float64/" if double else "expected/"
        self.numbers = facts["results"]["float64" if double else "float32"]
        self.errors = {} if double else facts["results"].get("float32_float64_max_abs_gap", {})
        square = isinstance(self.config, SylvesterOrthogonalConfig) and self.config.vectors == self.channels
        self.tolerance = STOPPED_EARLY if square else TENSOR[dtype]

    def comparisons(self) -> list[Comparison]:
        """Parameters, the way through the flows, the divergence, its gradients."""
        with torch.no_grad():
            found = [*self._masks(), *self._parameters(), *self._way()]
        return [*found, *self._divergence(), *self._converged()]

    def compare(self, name: str, ours: Tensor) -> Iterator[Comparison]:
        """Ours beside what the fixture has by that name, which must be there."""
        theirs = self.tensors[f"{self.prefix}{name}"]
        relative = "absolute" if self.dtype == torch.float64 else "scale"
        slack = float(self.errors.get(name, 0.0))
        yield Comparison(name, ours, theirs, self.tolerance, relative, slack)

    def _masks(self) -> Iterator[Comparison]:
        """Those of the inverse autoregressive flow, which no state dictionary has."""
        if not isinstance(self.network.posterior.flow, AmortizedIAF):
            return
        for number, step in enumerate(self.network.posterior.flow.flow.steps):
            assert isinstance(step, InverseAutoregressiveStep)
            flipped = is_reversed(number, self.network.posterior.flow.config.form)
            first, (mean, gate) = _matrix(step.first), _matrix(step.last).chunk(2, 1)
            found = {"z": first.flip(0) if flipped else first}
            found |= {f"zh{i}": _matrix(layer) for i, layer in enumerate(step.middle)}
            found |= {name: x.flip(1) if flipped else x for name, x in (("mean", mean), ("std", gate))}
            for name, mask in found.items():
                yield Comparison(f"masks/{number}/{name}", mask, self.tensors[f"masks/{number}/{name}"], 0.0)

    def _parameters(self) -> Iterator[Comparison]:
        """What the program holds of each image before the flows."""
        flow, h, steps = self.network.posterior.flow, self.h, self.config.steps
        if isinstance(flow, AmortizedIAF):
            yield from self.compare("params/h_context", flow.context(_map(h))[:, :, 0, 0])
        elif isinstance(flow, PlanarFlow):
            yield from self.compare("params/u", flow.u(h).unflatten(1, (steps, -1, 1)))
            yield from self.compare("params/w", flow.w(h).unflatten(1, (steps, 1, -1)))
            yield from self.compare("params/b", flow.b(h)[..., None, None])
        elif isinstance(flow, SylvesterFlow):
            found = flow.vector_steps(h[:, None])
            yield from self.compare("params/r1", torch.stack([step.r1[:, 0] for step in found], -1))
            yield from self.compare("params/r2", torch.stack([step.r2[:, 0] for step in found], -1))
            yield from self.compare("params/b", torch.stack([step.b for step in found], -1))
            if f"{self.prefix}params/q" in self.tensors:
                yield from self.compare("params/q", flow.q(h))  # type: ignore[operator]
                yield from self.compare("q_ortho", torch.stack([step.q[:, 0] for step in found]))

    def _way(self) -> Iterator[Comparison]:
        mean, variance = self.network.base(self.h)
        z0 = mean + variance.sqrt() * self.noise
        yield from self.compare("z_mu", mean)
        yield from self.compare("z_var", variance)
        yield from self.compare("z0", z0)
        z, total = z0, z0.new_zeros(len(z0))
        for number, (z, log_det) in enumerate(self._steps(z0), 1):
            total = total + log_det
            yield from self.compare(f"z/{number}", z)
            if isinstance(self.network.posterior.flow, AmortizedIAF):
                yield from self.compare(f"cumulative_log_det/{number}", total)
            else:
                yield from self.compare(f"log_det/{number}", log_det)
        yield from self.compare("zk", z)

    def _steps(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents as the program holds them and log-determinant of each step, ``[B, C]`` and ``[B]``."""
        flow = self.network.posterior.flow
        if isinstance(flow, VectorFlow):
            z = z[:, None]
            for step in flow.vector_steps(self.h[:, None]):
                z, log_det = step.forward(z)
                yield z[:, 0], log_det[:, 0]
        elif isinstance(flow, AmortizedIAF):
            x, context = _map(z), flow.context(_map(self.h))
            for number, part in enumerate(flow.flow.steps):
                x, shares = part(x, context)
                turned = x.flip(1) if is_reversed(number, flow.config.form) else x
                yield turned[:, :, 0, 0], sum_per_image(shares)

    def _divergence(self) -> Iterator[Comparison]:
        """Densities and divergence as our distributions have them, with the constants that the program leaves out."""
        h = self.h.clone().requires_grad_()
        posterior, noise = self.network(h), _map(self.noise)
        z = posterior.sample_with(lambda like: noise)
        mean, variance = self.network.base(h)
        z0 = mean + variance.sqrt() * self.noise
        standard = Normal(torch.zeros_like(z), torch.ones_like(z))
        constant = 0.5 * self.channels * math.log(2 * math.pi)
        log_q0 = Normal(mean, variance.sqrt()).log_prob(z0) + constant
        kl = sum_per_image(posterior.kl_map(standard, z)[0])
        yield from self.compare("log_det_sum", log_q0 - constant - posterior.log_prob(z))
        yield from self.compare("log_q_z0_without_2pi", log_q0)
        yield from self.compare("log_p_zk_without_2pi", standard.log_prob(z) + constant)
        yield from self.compare("kl_per_sample", kl)
        kl.mean().backward()
        assert h.grad is not None
        theirs = self.tensors[f"{self.prefix}grad_h_of_mean_kl"]
        yield Comparison("grad_h_of_mean_kl", h.grad, theirs, GRADIENT[self.dtype])
        yield from self._gradients()

    def _gradients(self) -> Iterator[Comparison]:
        norms = self.numbers["grad_l2_of_mean_kl"]
        gradients = {
            name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in self.network.named_parameters()
        }
        floor = 1e-9 * max(norms.values())  # gradients that are zero by construction are rounding noise on both sides
        for name, place in self.places.items():
            ours, theirs = place.of(gradients).norm(), torch.tensor(norms[name], dtype=torch.float64)
            yield Comparison(f"gradient/{name}", ours, theirs, GRADIENT[self.dtype], "each", floor)

    @torch.no_grad()
    def _converged(self) -> Iterator[Comparison]:
        """The orthogonal flow as recipes have it, beside the program that stops early."""
        if not isinstance(self.config, SylvesterOrthogonalConfig):
            return
        network = Network(self.channels, self.h.shape[1], replace(self.config, stopping="converged")).to(self.dtype)
        network.load_state_dict(self.network.state_dict())
        noise = _map(self.noise)
        posterior = network(self.h)
        z = posterior.sample_with(lambda like: noise)
        kl = sum_per_image(posterior.kl_map(Normal(torch.zeros_like(z), torch.ones_like(z)), z)[0])
        for name, ours in (("zk", positions(z)[:, 0]), ("kl_per_sample", kl)):
            theirs = self.tensors[f"{self.prefix}{name}"]
            slack = float(self.errors.get(name, 0.0))
            yield Comparison(f"converged/{name}", ours, theirs, STOPPED_EARLY, slack=slack)


def _matrix(layer: nn.Module) -> Tensor:
    """The mask of a masked layer, inputs by outputs."""
    assert isinstance(layer, MaskedConv2d)
    return layer.mask[:, :, 0, 0].T


def _map(x: Tensor) -> Tensor:
    """Vectors ``[B, C]`` as maps of one position."""
    return x[:, :, None, None]
