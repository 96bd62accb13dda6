"""Our Flow++ beside activations of its authors' program for CIFAR-10.

A fixture holds random weights, images, the noise that the dequantization begins with, and what the program computed
from them: outputs and log-determinants of every layer in float32, and the terms of the bound, u and z in both
precisions, norms of gradients in float64. Some hold the weights before and after the initialization from a batch of
images as well, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Generator as Returning
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from davi.distributions import Distribution, TransformedNormal
from davi.distributions.base import sum_per_image
from davi.flows.base import Bijection, Sequential
from davi.flows.halves import make_split, side_by_side
from davi.flows.splits import Split
from davi.layers.from_data import set_from_data
from davi.models import FlowPP
from davi.published.agreement import Comparison
from davi.published.flowpp import layout

TENSOR = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest difference of a tensor: in float32 in units of its largest value, and beyond the authors' own error."""
STORED = 1e-4
"""That of a tensor of which the fixture has the float32 run only, in units of its largest value."""
NATS = {torch.float32: 0.05, torch.float64: 1e-9}
"""Largest difference of a term of an image, in nats."""
GRADIENT = 1e-6
"""Largest relative difference of a gradient's norm."""
INVERSE = {torch.float32: 0.1, torch.float64: 1e-6}
"""Largest difference of a pixel that has gone through the main flow and back, in levels."""
INITIALIZATION = 1e-4
"""Largest difference of a weight after the initialization, in units of its largest value; and at least that of 1."""


@final
class GivenNoise(nn.Module):
    """Learned noise whose draws begin with given ones.

    Arguments:
        noise: x -> q(u | x).
        epsilon: what the draws begin with.
    """

    def __init__(self, noise: nn.Module, epsilon: Tensor) -> None:
        super().__init__()
        self.noise, self.epsilon = noise, epsilon

    def forward(self, x: Tensor) -> Distribution:
        return _Given(self.noise(x), self.epsilon)


