"""Our i-RevNet beside activations of the authors' program.

A fixture holds random weights, standardized images, and what the program computed from them: both halves after every
block, what the classifier makes of the last ones, the inverse of these and of a point near them; and in training mode,
with the statistics of the batch, logits, gradients, and running statistics after the pass. Most tensors are those of
the float32 run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from davi.errors import UserError
from davi.models.i_revnet import IRevNet
from davi.published.agreement import Comparison
from davi.published.irevnet import layout
from davi.published.layer_parity import weights_of
from davi.published.torch_files import fitted

SINGLE = 1e-5
"""Largest difference of a tensor that is stored in single precision, in units of its largest value."""
DOUBLE = 1e-9
"""Largest difference of what is known in double precision."""
INVERSE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest difference of an image from the inverse of its own representation."""
GRADIENT = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest relative difference of a gradient's norm."""
ZERO = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Norms of gradients that count as zero, in units of the largest one. What is exactly zero in the fixture must be so
here."""


class IRevNetParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.tensors, self.dtype = tensors, dtype
        self.double = dtype == torch.float64
        self.numbers = facts["results"]["float64" if self.double else "float32"]
        self.gaps = facts["results"].get("float32_float64_max_abs_gap", {})
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the file
            on_paper = layout.build(facts["config"])
        self.names = layout.names(on_paper)
        expected = {name: x for name, x in on_paper.state_dict().items() if not name.startswith("standardize.")}
        state = fitted(expected, weights_of(tensors), self.names)
        parameters = sum(p.numel() for p in on_paper.parameters())
        if parameters != facts.get("trainable_parameters", parameters):
            raise UserError(f"trainable_parameters: got {facts['trainable_parameters']}, expected {parameters}")
        self.model = layout.build(facts["config"])
        self.model.load_state_dict(state, strict=False)
        self.model.to(dtype).eval()
        self.x = tensors["input"].to(dtype)
        self.known = {name.removeprefix("expected/") for name in tensors if name.startswith("expected/")}

    def comparisons(self) -> list[Comparison]:
        """The way up, the logits, the ways back, and a pass in training with its gradients and running statistics."""
        with torch.no_grad():
            found = [*self._standardized(), *self._up(), *self._back()]
        training = copy.deepcopy(self.model).train()
        found += self._trained(training)
        found += self._moved(training)
        if self.known:
            raise UserError(f"fixture: expected/{min(self.known)} is not something this configuration computes")
        return found

    def _standardized(self) -> Iterator[Comparison]:
        if "input_u8" in self.tensors:
            standardized = self.model.standardize(self.tensors["input_u8"])
            yield Comparison("input", standardized, self.tensors["input"], SINGLE)

    def _tensor(self, name: str, ours: Tensor) -> Iterator[Comparison]:
        """Ours beside what the fixture has by that name, in double precision, in single precision, or not at all."""
        self.known -= {name, f"float64/{name}"}
        if self.double and f"expected/float64/{name}" in self.tensors:
            yield Comparison(name, ours, self.tensors[f"expected/float64/{name}"], DOUBLE, "absolute")
        elif f"expected/{name}" in self.tensors:
            slack = float(self.gaps.get(name, 0.0))
            yield Comparison(name, ours, self.tensors[f"expected/{name}"], SINGLE, slack=slack)

    def _number(self, name: str, ours: Tensor, theirs: float) -> Comparison:
        tolerance, unit = (DOUBLE, "absolute") if self.double else (SINGLE, "scale")
        return Comparison(name, ours.detach(), torch.tensor(theirs, dtype=torch.float64), tolerance, unit)

    def _up(self) -> Iterator[Comparison]:
        stem, *blocks = self.model.depths_of(self.x)
        yield from self._tensor("init_psi_output", stem)
        for number, h in enumerate(blocks):
            for half, x in zip(("first", "second"), h.chunk(2, 1), strict=True):
                yield from self._tensor(f"blocks/{number}/{half}", x)
        last = self.model.represent(self.x)
        yield from self._tensor("out_bij", last)
        features = self.model.features(last)
        yield from self._tensor("features_after_bn_relu", features)
        yield from self._tensor("pooled_features", features.mean((2, 3)))
        logits = self.model.classify(last)
        yield from self._tensor("logits", logits)
        yield self._number("cross_entropy", self._loss(logits), self.numbers["cross_entropy"])

    def _loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.tensors["labels"])

    def _back(self) -> Iterator[Comparison]:
        """The inverse of the last representation, which is the image, and that of another point: going up again leads
        back to the point only if the network is bijective, and otherwise as far from it as in the program."""
        model = self.model
        last = model.represent(self.x)
        yield from self._tensor("inverse_of_out_bij", model.invert_standardized(last, restore_zeros=False))
        yield Comparison("inverse", model.invert_standardized(last), self.x, INVERSE[self.dtype], "absolute")
        point = self.tensors["expected/arbitrary_out_bij"].to(self.dtype)
        self.known -= {"arbitrary_out_bij"}
        image = model.invert_standardized(point, restore_zeros=False)
        yield from self._tensor("inverse_of_arbitrary_out_bij", image)
        error = (model.represent(image) - point).abs().max()
        theirs = torch.tensor(self.numbers["forward_of_inverse_of_arbitrary_max_abs_error"], dtype=torch.float64)
        slack = max(INVERSE[self.dtype], float(self.gaps.get("arbitrary_out_bij", 0.0)))
        yield Comparison("forward of inverse of arbitrary", error, theirs, SINGLE, slack=slack)

    def _trained(self, model: IRevNet) -> Iterator[Comparison]:
        x = self.x.clone().requires_grad_()
        numbers = self.numbers["train_mode"]
        last = model.represent(x)
        logits = model.classify(last)
        loss = self._loss(logits)
        loss.backward()
        assert x.grad is not None
        yield from self._tensor("train_mode/out_bij", last)
        yield from self._tensor("train_mode/logits", logits)
        yield self._number("train_mode/cross_entropy", loss, numbers["cross_entropy"])
        yield from self._tensor("train_mode/input_grad", x.grad)
        norms = numbers["grad_l2"]
        parameters = dict(model.named_parameters())
        if missing := [name for name, ours in self.names.items() if ours in parameters and name not in norms]:
            raise UserError(f"fixture: no gradient of {missing[0]}")
        for name, norm in norms.items():
            if self.names.get(name) not in parameters:
                raise UserError(f"fixture: gradient of {name} has no counterpart here")
            yield self._gradient(name, parameters[self.names[name]].grad, norm, max(norms.values()))
        yield self._gradient("input", x.grad, numbers["input_grad_l2"], 0.0)

    def _gradient(self, name: str, gradient: Tensor | None, norm: float, largest: float) -> Comparison:
        ours = torch.zeros(()) if gradient is None else gradient.norm()
        slack = ZERO[self.dtype] * largest if norm else 0.0
        theirs = torch.tensor(norm, dtype=torch.float64)
        return Comparison(f"gradient/{name}", ours, theirs, GRADIENT[self.dtype], "each", slack)

    def _moved(self, model: IRevNet) -> Iterator[Comparison]:
        """Running statistics after the pass in training."""
        state = model.state_dict()
        for name, ours in self.names.items():
            yield from self._tensor(f"train_mode/state_dict_after/{name}", state[ours])
