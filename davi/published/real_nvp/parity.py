"""Our Real NVP beside activations of the authors' program.

A fixture holds random weights, images and their noise, and what the program computed from them in both precisions,
once with running statistics and once with those of the batch: the outcome and the log-determinant of every coupling,
z, the terms of the likelihood, what z is decoded to, norms of gradients, and running statistics after a pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from davi.distributions.base import sum_per_image
from davi.errors import UserError
from davi.flows import Coupling, Logit, Sequential
from davi.flows.multiscale import parts
from davi.models.real_nvp import RealNVP
from davi.published.agreement import Comparison
from davi.published.real_nvp import layout
from davi.published.torch_files import fitted

SINGLE = 1e-5
"""Largest difference of a tensor that is stored in single precision, in units of its largest value."""
ROUNDING = 1e-6
"""Relative error of a sum in single precision, in units of the sum of the sizes of its terms."""
NATS = 0.05
"""Largest difference of a term of the likelihood in single precision."""
DOUBLE = 1e-9
"""Largest difference of what is known in double precision."""
GRADIENT = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest relative difference of a gradient's norm."""
ZERO = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Norms of gradients that count as zero, in units of the largest one: a bias in front of a batch norm has none."""


class RealNVPParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.tensors, self.facts, self.dtype = tensors, facts, dtype
        self.double = dtype == torch.float64
        self.numbers = facts["results"]["float64" if self.double else "float32"]
        self.gaps = facts["results"].get("float32_float64_max_abs_gap", {})
        self.x = layout.maps(tensors["input/x_uint8"])
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the file
            on_paper = layout.build(facts, self.x.shape[1])
        self.names = layout.names(on_paper)
        weights = {name: layout.weight(x) for name, x in _below("weights/", tensors).items()}
        state = fitted(on_paper.state_dict(), weights, self.names)
        self.model = layout.build(facts, self.x.shape[1])
        self.model.load_state_dict(state)
        self.model.to(dtype).eval()
        self.model.check_images(self.x)
        self.logit = Logit(layout.logit_margin(facts))
        self.known = set(_below("expected/", tensors))

    def comparisons(self) -> list[Comparison]:
        """The logit, the way through the flow with either statistics, back again, gradients, running statistics."""
        noise = layout.maps(self.tensors["input/u"]).to(self.dtype)
        h, log_det = self.logit((self.x.to(self.dtype) + noise) / layout.LEVELS)
        theirs = layout.maps(self.tensors["input/logit_x"])
        found = [Comparison("logit_x", h, theirs, SINGLE)]
        with torch.no_grad():
            found += self._mode("eval", self.model, h, log_det)
            found += self._decoded(h)
        training = copy.deepcopy(self.model).train()
        found += self._mode("train", training, h, log_det)
        found += self._gradients(training)
        found += self._moved(training)
        if self.known:
            raise UserError(f"fixture: expected/{min(self.known)} is not something this configuration computes")
        return found

    def _tensor(self, name: str, ours: Tensor, rounding: float = 0.0) -> Iterator[Comparison]:
        """Ours beside what the fixture has by that name, in single precision, in double precision, or not at all.

        Arguments:
            name: in the fixture.
            ours: of the same shape.
            rounding: what theirs may be wrong by, in single precision.
        """
        self.known -= {name, f"float64/{name}"}
        if self.double and f"expected/float64/{name}" in self.tensors:
            yield Comparison(name, ours, self.tensors[f"expected/float64/{name}"], DOUBLE, "absolute")
        elif f"expected/{name}" in self.tensors:
            gap = 0.0 if self.double else float(self.gaps.get(name, 0.0))
            yield Comparison(name, ours, self.tensors[f"expected/{name}"], SINGLE, slack=max(gap, rounding))

    def _number(self, mode: str, name: str, ours: Tensor) -> Iterator[Comparison]:
        if name in self.numbers[mode]:
            theirs = torch.tensor(self.numbers[mode][name], dtype=torch.float64)
            single = SINGLE if name == "bits_per_dim" else NATS
            yield Comparison(f"{mode}/{name}", ours, theirs, DOUBLE if self.double else single, "absolute")

    def _mode(self, mode: str, model: RealNVP, h: Tensor, logit_log_det: Tensor) -> Iterator[Comparison]:
        """The way through the flow with one kind of statistics, and the terms of the likelihood; in training the loss
        is differentiated."""
        latents, log_dets, couplings = _way(model, h)
        for name, output, log_det in couplings:
            place = f"{mode}/{name}"
            yield from self._tensor(f"{place}/output", layout.to_maps(output))
            yield from self._tensor(f"{place}/log_diff_map", layout.to_maps(log_det))
            rounding = ROUNDING * float(sum_per_image(log_det.detach().abs()).max())
            yield from self._tensor(f"{place}/log_det_per_sample", sum_per_image(log_det), rounding)
        z = layout.in_place(model, latents)
        log_det = layout.in_place(model, log_dets)
        yield from self._tensor(f"{mode}/z", z)
        yield from self._tensor(f"{mode}/log_diff_map", log_det)
        terms = {
            "log_det": sum_per_image(log_det),
            "log_p_z": model.base(len(z)).log_prob(torch.cat([part.flatten(1) for part in latents], 1)),
            "logit_log_det": sum_per_image(logit_log_det),
        }
        if mode == "train":
            (-(terms["log_p_z"] + terms["log_det"])).mean().backward()
        terms["total"] = sum(terms.values(), torch.zeros(()))
        terms["bits_per_dim"] = (math.log(layout.LEVELS) - terms["total"] / model.dims) / math.log(2.0)
        for name, ours in terms.items():
            yield from self._number(mode, name, ours)

    def _decoded(self, h: Tensor) -> Iterator[Comparison]:
        """z as the model has it, at once, and back."""
        z, log_det = self.model.scales(h)
        whole = layout.in_place(self.model, parts(z, self.model.latent_shapes))
        theirs = self.tensors["expected/float64/eval/z" if self.double else "expected/eval/z"]
        tolerance, unit = (DOUBLE, "absolute") if self.double else (SINGLE, "scale")
        yield Comparison("eval/z of the model", whole, theirs, tolerance, unit)
        back, inverse = self.model.scales.inverse(z)
        yield from self._tensor("eval/decoded_z", layout.to_maps(back))
        yield Comparison("eval/log_det of decoding", -sum_per_image(inverse), sum_per_image(log_det), tolerance, "each")

    def _gradients(self, model: RealNVP) -> Iterator[Comparison]:
        norms = self.facts["results"].get("train_grad_l2_float64", {})
        parameters = dict(model.named_parameters())
        for name, norm in norms.items():
            if self.names.get(name) not in parameters:
                raise UserError(f"fixture: gradient of {name} has no counterpart here")
            gradient = parameters[self.names[name]].grad
            ours = torch.zeros(()) if gradient is None else gradient.norm()
            floor = ZERO[self.dtype] * max(norms.values())
            theirs = torch.tensor(norm, dtype=torch.float64)
            yield Comparison(f"gradient/{name}", ours, theirs, GRADIENT[self.dtype], "each", floor)

    def _moved(self, model: RealNVP) -> Iterator[Comparison]:
        """Running statistics after the pass in training."""
        state = model.state_dict()
        for name, ours in self.names.items():
            yield from self._tensor(f"train/moving_after/{name}", state[ours])


def _way(model: RealNVP, h: Tensor) -> tuple[list[Tensor], list[Tensor], list[tuple[str, Tensor, Tensor]]]:
    """Latents of each scale, the log-determinants of all couplings up to there at the same places, and of every
    coupling its name, outcome and log-determinant."""
    names = {id(coupling): name.replace("scale_", "scale") for name, coupling in layout.couplings(model)}
    latents, log_dets, found = [], [], []
    total, scales = torch.zeros_like(h), list(model.scales)
    for scale in scales:
        moves = layout.moves(scale)
        assert isinstance(scale, Sequential)
        for part in scale:
            h, log_det = part(h)
            if isinstance(part, Coupling):
                found.append((names[id(part)], h, log_det))
                total = total + log_det
            elif part in moves:
                total, _ = part(total)
        if scale is not scales[-1]:
            (h, z), (total, done) = h.chunk(2, 1), total.chunk(2, 1)
            latents.append(z)
            log_dets.append(done)
    return [*latents, h], [*log_dets, total], found


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
