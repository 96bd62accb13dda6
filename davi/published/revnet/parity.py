"""Our reversible residual network beside activations of the authors' program.

A fixture holds random weights, images with their classes, and what the program computed from them, with running
statistics and with those of the batch: logits, the outputs of all units, what it keeps for the backward pass, the
gradients of all weights, with activations kept and re-created, and running statistics after a pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from davi.errors import UserError
from davi.layers.checkpointed import Checkpointed
from davi.models.revnet import RevNet
from davi.published.agreement import Comparison
from davi.published.revnet import layout
from davi.published.torch_files import fitted

SINGLE = 1e-5
"""Largest difference of a tensor in single precision, in units of its largest value."""
DOUBLE = 1e-9
"""Largest difference of what is known in double precision."""
GRADIENT = {torch.float32: 1e-2, torch.float64: 1e-6}
"""Largest relative difference of a gradient's norm. In single precision a unit near 0 may be on in one program and off
in the other."""
ALIKE = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Largest difference of gradients with activations re-created and kept, in units of their largest value."""


class RevNetParity:
    """All comparisons of one fixture, in the order of the computation.

    Arguments:
        tensors: content of the fixture's safetensors file.
        facts: content of the JSON file beside it.
        dtype: float32 or float64.
    """

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.tensors, self.facts, self.dtype = tensors, facts, dtype
        self.double = dtype == torch.float64
        self.results = facts["results"]
        self.gaps = self.results.get("float32_float64_max_abs_gap", {})
        self.x = layout.maps(tensors["input_u8"])
        self.y = tensors["labels"].long()
        with torch.device("meta"):  # nothing is allocated before the shapes are known to be those of the file
            on_paper = layout.build(facts)
        self.names = layout.names(on_paper)
        weights = {name: layout.weight(x) for name, x in _below("weights/", tensors).items()}
        state = fitted(on_paper.state_dict(), weights, self.names)
        self.model = layout.build(facts)
        self.model.load_state_dict({**self.model.state_dict(), **state})
        self.model.to(dtype).eval()
        self.model.check_images(self.x)
        # The program was given numbers in single precision, whatever it computed in.
        single = (self.x.double() / (layout.LEVELS - 1)).float().to(dtype)
        self.model.standardize.register_forward_hook(lambda *_: single)
        self.known = set(_below("expected/", tensors))

    def comparisons(self) -> list[Comparison]:
        """The size, the outputs with either statistics, running statistics, gradients by either way."""
        size = sum(parameter.numel() for parameter in self.model.parameters())
        found = [_number("trainable_parameters", size, self.facts["trainable_parameters"], 0.0)]
        found += self._outputs("eval", self.model)
        training = copy.deepcopy(self.model).train()
        found += self._outputs("train", training)
        found += self._decay()
        found += self._moved(training)
        found += self._both_gradients()
        if self.known:
            raise UserError(f"fixture: expected/{min(self.known)} is not something this configuration computes")
        return found

    def _tensor(self, name: str, ours: Tensor) -> Iterator[Comparison]:
        """Ours beside what the fixture has by that name, in single precision, in double precision, or not at all."""
        self.known -= {name, f"float64/{name}"}
        if self.double and f"expected/float64/{name}" in self.tensors:
            yield Comparison(name, ours, self.tensors[f"expected/float64/{name}"], DOUBLE, "absolute")
        elif f"expected/{name}" in self.tensors:
            gap = float(self.gaps.get(name.partition("/")[2], 0.0))
            yield Comparison(name, ours, self.tensors[f"expected/{name}"], SINGLE, slack=gap)

    @torch.no_grad()
    def _outputs(self, mode: str, model: RevNet) -> Iterator[Comparison]:
        """What is kept, the halves after each unit, logits, and the loss."""
        stem, *outputs = model.at_depths(self.x)
        yield from self._tensor(f"{mode}/saved_hidden/0", layout.to_maps(stem))
        ends = [end - 1 for end in accumulate(model.config.units)]
        for number, (name, output) in enumerate(zip(layout.units(model), outputs, strict=True)):
            for half, y in enumerate(output.chunk(2, 1)):
                yield from self._tensor(f"{mode}/{name}/y{half + 1}", layout.to_maps(y))
                if number in ends:
                    stage = ends.index(number) + 1
                    yield from self._tensor(f"{mode}/saved_hidden/{stage}/{half}", layout.to_maps(y))
        logits = model.head(outputs[-1])
        yield from self._tensor(f"{mode}/logits", logits)
        entropy, of_mode = F.cross_entropy(logits, self.y), self.results[mode]
        theirs = of_mode["cross_entropy_float64" if self.double else "cross_entropy_float32"]
        yield _number(f"{mode}/cross_entropy", entropy, theirs, DOUBLE if self.double else SINGLE)

    def _decay(self) -> Iterator[Comparison]:
        """The term of weight decay in the loss."""
        state = self.model.state_dict()
        decayed = [state[ours].square().sum() for name, ours in self.names.items() if layout.decays(name)]
        ours = 0.5 * float(self.facts["config"]["wd"]) * torch.stack(decayed).sum()
        yield _number("train/weight_decay", ours, self.results["train"]["weight_decay_term_of_cost"], SINGLE)

    def _moved(self, model: RevNet) -> Iterator[Comparison]:
        """Running statistics after the pass in training."""
        state = model.state_dict()
        for name, ours in self.names.items():
            yield from self._tensor(f"train/ema_after_one_step/{name}", state[ours])

    def _both_gradients(self) -> Iterator[Comparison]:
        """With activations re-created and kept: each beside theirs, and one beside the other."""
        manual, plain = (self._gradients(way) for way in ("manual", "plain"))
        for way, gradients in (("manual", manual), ("plain", plain)):
            yield from self._norms(way, gradients)
            for name, ours in gradients.items():
                key = f"grad_with_weight_decay/{name}"
                self.known -= {f"float64/{key}"}
                stored = self.tensors.get(f"expected/float64/{key}")
                if self.double and stored is not None:
                    yield Comparison(f"{way}/{key}", ours, layout.weight(stored), DOUBLE, "absolute")
        for name, ours in manual.items():
            yield Comparison(f"manual beside plain/{name}", ours, plain[name], ALIKE[self.dtype])

    def _gradients(self, way: str) -> dict[str, Tensor]:
        """Of the loss with weight decay, by their names."""
        model = copy.deepcopy(self.model).train()
        for block in model.blocks():
            assert isinstance(block, Checkpointed)
            block.recompute = way == "manual"
        parameters = dict(model.named_parameters())
        weights = {theirs: parameters[ours] for theirs, ours in self.names.items() if ours in parameters}
        entropy = F.cross_entropy(model(self.x), self.y)
        decay = 0.5 * float(self.facts["config"]["wd"])
        (entropy + decay * sum(w.square().sum() for name, w in weights.items() if layout.decays(name))).backward()
        return {name: w.grad for name, w in weights.items() if w.grad is not None}

    def _norms(self, way: str, gradients: Mapping[str, Tensor]) -> Iterator[Comparison]:
        for name, norm in self.results[f"grad_l2_float64_{way}_with_weight_decay"].items():
            if name not in gradients:
                raise UserError(f"fixture: gradient of {name} has no counterpart here")
            yield _number(f"{way}/norm/{name}", gradients[name].norm(), norm, GRADIENT[self.dtype])


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _number(name: str, ours: Tensor | float, theirs: float, tolerance: float) -> Comparison:
    """A number, with a relative tolerance."""
    one = torch.as_tensor(ours, dtype=torch.float64)
    return Comparison(name, one, torch.tensor(theirs, dtype=torch.float64), tolerance, "each")