@final
class _Given(Distribution):
    def __init__(self, q: TransformedNormal, epsilon: Tensor) -> None:
        self.q, self.epsilon = q, epsilon

    def log_prob_map(self, x: Tensor) -> Tensor:
        return self.q.log_prob_map(x)

    def sample(self, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return self.q.sample_with(lambda like: self.epsilon)

    def mode(self) -> Tensor:
        return self.q.mode()


class FlowPPParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.tensors, self.facts, self.dtype = tensors, facts, dtype
        self.order = facts["layer_order"]
        model = layout.build(facts)
        self.places = layout.places(model, layout.coupling_kind(self.order["main"]))
        self.model = self._loaded(model, "weights/")
        double = dtype == torch.float64
        self.prefix = "expected/float64/" if double else "expected/"
        results = facts["results"]
        self.gradients = results["grad_l2_float64_of_loss"] if double else {}
        self.errors = {} if double else results.get("float32_float64_max_abs_gap", {})

    def _loaded(self, model: FlowPP, prefix: str) -> FlowPP:
        """The model with weights of the fixture, without dropout, in memory."""
        weights = {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}
        state = layout.state(model, weights, self.places)
        model = model.to_empty(device="cpu").to(self.dtype).eval()
        model.load_state_dict(state)
        return model

    def _given(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and noise, ``input`` or ``init``."""
        images = layout.images(self.tensors[f"{name}/x_uint8"])
        return images, layout.images(self.tensors[f"{name}/eps"]).to(self.dtype)

    def comparisons(self) -> list[Comparison]:
        """The way through both flows, the terms, the way back, gradients, the initialization."""
        found = []
        with torch.no_grad():
            found += [*self._layers()]
        found += [*self._terms()]
        with torch.no_grad():
            found += [*self._back(), *self._initialization()]
        return found

    @property
    def _constant(self) -> float:
        """What the program counts with its logit and we with the dequantization: D log 256."""
        return self.model.dims * math.log(self.model.levels)

    def _compare(self, name: str, ours: Tensor) -> Comparison:
        """Ours beside what the fixture has by that name in this precision."""
        relative = "absolute" if self.dtype == torch.float64 else "scale"
        slack = float(self.errors.get(name, 0.0))
        return Comparison(name, ours, self.tensors[f"{self.prefix}{name}"], TENSOR[self.dtype], relative, slack)

    def _layers(self) -> Iterator[Comparison]:
        x, epsilon = self._given("input")
        noise = layout.noise_of(self.model)
        scaled = x.to(self.dtype) / self.model.levels - 0.5
        context = noise.context(side_by_side(noise.split, scaled))
        u = yield from self._walk("dequant", noise.flow, epsilon, context)
        yield self._compare("u", u.permute(0, 2, 3, 1))
        y = x.to(self.dtype) + u
        theirs = self.tensors["expected/dequantised"]
        yield Comparison("dequantised", y.permute(0, 2, 3, 1), theirs, STORED)
        z = yield from self._walk("main", self.model.bijection, y / self.model.levels, None)
        yield self._compare("z", z.permute(0, 2, 3, 1))

    def _walk(
        self, flow: str, bijection: Sequential, x: Tensor, context: Tensor | None
    ) -> Returning[Comparison, None, Tensor]:
        """One layer of the program after the other, as it numbers them; returns what leaves the last one."""
        parts = iter(layout.steps_of(bijection))
        split: Split | None = None
        for layer in self.order[flow]:
            kind = layout.kind(layer)
            if kind.endswith("Split"):
                split = make_split("channels" if kind == "ChannelSplit" else "columns", x.shape[1])
                x = side_by_side(split, x)
                continue
            if kind == "Inverse":
                assert split is not None
                x, split = split.merge(*x.chunk(2, 1)), None
                continue
            x, log_det = self._through(next(parts), kind, x, context)
            outputs = {"": x} if split is None else {f"/{half}": h for half, h in zip("ab", x.chunk(2, 1), strict=True)}
            found = {f"{layer}{end}": h.permute(0, 2, 3, 1) for end, h in outputs.items()}
            found[f"{layer}/log_det"] = log_det
            for name, ours in found.items():
                theirs = self.tensors.get(f"expected/layers/{flow}/{name}")
                if theirs is not None and ours is log_det:
                    yield Comparison(f"layers/{flow}/{name}", ours, theirs, NATS[torch.float32], "absolute")
                elif theirs is not None:
                    yield Comparison(f"layers/{flow}/{name}", ours, theirs, STORED)
        return x

    def _through(self, part: Bijection, kind: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        y, shares = part(x, context)
        log_det = sum_per_image(shares)
        return y, log_det - self._constant if kind == "ImgProc" else log_det

    def _terms(self) -> Iterator[Comparison]:
        """The terms of the model's evidence, and their gradients."""
        x, epsilon = self._given("input")
        terms = self._evidence(self.model, x, epsilon)
        found = {
            "dequant_log_det_minus_log_eps": terms["dequantization"] + self._constant,
            "main_log_det": terms["log_det"] - self._constant,
            "log_p_z": terms["base"],
            "total": torch.stack(list(terms.values())).sum(0),
        }
        for name, ours in found.items():
            yield Comparison(name, ours, self.tensors[f"{self.prefix}{name}"], NATS[self.dtype], "absolute")
        (-found["total"].mean()).backward()
        gradients = {name: x.grad for name, x in self.model.named_parameters() if x.grad is not None}
        for name, norm in self.gradients.items():
            ours, theirs = self.places[name].of(gradients).norm(), torch.tensor(norm, dtype=torch.float64)
            yield Comparison(f"gradient/{name}", ours, theirs, GRADIENT, "each", 1e-9)

    def _evidence(self, model: FlowPP, x: Tensor, epsilon: Tensor) -> Mapping[str, Tensor]:
        noise = layout.noise_of(model)
        model.dequantization.noise = GivenNoise(noise, epsilon)
        model.dequantization.presses = False  # the program takes its noise as it is
        try:
            return model.evidence(x).terms
        finally:
            model.dequantization.noise = noise

    def _back(self) -> Iterator[Comparison]:
        """From the program's z to its dequantized images, by the inverse of the main flow."""
        z = layout.images(self.tensors[f"{self.prefix}z"]).to(self.dtype)
        y = self.model.bijection.inverse(z)[0] * self.model.levels
        x, _ = self._given("input")
        theirs = x.permute(0, 2, 3, 1) + self.tensors[f"{self.prefix}u"]
        yield Comparison("inverse", y.permute(0, 2, 3, 1), theirs, INVERSE[self.dtype], "absolute")

    def _initialization(self) -> Iterator[Comparison]:
        """The weights that a batch of images gives, and what leaves the flows in that pass."""
        if "init/x_uint8" not in self.tensors:
            return
        model = self._loaded(layout.build(self.facts), "init/weights_before/")
        x, epsilon = self._given("init")
        terms: dict[str, Tensor] = {}
        z: list[Tensor] = []
        model.bijection.register_forward_hook(lambda module, inputs, outputs: z.append(outputs[0]))
        set_from_data(model, lambda: terms.update(self._evidence(model, x, epsilon)))
        parameters = dict(model.named_parameters())
        for name, place in self.places.items():
            theirs = place.rearrange(self.tensors[f"init/weights_after/{name}"])
            tolerance = INITIALIZATION * max(1.0, float(theirs.abs().max()))
            yield Comparison(f"initialization/{name}", place.of(parameters), theirs, tolerance, "absolute")
        yield Comparison("initialization/z", z[0].permute(0, 2, 3, 1), self.tensors["init/z"], STORED)
        found = {
            "dequant_log_det_minus_log_eps": terms["dequantization"] + self._constant,
            "main_log_det": terms["log_det"] - self._constant,
        }
        for name, ours in found.items():
            yield Comparison(
                f"initialization/{name}", ours, self.tensors[f"init/{name}"], NATS[torch.float32], "absolute"
            )
